"""Forms of one computation, timed in turn in one process, so that what drifts on the machine hits all of them alike.

A round measures every form once, and the next one starts with another form. The result is the ratio of two forms
within a round, of which median and quartiles over the rounds are told.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.benchmark import Timer, timer

from benchmarks.machine import out_of_reach
from benchmarks.memory import measure_peak_bytes

__all__ = ["SEED", "Form", "Session", "compare", "median_and_quartiles"]

SEED = 0
WARM_UPS = {"cpu": 1, "cuda": 4}
"""Calls before anything is measured; CUDA graphs are recorded in the third."""
LONGEST = 10.0
"""Seconds that the matrix products of a pass may take; what takes longer is skipped."""
QUICK_OPERATIONS = 3e10
"""The most multiplications and additions in those of a quick run."""
SLOW = 1.0
"""From so many seconds on, a form needs no block of calls and no further warm-up in a round."""


@dataclass(frozen=True)
class Form:
    """One way to compute something."""

    name: str
    call: Callable[[], object]
    unrecorded: Callable[[], object] | None = None
    """What a CUDA graph was recorded from: its peak memory, which is not seen when the graph replays, is told."""


@dataclass(frozen=True)
class Session:
    """Where it is measured, and how much time that may take."""

    device: torch.device
    quick: bool = False
    until: float | None = None
    """By ``time.perf_counter``, when to begin no further case. Rows then measure what tells most, and that first."""

    @property
    def brief(self) -> bool:
        """Whether only the most telling cases are measured."""
        return self.until is not None

    @property
    def late(self) -> str | None:
        """Why no further case is begun, or None if there is time."""
        return "no time was left for it" if self.until is not None and time.perf_counter() > self.until else None

    @property
    def rounds(self) -> tuple[int, int]:
        """The least and the most rounds."""
        return (2, 2) if self.quick else (3, 25)

    @property
    def case_seconds(self) -> float:
        """How long the rounds of a case go on beyond the least of them."""
        return 2.0 if self.brief else 5.0 if self.device.type == "cuda" else 15.0

    @property
    def block_seconds(self) -> float:
        """How long one form is measured in one round."""
        return 0.02 if self.quick or self.brief else 0.1

    def skips(self, dtype: torch.dtype, operations: float = 0.0) -> str | None:
        """Why this is not measured here, or None if it is; arguments as of :func:`~benchmarks.machine.out_of_reach`."""
        if self.quick and operations > QUICK_OPERATIONS:
            return "left out of a quick run"
        return out_of_reach(self.device, dtype, operations, LONGEST)


def compare(
    session: Session,
    case: Mapping[str, Any],
    forms: Sequence[Form],
    ratios: Sequence[tuple[str, str]],
    skipped: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measure the time and the peak memory of every form, and their ratios.

    Args:
        session: where and how long.
        case: what is computed, by name.
        forms: the ways to compute it. One that fails, as out of memory, is told as skipped, with the reason.
        ratios: pairs of names: the cost of the first is divided by that of the second.
        skipped: reasons, by name, why other forms are not measured.
    """
    print("  " + ", ".join(f"{name} {value}" for name, value in case.items()), file=sys.stderr, flush=True)
    results: dict[str, dict[str, Any]] = {name: {"skipped": reason} for name, reason in (skipped or {}).items()}
    clocks: dict[str, Callable[[], float]] = {}
    gc.collect()  # of the case before
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
    for form in forms:
        try:
            for _ in range(WARM_UPS[session.device.type]):
                seconds_of_warm_up = _time_once(form.call)
            results[form.name] = {"peak_bytes": measure_peak_bytes(form.unrecorded or form.call, session.device)}
        except Exception as error:  # a rival or the compiler may raise anything, and the other forms are still measured
            reason = str(error).strip().splitlines() or ["no message"]
            results[form.name] = {"skipped": f"{type(error).__name__}: {reason[0]}"}
            if session.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        measure = _time_once if seconds_of_warm_up > SLOW else partial(_time_block, session.block_seconds)
        clocks[form.name] = partial(measure, form.call)
    seconds = _take_turns(session, clocks)
    for name, values in seconds.items():
        results[name]["seconds"] = median_and_quartiles(values)
    return {
        "case": dict(case),
        "rounds": min(map(len, seconds.values()), default=0),
        "forms": results,
        "ratios": [
            {"of": of, "to": to, **_divide(seconds[of], seconds[to], results[of], results[to])}
            for of, to in ratios
            if of in seconds and to in seconds
        ],
    }


def _time_once(call: Callable[[], object]) -> float:
    """The seconds of one call, by the clock that waits for the device."""
    start = timer()
    call()
    return timer() - start


def _time_block(seconds: float, call: Callable[[], object]) -> float:
    """The seconds of a call, from a block of them that takes about so long."""
    block = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return block.blocked_autorange(min_run_time=seconds).median


def _take_turns(session: Session, clocks: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """The seconds of a call of every form, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    names = list(clocks)
    least, most = session.rounds
    start = time.perf_counter()
    for done in range(most):
        spent = time.perf_counter() - start
        if not names or (done >= least and spent * (done + 1) / done > session.case_seconds):
            break
        first = done % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(clocks[name]())
    return seconds


def _divide(
    of: Sequence[float], to: Sequence[float], of_result: Mapping[str, Any], to_result: Mapping[str, Any]
) -> dict[str, Any]:
    """The ratios of time, round by round, and of peak memory."""
    time_ratio = median_and_quartiles([above / below for above, below in zip(of, to, strict=True)])
    below = to_result["peak_bytes"]
    return {
        "time": {name: time_ratio[name] for name in ("median", "quartiles")},
        "memory": _round(of_result["peak_bytes"] / below) if below else None,
    }


def median_and_quartiles(values: Sequence[float]) -> dict[str, Any]:
    """The median, the quartiles, and all of at least two values, each to six digits."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": _round(median),
        "quartiles": [_round(lower), _round(upper)],
        "all": [_round(value) for value in values],
    }


def _round(value: float) -> float:
    return float(f"{value:.6g}")
