"""Runs that are killed at a file operation can be resumed, and end with the same files as an uninterrupted run."""

import json
import os

import pytest
import torch

from kill_files import RUNS, kill_everywhere


def work(name, step, path):
    """Kill a run at some of its file operations. This runs in a separate process, which forks after its imports."""
    torch.set_num_threads(1)
    path.write_text(json.dumps(kill_everywhere(RUNS[name], step)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a run that is killed is a fork")
@pytest.mark.parametrize(("name", "step"), [("train", 13), ("prepare", 13)])  # tests/kill_files.py does it at all
def test_killed_at_operations_on_files(name, step, tmp_path, processes):
    process = processes.Process(target=work, args=(name, step, tmp_path / "found.json"))
    process.start()
    process.join()
    assert process.exitcode == 0
    count, faults = json.loads((tmp_path / "found.json").read_text())
    assert faults == []
    assert count > 5
