"""Cache features, shuffle videos by seed and epoch, and split batches between processes.

Axes: N videos, T segments of a second, H x W positions, C visual channels, A audio channels, K categories.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from tqdm import tqdm

from ave.data.dataset import AVEData, Rows, Setting, Split
from crossmodal_attn import padding_mask

__all__ = ["EVALUATION_BATCH", "Batch", "Cache", "Loader", "Part", "Share", "Shares", "Videos", "cache_features"]
__all__ += ["derive_seed", "evaluation_loader", "training_loader"]

EVALUATION_BATCH = 16
"""Batch size per process in evaluation, as in the authors' code. It affects memory, not results."""
Cache = Literal["auto", "device", "memory", "disk"]
PLACES = ("device", "memory", "disk")
MEMORY_SHARE = 0.6
"""The share of the free memory that features may use. The rest is for the network."""
BLOCK = 64
"""Number of videos that are read at once to fill a cache."""
AHEAD = 2
"""Number of batches that each thread reads ahead."""


def derive_seed(*parts: int) -> int:
    """Derive one seed from several numbers, such as the seed of a run, the epoch and the process.

    At the start of each epoch, all random generators get such a seed. So a run can continue from any epoch without a
    stored random state.
    """
    # Include the count, because SeedSequence ignores zeros at the end.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1)[0])


class Share(NamedTuple):
    """The part of a batch for one process."""

    positions: list[int]
    weight: float
    """A factor for the mean loss of the share. With it, the mean over processes is the mean over the batch, if all
    videos have the same number of labeled segments."""


class Batch(NamedTuple):
    """Features and targets of B videos."""

    video: Tensor
    """(B, T, H, W, C)"""
    audio: Tensor
    """(B, T, A)"""
    target: Tensor
    """(B, T, K + 1) or (B, K + 1)"""
    weight: float
    padding_mask: Tensor | None = None
    """bool (B, T), True = padding; None if the dataset has no padding."""


class Part(NamedTuple):
    """Arrays of videos, and the rows to use."""

    visual: Rows
    audio: Rows
    targets: Tensor
    rows: Tensor
    """int64: the rows to use."""
    lengths: Tensor | None = None
    """int64: the length of each video in seconds; None without padding."""


class Videos:
    """Videos from one or several parts, indexed by shares. Features are at most float32.

    Args:
        *parts: the parts. A batch has its videos in the order of the parts.
    """

    def __init__(self, *parts: Part) -> None:
        self.on_disk = not all(isinstance(part.visual, Tensor) for part in parts)
        self._parts: list[tuple[list[Rows], Tensor]] = []
        padded = any(part.lengths is not None for part in parts)
        for visual, audio, targets, rows, lengths in parts:
            arrays = [visual, audio, targets.to(visual.device) if isinstance(visual, Tensor) else targets]
            if padded:
                arrays.append(torch.full((len(audio),), audio.shape[1]) if lengths is None else lengths)
            self._parts.append((arrays, rows))

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self._parts)

    def __getitem__(self, share: Share) -> Batch:
        taken, start = [], 0
        for arrays, rows in self._parts:
            own = rows[[position - start for position in share.positions if start <= position < start + len(rows)]]
            taken.append([_take(array, own) for array in arrays])
            start += len(rows)
        video, audio, target, *lengths = taken[0] if len(taken) == 1 else map(torch.cat, zip(*taken, strict=True))
        mask = padding_mask(lengths[0], audio.shape[1]) if lengths else None
        return Batch(video, audio, target, share.weight, mask)


def _take(array: Rows, rows: Tensor) -> Tensor:
    """Return rows of an array, on its device."""
    if isinstance(array, Tensor):
        return array.index_select(0, rows.to(array.device, non_blocking=True))
    return array[rows.tolist()]


@dataclass
class Shares:
    """The shares of one process in the batches of an epoch, in order, or shuffled by the seed and the epoch."""

    videos: int
    batch_size: int = EVALUATION_BATCH
    """The batch size over all processes."""
    shuffle: bool = False
    """Whether to shuffle the videos, and to give each process a share of each batch, as in training."""
    process: int = 0
    processes: int = 1
    seed: int = 0
    epoch: int = 1

    def __len__(self) -> int:
        return -(-self.videos // self.batch_size)

    def __iter__(self) -> Iterator[Share]:
        order = torch.arange(self.videos)
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
            order = torch.randperm(self.videos, generator=generator)
        for batch in order.split(self.batch_size):
            own = batch[self.process :: self.processes].tolist()
            # In training, each process must take each step. A process without a video uses any video, with weight 0.
            if own or self.shuffle:
                yield Share(own or batch[:1].tolist(), len(own) * self.processes / len(batch))


class Loader:
    """Load batches in float32 on the device of this process. If features are on disk, threads read ahead.

    It uses threads, not processes, because reading releases the GIL. So nothing is copied between processes, a signal
    stops the whole run, and errors are raised directly. Accelerate's own data loader would pad the batches.
    """

    def __init__(self, videos: Videos, shares: Shares, device: torch.device, workers: int = 0) -> None:
        self.videos, self.shares, self.device = videos, shares, device
        self.workers = workers if videos.on_disk else 0

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._read_ahead() if self.workers else map(self._load, self.shares):
            video, audio, target = (tensor.to(self.device, non_blocking=True).float() for tensor in batch[:3])
            mask = None if batch.padding_mask is None else batch.padding_mask.to(self.device, non_blocking=True)
            yield Batch(video, audio, target, batch.weight, mask)

    def _read_ahead(self) -> Iterator[Batch]:
        threads = ThreadPoolExecutor(self.workers)
        loading: deque[Future[Batch]] = deque()
        try:
            for share in self.shares:
                loading.append(threads.submit(self._load, share))
                if len(loading) > AHEAD * self.workers:
                    yield loading.popleft().result()
            while loading:
                yield loading.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _load(self, share: Share) -> Batch:
        video, audio, target, weight, mask = self.videos[share]
        mask = None if mask is None else self._pin(mask)
        return Batch(self._pin(video), self._pin(audio), self._pin(target), weight, mask)

    def _pin(self, tensor: Tensor) -> Tensor:
        """Pin the memory of a tensor for a GPU, so that the copy is asynchronous."""
        return tensor.pin_memory() if self.device.type == "cuda" and tensor.device.type == "cpu" else tensor


def training_loader(
    data: AVEData, setting: Setting, accelerator: Accelerator, *, batch_size: int, seed: int | None, workers: int = 0
) -> Loader:
    """Return the training batches: with labels of segments, or if weak, of videos, with the background videos.

    Args:
        data: the dataset.
        setting: selects the targets.
        accelerator: gives the device, and the index and number of processes.
        batch_size: batch size over all processes.
        seed: the seed of the shuffling. None does not shuffle, and drops the last, incomplete batch, as in the code of
            AVEL.
        workers: number of threads that read ahead if features are on disk; 0 reads each batch on demand.

    Raises:
        ValueError: if the setting is weak and ``data`` has no labels of videos, or if there is no seed and no batch is
            complete.
    """
    rows = data.splits["train"]
    if setting == "supervised":
        parts = [Part(data.visual, data.audio, data.labels, rows, data.lengths)]
    else:
        visual, audio, labels = data.background_visual, data.background_audio, data.background_labels
        if data.video_labels is None:
            raise ValueError("data must hold video labels for the weak setting, got None")
        parts = [Part(data.visual, data.audio, data.video_labels, rows, data.lengths)]
        if visual is not None and audio is not None and labels is not None:
            parts.append(Part(visual, audio, labels, torch.arange(len(labels)), data.background_lengths))
    videos = Videos(*parts)
    count = len(videos)
    if seed is None:
        count -= count % batch_size
        if not accelerator.num_processes <= batch_size <= len(videos):
            expected = f"from {accelerator.num_processes} to {len(videos)} with --as-published"
            raise ValueError(f"--batch-size must be {expected}, which drops the last videos, got {batch_size}")
    process, processes = accelerator.process_index, accelerator.num_processes
    shares = Shares(count, batch_size, seed is not None, process, processes, seed=seed or 0)
    return Loader(videos, shares, accelerator.device, workers)


def evaluation_loader(data: AVEData, split: Split, accelerator: Accelerator, workers: int = 0) -> Loader:
    """Return the evaluation batches of this process, in order, with labels of segments.

    Raises:
        ValueError: if the split does not exist, has no labels, or has fewer videos than there are processes.
    """
    if split not in data.splits:
        raise ValueError(f"--split {split} needs {split}_order, got a dataset without it")
    if not data.labels[data.splits[split]].any():
        raise ValueError(f"{split} must have labels, got none for its {len(data.splits[split])} videos")
    videos = Videos(Part(data.visual, data.audio, data.labels, data.splits[split], data.lengths))
    processes = accelerator.num_processes
    if len(videos) < processes:
        raise ValueError(f"{split} must have a video for each of {processes} processes, got {len(videos)}")
    shares = Shares(len(videos), EVALUATION_BATCH * processes, False, accelerator.process_index, processes)
    return Loader(videos, shares, accelerator.device, workers)


def cache_features(data: AVEData, cache: Cache, accelerator: Accelerator, setting: Setting) -> tuple[AVEData, str]:
    """Copy the features to the place from which each epoch reads them, the same place for all processes.

    Args:
        data: the dataset.
        cache: "device"; "memory" of the host; "disk", which leaves them in their files; or "auto", the first of these
            with enough free space. Features that are already in memory stay there.
        accelerator: gives the device, and the number of processes that share the memory of the host.
        setting: "supervised" does not copy the background videos.

    Returns:
        tuple: the dataset, and a description of where its features are.

    Raises:
        ValueError: if the features do not fit into the requested place.
    """
    names = ["visual", "audio"] + (["background_visual", "background_audio"] if setting == "weak" else [])
    arrays: dict[str, Rows] = {name: getattr(data, name) for name in names if getattr(data, name) is not None}
    stored = not all(isinstance(array, Tensor) for array in arrays.values())
    size = sum(int(np.prod(array.shape)) * min(4, array.dtype.itemsize) for array in arrays.values())
    # The main process chooses before any process allocates memory, so all see the same free memory.
    place = _choose_place(cache, accelerator, size, stored) if accelerator.is_main_process else PLACES[0]
    if accelerator.num_processes > 1:
        place = PLACES[int(broadcast(torch.tensor(PLACES.index(place), device=accelerator.device)))]
    if place == "disk":
        return data, f"features stay on disk, {size / 1e9:.2g} GB per epoch"
    device = accelerator.device if place == "device" else torch.device("cpu")
    quiet = None if stored and accelerator.is_main_process else True
    with tqdm(desc=f"to {place}", unit="video", disable=quiet, leave=False, dynamic_ncols=True) as progress:
        progress.total = sum(map(len, arrays.values()))
        cached: dict[str, Any] = {name: _copy(array, device, progress) for name, array in arrays.items()}
    return dataclasses.replace(data, **cached), f"features in {place}, {size / 1e9:.2g} GB"


def _choose_place(cache: Cache, accelerator: Accelerator, size: int, stored: bool) -> str:
    """Choose the place for features of ``size`` bytes. ``stored`` means that they are in files."""
    if cache in ("auto", "device") and accelerator.device.type != "cpu":
        free = torch.cuda.mem_get_info(accelerator.device)[0] if accelerator.device.type == "cuda" else None
        if free is not None and size < MEMORY_SHARE * free:
            return "device"
        if cache == "device" and free is not None:
            raise ValueError(
                f"--cache device needs {size / 1e9:.1f} GB and memory for training, got {free / 1e9:.1f} GB free: "
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
    """Copy an array to a device, block by block, so that memory holds only one copy."""
    if isinstance(array, Tensor):
        return array.to(device)
    copy = torch.empty(array.shape, dtype=array[:0].dtype, device=device)
    for start in range(0, len(array), BLOCK):
        copy[start : start + BLOCK] = array[start : start + BLOCK]
        progress.update(min(BLOCK, len(array) - start))
    return copy
