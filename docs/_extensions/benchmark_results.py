"""Put the committed benchmark results in place of the comment ``<!-- results -->`` on the page of benchmarks.

Tables and pictures are made anew, from the JSON files alone, into the build directory. Without any results the page
says how to make some.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

MARKER = "<!-- results -->"
PAGE = "benchmarks"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the marker by one section for each directory of results."""
    if docname != PAGE:
        return
    sections = [_report(app, directory) for directory in sorted(RESULTS.glob("*/")) if _results(directory)]
    if (data_loading := RESULTS / "data_loading.json").is_file():
        app.env.note_dependency(str(data_loading))
        sections.append(_describe_data_loading(json.loads(data_loading.read_text())))
    found = "\n".join(sections) or "No results are kept here yet: `make bench` makes some."
    source[0] = source[0].replace(MARKER, found)


def _results(directory: Path) -> list[Path]:
    """The files of a directory that hold a row's results."""
    from benchmarks.report import ROWS

    return [path for name in ROWS if (path := directory / f"{name}.json").is_file()]


def _report(app: Sphinx, directory: Path) -> str:
    """The report of one directory, a level deeper, with its pictures."""
    from benchmarks.report import write_report

    copy = Path(app.outdir).parent / "benchmarks" / directory.name
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for path in _results(directory):
        shutil.copy(path, copy)
        app.env.note_dependency(str(path))
    write_report(copy)
    report = (copy / "report.md").read_text().partition("\n## ")[2]
    place = Path(os.path.relpath(copy, app.srcdir)).as_posix()
    report = re.sub(r"(!\[[^]]*\]\()", rf"\g<1>{place}/", f"\n## {report}")
    return f"## On {_device(copy)}\n{re.sub(r'(?m)^#(?=#)', '##', report)}"


def _device(directory: Path) -> str:
    """What was measured, in the words of its own results."""
    machine = json.loads(_results(directory)[0].read_text())["machine"]
    return machine["gpu"] if "gpu" in machine else f"{machine['cores']} CPU cores ({machine['processor']})"


def _describe_data_loading(results: dict[str, Any]) -> str:
    """How quickly the release is read, in videos a second."""
    machine = results["machine"]
    lines = [
        "## Reading the AVE release\n",
        f"Videos a second, of {results['videos']} in batches of {results['batch_size']}; median of "
        f"{results['repeats']} readings, quartiles in brackets. Cold is with nothing in the page cache, warm is right "
        "after it. "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB.\n",
        "| how | cold | warm |",
        "|---|---|---|",
    ]
    for form, figures in results["samples_per_second"].items():
        cells = []
        for state in ("cold", "warm"):
            lower, upper = figures[state]["quartiles"]
            cells.append(f"{figures[state]['median']:.0f} ({lower:.0f}-{upper:.0f})")
        lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
