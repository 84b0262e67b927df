"""The command: what it trains, prints and leaves behind, and what it refuses."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import ave_cmran
from ave import training
from ave.data import read_release
from ave.evaluation import segment_accuracy, split_loader
from ave.model import CMRAN
from ave.procedural import make_procedural_set
from ave_release import SHAPE, run_main, write_release

FILES = {"config.json", "metrics.json", "weights.safetensors", "timelines.png", "attention.png"}


@pytest.fixture
def release(tmp_path):
    directory = tmp_path / "release"
    directory.mkdir()
    write_release(directory)
    return directory


@pytest.mark.parametrize(("setting", "precision"), [("supervised", "fp32"), ("weak", "bf16")])
def test_run_on_a_release(release, tmp_path, setting, precision, capsys):
    options = ("--setting", setting, "--precision", precision, "--epochs", 2, "--batch-size", 5)
    output, metrics = run_main(tmp_path, "--data", release, *options)
    printed = capsys.readouterr().out
    assert metrics["test_segments"] == 5 * SHAPE["segments"]
    assert [line["epoch"] for line in metrics["history"]] == [1, 2]
    assert f"{metrics['test_accuracy']:.1%}" in printed
    assert f"{metrics['background_accuracy']:.1%}" in printed
    assert "object_attention" not in metrics
    assert {path.name for path in output.iterdir()} == FILES
    config = json.loads((output / "config.json").read_text())
    assert config["device"] == str(AcceleratorState().device)
    model = CMRAN(**config["model"])
    model.load_state_dict(load_file(output / "weights.safetensors"))


def test_metrics_follow_from_the_history(release, tmp_path):
    _, metrics = run_main(tmp_path, "--data", release, "--epochs", 4)
    history = metrics["history"]
    chosen = max(history, key=lambda epoch: epoch["val_accuracy"])
    assert (metrics["chosen_epoch"], metrics["test_accuracy"]) == (chosen["epoch"], chosen["test_accuracy"])
    assert metrics["best_test_accuracy"] == max(epoch["test_accuracy"] for epoch in history)


def test_weights_are_those_of_the_chosen_epoch(release, tmp_path):
    """The saved weights give the accuracy that is printed, whichever epoch was the best on val."""
    output, metrics = run_main(tmp_path, "--data", release, "--epochs", 4, "--lr", 0.01)
    data = read_release(release)
    config = json.loads((output / "config.json").read_text())
    model = CMRAN(**config["model"])
    model.load_state_dict(load_file(output / "weights.safetensors"))
    accuracy = segment_accuracy(model, split_loader(data, "test"), len(data.categories))
    assert accuracy == pytest.approx(metrics["test_accuracy"])


def test_same_seed_same_run(release, tmp_path):
    options = ("--data", release, "--epochs", 2, "--batch-size", 13)
    # Two epochs, so that what the first leaves behind counts too.
    first, again, other = (run_main(tmp_path, *options, "--seed", seed)[1] for seed in (3, 3, 4))
    assert first["history"] == again["history"]
    assert first["history"] != other["history"]


def test_run_on_the_procedural_set(tmp_path, monkeypatch, capsys):
    """The default, on few videos: attention is scored against the true cells, and nothing passes for AVE."""
    monkeypatch.setattr(
        ave_cmran,
        "make_procedural_set",
        lambda: make_procedural_set(num_train=5, num_val=3, num_test=7, num_background=2),
    )
    _, metrics = run_main(tmp_path, "--epochs", 1)
    assert metrics["data"] == "procedural, not AVE"
    assert 0 < metrics["object_attention_if_uniform"] < 4 / 49
    assert 0 < metrics["object_attention"] < 1
    assert "procedural set (not AVE)" in capsys.readouterr().out


@pytest.mark.parametrize(("senses", "silent"), [("sight", 1), ("hearing", 0)])
def test_one_sense(senses, silent):
    """A network that is given one sense does not change with the other."""
    generator = torch.Generator().manual_seed(0)
    model = CMRAN(video_dim=11, audio_dim=7).eval()
    ave_cmran.limit_senses(model, senses)
    inputs = [torch.rand(2, 5, 3, 2, 11, generator=generator), torch.rand(2, 5, 7, generator=generator)]
    expected = model(*inputs)
    changed = list(inputs)
    changed[silent] = changed[silent] + 1
    torch.testing.assert_close(model(*changed), expected)
    changed = list(inputs)
    changed[1 - silent] = changed[1 - silent] + 1
    assert not torch.equal(model(*changed).event_logits, expected.event_logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: expected a number above 0, got 0"),
        (["--batch-size", "many"], "--batch-size: invalid int value: 'many'"),
        (["--lr", "-1"], "--lr: expected a number above 0, got -1"),
        (["--lr", "nan"], "--lr: expected a number above 0, got nan"),
        (["--lr", "inf"], "--lr: expected a number above 0, got inf"),
        (["--seed", "-1"], "--seed: expected an integer from 0 to 4294967295, got -1"),
        (["--seed", "1.5"], "--seed: invalid int value: '1.5'"),
        (["--device", "meta"], "--device must name a device that works here, got meta"),
        (["--setting", "strong"], "--setting: invalid choice: 'strong'"),
        (["--precision", "fp64"], "--precision: invalid choice: 'fp64'"),
        (["--device", "abacus"], "--device must name a device that works here, got abacus"),
        (["--data", "/nowhere"], "/nowhere is no directory"),
        (["--batch", "3"], "unrecognized arguments: --batch"),
    ],
)
def test_refused_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        ave_cmran.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works where there is a GPU")
def test_fp16_needs_a_gpu(release, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        ave_cmran.main(["--precision", "fp16", "--data", str(release), "--output", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "--precision fp16 does not work here" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(release, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        ave_cmran.main(["--data", str(release), "--output", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "--output must be a new or empty directory" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (FloatingPointError("the loss of epoch 1 is nan"), 1, "error: the loss of epoch 1 is nan"),
        (OSError("no space left on device"), 1, "error: no space left on device"),
        (KeyboardInterrupt(), 130, "error: interrupted before the end of the first epoch"),
    ],
)
def test_what_fails_leaves_nothing_behind(release, tmp_path, monkeypatch, capsys, failure, code, message):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(ave_cmran, "train", fail)
    with pytest.raises(SystemExit) as stop:
        run_main(tmp_path, "--data", release)
    assert stop.value.code == code
    assert message in capsys.readouterr().err
    assert [path for path in tmp_path.iterdir() if path != release] == []


def test_interrupted_training_reports_the_finished_epochs(release, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the second epoch: the table, files and pictures are those of the first."""
    train_epoch = training._train_epoch
    calls = []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    monkeypatch.setattr(training, "_train_epoch", interrupt)
    output, metrics = run_main(tmp_path, "--data", release, "--epochs", 3)
    assert [line["epoch"] for line in metrics["history"]] == [1]
    assert {path.name for path in output.iterdir()} == FILES
    assert "interrupted" in capsys.readouterr().out


def test_divergence_is_said(release, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(tmp_path, "--data", release, "--epochs", 3, "--lr", 1e30)
    assert stop.value.code == 1
    assert "try a lower --lr" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        ave_cmran.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in ("setting", "data", "senses", "epochs", "batch-size", "lr", "seed", "device", "precision", "output"):
        assert f"--{name}" in printed
