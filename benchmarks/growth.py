"""Row group "growth": how time and memory of CMRA grow with the length T and the number N of contexts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import SEED, Form, Session, compare, median_and_quartiles
from benchmarks.passes import TASKS, make_pass
from crossmodal_attn import CMRA

__all__ = ["TITLE", "fit_exponent", "fit_growth", "run"]

TITLE = "Growth of CMRA"
BATCH, WIDTH, HEADS = 1, 64, 4
LENGTHS = tuple(2**power for power in range(4, 15))
QUICK_LENGTH = 2048
FITTED_FROM = 512
"""The fit over T starts at this length. For shorter ones, constant costs dominate."""
CONTEXTS = (1, 2, 3, 4)
CONTEXT_LENGTH = 1024


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Measure all lengths with one context and all numbers of contexts at one length, and fit the exponents."""
    lengths = [length for length in LENGTHS if not session.quick or length <= QUICK_LENGTH]
    sweeps: dict[str, list[tuple[int, int]]] = {
        "length T": [(length, 1) for length in lengths],
        "contexts N": [(CONTEXT_LENGTH, contexts) for contexts in CONTEXTS],
    }
    for axis, sizes in sweeps.items():
        for task in TASKS:
            forms = [_form(session, task, *size) for size in sizes]
            case = compare(session, {"against": axis, "task": task}, forms, [])
            values = [length if axis == "length T" else contexts for length, contexts in sizes]
            case["points"] = dict(zip(case["forms"], values, strict=True))
            case["fits"] = fit_growth(case, FITTED_FROM if axis == "length T" else 1)
            yield case


def _form(session: Session, task: str, length: int, contexts: int) -> Form:
    torch.manual_seed(SEED)
    layer = CMRA(WIDTH, HEADS, device=session.device)
    query, *memory = (torch.randn(BATCH, length, WIDTH, device=session.device) for _ in range(1 + contexts))
    call = make_pass(task, layer, lambda: layer(query, memory), (query, *memory))
    return Form(f"T = {length}, N = {contexts}", call)


def fit_growth(case: Mapping[str, Any], least: int) -> dict[str, Any]:
    """Fit the exponents of time, for each round, and of peak memory, to the points from ``least`` on."""
    names = [name for name, value in case["points"].items() if value >= least and "seconds" in case["forms"][name]]
    values = [case["points"][name] for name in names]
    if len(names) < 2:
        return {}
    results = [case["forms"][name] for name in names]
    rounds = zip(*(result["seconds"]["all"] for result in results), strict=True)
    exponents = median_and_quartiles([fit_exponent(values, seconds) for seconds in rounds])
    return {
        "from": values[0],
        "to": values[-1],
        "time": {name: exponents[name] for name in ("median", "quartiles")},
        "memory": round(fit_exponent(values, [result["peak_bytes"] for result in results]), 4),
    }


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the exponent p of the power law size^p that fits the costs best, by least squares of the logarithms.

    Examples:
        >>> round(fit_exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
