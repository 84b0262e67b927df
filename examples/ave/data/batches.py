"""Batches of videos: cached near the device, shuffled by seed and epoch, divided among processes.

Axes: N videos, T segments of a second, H x W positions, C visual channels, A audio channels, K categories.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence, Sized
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from ave.data.arrays import StoredArray
from ave.data.dataset import AVEData, Rows, Setting, Split
from crossmodal_attn import padding_mask

__all__ = ["Batch", "Cache", "Loader", "OrderedShares", "Share", "Videos", "cache_features", "derive_seed"]
__all__ += ["evaluation_loader", "training_loader"]

EVALUATION_BATCH = 16
"""Videos in a batch of evaluation, as in the authors' code; it changes the memory used, not the result."""
Cache = Literal["auto", "device", "memory", "disk"]
PLACES = ("device", "memory", "disk")
MEMORY_SHARE = 0.6
"""The share of the free memory that features may take; the rest is for the network at any usual batch size."""
BLOCK = 64
"""Videos that are read at once to fill a cache."""


def derive_seed(*parts: int) -> int:
    """Return one well-mixed seed from several numbers, such as a run's seed, its epoch and the process.

    Everything random is drawn anew from such seeds at the start of every epoch, so that a run can go on from any of
    them without a stored random state.
    """
    # The count goes in first, because zeros at the end change nothing.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1)[0])


class Share(NamedTuple):
    """The videos of a batch that one process takes."""

    positions: list[int]
    weight: float
    """A factor for the mean loss of the share, so that the mean over processes is the mean over the batch."""


class Batch(NamedTuple):
    """Features of B videos with their targets."""

    video: Tensor
    """(B, T, H, W, C)"""
    audio: Tensor
    """(B, T, A)"""
    target: Tensor
    """(B, T, K + 1) or (B, K + 1)"""
    weight: float
    padding_mask: Tensor | None = None
    """bool (B, T), True = padding; None if no video of the dataset is padded."""


class Videos(Dataset[Batch]):
    """Rows of one array of videos or of several, indexed by shares; features are at most float32.

    Args:
        *parts: visual and audio features, targets, and which rows of these to take. A share of several parts comes in
            their order.
        lengths: the seconds of each video, int64, for every part; None for one without padding.
    """

    def __init__(self, *parts: tuple[Rows, Rows, Tensor, Tensor], lengths: Sequence[Tensor | None] = ()) -> None:
        self.parts = [
            (visual, audio, targets.to(visual.device) if isinstance(visual, Tensor) else targets, rows)
            for visual, audio, targets, rows in parts
        ]
        self.lengths: list[Tensor] | None = None
        if any(own is not None for own in lengths):
            self.lengths = [
                torch.full((len(audio),), audio.shape[1]) if own is None else own
                for (_, audio, _, _), own in zip(parts, lengths, strict=True)
            ]
        self.on_disk = any(isinstance(visual, StoredArray) for visual, *_ in self.parts)

    def __len__(self) -> int:
        return sum(len(rows) for *_, rows in self.parts)

    def __getitem__(self, share: Share) -> Batch:
        taken, lengths, start = [], [], 0
        for part, (*arrays, rows) in enumerate(self.parts):
            own = rows[[position - start for position in share.positions if start <= position < start + len(rows)]]
            taken.append([_take(array, own) for array in arrays])
            if self.lengths is not None:
                lengths.append(self.lengths[part][own])
            start += len(rows)
        video, audio, target = taken[0] if len(taken) == 1 else map(torch.cat, zip(*taken, strict=True))
        mask = padding_mask(torch.cat(lengths), audio.shape[1]) if lengths else None
        return Batch(video, audio, target, share.weight, mask)


def _take(array: Rows, rows: Tensor) -> Tensor:
    """Return rows of an array, on the device that it is on."""
    if isinstance(array, Tensor):
        return array.index_select(0, rows.to(array.device, non_blocking=True))
    return array[rows.tolist()]


class Shares(Sampler[Share], Sized):
    """One process's shares of the batches of an epoch."""

    epoch = 1


class ShuffledShares(Shares):
    """Shares of training, in an order that depends on the seed and the epoch alone."""

    def __init__(self, videos: int, batch_size: int, seed: int, process: int, processes: int) -> None:
        self.videos, self.batch_size, self.seed = videos, batch_size, seed
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return -(-self.videos // self.batch_size)

    def __iter__(self) -> Iterator[Share]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        for batch in torch.randperm(self.videos, generator=generator).split(self.batch_size):
            own = batch.tensor_split(self.processes)[self.process].tolist()
            # Every process must take every step; one without a video takes any, with weight 0.
            yield Share(own or batch[:1].tolist(), len(own) * self.processes / len(batch))


class OrderedShares(Shares):
    """Shares of evaluation: every video once, in order."""

    def __init__(self, videos: int, process: int, processes: int) -> None:
        self.positions = range(process, videos, processes)

    def __len__(self) -> int:
        return -(-len(self.positions) // EVALUATION_BATCH)

    def __iter__(self) -> Iterator[Share]:
        for start in range(0, len(self.positions), EVALUATION_BATCH):
            yield Share(list(self.positions[start : start + EVALUATION_BATCH]), 1.0)


class Loader:
    """Batches in float32 on the device of this process, unpadded, as Accelerate's own sharding would pad them."""

    def __init__(self, videos: Videos, shares: Shares, device: torch.device, workers: int) -> None:
        self.videos, self.shares, self.device = videos, shares, device
        self._read: Any = None
        if videos.on_disk:
            self._read = DataLoader(
                videos,
                batch_size=None,
                sampler=shares,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                persistent_workers=workers > 0,
                generator=torch.Generator().manual_seed(0),  # not the global one, which dropout draws from
            )

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[Batch]:
        for batch in map(self.videos.__getitem__, self.shares) if self._read is None else self._read:
            video, audio, target = (self._move(tensor).float() for tensor in batch[:3])
            mask = None if batch.padding_mask is None else self._move(batch.padding_mask)
            yield Batch(video, audio, target, batch.weight, mask)

    def _move(self, tensor: Tensor) -> Tensor:
        # The copy of a tensor that is not pinned would make the host wait.
        if self.device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def training_loader(
    data: AVEData, setting: Setting, accelerator: Accelerator, *, batch_size: int, seed: int, workers: int = 0
) -> Loader:
    """Return the batches of training: with segment labels, or weakly with video labels and any background videos.

    Args:
        data: the dataset.
        setting: which targets.
        accelerator: knows the device, and which process of how many this is.
        batch_size: videos in a step, over all processes.
        seed: of the order.
        workers: data-loading processes, if features stay on disk.

    Raises:
        ValueError: if the setting is weak and ``data`` has no video labels.
    """
    rows = data.splits["train"]
    if setting == "supervised":
        videos = Videos((data.visual, data.audio, data.labels, rows), lengths=[data.lengths])
    else:
        visual, audio, labels = data.background_visual, data.background_audio, data.background_labels
        if data.video_labels is None:
            raise ValueError("data must hold video labels for the weak setting, got None")
        parts = [(data.visual, data.audio, data.video_labels, rows)]
        if visual is not None and audio is not None and labels is not None:
            parts.append((visual, audio, labels, torch.arange(len(labels))))
        videos = Videos(*parts, lengths=[data.lengths, data.background_lengths][: len(parts)])
    shares = ShuffledShares(len(videos), batch_size, seed, accelerator.process_index, accelerator.num_processes)
    return Loader(videos, shares, accelerator.device, workers)


def evaluation_loader(data: AVEData, split: Split, accelerator: Accelerator, workers: int = 0) -> Loader:
    """Return this process's videos of a split, in order, with their segment labels.

    Raises:
        ValueError: if there is no such split, or it has no labels, or fewer videos than there are processes.
    """
    if split not in data.splits:
        raise ValueError(f"--split {split} needs {split}_order, got a dataset without it")
    if not data.labels[data.splits[split]].any():
        raise ValueError(f"{split} must have labels, got none for its {len(data.splits[split])} videos")
    videos = Videos((data.visual, data.audio, data.labels, data.splits[split]), lengths=[data.lengths])
    if len(videos) < accelerator.num_processes:
        raise ValueError(
            f"{split} must have a video for each of {accelerator.num_processes} processes, got {len(videos)}"
        )
    shares = OrderedShares(len(videos), accelerator.process_index, accelerator.num_processes)
    return Loader(videos, shares, accelerator.device, workers)


def cache_features(data: AVEData, cache: Cache, accelerator: Accelerator, setting: Setting) -> tuple[AVEData, str]:
    """Copy the features to where every epoch reads them; all processes choose the same place.

    Args:
        data: the dataset.
        cache: "device"; "memory" of the host; "disk", where they stay in their files; or "auto", the first of these
            that they fit into with room to spare. Features in memory never go back to disk.
        accelerator: knows the device, and how many processes share the host's memory.
        setting: the supervised one needs no background videos.

    Returns:
        tuple: the dataset, and in words where its features are.

    Raises:
        ValueError: if they do not fit into the place that was asked for.
    """
    names = ["visual", "audio"] + (["background_visual", "background_audio"] if setting == "weak" else [])
    arrays: dict[str, Rows] = {name: getattr(data, name) for name in names if getattr(data, name) is not None}
    stored = any(isinstance(array, StoredArray) for array in arrays.values())
    size = sum(int(np.prod(array.shape)) * min(4, array.dtype.itemsize) for array in arrays.values())
    # The main process chooses before any process takes memory that another would then not find.
    place = _choose_place(cache, accelerator, size, stored) if accelerator.is_main_process else PLACES[0]
    if accelerator.num_processes > 1:
        place = PLACES[int(broadcast(torch.tensor(PLACES.index(place), device=accelerator.device)))]
    if place == "disk":
        return data, f"features stay on disk, {size / 1e9:.2g} GB an epoch"
    device = accelerator.device if place == "device" else torch.device("cpu")
    quiet = None if stored and accelerator.is_main_process else True
    with tqdm(desc=f"to {place}", unit="video", disable=quiet, leave=False, dynamic_ncols=True) as progress:
        progress.total = sum(map(len, arrays.values()))
        cached: dict[str, Any] = {name: _copy(array, device, progress) for name, array in arrays.items()}
    return dataclasses.replace(data, **cached), f"features in {place}, {size / 1e9:.2g} GB"


def _choose_place(cache: Cache, accelerator: Accelerator, size: int, stored: bool) -> str:
    """Return the place for features of ``size`` bytes, which are stored in files or in memory already."""
    if cache in ("auto", "device") and accelerator.device.type != "cpu":
        free = torch.cuda.mem_get_info(accelerator.device)[0] if accelerator.device.type == "cuda" else None
        if free is not None and size < MEMORY_SHARE * free:
            return "device"
        if cache == "device" and free is not None:
            raise ValueError(
                f"--cache device needs {size / 1e9:.1f} GB and room to train in, got {free / 1e9:.1f} GB free: "
                f"use --cache memory or disk"
            )
        if cache == "device":
            return "device"
    if not stored:
        return "memory"
    if cache != "disk":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        free = psutil.virtual_memory().available // processes
        if size < MEMORY_SHARE * free:
            return "memory"
        if cache != "auto":
            raise ValueError(
                f"--cache {cache} needs {size / 1e9:.1f} GB for each process, got {free / 1e9:.1f} GB free: "
                f"use --cache disk, best on a prepared directory"
            )
    return "disk"


def _copy(array: Rows, device: torch.device, progress: Any) -> Tensor:
    """Copy all rows of an array, block by block, so that memory holds it once."""
    if isinstance(array, Tensor):
        return array.to(device)
    copy = torch.empty(array.shape, dtype=array[:0].dtype, device=device)
    for start in range(0, len(array), BLOCK):
        copy[start : start + BLOCK] = array[start : start + BLOCK]
        progress.update(min(BLOCK, len(array) - start))
    return copy
