"""Operations over time that leave padding out: a video in a padded batch gives what it gives alone.

Axes: B videos, T segments, D width, H hidden width. Masks are bool (B, T), True = padding, which may stand anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["lengths_of", "max_over_time", "mean_over_time", "order_valid_first", "reorder", "run_lstm"]


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


def order_valid_first(padding_mask: Tensor) -> Tensor:
    """Return the order, int64 (B, T), that brings valid segments to the front, as they follow one another."""
    return padding_mask.to(torch.uint8).argsort(dim=1, stable=True)


def reorder(sequence: Tensor, order: Tensor) -> Tensor:
    """Return (B, T, D) with its segments in an order (B, T); ``order.argsort(1)`` brings them back.

    Examples:
        >>> sequence, mask = torch.tensor([[[0.0], [1.0], [2.0]]]), torch.tensor([[True, False, False]])
        >>> order = order_valid_first(mask)
        >>> reorder(sequence, order).flatten().tolist()
        [1.0, 2.0, 0.0]
        >>> reorder(reorder(sequence, order), order.argsort(1)).flatten().tolist()
        [0.0, 1.0, 2.0]
    """
    return sequence.gather(1, order.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run_lstm(
    lstm: nn.LSTM,
    sequence: Tensor,
    padding_mask: Tensor | None,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM over the valid segments of each video, backward from its last one.

    ``torch.compile`` runs it eagerly, between two graphs, as it does every LSTM of PyTorch. ``torch.export`` takes it
    without a mask and at one length T: with a mask the sequences are packed, whose lengths are read on the host.

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
    order = order_valid_first(padding_mask)
    lengths = lengths_of(padding_mask).clamp(min=1)
    packed = pack_padded_sequence(reorder(sequence, order), lengths.cpu(), batch_first=True, enforce_sorted=False)
    output, state = lstm(packed, state)
    output, _ = pad_packed_sequence(output, batch_first=True, total_length=sequence.shape[1])
    return reorder(output, order.argsort(1)), state
