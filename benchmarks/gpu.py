"""Test and measure on a GPU: the GPU tests, then the most important benchmarks, then a summary, in at most 8 minutes.

Each step is a process with a time limit. The time that a step does not use goes to the next ones. If a step fails or
reaches its limit, the next ones still run. Results are written at once, so an interrupted run keeps them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ave.results.files import write_json
from benchmarks.goals import STEPS, TABLE, write_table

__all__ = ["Step", "main", "make_steps", "run_steps"]

ROOT = Path(__file__).parents[1]
LOG = "log.txt"
SECONDS = {"tests": 90.0, "network": 130.0, "agsca": 35.0, "cmra": 35.0, "windows": 50.0, "epoch": 120.0}
"""The time limit of each step, 460 seconds in all. Start and summary take a few seconds more."""
QUICK_SECONDS = 90.0
QUICK_BRIEF = 20.0
GRACE = 3.0
"""Seconds between the interrupt and the kill of a process."""
TAIL = 25
"""The number of last lines that are printed of a failed step."""


@dataclass(frozen=True)
class Step:
    """A step of the run, which is a process."""

    name: str
    seconds: float
    """Its time limit, without the time that earlier steps did not use."""
    command: Callable[[float], Sequence[str]]
    """Returns the command for a time limit in seconds."""


def make_steps(device: str, quick: bool, output: Path) -> list[Step]:
    """Return the steps: the tests marked ``cuda``, then the row groups of the benchmarks, the whole network first.

    Args:
        device: "cuda", or "cpu" for a trial.
        quick: whether to run small cases only, to check that everything runs.
        output: the directory for the results.
    """

    def test(_: float) -> list[str]:
        options = ["-m", "cuda", "--quiet", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
        return [sys.executable, "-m", "pytest", *options, "tests/test_cuda.py"]

    def measure(row: str) -> Callable[[float], list[str]]:
        def command(seconds: float) -> list[str]:
            # Importing takes time before the row group starts its clock, and the last case ends after the limit.
            brief = QUICK_BRIEF if quick else 0.9 * seconds - 15
            options = ["--device", device, "--rows", row, "--output", str(output), "--brief", f"{max(1, brief):.0f}"]
            return [sys.executable, "-m", "benchmarks", *options, *(["--quick"] if quick else [])]

        return command

    return [
        Step(name, QUICK_SECONDS if quick else seconds, test if name == "tests" else measure(name))
        for name, seconds in SECONDS.items()
    ]


def run_steps(steps: Sequence[Step], output: Path) -> list[dict[str, Any]]:
    """Run steps one after another, and write the result of each at once.

    Args:
        steps: the steps to run.
        output: an existing directory for ``steps.json`` and for ``log.txt``, which gets the output of all steps.

    Returns:
        list: for each step its name, its status ("passed", "failed" or "stopped"), a description, and its seconds.
    """
    ended: list[dict[str, Any]] = []
    start = time.monotonic()
    deadline = start
    with (output / LOG).open("w", encoding="utf-8", errors="replace") as log:
        for step in steps:
            deadline += step.seconds
            limit = deadline - time.monotonic()
            print(f"{step.name}: at most {limit:.0f} s", flush=True)
            print(f"== {step.name}", file=log, flush=True)
            begin, place = time.monotonic(), log.tell()
            result: dict[str, Any] = {"name": step.name, "status": "stopped", "how": "stopped with the whole run"}
            try:
                result |= _run(step.command(limit), limit, log)
            finally:
                result["seconds"] = round(time.monotonic() - begin, 1)
                ended.append(result)
                write_json(output / STEPS, {"steps": ended})
            print(f"  {result['how']} after {result['seconds']:.0f} s", flush=True)
            if result["status"] != "passed":
                print(_tail(output / LOG, place), flush=True)
    return ended


def _run(command: Sequence[str], limit: float, log: TextIO) -> dict[str, str]:
    """Run a command with a time limit, and end it with all of its children."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    paths = [str(ROOT / "src"), str(ROOT / "examples"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    process = subprocess.Popen(  # noqa: S603 - one of our own commands
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return {"status": "stopped", "how": f"stopped at its limit of {limit:.0f} s"}
    finally:
        _end(process)
    if status == 0:
        return {"status": "passed", "how": "passed"}
    return {"status": "failed", "how": f"failed with status {status}"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, and all processes of that session."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)  # pytest then reports its failures so far
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path, place: int) -> str:
    """Return the last lines of a log after a position."""
    with log.open("rb") as file:
        file.seek(place)
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(f"  | {line}" for line in lines[-TAIL:])


def main(arguments: list[str] | None = None) -> int:
    """Run all steps, and write and print the summary. The exit status is 1 if a step did not pass."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is only for a trial (default: cuda)")
    option(
        "--quick",
        action="store_true",
        help="few rounds of small cases: a check that everything runs, not a measurement",
    )
    option(
        "--output",
        type=Path,
        metavar="DIR",
        help="directory for the results (default: benchmarks/results/cuda for --device cuda)",
    )
    options = parser.parse_args(arguments)
    if options.output is None and options.device == "cpu":
        parser.error("--device cpu needs --output DIR, as its results are not those of a GPU")
    if options.device == "cuda" and not _finds_gpu():
        parser.error("torch finds no GPU: for a trial without one use --device cpu --quick --output DIR")
    output = (options.output or ROOT / "benchmarks" / "results" / "cuda").resolve()
    output.mkdir(parents=True, exist_ok=True)
    for name in (STEPS, TABLE, *(f"{row}.json" for row in SECONDS)):  # results of an earlier run
        (output / name).unlink(missing_ok=True)
    # On SIGTERM, the run ends its step and writes the summary of what it has measured.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        ended = run_steps(make_steps(options.device, options.quick, output), output)
    finally:
        signal.signal(signal.SIGTERM, before)
        print(f"\n{write_table(output)}\nwrote the results to {output}", flush=True)
    return int(any(step["status"] != "passed" for step in ended))


def _finds_gpu() -> bool:
    command = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603 - our own command


if __name__ == "__main__":
    sys.exit(main())
