"""What a run leaves behind: a table on the terminal, and whole files or none."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["align_columns", "clearing", "format_table", "make_output", "write_csv", "write_json", "writing"]


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line a row, all of one width: the first column aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def format_table(title: str, rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> str:
    """Rows of equally many columns under a title, the first column aligned to the left, the others to the right.

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
    lines = align_columns(rows if header is None else [header, *rows])
    rule = "-" * max(map(len, [title, *lines]))
    if header is not None:
        lines.insert(1, rule)
    return "\n".join([rule, title, rule, *(line.rstrip() for line in lines), rule])


def make_output(directory: Path) -> None:
    """Make the directory of a run; one that holds files already is refused, so that no run overwrites another.

    Raises:
        ValueError: if ``directory`` is a file, or holds anything.
    """
    if directory.exists() and not (directory.is_dir() and all(map(_is_leftover, directory.iterdir()))):
        raise ValueError(f"--output must be a new or empty directory, got {directory}, which is not")
    directory.mkdir(parents=True, exist_ok=True)


def _is_leftover(path: Path) -> bool:
    """Whether a killed process left this half-written; the next writing replaces it."""
    return path.name.startswith(".") and ".partial" in path.name


@contextmanager
def clearing(directory: Path) -> Iterator[None]:
    """Remove a new directory again if what is done inside fails before it holds anything."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it stays where it holds files
            directory.rmdir()
        raise


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes ``path`` when all went well and vanishes when it did not.

    A process that is killed meanwhile leaves ``path`` as it was, and at most the hidden ``.NAME.partial.SUFFIX``,
    which the next writing of ``path`` replaces.
    """
    # It ends as path does, as some writers choose the format by that.
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        # A full disk may show only when the bytes reach it, and a rename may reach it before the bytes do.
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], header: Sequence[str] | None = None) -> None:
    """Write rows as CSV in UTF-8; None becomes an empty cell.

    Args:
        path: the file.
        rows: all with the same keys.
        header: these keys in the order of the columns, by default that of the first row.

    Raises:
        ValueError: if there is neither a row nor a header, or a row has other keys.
    """
    if header is None:
        if not rows:
            raise ValueError(f"rows must hold at least one row to take the header of {path} from, got none")
        header = list(rows[0])
    for number, row in enumerate(rows, 1):
        if row.keys() != set(header):
            raise ValueError(f"rows must all have the keys {list(header)}, got {list(row)} in row {number}")
    with writing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
