"""Saving and loading networks, from a directory, a run or the Hub; nothing is unpickled, and errors have one line."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from ave.data.dataset import AVE_CATEGORIES
from ave.networks import load_network
from ave.networks.cmran import CMRAN
from oracles import fill_parameters

FILES = {"config.json", "model.safetensors", "README.md"}
SMALL = {"video_dim": 11, "audio_dim": 7, "embed_dim": 18, "num_heads": 3, "dim_feedforward": 29}


def make_model(setting="supervised", **options):
    return fill_parameters(CMRAN(setting, **{**SMALL, "categories": ["Bark", "Clock", "Horse"], **options})).eval()


def load_model(checkpoint=None, official=None):
    return load_network(checkpoint, official, AVE_CATEGORIES)


def assert_same(model, expected):
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    for name in ("setting", "senses", "video_dim", "audio_dim", "num_categories", "categories"):
        assert getattr(model, name) == getattr(expected, name)
    assert not model.training


@pytest.fixture
def saved(tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("senses", ["both", "hearing"])
def test_round_trip(setting, senses, tmp_path, capfd, draw, assert_close):
    model = make_model(setting, senses=senses, num_layers=1)
    model.save_pretrained(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES
    loaded = CMRAN.from_pretrained(tmp_path / "model")
    assert_same(loaded, model)
    inputs = draw(2, 5, 3, 2, 11, dtype=torch.float32), draw(2, 5, 7, dtype=torch.float32)
    assert_close(loaded(*inputs).event, model(*inputs).event)
    assert_same(load_model(str(tmp_path / "model")), model)
    assert capfd.readouterr() == ("", "")


def test_config_says_all_and_is_overruled(tmp_path):
    model = CMRAN("weak", **SMALL, num_layers=3, dropout=0.3, input_dropout=0.5, categories=("Bark",), senses="sight")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {
        "network": "CMRAN",
        "setting": "weak",
        **SMALL,
        "num_layers": 3,
        "num_categories": None,
        "dropout": 0.3,
        "input_dropout": 0.5,
        "categories": ["Bark"],
        "senses": "sight",
        "relation": "cmra",
        "guidance": "agsca",
        "interaction": "av",
        "own_projections": False,
    }
    assert CMRAN.from_pretrained(tmp_path, input_dropout=0.25).input_dropout.p == 0.25


def test_loaded_network_is_saved_alike(saved, tmp_path):
    CMRAN.from_pretrained(saved).save_pretrained(tmp_path / "again")
    assert {name: (saved / name).read_bytes() for name in FILES} == {
        name: (tmp_path / "again" / name).read_bytes() for name in FILES
    }


def test_model_card(tmp_path):
    """The model card shows the arguments, numbers and text of the metrics, but no lists."""
    metrics = {"accuracy": 0.78125, "chosen_epoch": 3, "best_on": "val", "history": [1, 2], "none": None}
    make_model("weak", senses="sight").save_pretrained(tmp_path, model_card_kwargs={"data": "AVE", "metrics": metrics})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "crossmodal-attn"
    assert card.data.pipeline_tag == "video-classification"
    assert "audio-visual-event-localization" in card.data.tags
    lines = card.text.splitlines()
    assert "| setting | weak: trained on one label for the whole video |" in lines
    assert "| trained on | AVE |" in lines
    assert "| visual features | (videos, seconds, height, width, 11) |" in lines
    assert "| input | only sight; the other modality is set to zero |" in lines
    start = lines.index("| relation | cmra |")
    assert lines[start + 1 : start + 4] == [
        "| guidance | agsca |",
        "| interaction | av |",
        "| own projections | False |",
    ]
    start = lines.index("## Results")
    assert lines[start + 2 : start + 8] == [
        "| metric | |",
        "|---|---|",
        "| accuracy | 0.7812 |",
        "| chosen epoch | 3 |",
        "| best on | val |",
        "",
    ]
    assert lines[lines.index("## Categories") + 2 :][:4] == ["0. Bark", "1. Clock", "2. Horse", ""]
    assert "10.1145/3394171.3413581" in card.text
    for left_over in ("{{", "{%", "None", "history"):
        assert left_over not in card.text


def test_model_card_without_figures_and_names(tmp_path):
    make_model(categories=None).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| categories | 28, and background |" in card
    for absent in ("Results", "trained on |", "Categories", "given only"):
        assert absent not in card


def test_failed_saving_leaves_no_weights(tmp_path, monkeypatch):
    write = Path.write_bytes

    def fail(path, data):
        write(path, data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space left"):
        make_model().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_with_one_seed_is_named_by_its_directory(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "seed-3" / "model")
    (tmp_path / "config.json").write_text('{"settings": {}}')
    for place in (tmp_path, tmp_path / "seed-3", tmp_path / "seed-3" / "model"):
        assert_same(load_model(str(place)), model)


def test_training_with_several_seeds_leaves_the_choice(tmp_path):
    for seed in (3, 5):
        make_model().save_pretrained(tmp_path / f"seed-{seed}" / "model")
    with pytest.raises(ValueError, match=r"holds several: name one of .*seed-3/model, .*seed-5/model$"):
        load_model(str(tmp_path))


def test_an_unfinished_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"settings": {}}')
    (tmp_path / "seed-3" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"must be a finished run, got {tmp_path}: finish it with train --resume"):
        load_model(str(tmp_path))


def edit(change):
    """Change the weights of a saved network."""

    def write(directory):
        weights = load_file(directory / "model.safetensors")
        change(weights)
        save_file(weights, directory / "model.safetensors")

    return write


def configure(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def cut(directory, name, size):
    (directory / name).write_bytes((directory / name).read_bytes()[:size])


def leave_pickle_only(directory):
    weights = load_file(directory / "model.safetensors")
    torch.save(weights, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


DAMAGES = [
    (shutil.rmtree, "must be a directory that save_pretrained wrote, or hf:owner/name .*, which is not a directory"),
    (
        lambda path: (path / "config.json").unlink(),
        "must hold config.json and model.safetensors, .* got no config.json",
    ),
    (
        lambda path: (path / "model.safetensors").unlink(),
        "got no model.safetensors; pickled weights, .* are never read",
    ),
    (leave_pickle_only, "got no model.safetensors; pickled weights, such as pytorch_model.bin, are never read"),
    (partial(cut, name="model.safetensors", size=-97), "model.safetensors must be a complete safetensors file"),
    (partial(cut, name="model.safetensors", size=5), "model.safetensors must be a complete safetensors file"),
    (partial(cut, name="model.safetensors", size=0), "model.safetensors must be a complete safetensors file"),
    (partial(cut, name="config.json", size=30), "config.json must hold a JSON object, got: "),
    (lambda path: (path / "config.json").write_bytes(b"\xff\xfe"), "config.json must hold a JSON object, got: "),
    (lambda path: (path / "config.json").write_text("[1]"), "config.json must hold a JSON object, got: 'list'"),
    (partial(configure, width=3), "config.json must hold the arguments of the network, got unknown ones: width"),
    (
        partial(configure, setting="strong"),
        'config.json must hold the arguments of a CMRAN, got: setting must be "super',
    ),
    (partial(configure, num_heads=5), "got: embed_dim must be divisible by num_heads"),
    (partial(configure, video_dim="wide"), "config.json must hold the arguments of a CMRAN"),
    (partial(configure, categories=["Bark", "Bark"]), "got: categories must be 2 different names"),
    (partial(configure, num_layers=10**9), "must hold numbers that fit its weights, got num_layers=1000000000"),
    (partial(configure, embed_dim=12_000), "must hold the weights of its config.json, got: "),
    (partial(configure, embed_dim=10**9), "must hold numbers that fit its weights, got embed_dim=1000000000"),
    (partial(configure, embed_dim=27), "must hold the weights of its config.json, got: .*size mismatch for"),
    (
        lambda path: (path / "config.json").write_text("[" * 200_000),
        "config.json must hold a JSON object, got: .*nested too deep",
    ),
    (partial(configure, audio_dim=13), "must hold the weights of its config.json, got: .*size mismatch"),
    (edit(lambda weights: weights.pop("event_head.bias")), 'got: .*Missing key.* "event_head.bias"'),
    (edit(lambda weights: weights.update(extra=torch.ones(3))), 'got: .*Unexpected key.* "extra"'),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_checkpoint(saved, damage, message):
    damage(saved)
    with pytest.raises((ValueError, OSError), match=message) as error:
        load_model(str(saved))
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises((ValueError, OSError, AttributeError, RecursionError)):  # of JSON the mixin's own
        CMRAN.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(FileNotFoundError, match=f"got no {name}"):
        load_model(str(saved))
    with pytest.raises((FileNotFoundError, ValueError), match=name):
        CMRAN.from_pretrained(saved)


def test_weights_that_are_not_finite_are_refused(saved):
    edit(lambda weights: weights["event_head.bias"].fill_(torch.nan))(saved)
    with pytest.raises(
        ValueError, match=r"must have finite weights, got NaN or Inf in 1, the first is event_head\.bias"
    ):
        load_model(str(saved))


def test_more_can_be_allowed(saved):
    edit(lambda weights: weights.pop("event_head.bias"))(saved)
    assert CMRAN.from_pretrained(saved, strict=False).video_dim == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None), "one of --checkpoint and --official must be given, got None and None"),
        (("a", Path("b")), "one of --checkpoint and --official must be given, got a and b"),
        ((__file__, None), "--checkpoint must be a directory, got the file .*; --official reads the authors' files"),
        (("", None), "must be a directory|must hold config.json"),
    ],
)
def test_what_is_no_checkpoint(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        load_model(*arguments)


def test_without_a_network_the_hub_is_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"hf:owner/name must be on the Hugging Face Hub, got: ") as error:
        load_model("hf:owner/name")
    assert "\n" not in str(error.value)


def test_only_what_says_so_is_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CMRAN, "from_pretrained", None)
    for name in ("owner/name", "runs/misspelled", "hf:name", "hf:a/b/c"):
        with pytest.raises((ValueError, OSError), match=f"--checkpoint must be a directory .* got {name}"):
            load_model(name)


class Hub(http.server.BaseHTTPRequestHandler):
    """Serve the files in ``directory`` as one repository of the Hub."""

    directory: Path
    commit = "0123456789" * 4

    def do_GET(self):
        path = self.path.partition("?")[0]
        files = {file.name: file.read_bytes() for file in self.directory.iterdir()}
        digests = {name: hashlib.sha1(content, usedforsecurity=False).hexdigest() for name, content in files.items()}
        if path == "/api/models/owner/name/revision/main":
            return self.answer(json.dumps({"id": "owner/name", "sha": self.commit}).encode())
        if path == f"/api/models/owner/name/tree/{self.commit}":
            tree = [
                {"type": "file", "path": name, "size": len(files[name]), "oid": digest}
                for name, digest in digests.items()
            ]
            return self.answer(json.dumps(tree).encode())
        place, _, name = path.rpartition("/")
        if place in (f"/owner/name/resolve/{self.commit}", "/owner/name/resolve/main") and name in files:
            return self.answer(files[name], {"ETag": f'"{digests[name]}"', "X-Repo-Commit": self.commit})
        return self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, body, headers=()):
        self.send_response(200)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


LOAD = "import sys; from ave.networks import *; load_network(sys.argv[1], None, ()).save_pretrained(sys.argv[2])"


def load_from_hub(directory, tmp_path):
    """Serve a directory on this machine, and load it in a process that uses it as the Hub."""
    handler = type("Handler", (Hub,), {"directory": directory})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            return subprocess.run(  # noqa: S603
                [sys.executable, "-c", LOAD, "hf:owner/name", str(tmp_path / "loaded")],
                cwd=tmp_path,
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(__file__).parents[1] / "examples"),
                    "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                    "HF_HOME": str(tmp_path / "cache"),
                    "HF_HUB_OFFLINE": "",
                },
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            server.shutdown()


def test_from_a_hub(saved, tmp_path):
    """Only the config and the weights are downloaded; there is nothing to unpickle."""
    torch.save({}, saved / "pytorch_model.bin")
    done = load_from_hub(saved, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "loaded" / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    downloaded = {path.name for path in (tmp_path / "cache").glob("hub/models--owner--name/snapshots/*/*")}
    assert downloaded == {"config.json", "model.safetensors"}


def test_from_a_hub_with_pickled_weights_only(saved, monkeypatch):
    leave_pickle_only(saved)
    monkeypatch.setattr("ave.networks.pretrained.snapshot_download", lambda *_, **__: saved)
    message = "owner/name must hold config.json and model.safetensors, as save_pretrained writes them, got no model.saf"
    with pytest.raises(FileNotFoundError, match=message):
        load_network("hf:owner/name")
