"""Read a text file of labels: a CSV file with a line for each event, with its video, start, end and category."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ave.data.dataset import SPLITS
from ave.printing import printable
from ave.reading import read_text

__all__ = ["UNSURE", "Line", "read_lines"]

COLUMNS = ("video", "start", "end", "category")
UNSURE = "?"
"""The category of seconds that have no label."""


class Line(NamedTuple):
    """A line of the file."""

    number: int
    video: str
    start: float
    end: float
    category: str
    """Empty for a video without events."""
    split: str
    """Empty without a column `split`."""


def read_lines(path: Path) -> tuple[tuple[Line, ...], tuple[str, ...]]:
    """Read a file of labels, and check each line. Return its lines, and the columns that are ignored.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is not CSV in UTF-8, a column is missing, or a line is wrong.
    """
    try:
        reader = csv.reader(io.StringIO(read_text(path, "utf-8-sig"), newline=""), strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be CSV in UTF-8, got: {error}") from error
    header = [name.lower() for name in rows[0][1]] if rows else []
    if not set(COLUMNS) <= set(header) or len(set(header)) < len(header):
        came = printable(",".join(rows[0][1]) if rows else "an empty file", 80)
        raise ValueError(
            f"{path} must begin with a line that names its columns, {','.join(COLUMNS)} and if you like split, "
            f"got {came}"
        )
    lines = []
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise ValueError(f"{path}, line {number} must have {len(header)} cells, as line 1, got {len(cells)}")
        lines.append(_read_line(path, number, dict(zip(header, cells, strict=True))))
    if not any(line.category not in ("", UNSURE) for line in lines):
        raise ValueError(f"{path} must have at least one event, got none in its {len(lines)} lines")
    if "split" in header and (without := next((line for line in lines if not line.split), None)):
        raise ValueError(f"{path}, line {without.number} must name a split, train, val or test, got none")
    return tuple(lines), tuple(sorted(set(header) - {*COLUMNS, "split"}))


def _read_line(path: Path, number: int, cells: Mapping[str, str]) -> Line:
    """Convert the cells of a line, and check those that need no dataset."""
    place, (video, *event) = f"{path}, line {number}", [cells[name] for name in COLUMNS]
    split = cells.get("split", "")
    if not video:
        raise ValueError(f"{place} must name a video, got none")
    if split not in ("", *SPLITS):
        raise ValueError(f"{place}: split must be train, val or test, got {printable(split, 40)}")
    if not any(event):
        return Line(number, video, 0, 0, "", split)
    if not all(event):
        lacking = next(name for name, cell in zip(COLUMNS[1:], event, strict=True) if not cell)
        raise ValueError(f"{place} must have start, end and category, or none of them for background, got no {lacking}")
    if event[2].lower() == "background":
        raise ValueError(f"{place} must be an event, got background, which is where no event is: leave the line out")
    try:
        start, end = float(event[0]), float(event[1])
    except ValueError:
        start = end = math.nan
    if not (0 <= start < end < math.inf):
        came = printable(f"{event[0]} to {event[1]}", 60)
        raise ValueError(f"{place}: start and end must be seconds, at least 0, the end after the start, got {came}")
    return Line(number, video, start, end, event[2], split)
