"""Find mean and standard deviation of signed features, over the seconds of the training split.

Axes: N videos, T segments of a second, H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from ave.data.dataset import AVEData, Rows
from crossmodal_attn import padding_mask

__all__ = ["find_statistics", "read_valid"]

BLOCK = 2**22
"""Number of values that are read at once, but at least those of one video."""
TRIED = 64
"""Number of training videos that are searched for negative features."""


def find_statistics(data: AVEData) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and standard deviation of each channel of the features that have negative values.

    Features without negative values, such as those after a ReLU, are left as they are, as in the AVE release. The first
    64 videos of train are searched for negative values. Padding is left out.

    Args:
        data: the dataset.

    Returns:
        dict: for "video", "audio", both or neither of them, the mean and the standard deviation, each float32, (C,) or
        (A,). The deviation of a constant channel is 1.
    """
    rows = data.splits["train"]
    arrays: dict[str, Rows] = {"video": data.visual, "audio": data.audio}
    signed = {}
    for name, array in arrays.items():
        if any((block < 0).any() for block in read_valid(array, rows[:TRIED], data.lengths)):
            signed[name] = _measure(array, rows, data.lengths)
    return signed


def _measure(array: Rows, rows: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    # Sum deviations from the first vector, so that no digits are lost if the mean is large.
    origin = next(read_valid(array, rows[:1], lengths)).flatten(0, -2)[0]
    for vectors in read_valid(array, rows, lengths):
        block = vectors.flatten(0, -2) - origin
        count += len(block)
        total, squares = total + block.sum(0), squares + block.square().sum(0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    deviation[deviation <= 1e-6 * (mean + origin).abs()] = 1
    return (mean + origin).float(), deviation.float()


def read_valid(array: Rows, rows: Tensor, lengths: Tensor | None) -> Iterator[Tensor]:
    """Yield the features of all seconds of the given videos, some videos at a time: float64, without padding.

    Args:
        array: (N, T, ..., channels).
        rows: int64, the rows of the videos.
        lengths: int64 (N,), the length of each video, or None without padding.

    Yields:
        Tensor: (seconds, ..., channels), a copy.
    """
    for own in rows.split(max(1, BLOCK // prod(array.shape[1:]))):
        block = (
            array.index_select(0, own.to(array.device)) if isinstance(array, Tensor) else array[own.tolist()]
        ).cpu()
        mask = torch.zeros(block.shape[:2], dtype=torch.bool)
        if lengths is not None:
            mask = padding_mask(lengths[own], block.shape[1])
        yield block[~mask].double()
