"""Videos without labels: their features from a directory or an .npz, fitted to a network, batch by batch.

Axes: N videos, B of them in a batch, T segments of a second, H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ave.model import CMRAN
from ave.reading import read_features
from ave.storage import Rows
from crossmodal_attn import padding_mask

__all__ = ["FeatureBatch", "UnlabelledVideos", "read_videos"]

BATCH = 16
"""Videos that are in memory at a time; it changes nothing in the result."""


class FeatureBatch(NamedTuple):
    """Features of B videos, in float32 on the CPU."""

    visual: Tensor
    """(B, T, H, W, C)"""
    audio: Tensor
    """(B, T, A)"""
    lengths: list[int]
    """The seconds of each video."""
    padding_mask: Tensor | None
    """bool (B, T), True = padding; None where there is none."""


@dataclass(frozen=True)
class UnlabelledVideos:
    """Some rows of arrays of features."""

    visual: Rows
    """(N, T, H, W, C)"""
    audio: Rows
    """(N, T, A)"""
    rows: Tensor
    """int64, which of the N these are."""
    names: tuple[str, ...] | None = None
    """Of all N, where they are known; two videos may have the same."""
    lengths: Tensor | None = None
    """int64 (N,), the seconds of every video, where what follows is padding."""

    def __post_init__(self) -> None:
        shapes = {"visual": tuple(self.visual.shape), "audio": tuple(self.audio.shape)}
        for (name, shape), axes in zip(
            shapes.items(), ("(videos, seconds, height, width, channels)", "(videos, seconds, channels)"), strict=True
        ):
            if len(shape) != axes.count(",") + 1 or 0 in shape:
                raise ValueError(f"{name} features must have shape {axes}, none of them empty, got {shape}")
        if shapes["visual"][:2] != shapes["audio"][:2]:
            raise ValueError(
                f"visual and audio features must be of the same videos and seconds, got shapes {shapes['visual']} and "
                f"{shapes['audio']}"
            )
        videos, seconds = shapes["audio"][:2]
        if self.names is not None and len(self.names) != videos:
            raise ValueError(f"names must be as many as the {videos} videos, got {len(self.names)}")
        if self.lengths is not None and (
            self.lengths.shape != (videos,) or self.lengths.min() < 1 or self.lengths.max() > seconds
        ):
            raise ValueError(f"lengths must be {videos} numbers from 1 to {seconds}, got {self.lengths.tolist()}")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """The name of a video, or else its row."""
        return str(row) if self.names is None else self.names[row]

    def batches(self, description: str) -> Iterator[FeatureBatch]:
        """The videos in their order, with a progress bar on a terminal."""
        with tqdm(
            total=len(self), desc=description, unit="video", disable=None, leave=False, dynamic_ncols=True
        ) as progress:
            for rows in self.rows.split(BATCH):
                visual, audio = (array[rows.tolist()].float() for array in (self.visual, self.audio))
                lengths = torch.full((len(rows),), audio.shape[1]) if self.lengths is None else self.lengths[rows]
                mask = None if self.lengths is None else padding_mask(lengths, audio.shape[1])
                yield FeatureBatch(visual, audio, lengths.tolist(), mask)
                progress.update(len(rows))

    def check_fit(self, model: CMRAN) -> None:
        """Refuse features that the network can't take, before anything is computed; this reads them all once.

        Raises:
            ValueError: if they have not the network's widths, or one is not finite.
        """
        for name, array, width in (("visual", self.visual, model.video_dim), ("audio", self.audio, model.audio_dim)):
            if array.shape[-1] != width:
                raise ValueError(
                    f"{name} features must have {width} channels, as what the network was trained on, "
                    f"got {array.shape[-1]}"
                )
        done = 0
        for batch in self.batches("checking"):
            for name, features in (("visual", batch.visual), ("audio", batch.audio)):
                fit = features.flatten(2).isfinite().all(2)
                if batch.padding_mask is not None:
                    fit |= batch.padding_mask
                if not fit.all():
                    video, second = (~fit).nonzero()[0].tolist()
                    row = int(self.rows[done + video])
                    raise ValueError(f"{name} features must be finite, got others in row {row}, second {second}")
            done += len(batch.lengths)


def read_videos(path: Path, split: str | None = None) -> UnlabelledVideos:
    """Open features: of a directory, which stay in their files, or of an .npz, which is read whole.

    Args:
        path: a directory of the AVE release's files, or one that `prepare` made, of which only the features must be
            there; or an .npz with ``visual`` (N, T, H, W, C) and ``audio`` (N, T, A), or one video without the axis N,
            and perhaps ``names`` (N,), text, and ``lengths`` (N,), the seconds of every video.
        split: "train", "val" or "test", which only a directory has.

    Raises:
        ValueError: if a file is damaged, or lacks what is needed.
        OSError: if a file can't be read.
    """
    if path.is_dir():
        features = read_features(path)
        rows = torch.arange(len(features.audio))
        if split is not None:
            if features.splits is None:
                raise ValueError(f"--split {split} needs the order files of the release, got {path} without them")
            rows = features.splits[split]
        return UnlabelledVideos(features.visual, features.audio, rows, features.names)
    if split is not None:
        raise ValueError(f"--split must be left out for what is no directory of AVE, got {split} and {path}")
    return _read_npz(path)


def _read_npz(path: Path) -> UnlabelledVideos:
    if not path.exists():
        raise FileNotFoundError(f"--features must be a directory or an .npz, got {path}, which is not there")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"--features must be a directory or an .npz, got {path}, which is neither, or is cut off")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("visual", "audio", "names", "lengths") if name in file}
    except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} must be an undamaged .npz without Python objects, got: {error}") from error
    for name in ("visual", "audio"):
        if name not in arrays or arrays[name].dtype.kind not in "fiu":
            came = f"{arrays[name].dtype}" if name in arrays else "none"
            raise ValueError(f"{path} must hold an array of numbers called {name}, got {came}")
    with np.errstate(over="ignore"):  # what overflows is found when all are checked
        visual, audio = (torch.from_numpy(arrays[name].astype(np.float32, copy=False)) for name in ("visual", "audio"))
    if visual.dim() == 4 and audio.dim() == 2:
        visual, audio = visual[None], audio[None]
    names, lengths = arrays.get("names"), arrays.get("lengths")
    if names is not None and names.dtype.kind != "U":
        raise ValueError(f"{path} must hold text in names, got {names.dtype}")
    if lengths is not None and lengths.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold integers in lengths, got {lengths.dtype}")
    return UnlabelledVideos(
        visual,
        audio,
        torch.arange(visual.shape[0] if visual.dim() else 0),
        None if names is None else tuple(map(str, names.reshape(-1))),
        None if lengths is None else torch.from_numpy(lengths.reshape(-1).astype(np.int64)),
    )
