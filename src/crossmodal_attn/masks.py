"""Masks, in the one convention of this library, which is ``torch.nn.MultiheadAttention``'s.

A bool padding mask is True at padding; a bool attention mask is True where a query may *not* attend; a floating-point
attention mask is added to the scores. Axes: B batch, H heads, T query length, M memory length.
"""

import operator
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from crossmodal_attn._checks import check_mask, check_size, check_tensor

__all__ = ["padding_mask", "zero_padding"]


def padding_mask(lengths: Tensor | Sequence[int], max_length: int | None = None) -> Tensor:
    """Turn the lengths of sequences into their padding mask.

    Args:
        lengths: the number of valid steps of each sequence, integers >= 0; a tensor (B,), or a list, tuple or array,
            whose values are always checked.
        max_length: the padded length; by default the longest of ``lengths``. With a tensor of lengths, give it inside
            ``torch.compile`` or ``torch.export``: then the tensor is never read back from its device, nor its values
            checked (a length beyond ``max_length`` means no padding).

    Returns:
        Tensor: bool, (B, max_length), True = padding, on the device of a tensor of lengths, and on torch's default
        device for others.

    Raises:
        TypeError: if ``lengths`` is not of integers.
        ValueError: if a tensor of lengths is not one-dimensional; where values are checked, if one is negative or
            exceeds ``max_length``; if ``max_length`` is missing where values cannot be read, on the meta device.

    Examples:
        >>> padding_mask([3, 1])
        tensor([[False, False, False],
                [False,  True,  True]])
        >>> padding_mask(torch.tensor([2, 0]), max_length=4)
        tensor([[False, False,  True,  True],
                [ True,  True,  True,  True]])
    """
    if max_length is not None:
        check_size("max_length", max_length, minimum=0)
    if isinstance(lengths, (list, tuple)) and lengths and all(isinstance(length, Tensor) for length in lengths):
        lengths = torch.stack(list(lengths))
    if isinstance(lengths, Tensor):
        if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
            raise TypeError(f"lengths must be integers, got {lengths.dtype}")
        if lengths.dim() != 1:
            raise ValueError(f"lengths must have one dimension (batch,), got shape {tuple(lengths.shape)}")
        lengths = lengths.long()
        longest = _read_longest(lengths) if max_length is None else 0
    else:
        # In Python: under torch.compile, on the meta device and in a FakeTensorMode a tensor's values cannot be read.
        values = _list_lengths(lengths)
        longest = max([0, *values])
        lengths = torch.tensor(values, dtype=torch.long)
    if max_length is None:
        max_length = longest
    elif longest > max_length:
        raise ValueError(f"lengths must be at most max_length={max_length}, got {longest}")
    return torch.arange(max_length, device=lengths.device) >= lengths.unsqueeze(-1)


def _read_longest(lengths: Tensor) -> int:
    """Read the longest length back from its device, and check the shortest."""
    if lengths.is_meta:
        raise ValueError("max_length must be given where lengths are on the meta device, got None")
    if lengths.numel() == 0:
        return 0
    shortest = int(lengths.min())
    if shortest < 0:
        raise ValueError(f"lengths must be at least 0, got {shortest}")
    return int(lengths.max())


def _list_lengths(lengths: object) -> list[int]:
    """Check the lengths of a list, tuple or array; give them as Python's integers."""
    values = lengths.tolist() if hasattr(lengths, "tolist") else lengths
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise TypeError(f"lengths must be a tensor or a sequence of integers, got {lengths!r}")
    values = list(values)
    for index, value in enumerate(values):
        if not isinstance(value, (int, torch.SymInt)):
            with suppress(TypeError):  # integers of numpy
                values[index] = operator.index(value)
        check_size(f"lengths[{index}]", values[index], minimum=0)
    return values


def zero_padding(features: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Zero the padded steps of features, whatever they hold.

    The layers do so with what they are given. A layer of one's own in front of them, such as a
    :class:`torch.nn.Linear`, needs it too where padding may hold NaN or Inf: its weights' gradients are sums over all
    steps, in which zero times NaN is NaN.

    Args:
        features: (B, T, ...), with any dimensions after the first two.
        padding_mask: bool (B, T), True = padding; or None, which leaves the features as they are.

    Returns:
        Tensor: (B, T, ...); no gradient reaches the padded steps of ``features``.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if ``features`` has fewer than two dimensions, or the mask is not of its first two.

    Examples:
        >>> features = torch.tensor([[[1.0], [torch.nan]], [[2.0], [3.0]]])
        >>> zero_padding(features, padding_mask([1, 2])).squeeze(-1)
        tensor([[1., 0.],
                [2., 3.]])
    """
    check_tensor("features", features)
    if features.dim() < 2:
        raise ValueError(f"features must have shape (batch, time, ...), got {tuple(features.shape)}")
    if padding_mask is not None:
        check_mask("padding_mask", padding_mask, features.shape[:2], features)
    return zero_steps(features, padding_mask)


def zero_steps(features: Tensor, padding: Tensor | None) -> Tensor:
    """Zero the padded steps of (B, T, *) features, as :func:`zero_padding` does, without its checks."""
    if padding is None:
        return features
    return zero_where(padding.reshape(padding.shape + (1,) * (features.dim() - 2)), features)


def zero_where(closed: Tensor, values: Tensor) -> Tensor:
    """Zero ``values``, NaN and Inf included, where ``closed``, bool and broadcastable to them, is True."""
    if values.device.type == "cpu" and values.is_floating_point() and not torch.compiler.is_compiling():
        # torch.where, whose inner loop is not vectorized there, takes six times as long as this, which is
        # where(keep > 0, values, 0) of a kernel that is.
        keep = (~closed).to(values.dtype)
        zeroed: Tensor = torch.ops.aten.threshold_backward(values, keep.expand_as(values), 0)
        return zeroed
    return torch.where(closed, 0, values)


def join_masks(
    attn_mask: Tensor | None, paddings: Sequence[Tensor | None], lengths: Sequence[int], batch: int, num_heads: int
) -> Tensor | None:
    """Join the padding of each memory and the attention mask into one that broadcasts to (B, H, T, M).

    Args:
        attn_mask: bool or floating point, (T, M), (B, T, M), (B * H, T, M), T of 1 allowed, or any four dimensions that
            broadcast to (B, H, T, M); or None.
        paddings: per memory, bool (B, its length) or None.
        lengths: the memories' lengths; they sum to M.
        batch: B.
        num_heads: H.
    """
    if attn_mask is not None:
        if attn_mask.dim() == 2:
            attn_mask = attn_mask[None, None]
        elif attn_mask.dim() == 3 and attn_mask.shape[0] == batch:
            attn_mask = attn_mask[:, None]
        elif attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (batch, num_heads))
    given = [padding for padding in paddings if padding is not None]
    if not given:
        return attn_mask
    padding = torch.cat(
        [
            given[0].new_zeros(batch, length) if padding is None else padding
            for padding, length in zip(paddings, lengths, strict=True)
        ],
        dim=1,
    )[:, None, None]
    if attn_mask is None:
        return padding
    if attn_mask.dtype == torch.bool:
        return attn_mask | padding
    return attn_mask.masked_fill(padding, -torch.inf)
