"""A set in the shape of the AVE release.

Axes: N videos, T segments of a second, H x W positions, C visual channels, A audio channels, K categories.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ave.storage import Rows

__all__ = ["AVE_CATEGORIES", "SPLITS", "AVEData"]

SPLITS = ("train", "val", "test")

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
"""The categories of AVE, in the order of the label columns; background follows as column 28."""


@dataclass(frozen=True)
class AVEData:
    """A set in the shape of the AVE release. Background is the last of the K + 1 labels.

    What only the weak setting trains on may be None: ``video_labels`` and ``background_*``.
    """

    visual: Rows
    """(N, T, H, W, C)"""
    audio: Rows
    """(N, T, A)"""
    labels: Tensor
    """float32 (N, T, K + 1), one-hot: the label of every second."""
    splits: dict[str, Tensor]
    """int64 row indices of "train", "val" and "test", disjoint."""
    categories: tuple[str, ...]
    """The K names, in the order of the labels."""
    names: tuple[str, ...] | None = None
    """The YouTube id of every video, where it is known; 45 ids of AVE stand for two videos or three."""
    video_labels: Tensor | None = None
    """float32 (N, K + 1), one-hot: the label of every video."""
    background_visual: Rows | None = None
    """(M, T, H, W, C): extra training videos, which show no event."""
    background_audio: Rows | None = None
    """(M, T, A)"""
    background_labels: Tensor | None = None
    """float32 (M, K + 1), one-hot."""
    object_cells: Tensor | None = None
    """bool (N, T, H, W): the true cells of the category's object in every second, where they are known."""
