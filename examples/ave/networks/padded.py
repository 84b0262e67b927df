"""Operations over time that leave padding out: a video in a padded batch gives what it gives alone.

Axes: B videos, T segments, D width, H hidden width. Masks are bool (B, T), True = padding, which may stand anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["lengths_of", "max_over_time", "mean_over_time", "order_valid_first", "run_lstm"]


def lengths_of(padding_mask: Tensor) -> Tensor:
    """Return the number of valid segments of each video, int64 (B,)."""
    return (~padding_mask).sum(1)


def max_over_time(sequence: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Return the maximum (B, D) of (B, T, D) over valid segments; zero where there are none."""
    if padding_mask is None:
        return sequence.amax(1)
    pooled = sequence.masked_fill(padding_mask.unsqueeze(-1), -torch.inf).amax(1)
    return pooled.masked_fill(padding_mask.all(1, keepdim=True), 0)


def mean_over_time(sequence: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Return the mean (B, D) of (B, T, D) over valid segments; zero where there are none."""
    if padding_mask is None:
        return sequence.mean(1)
    total = sequence.masked_fill(padding_mask.unsqueeze(-1), 0).sum(1)
    return total / lengths_of(padding_mask).clamp(min=1).unsqueeze(-1)


def order_valid_first(padding_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return what brings valid segments to the front, in their order, and what brings them back.

    Returns:
        tuple: two int64 (B, T, 1), for ``take_along_dim`` over time.

    Examples:
        >>> mask = torch.tensor([[True, False, True, False]])
        >>> order, back = order_valid_first(mask)
        >>> sequence = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
        >>> front = sequence.take_along_dim(order, 1)
        >>> front.flatten().tolist(), front.take_along_dim(back, 1).flatten().tolist()
        ([1.0, 3.0, 0.0, 2.0], [0.0, 1.0, 2.0, 3.0])
    """
    order = padding_mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order.unsqueeze(-1), order.argsort(1).unsqueeze(-1)


def run_lstm(
    lstm: nn.LSTM,
    sequence: Tensor,
    padding_mask: Tensor | None,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM over the valid segments of each video, backward from its last one.

    With a mask the sequences are packed, for which the lengths are read back to the host: ``torch.export`` cannot
    trace that. ``torch.compile`` runs every LSTM of PyTorch eagerly, between two graphs.

    Args:
        lstm: one bidirectional layer, batch first.
        sequence: (B, T, D), finite at padding too.
        padding_mask: bool (B, T), True = padding, or None. A video of nothing but padding is run over its first
            segment.
        state: the hidden and cell state to begin with, each (2, B, H), forward and backward; zeros without it.

    Returns:
        tuple: the output (B, T, 2 H), zero at padding, and the states after the last segment that each direction
        sees, each (2, B, H).
    """
    if padding_mask is None:
        output, state = lstm(sequence, state)
        return output, state
    order, back = order_valid_first(padding_mask)
    lengths = lengths_of(padding_mask).clamp(min=1)
    packed = pack_padded_sequence(
        sequence.take_along_dim(order, 1), lengths.cpu(), batch_first=True, enforce_sorted=False
    )
    output, state = lstm(packed, state)
    output, _ = pad_packed_sequence(output, batch_first=True, total_length=sequence.shape[1])
    return output.take_along_dim(back, 1), state
