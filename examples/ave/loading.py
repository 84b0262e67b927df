"""Videos on their way to the device, batch by batch, shared out to processes.

Axes: N videos, T segments of a second, H x W positions, C visual channels, A audio channels, K categories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ave.data import AVEData
from ave.model import Setting
from ave.storage import Rows, StoredArray

__all__ = ["Batch", "Loader", "Share", "Videos", "derive_seed", "evaluation_loader", "training_loader"]

EVALUATION_BATCH = 16
"""Videos a batch in evaluation, as in the authors' code; it changes the memory used, not the result."""


def derive_seed(*parts: int) -> int:
    """One well-mixed seed out of several numbers, such as a run's seed, its epoch and the process.

    Everything random is drawn anew from such seeds at the start of every epoch, so that a run can go on from any of
    them without a stored random state.
    """
    # Their number goes in first, as zeros at the end change nothing.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1)[0])


class Share(NamedTuple):
    """What one process takes of a batch."""

    positions: list[int]
    weight: float
    """What the mean loss of the share is multiplied with, so that the mean over processes is that of the batch."""


class Batch(NamedTuple):
    """Features of B videos with their targets."""

    video: Tensor
    """(B, T, H, W, C)"""
    audio: Tensor
    """(B, T, A)"""
    target: Tensor
    """(B, T, K + 1) or (B, K + 1)"""
    weight: float


class Videos(Dataset[Batch]):
    """Some rows of a set, taken a share at a time; features never wider than float32."""

    def __init__(self, visual: Rows, audio: Rows, targets: Tensor, rows: Tensor | None = None) -> None:
        self.visual, self.audio = visual, audio
        self.targets = targets if isinstance(visual, StoredArray) else targets.to(visual.device)
        self.rows = torch.arange(len(targets)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, share: Share) -> Batch:
        rows = self.rows[share.positions]
        return Batch(_take(self.visual, rows), _take(self.audio, rows), _take(self.targets, rows), share.weight)


class JoinedVideos(Dataset[Batch]):
    """Several of them, one after the other; a share comes in that order."""

    def __init__(self, parts: Sequence[Videos]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, share: Share) -> Batch:
        batches, start = [], 0
        for part in self.parts:
            stop = start + len(part)
            positions = [position - start for position in share.positions if start <= position < stop]
            batches.append(part[Share(positions, share.weight)])
            start = stop
        video, audio, target, _ = zip(*batches, strict=True)
        return Batch(torch.cat(video), torch.cat(audio), torch.cat(target), share.weight)


def _take(array: Rows, rows: Tensor) -> Tensor:
    """Rows of an array, where it is."""
    if isinstance(array, StoredArray):
        return array[rows.tolist()]
    return array.index_select(0, rows.to(array.device, non_blocking=True))


class Shares(Sampler[Share], Sized):
    """One process's shares of the batches of an epoch."""

    epoch = 1


class ShuffledShares(Shares):
    """Those of training; their order depends on the seed and the epoch alone."""

    def __init__(self, videos: int, batch_size: int, seed: int, process: int, processes: int) -> None:
        self.videos, self.batch_size, self.seed = videos, batch_size, seed
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return -(-self.videos // self.batch_size)

    def __iter__(self) -> Iterator[Share]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        for batch in torch.randperm(self.videos, generator=generator).split(self.batch_size):
            own = batch.tensor_split(self.processes)[self.process].tolist()
            # Every process must take every step; one that is left without a video takes any, at no weight.
            yield Share(own or batch[:1].tolist(), len(own) * self.processes / len(batch))


class OrderedShares(Shares):
    """Those of evaluation: every video once, in order."""

    def __init__(self, videos: int, process: int, processes: int) -> None:
        self.positions = range(process, videos, processes)

    def __len__(self) -> int:
        return -(-len(self.positions) // EVALUATION_BATCH)

    def __iter__(self) -> Iterator[Share]:
        for start in range(0, len(self.positions), EVALUATION_BATCH):
            yield Share(list(self.positions[start : start + EVALUATION_BATCH]), 1.0)


class Loader:
    """Batches in float32 on the device of this process. Accelerate's own sharding would pad the last batch."""

    def __init__(self, videos: Videos | JoinedVideos, shares: Shares, device: torch.device, workers: int) -> None:
        self.videos, self.shares, self.device = videos, shares, device
        first = videos.parts[0] if isinstance(videos, JoinedVideos) else videos
        self._read: Any = None
        if isinstance(first.visual, StoredArray):
            self._read = DataLoader(
                videos,
                batch_size=None,
                sampler=shares,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                persistent_workers=workers > 0,
                generator=torch.Generator().manual_seed(0),  # else it would draw from the one of the dropout
            )

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[Batch]:
        for batch in map(self.videos.__getitem__, self.shares) if self._read is None else self._read:
            video, audio, target = (self._move(tensor).float() for tensor in batch[:3])
            yield Batch(video, audio, target, batch.weight)

    def _move(self, tensor: Tensor) -> Tensor:
        # What is not pinned would make the host wait for the copy.
        if self.device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def training_loader(
    data: AVEData, setting: Setting, accelerator: Accelerator, *, batch_size: int, seed: int, workers: int
) -> Loader:
    """The videos to train on, with segment labels; in the weak setting with video labels, and background ones added.

    Args:
        data: the set.
        setting: which targets.
        accelerator: says which process of how many this is.
        batch_size: videos a step, over all processes.
        seed: of the order.
        workers: processes that read, where features stay on disk.

    Raises:
        ValueError: if the setting is weak and ``data`` lacks what it needs.
    """
    rows = data.splits["train"]
    videos: Videos | JoinedVideos
    if setting == "supervised":
        videos = Videos(data.visual, data.audio, data.labels, rows)
    elif (
        data.video_labels is None
        or data.background_visual is None
        or data.background_audio is None
        or data.background_labels is None
    ):
        raise ValueError("data must hold video labels and background videos for the weak setting, got None")
    else:
        background = Videos(data.background_visual, data.background_audio, data.background_labels)
        videos = JoinedVideos([Videos(data.visual, data.audio, data.video_labels, rows), background])
    shares = ShuffledShares(len(videos), batch_size, seed, accelerator.process_index, accelerator.num_processes)
    return Loader(videos, shares, accelerator.device, workers)


def evaluation_loader(data: AVEData, split: str, accelerator: Accelerator, workers: int = 0) -> Loader:
    """This process's videos of a split, in order, with their segment labels.

    Raises:
        ValueError: if there are more processes than videos.
    """
    videos = Videos(data.visual, data.audio, data.labels, data.splits[split])
    if len(videos) < accelerator.num_processes:
        raise ValueError(
            f"{split} must have a video for each of {accelerator.num_processes} processes, got {len(videos)}"
        )
    shares = OrderedShares(len(videos), accelerator.process_index, accelerator.num_processes)
    return Loader(videos, shares, accelerator.device, workers)
