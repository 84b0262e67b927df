"""Features brought to where they are taken from in every epoch: the device, the host's memory, or their files."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from tqdm import tqdm

from ave.data import AVEData
from ave.model import Setting
from ave.storage import Rows, StoredArray

__all__ = ["CACHES", "cache_features"]

CACHES = ("auto", "device", "memory", "disk")
SHARE = 0.6
"""Of the free memory that features may take; the rest is for the network at any usual batch size."""
BLOCK = 64
"""Videos that are read at once to fill a cache."""
FEATURES = ("visual", "audio", "background_visual", "background_audio")


def cache_features(data: AVEData, cache: str, accelerator: Accelerator, setting: Setting) -> tuple[AVEData, str]:
    """Bring the features to where they are taken from in every epoch; all processes take the same place.

    Args:
        data: the set.
        cache: "device"; "memory" of the host; "disk", where they stay in their files; or "auto", the first of these
            that they fit into with room to spare. What is in memory already never goes back to disk.
        accelerator: the device, and how many processes share the host's memory.
        setting: the supervised one needs no background videos.

    Returns:
        tuple: the set, and what was done in words.

    Raises:
        ValueError: if they do not fit where they were told to go.
    """
    names = FEATURES if setting == "weak" else FEATURES[:2]
    arrays: dict[str, Rows] = {name: getattr(data, name) for name in names if getattr(data, name) is not None}
    stored = any(isinstance(array, StoredArray) for array in arrays.values())
    size = sum(_cached_bytes(array) for array in arrays.values())
    place = _agree(cache, accelerator, size, stored)
    if place == "disk":
        return data, f"features stay on disk, {size / 1e9:.2g} GB an epoch"
    device = accelerator.device if place == "device" else torch.device("cpu")
    videos = sum(len(array) for array in arrays.values())
    with tqdm(
        total=videos,
        desc=f"to {place}",
        unit="video",
        disable=None if stored and accelerator.is_main_process else True,
        leave=False,
        dynamic_ncols=True,
    ) as progress:
        cached: dict[str, Any] = {name: _copy(array, device, progress) for name, array in arrays.items()}
    return dataclasses.replace(data, **cached), f"features in {place}, {size / 1e9:.2g} GB"


def _cached_bytes(array: Rows) -> int:
    return int(np.prod(array.shape)) * min(4, array.dtype.itemsize)


def _agree(cache: str, accelerator: Accelerator, size: int, stored: bool) -> str:
    """The place that the main process chooses, before any process takes memory that another would then not find."""
    place = _choose(cache, accelerator, size, stored) if accelerator.is_main_process else CACHES[0]
    if accelerator.num_processes == 1:
        return place
    return CACHES[int(broadcast(torch.tensor(CACHES.index(place), device=accelerator.device)))]


def _choose(cache: str, accelerator: Accelerator, size: int, stored: bool) -> str:
    """The place for features of ``size`` bytes."""
    if cache in ("auto", "device") and accelerator.device.type != "cpu":
        free = _free_on(accelerator.device)
        if free is not None and size < SHARE * free:
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
        if size < SHARE * free:
            return "memory"
        if cache != "auto":
            raise ValueError(
                f"--cache {cache} needs {size / 1e9:.1f} GB for each process, got {free / 1e9:.1f} GB free: "
                f"use --cache disk, best on a prepared directory"
            )
    return "disk"


def _free_on(device: torch.device) -> int | None:
    """The free memory of a device, where it can be told."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _copy(array: Rows, device: torch.device, progress: Any) -> Tensor:
    """All rows of an array, block by block, so that memory holds it once."""
    if isinstance(array, Tensor):
        return array.to(device)
    copy = torch.empty(array.shape, dtype=array[:0].dtype, device=device)
    for start in range(0, len(array), BLOCK):
        copy[start : start + BLOCK] = array[start : start + BLOCK]
        progress.update(min(BLOCK, len(array) - start))
    return copy
