"""Format tables for the terminal: the files of a dataset, and the metrics of runs, overall and by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, zip_longest
from typing import Any

from tqdm import tqdm

from ave.data.dataset import SPLITS
from ave.data.layout import ANNOTATIONS, CATEGORIES, FILES
from ave.data.prepared import MANIFEST
from ave.data.release import Found
from ave.printing import printable
from ave.results.metrics import METRICS

__all__ = ["category_table", "files_table", "format_table", "results_table"]

MOST_COLUMNS = 4
"""Up to this many runs have a column each. For more runs, the table shows minimum and maximum."""
LONGEST_NAME, LONGEST_CELL = 40, 300
"""Maximum length in characters. The middle of longer text is left out."""
LONGEST_RULE = 80
"""A rule is as long as the table, or as its title up to this length: a longer one would wrap in a terminal."""


def format_table(title: str, rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> str:
    """Format rows as a table with a title. The first column is aligned left, all others right.

    Examples:
        >>> rows = [("Bark", "81.0%", "79.5%"), ("Clock", "9.1%", "10.0%")]
        >>> print(format_table("Accuracy", rows, header=("seed", "0", "1")))
        -------------------
        Accuracy
        -------------------
        seed       0      1
        -------------------
        Bark   81.0%  79.5%
        Clock   9.1%  10.0%
        -------------------
    """
    title = printable(title, LONGEST_CELL)
    lines = _align(rows if header is None else [header, *rows])
    rule = "-" * max([min(len(title), LONGEST_RULE), *map(len, lines)])
    if header is not None:
        lines.insert(1, rule)
    return "\n".join([rule, title, rule, *(line.rstrip() for line in lines), rule])


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad the cells of each column to the same width, and join each row to one line."""
    columns = [[printable(cell, LONGEST_CELL) for cell in column] for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in zip(*columns, strict=True)
    ]


def files_table(found: Found) -> str:
    """Format a table of the files of a dataset, followed by a line for each problem and each remark."""
    splits = found.splits
    wrong = {problem.file: problem.verdict for problem in found.problems}
    rows = []
    for file in [file for file in FILES if file.name in found.paths]:
        path, array = found.paths[file.name], found.arrays.get(file.name)
        if file.optional and not path.exists():
            continue
        facts, counts = ("", "", ""), dict.fromkeys(map(str, SPLITS), "")
        if array is not None:
            place = array.dataset if path.suffix == ".h5" else tqdm.format_sizeof(path.stat().st_size, "B")
            facts = (place, "x".join(map(str, array.shape)), str(array.dtype))
            if file.axes[0] == "N":
                counts |= {split: str(len(rows)) for split, rows in splits.items()}
            else:  # all background videos are in train; an order file belongs to one split
                counts["train" if file.axes[0] == "M" else file.name.partition("_")[0]] = str(len(array))
        verdict = wrong.get(file.name, "ok" if path.exists() else "not there")
        rows.append((path.name, *facts, file.content, *counts.values(), verdict))
        if file.name == "labels" and "labels" in found.tensors:
            seconds = {split: int(found.tensors["labels"][own, :, -1].sum()) for split, own in splits.items()}
            counted = (str(seconds.get(split, "")) for split in SPLITS)
            rows.append(("", "", "", "", "background seconds", *counted, ""))
    names = (ANNOTATIONS, found.names, found.ids)
    if found.extraction is not None:  # the names of files, in the manifest
        names = (MANIFEST, found.names, "names of videos")
    for name, values, content in ((CATEGORIES, found.categories, "names of categories"), names):
        if name in wrong or values is not None:
            count = "" if values is None else str(len(values))
            rows.append((name, "", count, "", content, "", "", "", wrong.get(name, "ok")))
    remarks = list(found.remarks)
    if found.names is not None and splits:
        ids = [{found.names[row] for row in own.tolist()} for own in splits.values()]
        shared = {name for own, other in combinations(ids, 2) for name in own & other}
        count = f"the {len(found.names)} videos have {len(set(found.names))} {found.ids}"
        remarks.append(f"{count}, {len(shared)} of them in more than one split")
    suffixes = {found.paths[name].suffix for name in found.arrays}
    place = "size" if suffixes == {".npy"} else "dataset or size" if ".npy" in suffixes else "dataset"
    table = format_table(found.title, rows, ("file", place, "shape", "dtype", "holds", *SPLITS, "verdict"))
    lines = [f"wrong: {problem.message}" for problem in found.problems] + [f"note: {remark}" for remark in remarks]
    return "\n".join([table, *map(printable, lines)])


def results_table(title: str, runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """Format a table of the accuracy and METRICS of one run, or of several runs and their summary."""
    several, few = len(runs) > 1, len(runs) <= MOST_COLUMNS
    rows = []
    for label, name, unit in _lines(runs[0]):
        values = [run[name] for run in runs]
        extremes = [None, None] if None in values else [min(values), max(values)]
        spread = [summary[name]] if several else []
        cells = [*values, *spread] if few else [*spread, *extremes]
        rows.append([label, *(_show(cell, unit) for cell in cells)])
    if not several:
        return format_table(title, rows)
    seeds = ["seed", *(str(run["seed"]) for run in runs), "mean ± std"]
    return format_table(title, rows, seeds if few else [f"{len(runs)} seeds", "mean ± std", "min", "max"])


def _lines(run: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the label, name and unit of each metric that a run has."""
    headline = "accuracy"
    if "chosen_epoch" in run:
        validated = all(epoch["val_accuracy"] is not None for epoch in run.get("history", ()))
        headline += " at the epoch chosen on val" if validated else " at the last epoch, as there is no val split"
    return [(headline, "accuracy", "%")] + [
        (label.format(**run), name, unit)
        for name, (label, unit) in METRICS.items()
        if name in run and (name != "accuracy_without_seen" or run["seen_videos"])
    ]


def category_table(summary: Mapping[str, Any]) -> str:
    """Format a table of the accuracy of each category, in two blocks side by side."""
    shares = summary["category_accuracy"].items()
    rows = [(printable(name, LONGEST_NAME), _show(share, "%")) for name, share in shares]
    half = -(-len(rows) // 2)
    left, right = _align(rows[:half]), _align(rows[half:])
    several = summary["accuracy"]["std"] is not None
    title = "accuracy by category" + (", mean ± std over the seeds" if several else "")
    return format_table(title, list(zip_longest(left, (f"  {line}" for line in right), fillvalue="")))


def _show(value: float | Mapping[str, float | None] | None, unit: str) -> str:
    """Format a number, or a mean with its standard deviation."""
    mean, std = (value["mean"], value["std"]) if isinstance(value, Mapping) else (value, None)
    if mean is None:
        return "-"
    if std is None:
        return f"{mean:.1%}" if unit else str(mean)
    scale = 100 if unit else 1
    return f"{scale * mean:.1f} ± {scale * std:.1f}{unit}"
