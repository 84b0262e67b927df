"""Write results as JSON, CSV or arrays, each file whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from ave import InputError, checking_input

__all__ = [
    "check_output",
    "clearing",
    "is_leftover",
    "make_directory",
    "new_output",
    "write_csv",
    "write_json",
    "write_predictions",
    "write_scores",
    "writing",
    "writing_directory",
]

LOCK = ".lock"
"""The file in a directory that is locked while a process writes there."""

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
    """Tell whether a killed process left this: what it was writing, or its lock."""
    return path.name == LOCK or (path.name.startswith(".") and ".partial" in path.name)


@contextmanager
def clearing(directory: Path, *, new: bool = True, main: bool = True) -> Iterator[None]:
    """Create a directory, keep other processes out of it, and leave nothing half-written in it.

    If the code inside fails before it has written anything, what was created is removed again, parents too.

    Args:
        directory: the directory.
        new: whether it must hold no files yet.
        main: whether this process writes; the other processes of a launcher do nothing here.

    Raises:
        InputError: if another process writes to the directory, or ``new`` and it holds files.
    """
    if not main:
        yield
        return
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    with checking_input():
        if not directory.is_dir():
            check_output(directory)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with _locking(directory):
            with checking_input():
                if new:  # what another process wrote before the lock was free counts
                    check_output(directory)
            yield
            for path in list(directory.rglob(".*.partial*")):
                _remove(path)
    except BaseException:
        for path in created:
            with suppress(OSError):  # raised if it holds files
                path.rmdir()
        raise


@contextmanager
def _locking(directory: Path) -> Iterator[None]:
    """Lock a directory against other processes. The lock ends with this process, however that ends."""
    lock = FileLock(directory / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        advice = "wait until it has ended, or choose another directory"
        raise InputError(f"{directory} is in use by another process: {advice}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows refuses it while the file is open, and removes it with the lock
            os.unlink(directory / LOCK)
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes ``path`` if all went well, and else is removed.

    A process that is killed meanwhile leaves ``path`` as it was, and at most the hidden ``.NAME.partial.SUFFIX``,
    which the next writing of ``path`` replaces.

    Raises:
        FileNotFoundError: if the directory is gone.
    """
    # It has the suffix of path, because some writers choose the format by it.
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    with _expecting(path.parent):
        try:
            _remove(temporary)
            yield temporary
            # A full disk may show only when the bytes reach it, and a rename may reach it before the bytes do.
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            _remove(temporary)


@contextmanager
def writing_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory to write files to, which replaces the directory ``path`` as :func:`writing` does."""
    temporary, old = (path.with_name(f".{path.name}.partial{suffix}") for suffix in ("", ".old"))
    try:
        _remove(temporary)
        make_directory(temporary)
        yield temporary
        _remove(old)
        with suppress(FileNotFoundError):  # a directory that holds files cannot be replaced
            os.replace(path, old)
        with _expecting(path.parent):
            os.replace(temporary, path)
    finally:
        _remove(temporary)
        _remove(old)


def make_directory(path: Path) -> None:
    """Create a directory if it does not exist, but not its parents.

    Raises:
        FileNotFoundError: if its parent is gone.
    """
    with _expecting(path.parent):
        path.mkdir(exist_ok=True)


@contextmanager
def _expecting(directory: Path) -> Iterator[None]:
    """Name the directory that is gone, if that is why a file is not found."""
    try:
        yield
    except FileNotFoundError as error:
        gone = [path for path in (directory, *directory.parents) if not path.exists()]
        if gone:
            raise FileNotFoundError(f"{gone[-1]} is gone: deleted or renamed while this ran") from error
        raise


def _remove(path: Path) -> None:
    """Remove a file, a directory with all in it, or a link, which is not followed; it need not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    """Write ``predictions.npz``, video by video what a network returned on a split, for the analysis of its errors.

    It holds ``names`` (B,), the YouTube ids or else the rows of the dataset, ``rows`` (B,), ``labels`` and
    ``predictions`` (B, T), the logits as :attr:`~ave.results.metrics.Outcomes.logits` names them, and ``categories``
    (K,); label K is background, -1 is none.
    """
    rows = data.splits[split].tolist()
    arrays: dict[str, Any] = {
        "names": np.array([str(row) if data.names is None else data.names[row] for row in rows]),
        "rows": np.array(rows),
        "labels": outcomes.truth.numpy(),
        "predictions": outcomes.prediction.numpy(),
        **{name: logits.numpy() for name, logits in outcomes.logits.items()},
        "categories": np.array(data.categories),
    }
    with writing(output / "predictions.npz") as temporary:
        np.savez(temporary, **arrays)
