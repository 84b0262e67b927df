"""What a run leaves behind: a table on the terminal, and whole files or none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["format_table", "make_output", "write_json", "writing"]


def format_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Two columns under a title, the values aligned to the right."""
    name_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    rule = "-" * max(len(title), name_width + 2 + value_width)
    lines = [f"{name:<{name_width}}  {value:>{value_width}}" for name, value in rows]
    return "\n".join([rule, title, rule, *lines, rule])


def make_output(directory: Path) -> None:
    """Make the directory of a run; one that holds files already is refused, so that no run overwrites another.

    Raises:
        ValueError: if ``directory`` is a file, or holds anything.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"--output must be a new or empty directory, got {directory}, which is not")
    directory.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes ``path`` when all went well and vanishes when it did not."""
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
