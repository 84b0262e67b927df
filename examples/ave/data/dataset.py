"""The dataset: features, labels and splits of videos, in the shape of the AVE release.

Axes: N videos, T segments of a second, H x W positions, C visual channels, A audio channels, K categories.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ave import Setting
from ave.printing import printable
from ave.videos.extraction import Extraction

__all__ = ["AVE_CATEGORIES", "SPLITS", "AVEData", "RowView", "Rows", "Setting", "Split"]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
DIGESTED_VIDEOS = 8
"""The number of videos whose features are part of a digest."""

AVE_CATEGORIES = (
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
)
"""The categories of AVE, in the order of the columns of the labels. Background is column 28."""


class Rows(Protocol):
    """An array of videos that is indexed by rows: a tensor in memory, or an array in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""

    @property
    def dtype(self) -> Any:
        """The dtype of the values."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Sequence[int], /) -> Tensor: ...


class RowView:
    """Rows of another array, in any order and any number of times, without a copy.

    Examples:
        >>> view = RowView(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0, 2]))
        >>> view.shape, view[1:].flatten().tolist()
        ((3, 1), [1.0, 3.0])
    """

    def __init__(self, array: Rows, rows: Tensor) -> None:
        self.array, self.rows = array, rows
        self.shape: tuple[int, ...] = (len(rows), *array.shape[1:])
        self.dtype: Any = array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Sequence[int]) -> Tensor:
        return self.array[self.rows[rows].tolist()]


@dataclass(frozen=True)
class AVEData:
    """A dataset in the shape of the AVE release. Background is the last of the K + 1 labels.

    ``video_labels`` and ``background_*`` are only for the weak setting, and may be None.
    """

    visual: Rows
    """(N, T, H, W, C)"""
    audio: Rows
    """(N, T, A)"""
    labels: Tensor
    """float32 (N, T, K + 1), one-hot: the label of each second, all zero for no label, as at padding; (N, T, 0) if only
    the features are known."""
    splits: dict[str, Tensor]
    """int64: the rows of "train", "test" and, if there is such a split, "val"; disjoint."""
    categories: tuple[str, ...]
    """The K names, in the order of the labels."""
    names: tuple[str, ...] | None = None
    """The YouTube id of each video, or None. In AVE, 45 ids belong to two or three videos each."""
    video_labels: Tensor | None = None
    """float32 (N, K + 1), one-hot: the label of each video."""
    background_visual: Rows | None = None
    """(M, T, H, W, C): the extra background videos for training, without events."""
    background_audio: Rows | None = None
    """(M, T, A)"""
    background_labels: Tensor | None = None
    """float32 (M, K + 1), one-hot."""
    object_cells: Tensor | None = None
    """bool (N, T, H, W): the cells of the true object in each second, or None."""
    decoy_cells: Tensor | None = None
    """bool (N, T, H, W): the cells of an unrelated object in each second, or None."""
    lengths: Tensor | None = None
    """int64 (N,): the length of each video in seconds; the rest is padding. None: no padding."""
    background_lengths: Tensor | None = None
    """int64 (M,): the same for the background videos."""
    eventless_category: int | None = None
    """The category of a video without an event in the category loss: 0 for AVE, as in the authors' code. None leaves
    such videos out."""
    is_ave: bool = False
    """Whether this is AVE itself."""
    extraction: Extraction | None = None
    """How the features were extracted, if that is known."""

    @property
    def longest(self) -> int:
        """The length in seconds of the longest video of the training split."""
        return self.audio.shape[1] if self.lengths is None else int(self.lengths[self.splits["train"]].max())

    def describe(self, directory: Path | None) -> str:
        """Return a description of the dataset for titles. ``directory`` is None for the procedural set."""
        if directory is None:
            return "the procedural set (not AVE)" if self.object_cells is not None else "a dataset in memory"
        return f"the {'AVE set' if self.is_ave else 'dataset'} {printable(directory.name)}"

    def digest(self, setting: Setting) -> str:
        """Compute a SHA-256 digest of all labels and splits, and of the features of 8 videos.

        A dataset prepared in float32 has the same digest as its release. In float16, the digest differs.
        """
        tensors: list[Tensor] = [self.labels, *self.splits.values()]
        arrays: list[Rows] = [self.visual, self.audio]
        if setting == "weak":
            tensors += [part for part in (self.video_labels, self.background_labels) if part is not None]
            arrays += [part for part in (self.background_visual, self.background_audio) if part is not None]
        lengths = [self.lengths, self.lengths, self.background_lengths, self.background_lengths]
        tensors += [part for part in lengths[::2] if part is not None]
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        for array, seconds in zip(arrays, lengths, strict=False):
            rows = sorted({place * (len(array) - 1) // (DIGESTED_VIDEOS - 1) for place in range(DIGESTED_VIDEOS)})
            features = array[rows].float().cpu()
            if seconds is not None:  # padding must not change the digest
                features[torch.arange(features.shape[1]) >= seconds[rows].unsqueeze(1)] = 0
            digest.update(repr(tuple(array.shape)).encode() + features.numpy().tobytes())
        return digest.hexdigest()
