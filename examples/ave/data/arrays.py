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
        dtype = np.dtype(np.float32) if self.dtype.kind == "f" and self.dtype.itemsize > 4 else self.dtype
        try:
            array = self._array()
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
        check_regular(self.path)
        try:
            if self.path.suffix == ".npy":
                array, refused = np.load(self.path, mmap_mode="r", allow_pickle=False), None
            else:
                array, refused = self._open_hdf5()
            if refused is None and (array.dtype.kind not in "fiu" or array.ndim == 0):
                refused = f"an array of numbers, got {str(array.dtype)[:60]} of shape {array.shape}"
        except MemoryError:
            raise
        except Exception as error:  # of damaged bytes, the libraries raise whatever they run into
            raise _explain(self.path, error) from error
        if refused is not None:
            raise ValueError(f"{self.path} must hold {refused}")
        return array

    def _open_hdf5(self) -> tuple[Any, str | None]:
        """Open the dataset, or say what must be there and what is; data in other files would be copied from there."""
        file, name = h5py.File(self.path, "r"), self.dataset
        link = file.get(name, getlink=True) if name in file.keys() else None  # noqa: SIM118
        array = file.get(name) if isinstance(link, h5py.HardLink) else None
        refused = None
        if isinstance(link, (h5py.ExternalLink, h5py.SoftLink)):
            kind = "an external" if isinstance(link, h5py.ExternalLink) else "a symbolic"
            refused = f"the numbers of {name} itself, got {kind} link, refused"
        elif not isinstance(array, h5py.Dataset):
            refused = f"the dataset {name}, got {', '.join(file)[:60] or 'none'}"
        elif array.is_virtual:
            refused = f"the numbers of {name} itself, got a virtual dataset, of parts of other files, refused"
        elif array.external:
            refused = f"the numbers of {name} itself, got external storage, in other files, refused"
        elif array.chunks and prod(array.chunks) * array.dtype.itemsize > CHUNK_BYTES:
            refused = f"chunks of at most 1 GiB, got {array.chunks} of {str(array.dtype)[:60]}"
        return array, refused


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


def _explain(path: Path, error: Exception) -> Exception:
    """Return the error to raise: an OSError where the system did not open the file, which may be whole."""
    number = getattr(error, "errno", None)
    if "unable to lock file" in str(error):
        if number in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
            came = "is locked by another process, which has it open for writing: wait until it is done, or end it"
        else:
            came = "is in a file system without locks: set the environment variable HDF5_USE_FILE_LOCKING to FALSE"
        return OSError(f"{path} {came}")
    if number in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE):
        return OSError(f"{path} must be a file that can be opened, got: {os.strerror(number)}")
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    came = f"one that is cut short or damaged ({_line(error)})"
    if not start:
        came = "an empty file"
    elif start.lower().startswith((b"<!doctype html", b"<html")):
        came = "a web page, as Google Drive shows one before a large file: it was saved instead of the file"
    elif path.suffix != ".npy" and not start.startswith(HDF5_SIGNATURE):
        came = f"a file of another kind, which begins with {start[:8]!r}"
    kind = "an array saved by numpy" if path.suffix == ".npy" else "a complete HDF5 file"
    return ValueError(f"{path} must be {kind}, got {came}")
