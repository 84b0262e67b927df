"""Padding masks and attention masks, in the convention of ``torch.nn.MultiheadAttention``.

A bool padding mask is True at padding. A bool attention mask is True where a query may *not* attend. A floating-point
attention mask is added to the scores. Axes: B batch, H heads, T query length, M memory length.
"""

import operator
from collections.abc import Sequence
from contextlib import suppress

import torch
from einops import rearrange
from torch import Tensor

from crossmodal_attn._checks import check_device, check_mask, check_size, check_tensor, has_shape
from crossmodal_attn.windows import RelationWindow, add_padding

__all__ = ["padding_mask", "zero_padding"]


def padding_mask(lengths: Tensor | Sequence[int], max_length: int | None = None) -> Tensor:
    """Return the padding mask of sequences of given lengths.

    Args:
        lengths: the number of valid steps of each sequence, integers >= 0: a tensor (B,), or a list, tuple or array.
        max_length: the padded length. Default: the largest of ``lengths``. For a tensor inside ``torch.compile`` or
            ``torch.export``, give ``max_length``: then the tensor is not read back from its device.

    Returns:
        Tensor: bool (B, max_length), True = padding. It is on the device of ``lengths`` if that is a tensor, else on
        torch's default device.

    Raises:
        ValueError: if a length is negative or exceeds ``max_length``. With a tensor and ``max_length`` the lengths are
            not checked; a length beyond ``max_length`` then means no padding.

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
        # Python integers, since a tensor's values cannot be read in torch.compile or FakeTensorMode, or on meta.
        values = _list_lengths(lengths)
        longest = max([0, *values])
        lengths = torch.tensor(values, dtype=torch.long)
    if max_length is None:
        max_length = longest
    elif longest > max_length:
        raise ValueError(f"lengths must be at most max_length={max_length}, got {longest}")
    return torch.arange(max_length, device=lengths.device) >= lengths.unsqueeze(-1)


def _read_longest(lengths: Tensor) -> int:
    """Return the largest length, read back from its device, after checking that none is negative."""
    if lengths.is_meta:
        raise ValueError("max_length must be given if lengths are on the meta device, got None")
    if lengths.numel() == 0:
        return 0
    shortest = int(lengths.min())
    if shortest < 0:
        raise ValueError(f"lengths must be at least 0, got {shortest}")
    return int(lengths.max())


def _list_lengths(lengths: object) -> list[int]:
    """Check the lengths of a list, tuple or array, and return them as Python integers."""
    values = lengths.tolist() if hasattr(lengths, "tolist") else lengths
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise TypeError(f"lengths must be a tensor or a sequence of integers, got {lengths!r}")
    values = list(values)
    for index, value in enumerate(values):
        if not isinstance(value, (int, torch.SymInt)):
            with suppress(TypeError):  # NumPy integers
                values[index] = operator.index(value)
        check_size(f"lengths[{index}]", values[index], minimum=0)
    return values


def zero_padding(features: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Set the padded steps of features to zero, even where they are NaN or Inf.

    The layers do this with their own inputs. Use it before a layer of your own, such as a :class:`torch.nn.Linear`, if
    padding may contain NaN or Inf: the gradients of its weights are sums over all steps, and zero times NaN is NaN.

    Args:
        features: (B, T, ...), with any dimensions after the first two.
        padding_mask: bool (B, T), True = padding, or None to leave the features unchanged.

    Returns:
        Tensor: (B, T, ...). No gradient reaches the padded steps of ``features``.

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
    """Set the padded steps of features (B, T, *) to zero, as :func:`zero_padding` does, without checks."""
    if padding is None:
        return features
    return zero_where(padding.reshape(padding.shape + (1,) * (features.dim() - 2)), features)


def zero_where(mask: Tensor, values: Tensor) -> Tensor:
    """Set ``values`` to zero, including NaN and Inf, where the bool ``mask`` is True. The mask is broadcast."""
    if values.device.type == "cpu" and values.is_floating_point() and not torch.compiler.is_compiling():
        # This computes where(keep > 0, values, 0) in a vectorized kernel. torch.where has none on a CPU, and takes six
        # times as long.
        keep = (~mask).to(values.dtype)
        zeroed: Tensor = torch.ops.aten.threshold_backward(values, keep.expand_as(values), 0)
        return zeroed
    return torch.where(mask, 0, values)


def check_attention_mask(
    name: str,
    mask: Tensor | RelationWindow,
    shape: Sequence[int],
    like: Tensor,
    *,
    per_head: bool,
    lengths: Sequence[int] | None = None,
) -> None:
    """Check that an attention mask fits the scores (B, H, T, M) and is on the device of the features ``like``.

    Args:
        name: the argument's name.
        mask: the mask, bool or floating point, or a window of the same lengths.
        shape: the shape of the scores, (B, H, T, M).
        like: the features that the mask belongs to.
        per_head: whether three dimensions mean (H, T, M), as in broadcasting. If False they mean (B, T, M) or
            (B * H, T, M), as in the layers.
        lengths: the length of each memory; they sum to M. A window must have the same lengths. None if only M is known.
    """
    if isinstance(mask, RelationWindow):
        if (mask.query_length, sum(mask.memory_lengths)) != (shape[2], shape[3]):
            raise ValueError(
                f"{name} must be a window for {shape[2]} query segments and a memory of {shape[3]}, got one for "
                f"{mask.query_length} and {sum(mask.memory_lengths)} ({' + '.join(map(str, mask.memory_lengths))})"
            )
        if lengths is not None and mask.memory_lengths != tuple(lengths):
            raise ValueError(
                f"{name} must be a window for memories of the lengths {list(lengths)}, in this order, got one for "
                f"{list(mask.memory_lengths)}"
            )
        return
    check_tensor(name, mask)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"{name} must be bool (True = may not attend) or floating point (added), got {mask.dtype}: use mask.bool() "
            "if 1 means may not attend; mask == 0 if 1 means may attend (Hugging Face's attention_mask)"
        )
    came = tuple(mask.shape)
    batch, heads, length, memory = shape
    if per_head or len(came) == 4:
        pairs = zip(reversed(came), reversed(shape), strict=False)
        if len(came) > 4 or not all(size == 1 or size == wanted for size, wanted in pairs):
            raise ValueError(f"{name} must broadcast to shape {tuple(shape)}, got {came}")
    else:
        leading: list[tuple[int, ...]] = [(), (batch,), (batch * heads,)]
        if not has_shape(mask, *((*sizes, rows, memory) for sizes in leading for rows in (length, 1))):
            expected = " or ".join(str((*sizes, length, memory)) for sizes in leading)
            raise ValueError(
                f"{name} must have shape {expected}, or four dimensions that broadcast to {tuple(shape)}, got {came}"
            )
    check_device(name, mask, "its features", like)


def join_masks(
    attn_mask: Tensor | RelationWindow | None,
    paddings: Sequence[Tensor | None],
    lengths: Sequence[int],
    batch: int,
    num_heads: int,
) -> Tensor | RelationWindow | None:
    """Join the padding masks of all memories and the attention mask into one mask that broadcasts to (B, H, T, M).

    Args:
        attn_mask: bool or floating point, (T, M), (B, T, M) or (B * H, T, M), where T may be 1, or any four dimensions
            that broadcast to (B, H, T, M); or a window; or None.
        paddings: for each memory bool (B, length of the memory) or None.
        lengths: the length of each memory; they sum to M.
        batch: B.
        num_heads: H.
    """
    padding = _join_paddings(paddings, lengths, batch)
    if isinstance(attn_mask, RelationWindow):
        return attn_mask if padding is None else add_padding(attn_mask, padding)
    if attn_mask is not None:
        if attn_mask.dim() == 2:
            attn_mask = attn_mask[None, None]
        elif attn_mask.dim() == 3 and attn_mask.shape[0] == batch:
            attn_mask = attn_mask[:, None]
        elif attn_mask.dim() == 3:
            attn_mask = rearrange(attn_mask, "(batch heads) time memory -> batch heads time memory", heads=num_heads)
    if padding is None:
        return attn_mask
    padding = padding[:, None, None]
    if attn_mask is None:
        return padding
    if attn_mask.dtype == torch.bool:
        return attn_mask | padding
    return attn_mask.masked_fill(padding, -torch.inf)


def _join_paddings(paddings: Sequence[Tensor | None], lengths: Sequence[int], batch: int) -> Tensor | None:
    """Return the padding mask of all memories (B, M), or None if none has one."""
    given = [padding for padding in paddings if padding is not None]
    if not given:
        return None
    return torch.cat(
        [
            given[0].new_zeros(batch, length) if padding is None else padding
            for padding, length in zip(paddings, lengths, strict=True)
        ],
        dim=1,
    )
