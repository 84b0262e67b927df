"""One command for a GPU: its tests, then what tells most of its speed, then a table; at most 8 minutes in all.

Every step is a process of its own with a limit of its own; what one leaves of its time goes to the next ones. A step
that fails or is stopped at its limit does not keep the next ones from running. Results are written as they come: a run
that is cut off leaves what it has measured.
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
SECONDS = {"tests": 90.0, "network": 150.0, "agsca": 40.0, "cmra": 40.0, "epoch": 140.0}
"""What each step may take, 460 in all; the start and the table take a few more."""
QUICK_SECONDS = 90.0
QUICK_BRIEF = 20.0
GRACE = 3.0
"""Seconds between asking a process to end and ending it."""
TAIL = 25
"""Lines of a step that failed that are printed."""


@dataclass(frozen=True)
class Step:
    """A process of the run."""

    name: str
    seconds: float
    """What it may take, beyond what the steps before it leave."""
    command: Callable[[float], Sequence[str]]
    """What to run, given how many seconds it has."""


def make_steps(device: str, quick: bool, output: Path) -> list[Step]:
    """Return the tests marked ``cuda``, then the rows of the benchmarks, the whole network first.

    Args:
        device: "cuda" or, to try it, "cpu".
        quick: whether to measure only what shows that it works.
        output: the directory of the rows' results.
    """

    def test(_: float) -> list[str]:
        options = ["-m", "cuda", "--quiet", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
        return [sys.executable, "-m", "pytest", *options, "tests/test_cuda.py"]

    def measure(row: str) -> Callable[[float], list[str]]:
        def command(seconds: float) -> list[str]:
            # Import comes before a row's own clock starts, and the case that is begun last is still to end.
            brief = QUICK_BRIEF if quick else 0.9 * seconds - 15
            options = ["--device", device, "--rows", row, "--output", str(output), "--brief", f"{max(1, brief):.0f}"]
            return [sys.executable, "-m", "benchmarks", *options, *(["--quick"] if quick else [])]

        return command

    return [
        Step(name, QUICK_SECONDS if quick else seconds, test if name == "tests" else measure(name))
        for name, seconds in SECONDS.items()
    ]


def run_steps(steps: Sequence[Step], output: Path) -> list[dict[str, Any]]:
    """Run steps one after another and write how each of them ended, as soon as it has.

    Args:
        steps: what to run.
        output: an existing directory, which gets ``steps.json`` and, in ``log.txt``, all that the steps print.

    Returns:
        list: of every step its name, how it ended ("passed", "failed" or "stopped"), in words, and its seconds.
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
    """Run a command; it and its children are gone when this returns."""
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
    """End a process that leads a session, and all that it started there."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)  # pytest then tells what has failed so far
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path, place: int) -> str:
    """Return the last lines of a log from a place in it on."""
    with log.open("rb") as file:
        file.seek(place)
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(f"  | {line}" for line in lines[-TAIL:])


def main(arguments: list[str] | None = None) -> int:
    """Run all steps, then write and print the table; the exit status is 1 if a step did not pass."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only shows that it runs (default: cuda)")
    option("--quick", action="store_true", help="few rounds, and only what is small: shows that it works, no more")
    option(
        "--output",
        type=Path,
        metavar="DIR",
        help="where results are written (default: benchmarks/results/cuda on cuda)",
    )
    options = parser.parse_args(arguments)
    if options.output is None and options.device == "cpu":
        parser.error("--device cpu needs --output DIR, as its figures are not those of a GPU")
    if options.device == "cuda" and not _finds_gpu():
        parser.error("torch finds no GPU: use one, or try the command with --device cpu --quick --output DIR")
    output = (options.output or ROOT / "benchmarks" / "results" / "cuda").resolve()
    output.mkdir(parents=True, exist_ok=True)
    for name in (STEPS, TABLE, *(f"{row}.json" for row in SECONDS)):  # of an earlier run
        (output / name).unlink(missing_ok=True)
    # A run that is told to end still ends its step, and writes the table of what it has.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        ended = run_steps(make_steps(options.device, options.quick, output), output)
    finally:
        signal.signal(signal.SIGTERM, before)
        print(f"\n{write_table(output)}\nwritten to {output}", flush=True)
    return int(any(step["status"] != "passed" for step in ended))


def _finds_gpu() -> bool:
    command = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603 - our own command


if __name__ == "__main__":
    sys.exit(main())
