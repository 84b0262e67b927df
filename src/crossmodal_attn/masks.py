"""Masks, in the one convention of this library, which is ``torch.nn.MultiheadAttention``'s.

A bool padding mask is True at padding; a bool attention mask is True where a query may *not* attend; a floating-point
attention mask is added to the scores. Axes: B batch, H heads, T query length, M memory length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmodal_attn._checks import check_size

__all__ = ["padding_mask"]


def padding_mask(lengths: Tensor | Sequence[int], max_length: int | None = None) -> Tensor:
    """Turn the lengths of sequences into their padding mask.

    Args:
        lengths: the number of valid steps of each sequence, integers >= 0; a tensor (B,) or a sequence of ints.
        max_length: the padded length; by default the longest of ``lengths``. Give it inside ``torch.compile`` or
            ``torch.export``: then a tensor of lengths is never read back from its device, nor its values checked
            (a length beyond ``max_length`` means no padding).

    Returns:
        Tensor: bool, (B, max_length), True = padding, on the device of ``lengths``.

    Raises:
        TypeError: if ``lengths`` is not of integers.
        ValueError: if ``lengths`` is not one-dimensional; where its values are checked, if one is negative or exceeds
            ``max_length``; if ``max_length`` is missing where values cannot be read, on the meta device.

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
    read_back = max_length is None or not isinstance(lengths, Tensor)
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.tensor(lengths, dtype=None if len(lengths) else torch.long)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"lengths must be a tensor or a sequence of integers, got {lengths!r}") from error
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.dim() != 1:
        raise ValueError(f"lengths must have one dimension (batch,), got shape {tuple(lengths.shape)}")
    lengths = lengths.long()
    if max_length is None and lengths.is_meta:
        raise ValueError("max_length must be given where lengths are on the meta device, got None")
    if read_back and lengths.numel():
        shortest, longest = lengths.min().item(), lengths.max().item()
        if shortest < 0:
            raise ValueError(f"lengths must be at least 0, got {shortest}")
        if max_length is not None and longest > max_length:
            raise ValueError(f"lengths must be at most max_length={max_length}, got {longest}")
    else:
        longest = 0
    steps = torch.arange(int(longest) if max_length is None else max_length, device=lengths.device)
    return steps >= lengths.unsqueeze(-1)


def zero_padding(features: Tensor, padding: Tensor | None) -> Tensor:
    """Zero the padded steps of (B, T, *) features: masked scores alone would still let 0 x NaN = NaN through."""
    if padding is None:
        return features
    return torch.where(padding.reshape(padding.shape + (1,) * (features.dim() - 2)), 0, features)


def join_masks(
    attn_mask: Tensor | None, paddings: Sequence[Tensor | None], lengths: Sequence[int], batch: int, num_heads: int
) -> Tensor | None:
    """Join the padding of each memory and the attention mask into one that broadcasts to (B, H, T, M).

    Args:
        attn_mask: bool or floating point, (T, M), (B, T, M) or (B * H, T, M), or None.
        paddings: per memory, bool (B, its length) or None.
        lengths: the memories' lengths; they sum to M.
        batch: B.
        num_heads: H.
    """
    if attn_mask is not None:
        if attn_mask.dim() == 2:
            attn_mask = attn_mask[None, None]
        elif attn_mask.shape[0] == batch:
            attn_mask = attn_mask[:, None]
        else:
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
