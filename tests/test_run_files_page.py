"""The page on what a run leaves names every file, metric, column and array."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from ave_release import write_release
from running import call_main, run_main

PAGE = (Path(__file__).parents[1] / "docs/run_files.md").read_text(encoding="utf-8")
NAMED = {name for text in re.findall(r"`([^`\n]+)`", PAGE) for name in text.strip("/").split("/")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directories of a training, an evaluation and a prediction on a small release, with empty figures."""
    directory = tmp_path_factory.mktemp("release")
    write_release(directory)
    parent = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda _, path, **__: path.touch())  # drawing takes most of the time
        trained, _ = run_main(parent, "--data", directory, "--epochs", "1", draw=True)
        given = ["--data", directory, "--checkpoint", trained]
        call_main("evaluate", *given, "--output", parent / "evaluated", draw=True)
        call_main("predict", *given, "--output", parent / "predicted")
    return trained, parent / "evaluated", parent / "predicted"


def test_every_file_is_named(runs):
    for run in runs:
        for path in run.rglob("*"):
            name = re.sub(r"^seed-\d+$", "seed-N", re.sub(r"^epoch-\d+", "epoch-0007", path.name))
            assert name in NAMED


def test_every_value_is_named(runs):
    for run in runs[:2]:
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics.keys() | metrics["summary"].keys() | metrics["runs"][0].keys() <= NAMED
    trained, _, predicted = runs
    with (trained / "history.csv").open(newline="") as file:
        assert set(next(csv.reader(file))) - {"epoch"} <= NAMED
    with np.load(trained / "seed-0/predictions.npz") as file:
        assert set(file) <= NAMED
    events = json.loads((predicted / "events.json").read_text())
    assert events.keys() - {"events"} <= NAMED
    with (predicted / "events.csv").open(newline="") as file:
        assert set(next(csv.reader(file))) <= NAMED
