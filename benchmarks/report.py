"""Write the report of a run, with tables and charts, from its JSON files: ``python -m benchmarks.report DIR``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ave.results.files import writing
from benchmarks.markdown import markdown_table
from benchmarks.pictures import draw_epochs, draw_growth, draw_ratios

__all__ = ["main", "write_report"]

ROWS = ("cmra", "agsca", "network", "rival_networks", "growth", "windows", "streams", "epoch")
MISSING = "-"


def write_report(directory: Path) -> None:
    """Write ``report.md`` and its charts from ``cmra.json`` and the other JSON files of a directory.

    Args:
        directory: the directory of the JSON files and of the report.

    Raises:
        ValueError: if the directory has none of these files.
    """
    paths = [path for name in ROWS if (path := directory / f"{name}.json").is_file()]
    if not paths:
        raise ValueError(
            f"{directory} must contain results such as {ROWS[0]}.json, got none: run python -m benchmarks first"
        )
    parts = ["# Results\n", "Written by `python -m benchmarks.report` from the JSON files in this directory.\n"]
    for path in paths:
        results = json.loads(path.read_text())
        describe, draw = SECTIONS.get(results["row"], (_comparison, draw_ratios))
        picture = path.with_suffix(".png")
        with writing(picture) as temporary:
            draw(results).savefig(temporary, dpi=120)
        parts += [f"## {results['title']}\n", _origin(results), f"![{results['title']}]({picture.name})\n"]
        parts += describe(results)
        parts += _skipped(results)
    with writing(directory / "report.md") as temporary:
        temporary.write_text("\n".join(parts))


def _origin(results: dict[str, Any]) -> str:
    """Return a line about the machine and the settings."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    where = f"{machine['gpu']}, CUDA {machine['cuda']}; " if "gpu" in machine else ""
    quick = " **A quick run: a check that everything runs, not a measurement.**" if results["quick"] else ""
    return (
        f"{where}{machine['processor']} ({machine['instructions']}), {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['memory_bytes'] / 1e9:.0f} GB; {machine['system']}, "
        f"Python {machine['python']}, {versions}; seed {results['seed']}; measured in "
        f"{results['measured_in_seconds']:.0f} s.{quick}\n"
    )


def _measured(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (case for case in results["cases"] if "skipped" not in case)


def _cells(case: dict[str, Any]) -> list[str]:
    return [str(value) for value in case["case"].values()]


def _number(value: float) -> str:
    """Format a number with three digits, or with all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _spread(summary: dict[str, Any], scale: float = 1.0) -> str:
    """Format a median, with the quartiles in brackets."""
    median, lower, upper = (_number(value * scale) for value in (summary["median"], *summary["quartiles"]))
    return f"{median} ({lower}-{upper})"


def _comparison(results: dict[str, Any]) -> list[str]:
    """Return the sections of a comparison: ratios of time, ratios of memory, then the measured values."""
    cases = list(_measured(results))
    if not cases:
        return []
    keys = list(cases[0]["case"])
    pairs = list(dict.fromkeys((ratio["of"], ratio["to"]) for case in cases for ratio in case["ratios"]))
    names = [f"{of} / {to}" for of, to in pairs]
    times, memories = [], []
    for case in cases:
        found = {(ratio["of"], ratio["to"]): ratio for ratio in case["ratios"]}
        ratios = [found.get(pair) for pair in pairs]
        times.append([_spread(ratio["time"]) if ratio else MISSING for ratio in ratios])
        memories.append([_number(ratio["memory"]) if ratio and ratio["memory"] else MISSING for ratio in ratios])
    with_speed = any("videos_per_second" in form for case in cases for form in case["forms"].values())
    lines = []
    for case in cases:
        for name, form in case["forms"].items():
            if "skipped" in form:
                continue
            speed = [_number(form["videos_per_second"])] if with_speed else []
            figures = [_spread(form["seconds"], 1e3), _number(form["peak_bytes"] / 1e6)]
            lines.append([*_cells(case), name, *figures, *speed, str(case["rounds"])])
    columns = [*keys, "form", "time, ms", "peak memory, MB", *(["videos/s"] if with_speed else []), "rounds"]
    return [
        "### Time, as ratios\n",
        "Median over the rounds, with the quartiles in brackets. Above 1, the first form takes longer.\n",
        _grid(cases, names, times),
        "### Peak memory, as ratios\n",
        _grid(cases, names, memories),
        "### Time and peak memory\n",
        markdown_table(columns, lines),
    ]


def _grid(cases: Sequence[dict[str, Any]], names: Sequence[str], figures: Sequence[Sequence[str]]) -> str:
    """Return a table of values by case and by name. The shorter of the two lists becomes the columns."""
    if len(names) <= len(cases):
        rows = [[*_cells(case), *line] for case, line in zip(cases, figures, strict=True)]
        return markdown_table([*cases[0]["case"], *names], rows)
    header = ["", *(", ".join(f"{key} {value}" for key, value in case["case"].items()) for case in cases)]
    return markdown_table(header, [list(row) for row in zip(names, *figures, strict=True)])


def _growth(results: dict[str, Any]) -> list[str]:
    """Return the sections of the growth: fitted exponents, then the measured values."""
    fits, points = [], []
    for case in _measured(results):
        fit = case["fits"]
        if fit:
            reach = f"{fit['from']} ... {fit['to']}"
            fits.append([*_cells(case), reach, _spread(fit["time"]), _number(fit["memory"])])
        for name, form in case["forms"].items():
            if "seconds" in form:
                points.append([*_cells(case), name, _spread(form["seconds"], 1e3), _number(form["peak_bytes"] / 1e6)])
    return [
        "### Fitted exponents\n",
        markdown_table(["against", "task", "over", "exponent of time", "exponent of peak memory"], fits),
        "### Time and peak memory\n",
        markdown_table(["against", "task", "size", "time, ms", "peak memory, MB"], points),
    ]


def _windows(results: dict[str, Any]) -> list[str]:
    """Return the sections of a comparison, then those of the growth."""
    compared, grown = (
        {**results, "cases": [case for case in results["cases"] if ("fits" in case) is fitted]}
        for fitted in (False, True)
    )
    return [*_comparison(compared), *_growth(grown)]


def _epoch(results: dict[str, Any]) -> list[str]:
    """Return the table of the parts of an epoch."""
    cases = list(_measured(results))
    if not cases:
        return []
    parts = list(dict.fromkeys(part for case in cases for part in case["parts"]))
    rows = [
        [
            *_cells(case),
            *(_spread(case["parts"][part]) if part in case["parts"] else MISSING for part in parts),
            _spread(case["epoch_seconds"]),
            _number(case["first_epoch_seconds"]),
            _number(case["seconds_in_all"]) + _unfinished(case),
        ]
        for case in cases
    ]
    return [
        "Seconds of an epoch, without the first, which is a warm-up.\n",
        markdown_table([*cases[0]["case"], *parts, "an epoch", "the first", "all epochs"], rows),
    ]


def _unfinished(case: dict[str, Any]) -> str:
    """Return a note on the number of epochs if a training ran out of time."""
    done = case.get("epochs_done", case["case"]["epochs"])
    return "" if done == case["case"]["epochs"] else f" (ended after {done} epochs)"


def _skipped(results: dict[str, Any]) -> list[str]:
    """List the cases and forms that were not measured, by reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in results["cases"]:
        name = ", ".join(f"{key} {value}" for key, value in case["case"].items())
        if "skipped" in case:
            reasons.setdefault(("", case["skipped"]), []).append(name)
        for form, result in case.get("forms", {}).items():
            if "skipped" in result:
                reasons.setdefault((form, result["skipped"]), []).append(name)
    if not reasons:
        return []
    lines = [
        f"- {form + ': ' if form else ''}{reason} ({'; '.join(names)})" for (form, reason), names in reasons.items()
    ]
    return ["### Not measured\n", "\n".join(lines) + "\n"]


SECTIONS: dict[str, tuple[Callable[[dict[str, Any]], list[str]], Callable[[dict[str, Any]], Any]]] = {
    "growth": (_growth, draw_growth),
    "windows": (_windows, draw_ratios),
    "epoch": (_epoch, draw_epochs),
}
"""The functions that describe and draw a row group. All other row groups are comparisons."""


def main(arguments: list[str] | None = None) -> None:
    """Write the report of a directory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory with the JSON files")
    try:
        write_report(parser.parse_args(arguments).directory)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
