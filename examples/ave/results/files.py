"""Write files, JSON and CSV, and lock directories. A failed write leaves no file, and keeps the old one."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ave import InputError, checking_input

__all__ = [
    "check_output",
    "clearing",
    "is_leftover",
    "make_directory",
    "new_output",
    "write_array",
    "write_csv",
    "write_json",
    "writing",
    "writing_directory",
]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a write to a full disk, or above the limit of a user or of a file system."""
LOCK = ".lock"
"""The lock file in a directory, which is locked while a process writes there."""


def new_output(output: Path | None, name: str) -> Path:
    """Return ``output``, or by default a directory in runs/ with the date and time in its name."""
    return output or Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name}"


def check_output(directory: Path) -> None:
    """Reject a directory that holds files, so that no run overwrites another.

    Raises:
        ValueError: if ``directory`` is a file, or is not empty.
    """
    if directory.exists() and not (directory.is_dir() and all(map(is_leftover, directory.iterdir()))):
        raise ValueError(f"--output must be a new or empty directory, got {directory}, which is not")


def is_leftover(path: Path) -> bool:
    """Return whether a path is a lock, or a partial file that a killed process left."""
    return path.name == LOCK or (path.name.startswith(".") and ".partial" in path.name)


@contextmanager
def clearing(directory: Path, *, new: bool = True, main: bool = True) -> Iterator[None]:
    """Create a directory, lock it against other processes, and remove partial files from it at the end.

    If the code inside fails before it has written a file, the directory and all parents that were created are removed.

    Args:
        directory: the directory to write to.
        new: whether the directory must be empty.
        main: whether this process writes. The other processes of a launcher do nothing here.

    Raises:
        InputError: if another process writes to the directory, or if ``new`` and it holds files.
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
                if new:  # another process may have written files before the lock was free
                    check_output(directory)
            try:
                yield
            finally:
                for path in list(directory.rglob(".*.partial*")):
                    _remove(path)
    except BaseException:
        for path in created:
            with suppress(OSError):  # raised if it holds files
                path.rmdir()
        raise


@contextmanager
def _locking(directory: Path) -> Iterator[None]:
    """Lock a directory against other processes. The lock is released even if this process is killed."""
    lock = FileLock(directory / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        advice = "wait until it has ended, or choose another directory"
        raise InputError(f"{directory} is in use by another process: {advice}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # fails on Windows, where releasing the lock removes the file
            os.unlink(directory / LOCK)
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It is renamed to ``path`` on success, and removed on failure.

    If the process is killed, ``path`` is unchanged. It may leave the hidden file ``.NAME.partial.SUFFIX``, which the
    next write of ``path`` replaces.

    Raises:
        FileNotFoundError: if the directory is gone.
        OSError: if the disk is full, with ``path`` as its file name, or if the file cannot be written for another
            reason.
    """
    # Some writers choose the format by the suffix, so keep it.
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    with _expecting(path.parent):
        try:
            _remove(temporary)
            yield temporary
            # Only fsync reports some errors, such as a full disk. It also ensures that data precede the rename.
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in FULL or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error  # which tells what disk is full
        finally:
            _remove(temporary)


@contextmanager
def writing_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory to write files to. On success it replaces the directory ``path``."""
    temporary, old = (path.with_name(f".{path.name}.partial{suffix}") for suffix in ("", ".old"))
    try:
        _remove(temporary)
        make_directory(temporary)
        yield temporary
        _remove(old)
        with suppress(FileNotFoundError):  # os.replace cannot replace a directory with files
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
    """If a file is not found because a directory is gone, name the directory."""
    try:
        yield
    except FileNotFoundError as error:
        gone = [path for path in (directory, *directory.parents) if not path.exists()]
        if gone:
            raise FileNotFoundError(f"{gone[-1]} is gone: deleted or renamed while this ran") from error
        raise


def _remove(path: Path) -> None:
    """Remove a file, a link (without following it) or a directory with its files, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_array(
    path: Path, shape: tuple[int, ...], kind: np.dtype[Any], blocks: Iterable[NDArray[Any]]
) -> tuple[int, str]:
    """Write an array to a .npy file, block by block, and return its size in bytes and its SHA-256.

    If that fails, no file is left.

    Args:
        path: the file.
        shape: the shape of the array.
        kind: the dtype of the array and of all blocks.
        blocks: contiguous blocks of rows.
    """
    with writing(path) as temporary, temporary.open("wb") as stream:
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        digest = hashlib.sha256(header.getvalue())
        stream.write(header.getvalue())
        for block in blocks:
            digest.update(block.data)
            stream.write(block.data)
    return path.stat().st_size, digest.hexdigest()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON. Paths become text."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, default=os.fspath) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], header: Sequence[str] | None = None) -> None:
    """Write rows as CSV in UTF-8. None becomes an empty cell, and a lone surrogate, as in a file name, an escape.

    Args:
        path: the file to write.
        rows: the rows, all with the same keys.
        header: the keys in the order of the columns. Default: the order in the first row.

    Raises:
        ValueError: if there is neither a row nor a header, or the keys of a row differ from the header.
    """
    if header is None:
        if not rows:
            raise ValueError(f"rows must not be empty without a header, to write {path}")
        header = list(rows[0])
    for number, row in enumerate(rows, 1):
        if row.keys() != set(header):
            raise ValueError(f"rows must all have the keys {list(header)}, got {list(row)} in row {number}")
    with writing(path) as temporary, temporary.open("w", -1, "utf-8", "backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
