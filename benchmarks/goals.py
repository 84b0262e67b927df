"""Write the summary of a run on a GPU: how its steps ended, the goals and whether they were met, and short tables.

It is made from the files of the run. Missing files are left out. ``python -m benchmarks.goals DIR`` writes it again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import ge, gt, le
from pathlib import Path
from typing import Any

from ave.results.files import writing
from benchmarks.markdown import markdown_table

__all__ = ["STEPS", "TABLE", "main", "write_table"]

STEPS, TABLE = "steps.json", "gpu.md"
ROWS = ("network", "agsca", "cmra", "windows", "epoch")
STEP = {"videos": 32, "task": "training step"}
AGSCA = {"map": "256 x 10 x 7 x 7 x 512", "dtype": "bfloat16"}
EPOCHS = 200
MISSING = "-"
MANY = 4
"""From this many cases on, their number is shown and not their names."""


def write_table(directory: Path) -> str:
    """Write ``gpu.md``, and return its text.

    Args:
        directory: the directory of a run. Some of its files may be missing.
    """
    rows = {name: json.loads(path.read_text()) for name in ROWS if (path := directory / f"{name}.json").is_file()}
    steps = json.loads((directory / STEPS).read_text())["steps"] if (directory / STEPS).is_file() else []
    parts = ["# Results on a GPU\n"]
    if rows:
        parts.append(_machine(next(iter(rows.values()))))
    parts.append(
        markdown_table(
            ["step", "", "seconds"], [[step["name"], step["how"], f"{step['seconds']:.0f}"] for step in steps]
        )
    )
    parts += ["## Goals\n", markdown_table(["goal", "target", "measured", "met"], list(_goals(rows)))]
    if "network" in rows:
        parts += ["## The whole network\n", _network(_cases(rows, "network"))]
    for name in ("agsca", "cmra", "windows"):
        if name in rows:
            compared = [case for case in _cases(rows, name) if case["ratios"]]
            parts += [f"## {rows[name]['title']}: ratios of time\n", _ratios(compared)]
    if "epoch" in rows:
        parts += ["## Training\n", _epochs(_cases(rows, "epoch"))]
    parts += _skipped(rows)
    text = "\n".join(parts)
    with writing(directory / TABLE) as temporary:
        temporary.write_text(text)
    return text


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    place = machine["processor"]
    if "gpu" in machine:
        place = f"{machine['gpu']}, compute capability {machine['compute_capability']}, CUDA {machine['cuda']}; {place}"
    quick = " **A quick run: a check that everything runs, not a measurement.**" if results["quick"] else ""
    return f"{place}, {machine['cores']} cores; Python {machine['python']}, {versions}.{quick}\n"


def _cases(rows: dict[str, Any], name: str, **wanted: Any) -> list[dict[str, Any]]:
    """Return the measured cases of a row group that have the ``wanted`` settings."""
    cases = rows.get(name, {}).get("cases", ())
    return [case for case in cases if "skipped" not in case and wanted.items() <= case["case"].items()]


def _goals(rows: dict[str, Any]) -> Iterator[list[str]]:
    """Return a table row for each goal: its name, the target, the measured value, and whether the target is met."""
    steps = _cases(rows, "network", **STEP)
    for published, target in (("float64", 15.0), ("float32", 4.0)):
        goal = f"training step of 32 videos, as published in {published} / CMRAN"
        found = _medians(steps, "to", f"as published, {published}", "CMRAN")
        yield _goal(goal, f"at least {target:g}", max(found, default=None), partial(le, target))
    found = _medians(steps, "to", "as published, float32", "CMRAN, float32")
    yield _goal("the same, both in float32", MISSING, max(found, default=None), None)
    for task in ("forward", "forward and backward"):
        found = _medians(_cases(rows, "agsca", **AGSCA, task=task), "of", "matrix products alone", "AGSCA")
        best = min(found, default=None)
        yield _goal(
            f"AGSCA of 256 videos in bf16, {task} / matrix products alone", "at most 1.5", best, partial(ge, 1.5)
        )
    trainings = [
        (_seconds(case), ", ".join([*map(str, case["case"].values()), f"{case['epochs_done']} epochs done"]))
        for case in _cases(rows, "epoch", epochs=EPOCHS)
    ]
    goal = f"{EPOCHS} epochs on a dataset of AVE's size, seconds"
    yield _goal(goal, "under 60", min(trainings, default=None), partial(gt, 60.0))


def _goal(goal: str, target: str, best: tuple[float, str] | None, meets: Callable[[float], bool] | None) -> list[str]:
    """Return the table row of a goal. The measured value is the best one, with its form in brackets."""
    if best is None:
        return [goal, target, "not measured", MISSING]
    met = MISSING if meets is None else "yes" if meets(best[0]) else "no"
    return [goal, target, f"{best[0]:.3g} ({best[1]})", met]


def _medians(cases: Sequence[dict[str, Any]], end: str, other: str, kind: str) -> list[tuple[float, str]]:
    """Return the median time ratios between one form and all forms whose names begin with ``kind``, with their names.

    Args:
        cases: the measured cases.
        end: the place of the latter in the ratios, "of" or "to".
        other: the name of the one form.
        kind: the beginning of the names of the others.
    """
    opposite = "of" if end == "to" else "to"
    return [
        (ratio["time"]["median"], ratio[end])
        for case in cases
        for ratio in case["ratios"]
        if ratio[opposite] == other and ratio[end].startswith(kind)
    ]


def _seconds(case: dict[str, Any]) -> float:
    """Return the seconds of all epochs of a training, extrapolated if it ran out of time."""
    wanted, done = case["case"]["epochs"], case["epochs_done"]
    return float(case["seconds_in_all"] + (wanted - done) * case["epoch_seconds"]["median"])


def _network(cases: Sequence[dict[str, Any]]) -> str:
    """Return a table of the milliseconds of each form, with its speedup over the published network in float64."""
    columns: dict[tuple[int, str], dict[str, str]] = {}
    for case in cases:
        column = columns.setdefault((case["case"]["videos"], case["case"]["task"]), {})
        faster = {
            ratio["to"]: ratio["time"]["median"] for ratio in case["ratios"] if ratio["of"] == "as published, float64"
        }
        for name, form in case["forms"].items():
            if "seconds" in form:
                times = f" ({faster[name]:.3g})" if name in faster else ""
                column.setdefault(name, f"{form['seconds']['median'] * 1e3:.3g}{times}")
    names = dict.fromkeys(name for column in columns.values() for name in column)
    header = ["ms (speedup over as published, float64)", *(f"{task}, {videos} videos" for videos, task in columns)]
    return markdown_table(
        header, [[name, *(column.get(name, MISSING) for column in columns.values())] for name in sorted(names)]
    )


def _ratios(cases: Sequence[dict[str, Any]]) -> str:
    """Return a table of the time ratios of each case."""
    pairs = dict.fromkeys((ratio["of"], ratio["to"]) for case in cases for ratio in case["ratios"])
    lines = []
    for case in cases:
        found = {(ratio["of"], ratio["to"]): f"{ratio['time']['median']:.3g}" for ratio in case["ratios"]}
        lines.append([*map(str, case["case"].values()), *(found.get(pair, MISSING) for pair in pairs)])
    keys = cases[0]["case"] if cases else {}
    return markdown_table([*keys, *(f"{of} / {to}" for of, to in pairs)], lines)


def _epochs(cases: Sequence[dict[str, Any]]) -> str:
    """Return a table of the seconds of each training."""
    lines = [
        [
            *map(str, case["case"].values()),
            str(case["epochs_done"]),
            f"{case['first_epoch_seconds']:.3g}",
            f"{case['epoch_seconds']['median']:.3g}",
            f"{case['seconds_in_all']:.3g}",
        ]
        for case in cases
    ]
    keys = cases[0]["case"] if cases else {}
    return markdown_table([*keys, "done", "first epoch, s", "a later epoch, s", "all epochs, s"], lines)


def _skipped(rows: dict[str, Any]) -> list[str]:
    """List the cases that were not measured, by reason. Of many cases only the number is shown."""
    reasons: dict[str, list[str]] = {}
    for row, results in rows.items():
        for case in results["cases"]:
            name = ", ".join(map(str, case["case"].values()))
            if "skipped" in case:
                reasons.setdefault(f"{row}: {case['skipped']}", []).append(name)
            for form, result in case.get("forms", {}).items():
                if "skipped" in result:
                    reasons.setdefault(f"{row}: {form}: {result['skipped']}", []).append(name)
    lines = [
        f"- {reason} ({'; '.join(names) if len(names) < MANY else f'{len(names)} cases'})"
        for reason, names in reasons.items()
    ]
    return ["## Not measured\n", "\n".join(lines) + "\n"] if lines else []


def main(arguments: list[str] | None = None) -> None:
    """Write the summary of a directory again, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goals", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory with the files of a run")
    print(write_table(parser.parse_args(arguments).directory))


if __name__ == "__main__":
    main()
