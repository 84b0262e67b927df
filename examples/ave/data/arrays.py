"""Arrays in files: rows of an HDF5 dataset, or of a memory-mapped .npy, read when they are asked for."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ave.reading import check_regular

__all__ = ["StoredArray"]

BLOCK_BYTES = 64 << 20  # of a file that are in memory at once, when it is read from end to end
CHUNK_BYTES = 1 << 30  # the largest chunk that is read, as HDF5 unpacks a chunk as a whole
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
DAMAGES = (OSError, RuntimeError, ValueError, TypeError, KeyError)  # what HDF5 raises at damaged bytes


class StoredArray:
    """An array of numbers in a file, indexed by rows.

    Every process opens the file on first use, so that a worker neither shares a handle nor pickles one.

    Args:
        path: an HDF5 file, or an array saved by numpy, which is mapped into memory.
        dataset: which dataset of the HDF5 file; ignored for ``.npy``.

    Raises:
        OSError: if another process has locked the file, or the system refuses to open it, which may be whole.
        ValueError: if the file is damaged, lacks the dataset, or holds no array of numbers.
    """

    def __init__(self, path: Path | str, dataset: str = "avadataset") -> None:
        self.path, self.dataset = Path(path), dataset
        self._opened: tuple[int, Any] = (-1, None)
        array = self._array()
        self.shape: tuple[int, ...] = tuple(array.shape)
        """As it is read; it may be set to another with as many numbers in a row."""
        self.dtype: np.dtype[Any] = array.dtype.newbyteorder("=")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """The bytes of a row in memory."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    def __getitem__(self, rows: slice | Sequence[int]) -> Tensor:
        """Read rows, in any order, in the dtype of the file, but at most float32.

        Raises:
            OSError: if the file was cut short, or is damaged inside.
        """
        array = self._array()
        dtype = np.dtype(np.float32) if self.dtype.kind == "f" and self.dtype.itemsize > 4 else self.dtype
        try:
            _check_length(array)
            if isinstance(rows, slice):
                read = np.array(array[rows], dtype)
            elif isinstance(array, h5py.Dataset):  # its own indexing by a list wants it sorted, and is slower
                read = np.empty((len(rows), *array.shape[1:]), dtype)
                for place, row in enumerate(rows):
                    read[place] = array[row]
            else:
                _announce(array, rows)
                read = np.asarray(array[list(rows)], dtype)
        except DAMAGES as error:
            raise OSError(f"{self.path} is truncated or damaged: {_line(error)}") from error
        return torch.from_numpy(read.reshape(len(read), *self.shape[1:]))

    @property
    def is_unwritten(self) -> bool:
        """Whether nothing was ever written, so that all reads as zero."""
        array = self._array()
        try:
            if not isinstance(array, h5py.Dataset) or array.fillvalue != 0:
                return False
            return array.id.get_offset() is None if array.chunks is None else array.id.get_num_chunks() == 0
        except DAMAGES:  # which reading names
            return False

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Read from end to end, in blocks of rows of 64 MiB, or of one row that is larger.

        Yields:
            The number of a block's first row, and its rows, which the next block overwrites.

        Raises:
            ValueError: if the file is damaged inside.
        """
        array = self._array()
        chunks = array.chunks if isinstance(array, h5py.Dataset) else None
        count = max(1, BLOCK_BYTES // max(1, self.row_bytes))
        if chunks and chunks[0] < count:  # a chunk is read, and unpacked, as a whole: never twice
            count -= count % chunks[0]
        buffer = np.empty((min(count, len(self)), *array.shape[1:]), self.dtype)
        for first in range(0, len(self), count):
            rows = slice(first, min(first + count, len(self)))
            block = buffer[: rows.stop - rows.start]
            try:
                _check_length(array)
                if isinstance(array, h5py.Dataset):
                    array.read_direct(block, rows)
                else:
                    block[...] = array[rows]
            except DAMAGES as error:
                came = f"damage from row {first} on: {_line(error)}"
                raise ValueError(f"{self.path} must be whole, got {came}") from error
            yield first, block.reshape(len(block), *self.shape[1:])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": (-1, None)}

    def _array(self) -> Any:
        process, array = self._opened
        if process != os.getpid():
            array = None
            self._opened = (-1, None)  # after a fork the parent's handle must not be used
            array = self._open()
            self._opened = (os.getpid(), array)
        return array

    def _open(self) -> Any:
        try:
            check_regular(self.path)
            array = self._open_numpy() if self.path.suffix == ".npy" else self._open_hdf5()
            numbers = array.dtype.kind in "fiu" and array.ndim > 0
            came = f"{array.dtype} of shape {array.shape}"
        except (_RefusedError, MemoryError):
            raise
        except Exception as error:  # of damaged bytes, the libraries raise whatever they run into
            if hindrance := _find_hindrance(error):
                raise OSError(f"{self.path} {hindrance}") from error
            kind = "an array saved by numpy" if self.path.suffix == ".npy" else "a complete HDF5 file"
            raise ValueError(f"{self.path} must be {kind}, got {_look(self.path, error)}") from error
        if not numbers:
            raise ValueError(f"{self.path} must hold an array of numbers, got {came}")
        return array

    def _open_numpy(self) -> Any:
        array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):  # an archive of several
            raise TypeError(f"a {type(array).__name__}")
        return array

    def _open_hdf5(self) -> Any:
        """Open the dataset, which must lie in this very file: another would be read, and copied, in its place."""
        file = h5py.File(self.path, "r")
        link = file.get(self.dataset, getlink=True) if self.dataset in file.keys() else None  # noqa: SIM118
        array = file.get(self.dataset) if isinstance(link, h5py.HardLink) else None
        if link is not None and array is None:
            came = "an external link" if isinstance(link, h5py.ExternalLink) else "a symbolic link"
        elif not isinstance(array, h5py.Dataset):
            raise _RefusedError(f"{self.path} must hold the dataset {self.dataset}, got {', '.join(file) or 'none'}")
        elif array.is_virtual:
            came = "a virtual dataset, of parts of other files"
        elif array.external:
            came = "external storage, in other files"
        elif array.chunks and prod(array.chunks) * array.dtype.itemsize > CHUNK_BYTES:
            raise _RefusedError(f"{self.path} must have chunks of at most 1 GiB, got {array.chunks} of {array.dtype}")
        else:
            return array
        raise _RefusedError(f"{self.path} must hold the numbers of {self.dataset} itself, got {came}, refused")


class _RefusedError(ValueError):
    """A file that is whole, but holds something else; its message is that of the error."""


def _line(error: Exception) -> str:
    """Return the message of a library in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_length(array: Any) -> None:
    """Check that a mapped file was not cut: to read what is missing would end the process."""
    mapped = getattr(array, "base", None)
    if isinstance(mapped, mmap.mmap) and mapped.size() < array.offset + array.nbytes:
        raise OSError(f"{mapped.size()} bytes are left of {array.offset + array.nbytes}")


def _announce(array: np.memmap[Any, Any], rows: Sequence[int]) -> None:
    """Tell the system which rows come next, so that it reads them together, not page by page."""
    mapped, row_bytes = array.base, prod(array.shape[1:]) * array.itemsize
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):
        for row in rows:
            before = (start := array.offset + row * row_bytes) % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, start - before, before + row_bytes)


def _find_hindrance(error: Exception) -> str | None:
    """Return why the system did not open a file, and what to do; None where it is the file's own fault."""
    number = getattr(error, "errno", None)
    if "unable to lock file" in str(error):
        if number in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
            return "is locked by another process, which has it open for writing: wait until it is done, or end it"
        return "is in a file system without locks: set the environment variable HDF5_USE_FILE_LOCKING to FALSE"
    if number in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE):
        return f"must be a file that can be opened, got: {os.strerror(number)}"
    return None


def _look(path: Path, error: Exception) -> str:
    """Describe a file that could not be opened."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            start = file.read(512).lstrip()
    except OSError as unreadable:
        return unreadable.strerror or str(unreadable)
    except ValueError as irregular:
        return str(irregular).rpartition("got ")[2]
    if not start:
        return "an empty file"
    if start.lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, as Google Drive shows one before a large file: it was saved instead of the file"
    if path.suffix != ".npy" and not start.startswith(HDF5_SIGNATURE):
        return f"a file of another kind, which begins with {start[:8]!r}"
    return f"one that is cut short or damaged ({_line(error)})"
