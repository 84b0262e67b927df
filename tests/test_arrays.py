"""Stored arrays: every way of reading returns the values in the file, and errors name what is damaged."""

import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ave.data import arrays
from ave.data.arrays import StoredArray

# What float32 holds too, as nothing wider is read.
VALUES = np.random.default_rng(0).random((23, 5, 3), np.float32).astype(np.float64)
LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (4, 5, 3)},
    "chunked across": {"chunks": (7, 2, 3)},
    "packed": {"chunks": (4, 5, 3), "compression": "gzip"},
    "big-endian": {"dtype": ">f8"},
}


def write(path: Path, layout: str = "contiguous") -> Path:
    if layout == "numpy":
        np.save(path.with_suffix(".npy"), VALUES)
        return path.with_suffix(".npy")
    with h5py.File(path, "w") as file:
        file.create_dataset("avadataset", data=VALUES, **LAYOUTS[layout])
    return path


@pytest.fixture(params=[*LAYOUTS, "numpy"])
def array(request, tmp_path):
    return StoredArray(write(tmp_path / "array.h5", request.param))


def test_rows_are_those_of_the_file(array):
    assert (array.shape, array.dtype, len(array), array.row_bytes) == (VALUES.shape, np.float64, 23, 120)
    np.testing.assert_array_equal(array[[7, 2, 2, 22]], VALUES[[7, 2, 2, 22]])
    np.testing.assert_array_equal(array[3:11], VALUES[3:11])
    assert array[[]].shape == (0, 5, 3)
    assert array[[3]].dtype == array[3:4].dtype == torch.float32


@pytest.mark.parametrize("block_bytes", [1, 5 * 120, 9 * 120, 1 << 20])
def test_blocks_are_the_whole_file_in_bounded_pieces(array, block_bytes, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", block_bytes)
    blocks = [(first, block.copy()) for first, block in array.blocks()]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), VALUES)
    assert [first for first, _ in blocks] == list(np.cumsum([0, *(len(block) for _, block in blocks[:-1])]))
    assert all(block.nbytes <= max(block_bytes, 120) for _, block in blocks)


def test_blocks_take_whole_chunks(tmp_path, monkeypatch):
    """Blocks end at the border of a chunk, so that no chunk is unpacked twice."""
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 11 * 120)
    array = StoredArray(write(tmp_path / "array.h5", "packed"))
    assert [first for first, _ in array.blocks()] == [0, 8, 16]


@pytest.mark.parametrize("chunks", [None, (2, 5, 3), (3, 2, 2)])
@pytest.mark.parametrize("fill", [0.0, -1.0])
def test_unwritten_datasets_are_recognized(chunks, fill, tmp_path):
    """``is_unwritten`` is True for a file without values, if unwritten values read as zero."""
    path = tmp_path / "array.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("avadataset", VALUES.shape, "f8", chunks=chunks, fillvalue=fill)
    assert StoredArray(path).is_unwritten == (fill == 0)
    assert sum(block.sum() for _, block in StoredArray(path).blocks()) == fill * VALUES.size
    with h5py.File(path, "a") as file:
        file["avadataset"][13, 4, 2] = 7.0
    assert not StoredArray(path).is_unwritten


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"\n<!DOCTYPE html><html><body>Google Drive can't scan this file", "got a web page: Google Drive shows"),
        (b"<HTML>", "got a web page"),
        (b"PK\x03\x04 and so on", r"which begins with b'PK\\x03\\x04 and'"),
        ("half", "one that is truncated or damaged"),
        ("header", "one that is truncated or damaged"),
        ("folder", "must be a regular file, got a directory"),
    ],
)
def test_what_is_no_hdf5_file_is_named(content, message, tmp_path):
    path = write(tmp_path / "array.h5")
    whole = path.read_bytes()
    if content == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"half": whole[: len(whole) // 2], "header": whole[:100]}.get(content, content))
    with pytest.raises(ValueError, match=message) as error:
        StoredArray(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.environ.get("HDF5_USE_FILE_LOCKING") == "FALSE", reason="HDF5 is told not to lock files")
def test_a_locked_file_is_not_called_damaged(tmp_path):
    """A file that another process has open for writing is called locked; once closed, it is read."""
    fcntl = pytest.importorskip("fcntl")
    path = write(tmp_path / "array.h5")
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"array\.h5 is locked by another process, which has it open for writing"):
            StoredArray(path)
    np.testing.assert_array_equal(StoredArray(path)[:], VALUES)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOLCK, "Unable to open file (unable to lock file, errno = 37)"), "HDF5_USE_FILE_LOCKING"),
        (PermissionError(errno.EACCES, "Unable to open file (errno = 13)"), "opened, got: Permission denied"),
        (OSError(errno.EMFILE, "Unable to open file (errno = 24)"), "opened, got: Too many open files"),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "numpy"])
def test_a_file_that_the_system_does_not_open_is_not_called_damaged(error, message, layout, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise error

    path = write(tmp_path / "array.h5", layout)
    monkeypatch.setattr(h5py, "File", refuse)
    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(OSError, match=message) as raised:
        StoredArray(path)
    assert str(path) in str(raised.value)
    assert "damaged" not in str(raised.value)


@pytest.mark.parametrize("keep", [0, 50, 300])
def test_what_is_no_array_of_numpy_is_named(keep, tmp_path):
    path = write(tmp_path / "array.npy", "numpy")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"array\.npy must be an array saved by numpy"):
        StoredArray(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", np.zeros(3), "must hold the dataset avadataset, got labels"),
        ("avadataset/inner", np.zeros(3), "must hold the dataset avadataset, got avadataset"),
        ("avadataset", np.array([b"one", b"two"]), "must hold an array of numbers"),
        ("avadataset", np.zeros(3, complex), "must hold an array of numbers, got complex128"),
        ("avadataset", 3.0, r"must hold an array of numbers, got float64 of shape \(\)"),
    ],
)
def test_what_is_no_array_of_numbers_is_named(name, value, message, tmp_path):
    with h5py.File(tmp_path / "array.h5", "w") as file:
        file[name] = value
    with pytest.raises(ValueError, match=message):
        StoredArray(tmp_path / "array.h5")


def test_damage_inside_is_named(tmp_path):
    path = write(tmp_path / "array.h5", "packed")
    with h5py.File(path) as file:
        place = file["avadataset"].id.get_chunk_info_by_coord((8, 0, 0))
    with path.open("r+b") as file:
        file.seek(place.byte_offset)
        file.write(b"\xff" * place.size)
    with pytest.raises(ValueError, match=r"array\.h5 is truncated or damaged from row 0 on"):
        list(StoredArray(path).blocks())


def external_storage(file, secret):
    file.create_dataset("avadataset", (5,), "u1", external=[(str(secret), 0, 5)])


def external_link(file, secret):
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["avadataset"] = VALUES
    file["avadataset"] = h5py.ExternalLink(secret.with_suffix(".h5"), "avadataset")


def link_to_external_link(file, secret):
    external_link(file, secret)
    file.move("avadataset", "elsewhere")
    file["avadataset"] = h5py.SoftLink("/elsewhere")


def virtual(file, secret):
    layout = h5py.VirtualLayout((23, 5, 3), "f8")
    layout[:] = h5py.VirtualSource(secret.with_suffix(".h5"), "avadataset", (23, 5, 3))
    file.create_virtual_dataset("avadataset", layout)


@pytest.mark.parametrize(
    ("write_into", "message"),
    [
        (external_storage, "must hold the numbers of avadataset itself, got external storage, which is not allowed"),
        (external_link, "itself, got an external link, which is not allowed"),
        (link_to_external_link, "itself, got a symbolic link, which is not allowed"),
        (virtual, "itself, got a virtual dataset, which is not allowed"),
        (
            lambda file, _: file.create_dataset("avadataset", (2**30,), "f8", chunks=(2**28,)),
            r"must hold chunks of at most 1 GiB, got \(268435456,\) of float64",
        ),
    ],
)
def test_data_in_other_files_is_refused(write_into, message, tmp_path):
    """Links and external storage are errors: a release could otherwise copy any local file into a prepared set."""
    (tmp_path / "secret").write_text("12345")
    with h5py.File(tmp_path / "array.h5", "w") as file:
        write_into(file, tmp_path / "secret")
    with pytest.raises(ValueError, match=message):
        StoredArray(tmp_path / "array.h5")


@pytest.mark.parametrize("name", ["array.h5", "array.npy"])
def test_a_pipe_is_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} must be .*, got a named pipe"):
        StoredArray(tmp_path / name)


def test_an_archive_is_no_array(tmp_path):
    np.savez(tmp_path / "array.npz", VALUES)
    (tmp_path / "array.npz").rename(tmp_path / "array.npy")
    with pytest.raises(ValueError, match=r"array\.npy must be an array saved by numpy"):
        StoredArray(tmp_path / "array.npy")


def test_a_mapped_file_that_is_truncated_while_it_is_open(tmp_path):
    """A truncated .npy is an error; reading beyond its end would kill the process with SIGBUS."""
    array = StoredArray(write(tmp_path / "array.h5", "numpy"))
    with array.path.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(OSError, match=r"array\.npy is truncated or damaged"):
        array[[22]]
    with pytest.raises(ValueError, match=r"array\.npy is truncated or damaged from row"):
        list(array.blocks())
