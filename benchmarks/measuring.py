"""Measure several forms of one computation in turn, so that changes of the machine's speed affect all of them.

A round measures every form once. The next round starts with another form. The result is the ratio of two forms within
one round: its median and quartiles over the rounds are reported.
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
"""Warm-up calls before a form is measured."""
LONGEST = 10.0
"""Seconds that the matrix products of a pass may take. Slower passes are skipped."""
QUICK_OPERATIONS = 3e10
"""The largest number of operations in the matrix products of a quick run."""
SLOW = 1.0
"""A form that takes more seconds than this is timed call by call, and not in blocks of calls."""


@dataclass(frozen=True)
class Form:
    """One way to compute something."""

    name: str
    call: Callable[[], object]
    unrecorded: Callable[[], object] | None = None
    """The call that a CUDA graph was recorded from. Peak memory is measured on it, since a replay allocates nothing."""


@dataclass(frozen=True)
class Session:
    """The device and the time limits of a run."""

    device: torch.device
    quick: bool = False
    until: float | None = None
    """The time, by ``time.perf_counter``, after which no case starts. If set, the most important cases come first."""

    @property
    def brief(self) -> bool:
        """Return whether only the most important cases are measured."""
        return self.until is not None

    @property
    def late(self) -> str | None:
        """Return why no further case starts, or None if there is time left."""
        return "no time was left" if self.until is not None and time.perf_counter() > self.until else None

    @property
    def rounds(self) -> tuple[int, int]:
        """Return the smallest and the largest number of rounds."""
        return (2, 2) if self.quick else (3, 25)

    @property
    def case_seconds(self) -> float:
        """Return the time limit of a case in seconds. It applies once the smallest number of rounds is done."""
        return 2.0 if self.brief else 5.0 if self.device.type == "cuda" else 15.0

    @property
    def block_seconds(self) -> float:
        """Return the seconds for which a form is measured in a round."""
        return 0.02 if self.quick or self.brief else 0.1

    def skips(self, dtype: torch.dtype, operations: float = 0.0) -> str | None:
        """Return why a case is skipped, or None. For the arguments see :func:`~benchmarks.machine.out_of_reach`."""
        if self.quick and operations > QUICK_OPERATIONS:
            return "too large for a quick run"
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
        session: the device and the time limits.
        case: the settings of the computation.
        forms: the forms to measure. One that fails, for example out of memory, is skipped with its error as the reason.
        ratios: pairs of names; the cost of the first form is divided by that of the second.
        skipped: the names of forms that are not measured, with the reasons.
    """
    print("  " + ", ".join(f"{name} {value}" for name, value in case.items()), file=sys.stderr, flush=True)
    results: dict[str, dict[str, Any]] = {name: {"skipped": reason} for name, reason in (skipped or {}).items()}
    clocks: dict[str, Callable[[], float]] = {}
    gc.collect()  # free the memory of the case before
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
    for form in forms:
        try:
            for _ in range(WARM_UPS[session.device.type]):
                seconds_of_warm_up = _time_once(form.call)
            results[form.name] = {"peak_bytes": measure_peak_bytes(form.unrecorded or form.call, session.device)}
        except Exception as error:  # any error of one form must not stop the others
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
    """Return the seconds of one call, including the device's work."""
    start = timer()
    call()
    return timer() - start


def _time_block(seconds: float, call: Callable[[], object]) -> float:
    """Return the seconds of a call, measured over a block of calls that takes about ``seconds``."""
    block = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return block.blocked_autorange(min_run_time=seconds).median


def _take_turns(session: Session, clocks: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Return the seconds of a call of each form in each round."""
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
    """Return the ratio of time, over all rounds, and the ratio of peak memory."""
    time_ratio = median_and_quartiles([above / below for above, below in zip(of, to, strict=True)])
    below = to_result["peak_bytes"]
    return {
        "time": {name: time_ratio[name] for name in ("median", "quartiles")},
        "memory": _round(of_result["peak_bytes"] / below) if below else None,
    }


def median_and_quartiles(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, the quartiles and all of at least two values, rounded to six digits."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": _round(median),
        "quartiles": [_round(lower), _round(upper)],
        "all": [_round(value) for value in values],
    }


def _round(value: float) -> float:
    return float(f"{value:.6g}")
