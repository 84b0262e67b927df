"""Write results as JSON, CSV or arrays, each file whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

__all__ = [
    "check_output",
    "clearing",
    "is_leftover",
    "new_output",
    "write_csv",
    "write_json",
    "write_predictions",
    "write_scores",
    "writing",
]

if TYPE_CHECKING:
    from ave.data.dataset import AVEData, Split
    from ave.results.metrics import Outcomes


def new_output(output: Path | None, name: str) -> Path:
    """Return the directory that was asked for, or one below runs/ that is named after the time."""
    return output or Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name}"


def check_output(directory: Path) -> None:
    """Refuse a directory that holds files, so that no run overwrites another.

    Raises:
        ValueError: if ``directory`` is a file, or holds anything.
    """
    if directory.exists() and not (directory.is_dir() and all(map(is_leftover, directory.iterdir()))):
        raise ValueError(f"--output must be a new or empty directory, got {directory}, which is not")


def is_leftover(path: Path) -> bool:
    """Tell whether a killed process left this file half-written; the next writing replaces it."""
    return path.name.startswith(".") and ".partial" in path.name


@contextmanager
def clearing(directory: Path) -> Iterator[None]:
    """Create a directory, and remove it again if the code inside fails before it has written anything."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # raised if it holds files
            directory.rmdir()
        raise


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes ``path`` if all went well, and else is removed.

    A process that is killed meanwhile leaves ``path`` as it was, and at most the hidden ``.NAME.partial.SUFFIX``,
    which the next writing of ``path`` replaces.
    """
    # It has the suffix of path, because some writers choose the format by it.
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
    """Write ``value`` as indented JSON; paths become text."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, default=os.fspath) + "\n")


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


def write_scores(
    output: Path, runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], categories: Sequence[str]
) -> None:
    """Write ``metrics.json``, ``metrics.csv``, ``categories.csv`` and ``confusion.csv``.

    Args:
        output: the directory.
        runs: the metrics of each network.
        summary: their mean and standard deviation.
        categories: the names, without background.
    """
    write_json(output / "metrics.json", {"summary": summary, "runs": list(runs)})
    scalars = [{key: value for key, value in run.items() if not isinstance(value, (list, dict))} for run in runs]
    write_csv(output / "metrics.csv", scalars)
    shares = [{"category": name, **spread} for name, spread in summary["category_accuracy"].items()]
    write_csv(output / "categories.csv", shares)
    names = [*categories, "background"]
    confusion = [dict(zip(names, row, strict=True)) for row in summary["confusion"]]
    write_csv(output / "confusion.csv", [{"true": name, **row} for name, row in zip(names, confusion, strict=True)])


def write_predictions(output: Path, outcomes: Outcomes, data: AVEData, split: Split) -> None:
    """Write ``predictions.npz``, video by video what a network gave on a split, for the analysis of its errors.

    It holds ``names`` (B,), ids or rows of the dataset, ``rows`` (B,), ``labels`` and ``predictions`` (B, T),
    ``event_logits`` (B, T), ``category_logits`` (B, K), or weak (B, K + 1), and ``categories`` (K,); the label K is
    background.
    """
    rows = data.splits[split].tolist()
    with writing(output / "predictions.npz") as temporary:
        np.savez(
            temporary,
            names=np.array([str(row) if data.names is None else data.names[row] for row in rows]),
            rows=np.array(rows),
            labels=outcomes.truth.numpy(),
            predictions=outcomes.prediction.numpy(),
            event_logits=outcomes.event_logits.numpy(),
            category_logits=outcomes.category_logits.numpy(),
            categories=np.array(data.categories),
        )
