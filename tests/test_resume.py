"""Real runs in processes of their own that are killed or run out of disk, go on, and end where they should."""

import json
import random
import shutil
import signal
import time
from functools import partial

import pytest
from safetensors.torch import load_file

from ave.commands import train
from ave.model import CMRAN
from ave_release import write_release
from running import call_main, start

EPOCHS = 4
OPTIONS = ("--epochs", EPOCHS, "--batch-size", 5, "--seeds", 3, 5)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    directory = tmp_path_factory.mktemp("release")
    write_release(directory)
    return directory


def wait_for_training(process):
    """Read what it prints until it trains."""
    for line in process.stdout:
        if "--resume" in line:
            return
    pytest.fail(f"it did not begin: {process.stderr.read()}")


def finish(process):
    printed, errors = process.communicate()
    return process.returncode, printed, errors


@pytest.fixture(scope="module")
def straight(release, tmp_path_factory):
    """The run that was never stopped, and the seconds that it trained."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    process = start("train", "--data", release, *OPTIONS, "--output", output)
    wait_for_training(process)
    begin = time.perf_counter()
    code, _, errors = finish(process)
    assert code == 0, errors
    return output, time.perf_counter() - begin


def assert_same_run(output, expected):
    """Weights, optimizer, history and figures; not the seconds that they took."""
    for seed in (3, 5):
        for name in (f"seed-{seed}/model/model.safetensors", f"seed-{seed}/checkpoints/epoch-{EPOCHS:04}.safetensors"):
            assert (output / name).read_bytes() == (expected / name).read_bytes()
    for name in ("history.csv", "metrics.csv", "categories.csv", "confusion.csv"):
        assert (output / name).read_text() == (expected / name).read_text()
    assert visible(output) == visible(expected)


def visible(output):
    return sorted(str(path.relative_to(output)) for path in output.rglob("*"))


def test_a_run_that_is_stopped_again_and_again_ends_bit_identical(release, straight, tmp_path):
    """By a full disk first: no file may grow beyond what the config takes, so that the first checkpoint fails, and
    leaves nothing half-written. Then by signals at random moments."""
    expected, seconds = straight
    output = tmp_path / "run"
    resource = pytest.importorskip("resource")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    code, _, errors = finish(start("train", "--data", release, *OPTIONS, "--output", output, preexec_fn=limit))
    assert code == 1
    assert f"File too large; what is finished is kept: go on with --resume {output}" in errors.replace("'", "")
    assert "Traceback" not in errors
    assert visible(output) == ["config.json", "seed-3", "seed-3/checkpoints"]

    moments = random.Random(0)  # noqa: S311
    codes = []
    stops = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, None: 0}
    for stop in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None):
        process = start("train", "--resume", output)
        wait_for_training(process)
        if stop is not None:
            time.sleep(moments.uniform(0, 0.5 * seconds))
            process.send_signal(stop)
        code, _, errors = finish(process)
        codes.append(code)
        assert code in (stops[stop], 0), errors
        if code in (130, 143):
            assert f"go on with --resume {output}" in errors
            assert "Traceback" not in errors
    assert codes[-1] == 0
    assert codes.count(0) < 3, "too late to kill anything"
    assert_same_run(output, expected)


def test_resume_refuses(release, straight, tmp_path, capsys):
    """Another run's options, another set, a run that is none; and nothing changes."""
    run, _ = straight
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    other = tmp_path / "release"
    other.mkdir()
    write_release(other, seed=1)
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    for arguments, message in {
        (run, "--lr", "0.1"): "--lr must be 0.0005, what",
        (run, "--epochs", "3"): "--epochs must be at least 4",
        (run, "--seeds", "3"): "--seeds must be [3, 5]",
        (run, "--seeds", "3", "7", "5"): "--seeds must be [3, 5]",
        (run, "--data", other): "--data must be the set that",
        (tmp_path / "none",): "--resume must name the directory of a run",
        (tmp_path / "broken",): "must be the config.json of a training run",
    }.items():
        with pytest.raises(SystemExit) as stop:
            call_main("train", "--resume", *arguments)
        assert stop.value.code == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_full_disk_while_the_network_is_saved(release, tmp_path, monkeypatch, capsys):
    """After the training; the next try writes it."""
    resource = pytest.importorskip("resource")
    output = tmp_path / "run"
    call_main("train", "--data", release, "--epochs", 1, "--output", output)
    shutil.rmtree(output / "seed-0" / "model")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            call_main("train", "--resume", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stop.value.code == 1
    assert "File too large" in capsys.readouterr().err
    assert [path.name for path in (output / "seed-0").iterdir()] == ["checkpoints"]
    call_main("train", "--resume", output)
    assert (output / "seed-0" / "model" / "model.safetensors").exists()


def test_more_epochs_and_seeds_go_on(release, tmp_path, monkeypatch):
    """A finished run that is given more of them is the run that had them from the start."""
    monkeypatch.setattr(train, "CMRAN", partial(CMRAN, embed_dim=20, dim_feedforward=17))
    options = ("--data", release, "--batch-size", 5)
    call_main("train", *options, "--epochs", 2, "--output", tmp_path / "short")
    call_main("train", "--resume", tmp_path / "short", "--epochs", 3, "--seeds", 0, 4, "--keep", 1)
    call_main("train", *options, "--epochs", 3, "--seeds", 0, 4, "--output", tmp_path / "long")
    for seed in (0, 4):
        ours, theirs = (
            load_file(tmp_path / name / f"seed-{seed}" / "model" / "model.safetensors") for name in ("short", "long")
        )
        assert all((value == theirs[name]).all() for name, value in ours.items())
    assert [path.name for path in (tmp_path / "short/seed-0/checkpoints").glob("*.json")] == ["epoch-0003.json"]
    assert json.loads((tmp_path / "short" / "config.json").read_text())["settings"]["epochs"] == 3
