"""Runs in separate processes that are killed, or run out of disk space, can be resumed and end as if uninterrupted."""

import itertools
import json
import os
import shutil
import signal
import sys
from functools import partial

import pytest
import torch

import ave_cmran
from ave.networks.cmran import CMRAN
from ave.stopping import terminate
from ave_release import write_release
from running import call_main

resource = pytest.importorskip("resource")

EPOCHS = 4
OPTIONS = ("--epochs", EPOCHS, "--batch-size", 5, "--seeds", 3, 5)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    directory = tmp_path_factory.mktemp("release")
    write_release(directory)
    return directory


MOMENTS = {"step": (torch.optim.Adam, "step"), "rename": (os, "replace")}
"""Where a run may be stopped: an epoch has three steps, and files that are whole get their names, the config first."""


def stop_itself(signal_number, moment, number):
    """Make this process send itself a signal at the given call of a function."""
    owner, name = MOMENTS[moment]
    original, calls = getattr(owner, name), itertools.count(1)

    def call(*arguments, **options):
        if next(calls) == number:
            os.kill(os.getpid(), signal_number)
        return original(*arguments, **options)

    setattr(owner, name, call)


def command(arguments, printed, errors, limit, stop):
    """Run the command as a script does, with a smaller network and no figures, in a separate process."""
    torch.set_num_threads(1)
    sys.stdout, sys.stderr = printed.open("w", buffering=1), errors.open("w", buffering=1)
    signal.signal(signal.SIGTERM, terminate)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    if stop is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background is started without
        stop_itself(*stop)
    network = partial(CMRAN, embed_dim=64, dim_feedforward=256)
    ave_cmran.main(list(map(str, arguments)), network=network, draw=False)


@pytest.fixture(scope="module")
def run(processes, tmp_path_factory):
    """Return a function that runs the command in a separate process; it returns the exit code and the errors."""

    def run(*arguments, limit=None, stop=None):
        place = tmp_path_factory.mktemp("printed")
        printed, errors = place / "printed.txt", place / "errors.txt"
        process = processes.Process(target=command, args=(arguments, printed, errors, limit, stop))
        process.start()
        process.join()
        return process.exitcode, errors.read_text()

    return run


@pytest.fixture(scope="module")
def straight(release, tmp_path_factory, run):
    """Return the directory of a run that was never interrupted."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    code, errors = run("train", "--data", release, *OPTIONS, "--output", output)
    assert code == 0, errors
    return output


def assert_same_run(output, expected):
    """Check that weights, optimizer, history and metrics are equal, except for the measured seconds."""
    for seed in (3, 5):
        for name in (f"seed-{seed}/model/model.safetensors", f"seed-{seed}/checkpoints/epoch-{EPOCHS:04}.safetensors"):
            assert (output / name).read_bytes() == (expected / name).read_bytes()
    for name in ("history.csv", "metrics.csv", "categories.csv", "confusion.csv"):
        assert (output / name).read_text() == (expected / name).read_text()
    assert visible(output) == visible(expected)


def visible(output):
    return sorted(str(path.relative_to(output)) for path in output.rglob("*"))


def test_a_run_that_is_stopped_repeatedly_ends_bit_identical(release, straight, tmp_path, run):
    """The run is stopped by a full disk at its first checkpoint, while a checkpoint is written, and within epochs.

    The full disk is a limit on the file size that only the config fits.
    """
    output = tmp_path / "run"
    code, errors = run("train", "--data", release, *OPTIONS, "--output", output, limit=100_000)
    assert code == 1
    assert "File too large: " in errors
    assert f"; finished epochs are kept: continue with --resume {output}" in errors.replace("'", "")
    assert "Traceback" not in errors
    assert visible(output) == ["config.json", "seed-3", "seed-3/checkpoints"]

    for stop, reached in {
        (signal.SIGKILL, "rename", 2): ["seed-3/checkpoints/.epoch-0001.safetensors.partial.safetensors"],
        (signal.SIGKILL, "step", 5): ["seed-3/checkpoints/epoch-0001.json"],
        (signal.SIGTERM, "step", 8): ["seed-3/checkpoints/epoch-0003.json"],
        (signal.SIGINT, "step", 7): ["seed-3/model/model.safetensors", "seed-5/checkpoints/epoch-0001.json"],
    }.items():
        code, errors = run("train", "--resume", output, stop=stop)
        assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[stop[0]], errors
        assert set(reached) <= set(visible(output))
        if code > 0:
            assert f"continue with --resume {output}" in errors
            assert "Traceback" not in errors
    code, errors = run("train", "--resume", output)
    assert code == 0, errors
    assert_same_run(output, straight)


def test_resume_refuses(release, straight, tmp_path, capsys):
    """Other options, another dataset or a directory without a run are errors, and no file changes."""
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    other = tmp_path / "release"
    other.mkdir()
    write_release(other, seed=1)
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    for arguments, message in {
        (straight, "--lr", "0.1"): "--lr must be 0.0005, as in",
        (straight, "--epochs", "3"): "--epochs must be at least 4",
        (straight, "--weight-decay", "0.1"): "--weight-decay must be 0.0, as in",
        (straight, "--seeds", "3"): "--seeds must begin with 3 5",
        (straight, "--seeds", "3", "7", "5"): "--seeds must begin with 3 5",
        (straight, "--data", other): "--data must be the dataset that",
        (tmp_path / "none",): "--resume must name the directory of a run",
        (tmp_path / "broken",): "config.json is damaged, or not what a run wrote: SavedRun needs settings",
    }.items():
        with pytest.raises(SystemExit) as stop:
            call_main("train", "--resume", *arguments)
        assert stop.value.code == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*")} == before


def test_a_full_disk_while_the_network_is_saved(release, tmp_path, capsys):
    """If saving the network fails after the training, --resume saves it."""
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
    assert sorted(path.name for path in (output / "seed-0").iterdir()) == ["checkpoints", "predictions.npz"]
    call_main("train", "--resume", output)
    assert (output / "seed-0" / "model" / "model.safetensors").exists()


def test_a_finished_run_takes_more_epochs_and_seeds(release, tmp_path):
    """A finished run that gets more epochs and seeds equals a run that had them from the start."""
    options = ("--data", release, "--batch-size", 5)
    call_main("train", *options, "--epochs", 2, "--output", tmp_path / "short")
    call_main("train", "--resume", tmp_path / "short", "--epochs", 3, "--seeds", 0, 4, "--keep", 1)
    call_main("train", *options, "--epochs", 3, "--seeds", 0, 4, "--output", tmp_path / "long")
    for seed in (0, 4):
        for name in (f"seed-{seed}/model/model.safetensors", f"seed-{seed}/checkpoints/epoch-0003.safetensors"):
            assert (tmp_path / "short" / name).read_bytes() == (tmp_path / "long" / name).read_bytes()
    assert [path.name for path in (tmp_path / "short/seed-0/checkpoints").glob("*.json")] == ["epoch-0003.json"]
    assert json.loads((tmp_path / "short" / "config.json").read_text())["settings"]["epochs"] == 3
