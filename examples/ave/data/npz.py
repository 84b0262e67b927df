"""Read the features of videos from an .npz file, which must fit into memory.

Axes: N videos, T segments of a second, H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path

import numpy as np
import psutil
import torch

from ave.data.batches import MEMORY_SHARE
from ave.data.dataset import AVEData
from ave.reading import check_regular, expecting

__all__ = ["read_npz"]

ARRAYS = ("visual", "audio", "names", "lengths")


def read_npz(path: Path) -> AVEData:
    """Read an .npz file into a dataset without labels and splits.

    Args:
        path: an .npz file with numbers ``visual``, (N, T, H, W, C) or (N, T, C), and ``audio``, (N, T, A). For a single
            video, both may be without the first axis. Optional: text ``names``, (N,), and integers ``lengths``, (N,),
            from 1 to T.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is damaged or too large, or an array is missing or has the wrong shape or dtype.
    """
    if not path.exists():
        raise FileNotFoundError(f"--data must be a directory or an .npz file, got {path}, which does not exist")
    check_regular(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"--data must be a directory or an .npz file, got {path}, which is another file, or truncated")
    with expecting(f"{path} must be an undamaged .npz without Python objects"):
        needed = sum(_declared_bytes(path, name) for name in ARRAYS)
    if needed > (free := MEMORY_SHARE * psutil.virtual_memory().available):
        came = f"{needed / 1e9:.1f} GB, where {free / 1e9:.1f} GB may be used"
        raise ValueError(f"{path} must fit into memory, got {came}: give a directory, which is read by rows")
    with expecting(f"{path} must be an undamaged .npz without Python objects"), np.load(path) as file:
        arrays = {name: np.asarray(file[name]) for name in ARRAYS if name in file}
    for name, kinds, content in (
        ("visual", "fiu", "numbers"),
        ("audio", "fiu", "numbers"),
        ("names", "U", "text"),
        ("lengths", "iu", "integers"),
    ):
        dtype = arrays[name].dtype if name in arrays else None
        if (name in ("visual", "audio")) if dtype is None else (dtype.kind not in kinds):
            raise ValueError(f"{path} must hold {content} in an array called {name}, got {dtype or 'none'}")

    with np.errstate(over="ignore"):  # values too large for float32 become infinite, which is an error later
        visual, audio = (torch.from_numpy(arrays[name].astype(np.float32, copy=False)) for name in ("visual", "audio"))
    if visual.dim() in (2, 4) and audio.dim() == 2:
        visual, audio = visual[None], audio[None]
    if visual.dim() == 3 and audio.dim() == 3:
        visual = visual[:, :, None, None]
    for name, array, axes in (
        ("visual", visual, "(videos, seconds, height, width, channels)"),
        ("audio", audio, "(videos, seconds, channels)"),
    ):
        if array.dim() != axes.count(",") + 1 or 0 in array.shape:
            raise ValueError(f"{name} features must have shape {axes}, none of them 0, got {tuple(array.shape)}")
    if visual.shape[:2] != audio.shape[:2]:
        came = f"got shapes {tuple(visual.shape)} and {tuple(audio.shape)}"
        raise ValueError(f"visual and audio features must have the same number of videos and seconds, {came}")
    videos, seconds = audio.shape[:2]
    names, lengths = (arrays[name].reshape(-1) if name in arrays else None for name in ("names", "lengths"))
    if names is not None and len(names) != videos:
        raise ValueError(f"names must have one entry for each of the {videos} videos, got {len(names)}")
    if lengths is not None and (len(lengths) != videos or lengths.min() < 1 or lengths.max() > seconds):
        raise ValueError(f"lengths must be {videos} numbers from 1 to {seconds}, got {str(lengths.tolist())[:60]}")
    return AVEData(
        visual,
        audio,
        labels=torch.zeros(videos, seconds, 0),
        splits={},
        categories=(),
        names=None if names is None else tuple(map(str, names)),
        lengths=None if lengths is None else torch.from_numpy(lengths.astype(np.int64)),
    )


def _declared_bytes(path: Path, name: str) -> int:
    """Return the size of an array in bytes, from its header, and check that the archive has as many bytes."""
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return 0
        with archive.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            first = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            declared, there = prod(shape) * dtype.itemsize, archive.getinfo(f"{name}.npy").file_size - stream.tell()
    if dtype.hasobject:  # an error when it is read
        return 0
    if declared > there or min(shape, default=0) < 0:
        raise ValueError(f"{name} of shape {shape} and dtype {dtype}, in {there} bytes")
    return declared
