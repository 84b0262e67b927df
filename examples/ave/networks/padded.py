"""Operations over time that ignore padding: a video gives the same result in a padded batch as alone.

Axes: B videos, T segments, D width, H hidden width. Masks are bool (B, T), True = padding, at any position.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["lengths_of", "max_over_time", "mean_over_time", "order_valid_first", "reorder", "run_lstm"]


def lengths_of(padding_mask: Tensor) -> Tensor:
    """Return the number of valid segments of each video, int64 (B,)."""
    return (~padding_mask).sum(1)


def max_over_time(sequence: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Return the maximum (B, D) of (B, T, D) over valid segments, or zero if there are none."""
    if padding_mask is None:
        return sequence.amax(1)
    pooled = sequence.masked_fill(padding_mask.unsqueeze(-1), -torch.inf).amax(1)
    return pooled.masked_fill(padding_mask.all(1, keepdim=True), 0)


def mean_over_time(sequence: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Return the mean (B, D) of (B, T, D) over valid segments, or zero if there are none."""
    if padding_mask is None:
        return sequence.mean(1)
    total = sequence.masked_fill(padding_mask.unsqueeze(-1), 0).sum(1)
    return total / lengths_of(padding_mask).clamp(min=1).unsqueeze(-1)


def order_valid_first(padding_mask: Tensor) -> Tensor:
    """Return the order, int64 (B, T), that moves valid segments to the front and keeps their sequence."""
    return padding_mask.to(torch.uint8).argsort(dim=1, stable=True)


def reorder(sequence: Tensor, order: Tensor) -> Tensor:
    """Reorder the segments of (B, T, D) by the indices ``order`` (B, T). ``order.argsort(1)`` restores them.

    Examples:
        >>> sequence, mask = torch.tensor([[[0.0], [1.0], [2.0]]]), torch.tensor([[True, False, False]])
        >>> order = order_valid_first(mask)
        >>> reorder(sequence, order).flatten().tolist()
        [1.0, 2.0, 0.0]
        >>> reorder(reorder(sequence, order), order.argsort(1)).flatten().tolist()
        [0.0, 1.0, 2.0]
    """
    return sequence.gather(1, order.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))


@_disable_dynamo  # torch.compiler.disable would import the compiler now, and not only in the first call
def run_lstm(
    lstm: nn.LSTM,
    sequence: Tensor,
    padding_mask: Tensor | None,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run a bidirectional LSTM over the valid segments of each video. The backward direction starts at the last one.

    ``torch.compile`` runs it eagerly, between two graphs, like every LSTM of PyTorch. ``torch.export`` supports it
    without a mask and with a fixed length T. With a mask, the lengths are read on the host to pack the sequences.

    Args:
        lstm: one bidirectional layer, batch first.
        sequence: (B, T, D), finite at padding too.
        padding_mask: bool (B, T), True = padding, or None. If a video is all padding, its first segment is used.
        state: the initial hidden and cell states, each (2, B, H), forward and backward. Default: zeros.

    Returns:
        tuple: the output (B, T, 2 H), zero at padding; and the final hidden and cell states, each (2, B, H).
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
