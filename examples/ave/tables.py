"""The tables that a training prints: what its runs reached, each and together, and what they reached by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ave.results import align_columns, format_table

__all__ = ["category_table", "results_table"]

MOST_COLUMNS = 4
"""Runs that have a column each; of more, the table shows the least and the greatest."""


def results_table(title: str, runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """What a person wants to know first of one run, or of several that differ in their seed.

    Args:
        title: stands above the table.
        runs: each has what ``ave.metrics.score`` gives, and those of ``background_accuracy``, ``object_attention``,
            ``object_attention_if_uniform``, and of a training ``seed``, ``chosen_epoch``, ``best_test_accuracy`` and
            ``best_test_epoch`` that are known.
        summary: of these runs, as ``ave.metrics.summarise`` makes it.
    """
    header: list[str] | None
    if len(runs) == 1:
        header = None
    elif len(runs) <= MOST_COLUMNS:
        header = ["seed", *(str(run["seed"]) for run in runs), "mean ± std"]
    else:
        header = [f"{len(runs)} seeds", "mean ± std", "min", "max"]
    rows = []
    for label, name, unit in _lines(runs[0]):
        values = [run[name] for run in runs]
        spread = _show_spread(summary[name], unit)
        if len(runs) == 1:
            cells = [_show(values[0], unit)]
        elif len(runs) <= MOST_COLUMNS:
            cells = [*(_show(value, unit) for value in values), spread]
        else:
            extremes = (None, None) if None in values else (min(values), max(values))
            cells = [spread, *(_show(value, unit) for value in extremes)]
        rows.append([label, *cells])
    return format_table(title, rows, header)


LINES = [
    ("  that epoch", "chosen_epoch", ""),
    ("best on test, as published figures are chosen", "best_test_accuracy", "%"),
    ("  that epoch", "best_test_epoch", ""),
    ("accuracy without the {seen_videos} test videos seen in train", "accuracy_without_seen", "%"),
    ("event or not, by second: precision", "event_precision", "%"),
    ("event or not, by second: recall", "event_recall", "%"),
    ("event or not, by second: F1", "event_f1", "%"),
    ("accuracy of calling everything background", "background_accuracy", "%"),
    ("AGSCA's attention on the true object in event seconds", "object_attention", "%"),
    ("the same if attention were uniform", "object_attention_if_uniform", "%"),
]
"""Label, key and unit of every line after the first."""


def _lines(run: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The lines that runs like this one have."""
    headline = "accuracy at the epoch chosen on val" if "chosen_epoch" in run else "accuracy"
    return [(headline, "accuracy", "%")] + [
        (label.format(**run), name, unit)
        for label, name, unit in LINES
        if name in run and (name != "accuracy_without_seen" or run["seen_videos"])
    ]


def category_table(summary: Mapping[str, Any]) -> str:
    """The accuracy of every category in the order of the labels, in two blocks side by side.

    Args:
        summary: as ``ave.metrics.summarise`` makes it.
    """
    rows = [(name, _show_spread(spread, "%")) for name, spread in summary["category_accuracy"].items()]
    half = -(-len(rows) // 2)
    left, right = align_columns(rows[:half]), align_columns(rows[half:])
    several = summary["accuracy"]["std"] is not None
    title = "accuracy by category" + (", mean ± std over the seeds" if several else "")
    return format_table(title, list(zip_longest(left, (f"  {line}" for line in right), fillvalue="")))


def _show(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if unit else str(value)


def _show_spread(spread: Mapping[str, float | None], unit: str) -> str:
    mean, std = spread["mean"], spread["std"]
    if mean is None or std is None:
        return _show(mean, unit)
    scale = 100 if unit else 1
    return f"{scale * mean:.1f} ± {scale * std:.1f}{unit}"
