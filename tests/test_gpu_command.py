"""``make gpu`` runs its steps in order, goes on after a failure or a time limit, and summarizes all results."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from ave.networks.cmran import CMRAN
from benchmarks import __main__ as command
from benchmarks import epoch, goals, gpu
from benchmarks.gpu import Step, run_steps
from benchmarks.measuring import Session

ROOT = Path(__file__).parent.parent
ABSENT = [
    *("hatchling", "mypy", "onnx", "onnxruntime", "onnxscript", "peft", "pytest_randomly", "pyright", "sphinx"),
    *("torchao", "twine", "tyro", "x_transformers", "xdist"),
]
"""Modules that a machine with a GPU may lack."""


def shell(name, script, seconds=60.0):
    return Step(name, seconds, lambda _: ["bash", "-c", script])


def test_steps_go_on_in_order(tmp_path, capsys):
    steps = [
        shell("passes", "echo first"),
        shell("fails", "echo second >&2; exit 3"),
        Step("tells its time", 60.0, lambda seconds: ["bash", "-c", f"echo {seconds}"]),
    ]
    ended = run_steps(steps, tmp_path)
    assert [(step["name"], step["status"]) for step in ended] == [
        ("passes", "passed"),
        ("fails", "failed"),
        ("tells its time", "passed"),
    ]
    assert ended[1]["how"] == "failed with status 3"
    assert json.loads((tmp_path / goals.STEPS).read_text()) == {"steps": ended}
    *lines, seconds = (tmp_path / gpu.LOG).read_text().splitlines()
    assert lines == ["== passes", "first", "== fails", "second", "== tells its time"]
    assert float(seconds) > 60  # what the steps before it have left
    output = capsys.readouterr().out
    assert "| second" in output
    assert "| first" not in output


def test_a_step_ends_with_its_children_at_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.1)
    steps = [shell("hangs", "trap '' INT; sleep 100 & echo $!; sleep 100", 1.0), shell("goes on", "echo on")]
    ended = run_steps(steps, tmp_path)
    assert [step["status"] for step in ended] == ["stopped", "passed"]
    assert ended[0]["how"] == "stopped at its limit of 1 s"
    child = int((tmp_path / gpu.LOG).read_text().splitlines()[1])
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sources_come_first(tmp_path):
    run_steps(
        [Step("imports", 60.0, lambda _: [sys.executable, "-c", "import os; print(os.environ['PYTHONPATH'])"])],
        tmp_path,
    )
    paths = (tmp_path / gpu.LOG).read_text().splitlines()[1].split(os.pathsep)
    assert paths[:3] == [str(ROOT / "src"), str(ROOT / "examples"), str(ROOT)]


def test_the_network_is_measured_first_after_the_tests(tmp_path):
    steps = gpu.make_steps("cuda", False, tmp_path)
    assert [step.name for step in steps] == ["tests", "network", "agsca", "cmra", "windows", "epoch"]
    assert sum(step.seconds for step in steps) <= 470
    for step in steps[1:]:
        options = step.command(step.seconds)
        assert options[options.index("--rows") + 1] == step.name
        assert 0 < float(options[options.index("--brief") + 1]) < step.seconds
        assert "--quick" not in options
    assert "--quick" in gpu.make_steps("cpu", True, tmp_path)[1].command(60.0)
    assert steps[0].command(60.0)[-1] == "tests/test_cuda.py"


def test_command_replaces_an_earlier_run_and_tells_of_failures(tmp_path, monkeypatch, capsys):
    for name in ("network.json", goals.STEPS):
        (tmp_path / name).write_text("of an earlier run")
    steps = [shell("passes", "true")]
    monkeypatch.setattr(gpu, "make_steps", lambda *_: steps)
    options = ["--device", "cpu", "--quick", "--output", str(tmp_path)]
    assert gpu.main(options) == 0
    table = (tmp_path / goals.TABLE).read_text()
    assert "| passes | passed | 0 |" in table
    assert table in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {gpu.LOG, goals.STEPS, goals.TABLE}
    steps.append(shell("fails", "false"))
    assert gpu.main(options) == 1


def test_a_run_that_is_ended_leaves_its_table(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "make_steps", lambda *_: [shell("passes", "true"), Step("is ended", 60.0, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--device", "cpu", "--output", str(tmp_path)])
    assert "| is ended | stopped with the whole run | 0 |" in (tmp_path / goals.TABLE).read_text()


def test_figures_of_a_cpu_are_kept_apart(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "--device cpu needs --output DIR" in capsys.readouterr().err


def write_results(directory, row, cases):
    machine = {
        "processor": "a processor", "cores": 7, "gpu": "a GPU", "compute_capability": "9.0", "cuda": "13.0",
        "python": "3.12", "versions": {"torch": "2.11", "x-transformers": None},
    }  # fmt: skip
    results = {"row": row, "title": row, "quick": False, "machine": machine, "cases": cases}
    (directory / f"{row}.json").write_text(json.dumps(results))


def make_ratios(**medians):
    return [
        {"of": names.split(" / ")[0], "to": names.split(" / ")[1], "time": {"median": median}}
        for names, median in medians.items()
    ]


def test_table_sets_goals_beside_what_was_measured(tmp_path):
    step = {"videos": 32, "task": "training step"}
    forms = {"as published, float64": {"seconds": {"median": 0.03}}, "CMRAN, float32, eager": {"skipped": "why"}}
    eager = {"as published, float64 / CMRAN, float32, eager": 8.0, "as published, float32 / CMRAN, float32, eager": 3.0}
    graph = "CMRAN, bf16 autocast, compiled, CUDA graph"
    fast = {f"as published, float64 / {graph}": 21.0, f"as published, float32 / {graph}": 3.5}
    write_results(
        tmp_path,
        "network",
        [
            {"case": {**step, "compiled": "nothing"}, "forms": forms, "ratios": make_ratios(**eager)},
            {"case": {**step, "compiled": "bf16 autocast"}, "forms": {}, "ratios": make_ratios(**fast)},
            {"case": {**step, "videos": 256}, "forms": {}, "ratios": make_ratios(**{next(iter(fast)): 99.0})},
            {"case": {**step, "compiled": "float32"}, "skipped": "no time was left"},
        ],
    )
    floors = {
        "AGSCA / matrix products alone": 2.0,
        "AGSCA, compiled / matrix products alone": 1.4,
        "Eq. 1-3 written out / AGSCA": 0.5,
    }
    layer = {"map": "256 x 10 x 7 x 7 x 512", "dtype": "bfloat16", "task": "forward"}
    write_results(tmp_path, "agsca", [{"case": layer, "forms": {}, "ratios": make_ratios(**floors)}])
    training = {"epochs_done": 50, "seconds_in_all": 30.0, "first_epoch_seconds": 5.0, "epoch_seconds": {"median": 0.5}}
    write_results(tmp_path, "epoch", [{"case": {"epochs": 200, "precision": "bf16"}, **training}])
    table = goals.write_table(tmp_path)
    for line in (
        f"as published in float64 / CMRAN | at least 15 | 21 ({graph}) | yes |",
        f"as published in float32 / CMRAN | at least 4 | 3.5 ({graph}) | no |",
        "| the same, both in float32 | - | 3 (CMRAN, float32, eager) | - |",
        "forward / matrix products alone | at most 1.5 | 1.4 (AGSCA, compiled) | yes |",
        "forward and backward / matrix products alone | at most 1.5 | not measured | - |",
        "seconds | under 60 | 105 (200, bf16, 50 epochs done) | no |",
        "a GPU, compute capability 9.0, CUDA 13.0; a processor, 7 cores; Python 3.12, torch 2.11.",
        "| as published, float64 | 30 |",
        "- network: CMRAN, float32, eager: why (32, training step, nothing)",
        "- network: no time was left (32, training step, float32)",
    ):
        assert line in table
    assert (tmp_path / goals.TABLE).read_text() == table


def test_table_of_nothing_says_so(tmp_path):
    assert goals.write_table(tmp_path).count("| not measured | - |") == 6


@pytest.mark.parametrize("row", ["network", "agsca", "cmra", "windows", "epoch"])
def test_no_case_starts_after_the_time_limit(tmp_path, monkeypatch, row):
    monkeypatch.setattr(epoch, "QUICK_SPLITS", (2, 1, 1))
    command.main(["--quick", "--brief", "0", "--rows", row, "--output", str(tmp_path)])
    cases = json.loads((tmp_path / f"{row}.json").read_text())["cases"]
    reasons = {case["skipped"] for case in cases}
    assert "no time was left" in reasons
    assert not any(
        "quick run" not in reason and "no time" not in reason and "slower" not in reason for reason in reasons
    )
    assert [path.name for path in tmp_path.iterdir()] == [f"{row}.json"]


@dataclass(frozen=True)
class LateSession(Session):
    """A session that is late after a number of questions."""

    answers: int = 0
    asked: list[int] = field(default_factory=list)

    @property
    def late(self):
        self.asked.append(1)
        return "no time was left" if len(self.asked) > self.answers else None

    def skips(self, *_):
        """Measure every precision, also those that are slow on this machine."""


@pytest.mark.parametrize("done", [2, 4])
def test_a_training_that_runs_out_of_time_reports_its_epochs(monkeypatch, done):
    monkeypatch.setattr(epoch, "CMRAN", partial(CMRAN, embed_dim=20, dim_feedforward=17))
    monkeypatch.setattr(epoch, "QUICK_SPLITS", (2, 1, 1))
    monkeypatch.setattr(epoch, "QUICK_EPOCHS", 7)
    # Before the case, and before each of its epochs.
    session = LateSession(torch.device("cpu"), quick=True, until=math.inf, answers=1 + done)
    first = next(epoch.run(session))
    assert first["case"]["epochs"] == 7
    if done == 2:
        assert first["skipped"].startswith("no time was left: 2 epochs took")
    else:
        assert first["epochs_done"] == 4
        assert len(first["epoch_seconds"]["all"]) == 3
        assert {"data", "forward and backward", "optimizer", "evaluation"} == set(first["parts"])


def test_a_training_that_fails_is_skipped_and_the_next_one_runs(monkeypatch, capfd):
    def fail(*_, **__):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(epoch, "CMRAN", fail)
    monkeypatch.setattr(epoch, "QUICK_SPLITS", (2, 1, 1))
    cases = list(epoch.run(LateSession(torch.device("cpu"), quick=True, until=math.inf, answers=99)))
    assert [case["skipped"] for case in cases] == ["RuntimeError: no kernel"] * 2
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")
def test_make_uses_a_python_as_it_is():
    def plan(*options):
        command = [shutil.which("make"), "-n", "gpu", *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S603

    assert "venv" not in plan("GPU_PYTHON=python3")
    assert "python3 -m benchmarks.gpu --quick" in plan("GPU_PYTHON=python3", "GPU_ARGS=--quick")
    assert ".venv/bin/python -m benchmarks.gpu" in plan()


def test_a_machine_needs_no_other_packages(tmp_path):
    """GPU tests and row groups can be imported with only the packages that `make gpu` lists."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
import pytest
import benchmarks.__main__
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-m", "cuda", "tests/test_cuda.py"]))
"""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "examples"), str(ROOT)]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert run.returncode == 0, run.stdout + run.stderr
