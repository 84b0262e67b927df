"""The AVE data: what a release holds, how its files are read, and the videos that training draws from it.

Axes: N videos, T segments of a second, H x W positions, C visual channels, A audio channels, K categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from ave.model import Setting

__all__ = ["AVE_CATEGORIES", "AVEData", "Videos", "read_release", "training_videos"]

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

Array: TypeAlias = "Tensor | h5py.Dataset"
"""Rows in memory, or rows read from a file when they are asked for."""


@dataclass(frozen=True)
class AVEData:
    """A set in the shape of the AVE release. Background is the last of the K + 1 labels.

    What only the weak setting trains on may be None: ``video_labels`` and ``background_*``.
    """

    visual: Array
    """(N, T, H, W, C)"""
    audio: Array
    """(N, T, A)"""
    labels: Tensor
    """float32 (N, T, K + 1), one-hot: the label of every second."""
    splits: dict[str, Tensor]
    """int64 row indices of "train", "val" and "test", disjoint."""
    categories: tuple[str, ...]
    """The K names, in the order of the labels."""
    video_labels: Tensor | None = None
    """float32 (N, K + 1), one-hot: the label of every video."""
    background_visual: Array | None = None
    """(M, T, H, W, C): extra training videos, which show no event."""
    background_audio: Array | None = None
    """(M, T, A)"""
    background_labels: Tensor | None = None
    """float32 (M, K + 1), one-hot."""
    object_cells: Tensor | None = None
    """bool (N, T, H, W): the true cells of the category's object in every second, where they are known."""


class Videos(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Some rows of a set: visual features, audio features (both float32) and target of each."""

    def __init__(self, visual: Array, audio: Array, targets: Tensor, rows: Tensor | None = None) -> None:
        self.visual, self.audio, self.targets = visual, audio, targets
        self.rows: Sequence[int] = range(len(targets)) if rows is None else rows.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        row = self.rows[index]
        return _float32(self.visual[row]), _float32(self.audio[row]), self.targets[row]


def _float32(row: Any) -> Tensor:
    return torch.as_tensor(row).float()


def training_videos(data: AVEData, setting: Setting) -> Dataset[tuple[Tensor, Tensor, Tensor]]:
    """The videos to train on, with segment labels; in the weak setting with video labels, and background ones added.

    Raises:
        ValueError: if the setting is weak and ``data`` lacks what it needs.
    """
    rows = data.splits["train"]
    if setting == "supervised":
        return Videos(data.visual, data.audio, data.labels, rows)
    if (
        data.video_labels is None
        or data.background_visual is None
        or data.background_audio is None
        or data.background_labels is None
    ):
        raise ValueError("data must hold video labels and background videos for the weak setting, got None")
    return ConcatDataset(
        [
            Videos(data.visual, data.audio, data.video_labels, rows),
            Videos(data.background_visual, data.background_audio, data.background_labels),
        ]
    )


def read_release(directory: Path | str, setting: Setting = "supervised") -> AVEData:
    """Open the HDF5 files of an AVE release. Features stay on disk and are read row by row.

    Args:
        directory: holds ``visual_feature.h5``, ``audio_feature.h5``, ``labels.h5`` (or ``right_labels.h5``),
            ``train_order.h5``, ``val_order.h5``, ``test_order.h5``; for the weak setting also ``mil_labels.h5``,
            ``visual_feature_noisy.h5``, ``audio_feature_noisy.h5``, ``labels_noisy.h5``.
        setting: which of them must be there.

    Raises:
        FileNotFoundError: if the directory or files are missing; the message names all of them.
        ValueError: if a file is not HDF5, lacks its dataset, or does not fit the others.
    """
    if setting not in ("supervised", "weak"):
        raise ValueError(f'setting must be "supervised" or "weak", got {setting!r}')
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory: expected the one with the files of the AVE release")
    labels_name = next((name for name in ("labels.h5", "right_labels.h5") if (directory / name).exists()), "labels.h5")
    names = ["visual_feature.h5", "audio_feature.h5", labels_name, *(f"{split}_order.h5" for split in _SPLITS)]
    if setting == "weak":
        names += ["mil_labels.h5", "visual_feature_noisy.h5", "audio_feature_noisy.h5", "labels_noisy.h5"]
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        hint = ""
        if labels_name in missing and (directory / "prob_label.h5").exists():
            hint = "; prob_label.h5 is another project's file, not the labels"
        raise FileNotFoundError(f"{directory} lacks {', '.join(missing)}, expected for the {setting} setting{hint}")

    visual = _open(directory / "visual_feature.h5", (None,) * 5)
    videos, segments = visual.shape[:2]
    audio = _open(directory / "audio_feature.h5", (videos, segments, None))
    labels = _read_one_hot(directory / labels_name, (videos, segments, None))
    splits = {split: _read_order(directory / f"{split}_order.h5", videos) for split in _SPLITS}
    together = torch.cat(list(splits.values()))
    if len(together.unique()) < len(together):
        raise ValueError(f"{directory} must hold splits without a common row, got one twice in {', '.join(_SPLITS)}")
    columns = labels.shape[-1]
    categories = AVE_CATEGORIES if columns == len(AVE_CATEGORIES) + 1 else tuple(map(str, range(columns - 1)))
    weak: dict[str, Any] = {}
    if setting == "weak":
        background_labels = _read_one_hot(directory / "labels_noisy.h5", (None, columns))
        extra = len(background_labels)
        background_shape = (extra, *visual.shape[1:])
        weak = {
            "video_labels": _read_one_hot(directory / "mil_labels.h5", (videos, columns)),
            "background_visual": _open(directory / "visual_feature_noisy.h5", background_shape),
            "background_audio": _open(directory / "audio_feature_noisy.h5", (extra, *audio.shape[1:])),
            "background_labels": background_labels,
        }
    return AVEData(visual, audio, labels, splits, categories, **weak)


_SPLITS = ("train", "val", "test")


def _open(path: Path, shape: Sequence[int | None], name: str = "avadataset") -> h5py.Dataset:
    """Open the dataset ``name`` of a file, an array of numbers of which ``shape`` gives the known sizes."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} must be a complete HDF5 file, got: {error}") from error
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{path} must hold the dataset {name}, got {', '.join(file) or 'none'}")
    if dataset.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold numbers, got {dataset.dtype}")
    came = dataset.shape
    fits = len(came) == len(shape) and all(size in (None, own) for size, own in zip(shape, came, strict=True))
    if not fits or 0 in came:
        described = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{path} must hold an array of shape ({described}), none of them empty, got {came}")
    return dataset


def _read_one_hot(path: Path, shape: Sequence[int | None]) -> Tensor:
    labels = torch.from_numpy(_open(path, shape)[()]).float()
    if labels.shape[-1] < 2 or not ((labels == 0) | (labels == 1)).all() or not (labels.sum(-1) == 1).all():
        raise ValueError(f"{path} must hold one-hot labels, a single 1 among zeros in each row, got others")
    return labels


def _read_order(path: Path, videos: int) -> Tensor:
    order = _open(path, (None,), "order")
    if order.dtype.kind == "f":
        raise ValueError(f"{path} must hold integers, got {order.dtype}")
    rows = torch.from_numpy(order[()]).long()
    if rows.min() < 0 or rows.max() >= videos:
        raise ValueError(f"{path} must hold row indices from 0 to {videos - 1}, got {rows.min()} to {rows.max()}")
    return rows
