"""Read rows of arrays in files on demand: HDF5 datasets, and memory-mapped .npy files."""

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

BLOCK_BYTES = 64 << 20  # bytes in memory at once when a whole file is read
CHUNK_BYTES = 1 << 30  # size limit of a chunk, which HDF5 always unpacks as a whole
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
DAMAGES = (OSError, RuntimeError, ValueError, TypeError, KeyError)  # errors of HDF5 at damaged bytes


class StoredArray:
    """An array of numbers in a file, indexed by rows. The file stays open, and may be read by several threads.

    Args:
        path: an HDF5 file, or a .npy file, which is memory-mapped.
        dataset: the name of the dataset in the HDF5 file; ignored for .npy.

    Raises:
        OSError: if another process has locked the file, or the system cannot open it. The file may be intact.
        ValueError: if the file is damaged, does not have the dataset, or does not hold an array of numbers.
    """

    def __init__(self, path: Path | str, dataset: str = "avadataset") -> None:
        self.path, self.dataset = Path(path), dataset
        self._array = self._open()
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        """The shape of what is read. It may be set to another shape with the same number of values in a row."""
        self.dtype: np.dtype[Any] = self._array.dtype.newbyteorder("=")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """The size of a row in memory, in bytes."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    def __getitem__(self, rows: slice | Sequence[int]) -> Tensor:
        """Read rows in any order, in the dtype of the file; float64 becomes float32.

        Raises:
            OSError: if the file is truncated or damaged.
        """
        array = self._array
        dtype = np.dtype(np.float32) if self.dtype.kind == "f" and self.dtype.itemsize > 4 else self.dtype
        try:
            _check_length(array)
            if isinstance(rows, slice):
                read = np.array(array[rows], dtype)
            elif isinstance(array, h5py.Dataset):  # indexing by a list is slower, and needs sorted rows
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
        """Whether no value was ever written, so that all values are zero."""
        array = self._array
        try:
            if not isinstance(array, h5py.Dataset) or array.fillvalue != 0:
                return False
            return array.id.get_offset() is None if array.chunks is None else array.id.get_num_chunks() == 0
        except DAMAGES:  # reading will raise the error
            return False

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Read all rows in blocks of up to 64 MiB, but at least one row.

        Yields:
            tuple: the index of the first row of a block, and its rows. The next block overwrites them.

        Raises:
            ValueError: if the file is truncated or damaged.
        """
        array = self._array
        chunks = array.chunks if isinstance(array, h5py.Dataset) else None
        count = max(1, BLOCK_BYTES // max(1, self.row_bytes))
        if chunks and chunks[0] < count:  # so that no chunk is unpacked twice
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
                came = f"{self.path} is truncated or damaged from row {first} on"
                raise ValueError(f"{came}: {_line(error)}") from error
            yield first, block.reshape(len(block), *self.shape[1:])

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
        except Exception as error:  # libraries raise many types of error at damaged bytes
            raise _explain(self.path, error) from error
        if refused is not None:
            raise ValueError(f"{self.path} must hold {refused}")
        return array

    def _open_hdf5(self) -> tuple[Any, str | None]:
        """Open the dataset, or return an error message. Links are rejected, because they could read other files."""
        file, name = h5py.File(self.path, "r"), self.dataset
        link = file.get(name, getlink=True) if name in file.keys() else None  # noqa: SIM118
        array = file.get(name) if isinstance(link, h5py.HardLink) else None
        refused = None
        if isinstance(link, (h5py.ExternalLink, h5py.SoftLink)):
            kind = "an external" if isinstance(link, h5py.ExternalLink) else "a symbolic"
            refused = f"the numbers of {name} itself, got {kind} link, which is not allowed"
        elif not isinstance(array, h5py.Dataset):
            refused = f"the dataset {name}, got {', '.join(file)[:60] or 'none'}"
        elif array.is_virtual:
            refused = f"the numbers of {name} itself, got a virtual dataset, which is not allowed"
        elif array.external:
            refused = f"the numbers of {name} itself, got external storage, which is not allowed"
        elif array.chunks and prod(array.chunks) * array.dtype.itemsize > CHUNK_BYTES:
            refused = f"chunks of at most 1 GiB, got {array.chunks} of {str(array.dtype)[:60]}"
        return array, refused


def _line(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_length(array: Any) -> None:
    """Check that a mapped file was not truncated, because reading beyond its end would kill the process."""
    mapped = getattr(array, "base", None)
    if isinstance(mapped, mmap.mmap) and mapped.size() < array.offset + array.nbytes:
        raise OSError(f"it has {mapped.size()} bytes, expected {array.offset + array.nbytes}")


def _announce(array: np.memmap[Any, Any], rows: Sequence[int]) -> None:
    """Tell the system which rows are read next, so that it reads them at once, not page by page."""
    mapped, row_bytes = array.base, prod(array.shape[1:]) * array.itemsize
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):
        for row in rows:
            before = (start := array.offset + row * row_bytes) % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, start - before, before + row_bytes)


def _explain(path: Path, error: Exception) -> Exception:
    """Return the error to raise: an OSError if the system cannot open the file, which may be intact."""
    number = getattr(error, "errno", None)
    if "unable to lock file" in str(error):
        if number in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
            came = "is locked by another process, which has it open for writing: wait until it is done, or stop it"
        else:
            came = "is on a file system without locks: set the environment variable HDF5_USE_FILE_LOCKING to FALSE"
        return OSError(f"{path} {came}")
    if number in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE):
        return OSError(f"{path} must be a file that can be opened, got: {os.strerror(number)}")
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    came = f"one that is truncated or damaged ({_line(error)})"
    if not start:
        came = "an empty file"
    elif start.lower().startswith((b"<!doctype html", b"<html")):
        came = "a web page: Google Drive shows one before a large file, and it was saved instead of the file"
    elif path.suffix != ".npy" and not start.startswith(HDF5_SIGNATURE):
        came = f"a file of another kind, which begins with {start[:8]!r}"
    kind = "an array saved by numpy" if path.suffix == ".npy" else "a complete HDF5 file"
    return ValueError(f"{path} must be {kind}, got {came}")
