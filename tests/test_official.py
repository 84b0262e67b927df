"""The authors' weights in our layers give the authors' outputs, losses and gradients, in float64.

Weights and inputs of the golden case are random numbers with seeds from their names. `golden/official.npz` has the
results of the authors' released code, `golden/official_shapes.json` the names and shapes of its parameters.
"""

import json
import os
import pickle
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ave.data.dataset import AVE_CATEGORIES
from ave.networks.authors_weights import load_official_state_dict, read_official
from ave.networks.cmran import CMRAN
from ave.networks.two_scores import supervised_loss, video_scores, weak_loss
from crossmodal_attn import AGSCA, AVInteraction, CrossModalRelation

GOLDEN = Path(__file__).parent / "golden"
SHAPES = json.loads((GOLDEN / "official_shapes.json").read_text())
FIGURES = np.load(GOLDEN / "official.npz")
SETTINGS = ("supervised", "weak")


def draw(key, shape, low=0.0, high=1.0):
    count = int(np.prod(shape))
    uniform = (np.random.PCG64(zlib.crc32(key.encode())).random_raw(count) >> 11) * 2.0**-53
    return torch.from_numpy(low + (high - low) * uniform).reshape(shape)


@cache
def _draw_once(module):
    def bounds(name, shape):
        if name.endswith(("norm1.weight", "norm2.weight")):
            return 0.5, 1.5
        bound = 0.1 if len(shape) == 1 else (3 / shape[-1]) ** 0.5
        return -bound, bound

    return {name: draw(f"case1/{module}/{name}", shape, *bounds(name, shape)) for name, shape in SHAPES[module].items()}


def draw_weights(module):
    return dict(_draw_once(module))


def draw_inputs():
    return draw("case1/visual", (2, 10, 7, 7, 512)), draw("case1/audio", (2, 10, 128))


def draw_sequences():
    return draw("case1/query", (2, 10, 256), -1, 1), draw("case1/context", (2, 10, 256), -1, 1)


def draw_labels():
    draws = draw("case1/labels", (2, 10), 0, 29).floor().long()
    category = draw("case1/category", (2,), 0, 28).floor().long()
    return torch.nn.functional.one_hot(torch.where(draws >= 14, 28, category[:, None]), 29).double()


def official_cmran(setting, **options):
    model = CMRAN(setting, **options).double()
    return load_official_state_dict(model, draw_weights(f"cmran_{setting}"))


def assert_golden(actual, name, tolerance=1e-10):
    expected = torch.from_numpy(FIGURES[f"case1/{name}"])
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=tolerance)


def test_agsca():
    layer = load_official_state_dict(AGSCA(512, 128).double(), draw_weights("agsca"))
    assert_golden(layer(*draw_inputs()), "agsca/output")


def test_decoder_layer():
    layer = load_official_state_dict(CrossModalRelation(256, 4).double().eval(), draw_weights("relation_layer"))
    assert_golden(layer(*draw_sequences()), "relation_layer/output")


def test_encoder_layer():
    layer = load_official_state_dict(CrossModalRelation(256, 4).double().eval(), draw_weights("self_layer"))
    assert_golden(layer(draw_sequences()[0]), "self_layer/output")


@pytest.mark.parametrize("heads", [2, 4])
def test_interaction(heads):
    layer = load_official_state_dict(AVInteraction(256, heads).double().eval(), draw_weights("interaction"))
    assert_golden(layer(*draw_sequences()), f"interaction_{heads}heads/output")


@pytest.mark.parametrize("setting", SETTINGS)
def test_cmran_outputs(setting):
    model = official_cmran(setting).eval()
    with torch.no_grad():
        logits = model(*draw_inputs())
    assert_golden(logits.event, f"cmran_{setting}/event_logits")
    assert_golden(logits.category, f"cmran_{setting}/category_logits")
    if setting == "weak":
        assert_golden(video_scores(logits), "cmran_weak/video_scores")


@pytest.mark.parametrize("setting", SETTINGS)
def test_cmran_training(setting):
    """Compare six clipped Adam steps without dropout: the first gradient norm, and the loss before each step."""
    model = official_cmran(setting, dropout=0.0, input_dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    inputs, labels = draw_inputs(), draw_labels()
    losses, norms = [], []
    for _ in range(6):
        optimizer.zero_grad()
        logits = model(*inputs)
        loss = supervised_loss(logits, labels) if setting == "supervised" else weak_loss(logits, labels.mean(1))
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1 if setting == "supervised" else 0.5))
        optimizer.step()
        losses.append(loss.detach())
    assert_golden(norms[0], f"cmran_{setting}/grad_norm", 1e-8)
    assert_golden(torch.stack(losses), f"cmran_{setting}/losses", 1e-8)


@pytest.mark.parametrize("setting", SETTINGS)
def test_data_parallel_prefix(setting):
    weights = draw_weights(f"cmran_{setting}")
    model = CMRAN(setting).double()
    load_official_state_dict(model, {f"module.{name}": value for name, value in weights.items()})
    expected = official_cmran(setting).state_dict()
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)


def test_every_parameter_is_filled():
    before = CMRAN().double()
    after = official_cmran("supervised").state_dict()
    assert all(not torch.equal(value, after[name]) for name, value in before.state_dict().items())


def test_faults_are_listed_and_nothing_is_filled():
    weights = draw_weights("cmran_supervised")
    del weights["v_fc.bias"]
    weights["AVInter.extra"] = torch.zeros(3)
    weights["localize_module.classifier.weight"] = torch.zeros(2, 256)
    model = CMRAN()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"missing: v_fc\.bias; unexpected: AVInter\.extra; misshapen: localize_mod"
    ) as error:
        load_official_state_dict(model, weights)
    assert "(2, 256), expected (1, 256)" in str(error.value)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "state_dict", "message"),
    [
        (torch.nn.Linear(2, 3), {}, "layer must be a CMRAN, AGSCA, AVInteraction or CrossModalRelation, got Linear"),
        (AGSCA(512, 128), None, "state_dict must map names to tensors, got NoneType"),
        (CMRAN(), None, "state_dict must map names to tensors, got NoneType"),
        (CMRAN(), {"epoch": 3}, "state_dict must map names to tensors, got int at 'epoch'"),
        (CMRAN(), {"state_dict": {}}, "state_dict must map names to tensors, got dict at 'state_dict'"),
    ],
)
def test_what_is_no_state_dict(model, state_dict, message):
    with pytest.raises(TypeError, match=message):
        load_official_state_dict(model, state_dict)


def test_tensor_without_dimensions_is_misshapen():
    weights = draw_weights("interaction") | {"video_multihead.in_proj_weight": torch.tensor(1.0)}
    with pytest.raises(ValueError, match=r"misshapen: video_multihead\.in_proj_weight \(gives attention.* shape \(\)"):
        load_official_state_dict(AVInteraction(256, 4), weights)


def test_weights_of_the_other_setting_are_misshapen():
    with pytest.raises(
        ValueError, match=r"misshapen: localize_module\.event_classifier\.weight .*\(29, 256\), expected \(28"
    ):
        load_official_state_dict(CMRAN("supervised"), draw_weights("cmran_weak"))


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        (AGSCA(512, 128), "agsca"),
        (CrossModalRelation(256, 4), "relation_layer"),
        (CrossModalRelation(256, 4), "self_layer"),
        (AVInteraction(256, 4), "interaction"),
    ],
)
def test_faults_of_one_module(layer, module):
    weights = draw_weights(module)
    weights["typo.weight"] = weights.pop(next(iter(weights)))
    with pytest.raises(ValueError, match=rf"does not fit this {type(layer).__name__}.*unexpected: typo\.weight"):
        load_official_state_dict(layer, weights)


def test_weights_of_another_layer():
    with pytest.raises(ValueError, match=r"does not fit this AGSCA\. missing: affine_audio_1\.bias, .*unexpected: "):
        load_official_state_dict(AGSCA(512, 128), draw_weights("interaction"))


def save(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("setting", "prefix", "wrapped"), [("supervised", "", False), ("supervised", "module.", True), ("weak", "", True)]
)
def test_file_of_the_authors(setting, prefix, wrapped, tmp_path):
    """A bare state dict or a whole checkpoint, with or without DataParallel, in float64, gives the right CMRAN."""
    weights = {f"{prefix}{name}": value for name, value in draw_weights(f"cmran_{setting}").items()}
    content = {"state_dict": weights, "epoch": 3, "best": 0.7, "args": "x"} if wrapped else weights
    model = read_official(save(tmp_path / "best.pth.tar", content), AVE_CATEGORIES)
    assert (model.setting, model.video_dim, model.audio_dim) == (setting, 512, 128)
    assert model.categories == AVE_CATEGORIES
    assert not model.training
    expected = {name: value.float() for name, value in official_cmran(setting).state_dict().items()}
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("old", [False, True])
def test_file_gives_the_authors_figures_in_float32(old, tmp_path):
    path = tmp_path / "best.pth.tar"
    torch.save(draw_weights("cmran_supervised"), path, _use_new_zipfile_serialization=not old)
    with torch.no_grad():
        logits = read_official(path)(*(features.float() for features in draw_inputs()))
    assert_golden(logits.event.double(), "cmran_supervised/event_logits", 1e-4)
    assert_golden(logits.category.double(), "cmran_supervised/category_logits", 1e-4)


def test_widths_of_a_file_follow_from_its_shapes(tmp_path):
    """A checkpoint with 37 visual and 11 audio channels gives a CMRAN of these widths."""
    widths = {512: 37, 128: 11}
    weights = {
        name: torch.zeros([widths.get(size, size) for size in shape]) for name, shape in SHAPES["cmran_weak"].items()
    }
    model = read_official(save(tmp_path / "best.pth.tar", weights))
    assert (model.setting, model.video_dim, model.audio_dim) == ("weak", 37, 11)


class Hostile:
    """An object that runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("old", [False, True])
def test_what_could_run_code_is_refused(old, tmp_path):
    content = {"v_fc.bias": torch.zeros(3), "hook": Hostile(f"touch {tmp_path / 'harm'}")}
    torch.save(content, tmp_path / "best.pth.tar", _use_new_zipfile_serialization=not old)
    with pytest.raises(
        ValueError, match=r"best\.pth\.tar must be .* of tensors only, .* got \w+\.system, refused because"
    ):
        read_official(tmp_path / "best.pth.tar")
    assert not (tmp_path / "harm").exists()


def save_changed(path, changes):
    """Return all of the authors' parameters, with some replaced, or left out if None."""
    stored = torch.zeros(2048 * 512)  # once for all
    shapes = {name: torch.Size(shape) for name, shape in SHAPES["cmran_supervised"].items()}
    weights = {name: stored[: shape.numel()].view(shape) for name, shape in shapes.items()} | changes
    return save(path, {name: value for name, value in weights.items() if value is not None})


def pack(path):
    """Save a checkpoint that unpacks to a hundred times its size."""
    save(path, {"weight": torch.zeros(10**6)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda _: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "must be a regular file, got a directory"),
        (os.mkfifo, "must be a regular file, got a named pipe"),
        (lambda path: path.write_bytes(b""), "must be a complete checkpoint of tensors only"),
        (lambda path: path.write_text("no checkpoint at all"), "must be a complete checkpoint of tensors only"),
        (
            lambda path: path.write_bytes(save(path, [torch.rand(97)]).read_bytes()[:-211]),
            "must be a complete checkpoint",
        ),
        (
            lambda path: path.write_bytes((GOLDEN / "official.npz").read_bytes()),
            "must be a complete checkpoint of tensors only",
        ),
        (lambda path: path.write_bytes(pickle.dumps({"v_fc.weight": [1.0]})), "must be a complete checkpoint"),
        (
            lambda path: save(path, torch.nn.Linear(2, 3)),
            "must be a complete checkpoint of tensors only, by torch.save, got torch.nn.modules.linear.Linear",
        ),
        (
            lambda path: save(path, {"accuracy": np.float64(0.7)}),
            "must be a complete checkpoint of tensors only, by torch.save, got numpy.*scalar, refused",
        ),
        (lambda path: save(path, [1, 2]), "got: state_dict must map names to tensors, got list"),
        (lambda path: save(path, {}), r"got: no matrix localize_module\.event_classifier\.weight"),
        (lambda path: save(path, {"state_dict": {"epoch": 3}}), "got: state_dict must map names to tensors, got int"),
        (
            lambda path: save(path, CMRAN(video_dim=11, audio_dim=7).state_dict()),
            r"must be a checkpoint of the authors' CMRAN, got: no matrix localize_module",
        ),
        (
            lambda path: save_changed(path, {"localize_module.event_classifier.weight": torch.zeros(31, 256)}),
            r"event_classifier\.weight with 31 rows, neither 28 \(supervised\) nor 29 \(weak\)",
        ),
        (
            lambda path: save_changed(path, {"v_fc.weight": torch.zeros(1).expand(512, 10**12)}),
            r"v_fc\.weight of shape \(512, 1000000000000\), which is not stored in full",
        ),
        (
            lambda path: save_changed(path, {"v_fc.weight": torch.zeros(512, 10**5)}),
            r"state_dict does not fit this CMRAN. misshapen: v_fc\.weight",
        ),
        (pack, "must be a complete checkpoint of tensors only"),
        (lambda path: save_changed(path, {"v_fc.weight": torch.zeros(512)}), r"no matrix v_fc\.weight"),
        (lambda path: save_changed(path, {"v_fc.bias": None}), r"state_dict does not fit .*missing: v_fc\.bias"),
        (
            lambda path: save_changed(path, {"AVInter.video_multihead.out_proj.bias": torch.zeros(3)}),
            r"misshapen: AVInter\.video_multihead\.out_proj\.bias .*\(3,\), expected \(256,\)",
        ),
    ],
)
def test_damaged_file(write, message, tmp_path):
    path = tmp_path / "best.pth.tar"
    write(path)
    with pytest.raises((OSError, ValueError), match=message) as error:
        read_official(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
