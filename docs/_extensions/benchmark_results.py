"""Replace the comment ``<!-- results -->`` of the benchmarks page by the committed benchmark results.

Tables and charts are made from the JSON files, in the build directory. If there are no results, the page says how to
make them.
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
    """Replace the marker by a section for each directory of results."""
    if docname != PAGE:
        return
    sections = [_report(app, directory) for directory in sorted(RESULTS.glob("*/")) if _results(directory)]
    if (data_loading := RESULTS / "data_loading.json").is_file():
        app.env.note_dependency(str(data_loading))
        sections.append(_describe_data_loading(json.loads(data_loading.read_text())))
    found = "\n".join(sections) or "There are no results yet: run `make bench`."
    source[0] = source[0].replace(MARKER, found)


def _results(directory: Path) -> list[Path]:
    """Return the result files of a directory."""
    from benchmarks.report import ROWS

    return [path for name in ROWS if (path := directory / f"{name}.json").is_file()]


def _report(app: Sphinx, directory: Path) -> str:
    """Return the report of a directory with its charts. Its headings are moved one level down."""
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
    report = re.sub(r"(!\[[^]]*\]\()", rf"\g<1>{place}/", report)
    return "\n".join([f"## On {_device(copy)}\n", *map(_fold, report.split("\n## "))])


def _fold(section: str) -> str:
    """Return the section of one group of rows: title and chart, then all its tables in a folded block."""
    title, machine, chart, rest = section.split("\n\n", 3)
    tables = re.sub(r"(?m)^###+ (.*)$", r"**\1**", rest)  # headings would divide the fold into sections
    summary = "<details>\n<summary>All tables, and the machine</summary>"
    return f"### {title}\n\n{chart}\n\n{summary}\n\n{machine}\n\n{tables}\n\n</details>\n"


def _device(directory: Path) -> str:
    """Return the name of the measured device."""
    machine = json.loads(_results(directory)[0].read_text())["machine"]
    if "gpu" in machine:
        return machine["gpu"]
    return f"{machine['cores']} CPU cores ({machine['processor']}, {machine['instructions']})"


def _describe_data_loading(results: dict[str, Any]) -> str:
    """Return the section about data loading: videos per second of each way to read the release."""
    from benchmarks.markdown import markdown_table

    rows = []
    for form, speeds in results["samples_per_second"].items():
        cells = []
        for state in ("cold", "warm"):
            lower, upper = speeds[state]["quartiles"]
            cells.append(f"{speeds[state]['median']:.0f} ({lower:.0f}-{upper:.0f})")
        rows.append([form, *cells])
    machine = results["machine"]
    return (
        "## Reading the AVE release\n\n"
        f"Videos per second, for {results['videos']} videos in batches of {results['batch_size']}. Median of "
        f"{results['repeats']} readings, quartiles in brackets. A cold reading starts with no file in the page cache. "
        "A warm reading follows it. "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB.\n\n"
    ) + markdown_table(["how", "cold", "warm"], rows)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the event handler."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
