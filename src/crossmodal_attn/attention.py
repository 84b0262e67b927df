"""Attention of projected heads, by fused kernels: with masks, with windows, and over one or several memories.

Axes: B batch, H heads, T query length, S length of one memory, M length of all memories, D width of a head.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmodal_attn._blocks import band_weights, gather_blocks, join_blocks
from crossmodal_attn._checks import check_dtype, check_match, check_probability, check_tensor
from crossmodal_attn._eager import autocasts, runs_eagerly
from crossmodal_attn.masks import check_attention_mask, zero_where
from crossmodal_attn.windows import RelationWindow

__all__ = ["relation_attention", "relation_weights"]

SHORT, LARGE = 8, 2**17
"""On a CPU, a query of at most SHORT segments attends to several memories without joining them.

This is done if their keys have at least LARGE numbers in all.
"""


def relation_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | RelationWindow | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    r"""Compute scaled dot-product attention of projected heads. A query that may attend to nothing gets zero.

    .. math:: \operatorname{softmax}\left(Q K^\top / \sqrt{D}\right) V

    Eq. 5 of Xu et al., "Cross-Modal Relation-Aware Networks for Audio-Visual Event Localization", ACM MM 2020.

    Args:
        query: (B, H, T, D).
        key: (B, H, M, D).
        value: (B, H, M, D).
        attn_mask: bool, True = may not attend, or floating point, added to the scores. It must broadcast to
            (B, H, T, M): three dimensions mean (H, T, M), unlike in :meth:`CMRA.forward`, where they mean (B, T, M)
            or (B * H, T, M). Or a :func:`relation_window` for T and M, with linear cost.
        dropout_p: probability of dropping an attention weight, in [0, 1].

    Returns:
        Tensor: (B, H, T, D). A row that may attend to nothing is zero, and so are its gradients, on every backend.

    Examples:
        >>> query, memory = torch.randn(2, 4, 10, 64), torch.randn(2, 4, 20, 64)
        >>> relation_attention(query, memory, memory).shape
        torch.Size([2, 4, 10, 64])
    """
    _check_heads(query, key, value, attn_mask)
    check_probability("dropout_p", dropout_p)
    return _attend(query, key, value, attn_mask, dropout_p)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | RelationWindow | None, dropout_p: float
) -> Tensor:
    """Compute :func:`relation_attention` without checks."""
    if attn_mask is None:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
    if isinstance(attn_mask, RelationWindow):
        groups = gather_blocks(attn_mask, query, key, value)
        return join_blocks(attn_mask, [_attend(*blocks, dropout_p) for blocks in groups])
    mask, empty = _unmask_empty_rows(attn_mask, query)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)
    return zero_where(empty, output)


def relation_weights(query: Tensor, key: Tensor, *, attn_mask: Tensor | RelationWindow | None = None) -> Tensor:
    """Return the attention weights of :func:`relation_attention`, before dropout.

    Args:
        query: (B, H, T, D).
        key: (B, H, M, D).
        attn_mask: as for :func:`relation_attention`.

    Returns:
        Tensor: (B, H, T, M), computed in at least float32 and returned in the dtype of ``query``, even under autocast.
        Each row sums to one, or to zero if it may attend to nothing. With a window, the banded weights (B, H, T, W):
        see :class:`~crossmodal_attn.windows.RelationWindow`.

    Examples:
        >>> weights = relation_weights(torch.randn(2, 4, 10, 64), torch.randn(2, 4, 20, 64))
        >>> weights.shape, torch.allclose(weights.sum(-1), torch.ones(2, 4, 10))
        (torch.Size([2, 4, 10, 20]), True)
    """
    _check_heads(query, key, key, attn_mask)
    if isinstance(attn_mask, RelationWindow):
        groups = gather_blocks(attn_mask, query, key)
        return band_weights(attn_mask, [relation_weights(*blocks[:2], attn_mask=blocks[3]) for blocks in groups])
    # As in the fused kernels, only inputs and outputs are in half precision.
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False) if autocasts(query) else nullcontext():
        scores: Tensor = (query.to(wide) * query.shape[-1] ** -0.5) @ key.to(wide).transpose(-2, -1)
    return _normalize(scores, attn_mask, query).to(query.dtype)


def _normalize(scores: Tensor, attn_mask: Tensor | None, query: Tensor) -> Tensor:
    """Return the attention weights of scores (B, H, T, M) in at least float32, for a mask that fits them."""
    if attn_mask is None:
        return scores.softmax(-1)
    mask, empty = _unmask_empty_rows(attn_mask, query)
    # The scores are in float32 here: in half precision, adding a mask of finfo.min would overflow to -inf.
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return zero_where(empty, scores.softmax(-1))


def attend_to_parts(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    attn_mask: Tensor | RelationWindow | None,
    dropout_p: float,
) -> Tensor:
    """Compute :func:`relation_attention` over one or more memories, without checks."""
    if len(keys) > 1 and not isinstance(attn_mask, RelationWindow) and _saves_joining(query, keys):
        return _attend_apart(query, keys, values, attn_mask, dropout_p)
    return _attend(query, join_parts(keys), join_parts(values), attn_mask, dropout_p)


def _attend_apart(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], attn_mask: Tensor | None, dropout_p: float
) -> Tensor:
    """Compute :func:`relation_attention` over several memories without joining them.

    Joining them would copy all keys and values, which takes longer than the attention of a few queries.
    """
    batch, heads, length, width = query.shape
    queries = (query * width**-0.5).flatten(0, 1)
    # Products in three dimensions, since matmul in four takes twice the time of a small product.
    scores = torch.cat([torch.bmm(queries, own.flatten(0, 1).transpose(1, 2)) for own in keys], 2)
    weights = _normalize(scores.view(batch, heads, length, scores.shape[2]), attn_mask, query)
    weights = F.dropout(weights, dropout_p) if dropout_p else weights
    first, *others = weights.flatten(0, 1).split([own.shape[2] for own in values], 2)
    output = torch.bmm(first, values[0].flatten(0, 1))
    for part, own in zip(others, values[1:], strict=True):
        output = torch.baddbmm(output, part, own.flatten(0, 1))
    return output.view(batch, heads, length, output.shape[2])


def _saves_joining(query: Tensor, keys: Sequence[Tensor]) -> bool:
    """Return whether attention to several memories takes less time without joining them."""
    # In traced code, a condition on a length would limit it.
    if not runs_eagerly() or query.device.type != "cpu" or query.dtype not in (torch.float32, torch.float64):
        return False
    # Autograd would save the keys, which torch refuses for those made in inference mode. It does not save joined parts.
    saved = torch.is_grad_enabled() and any(own.is_inference() for own in keys)
    large = sum(own.numel() for own in keys) >= LARGE
    return query.shape[2] <= SHORT and large and not saved and not autocasts(query)


def join_parts(parts: Sequence[Tensor]) -> Tensor:
    """Join the keys or the values (B, H, S, D) of several memories along time. A single one is not copied."""
    return torch.cat(list(parts), 2) if len(parts) > 1 else parts[0]


def _unmask_empty_rows(attn_mask: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Convert a mask to SDPA's convention, and unmask the rows that are fully masked.

    The softmax of such a row is zero on some backends and NaN on others. An unmasked row is safe on all backends; the
    caller sets its result to zero. In SDPA's bool masks, True means that a query *may* attend.

    Returns:
        tuple[Tensor, Tensor]: the mask for SDPA, and which rows were fully masked, bool, broadcastable to (B, H, T, 1).
    """
    attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())]
    if attn_mask.dtype == torch.bool:
        empty = attn_mask.all(-1, keepdim=True)
        return ~attn_mask | empty, empty
    dtype = torch.get_autocast_dtype(query.device.type) if autocasts(query) else query.dtype
    attn_mask = attn_mask.to(dtype)  # before the test, since it may turn a finite number into -inf
    empty = (attn_mask == -torch.inf).all(-1, keepdim=True)
    return attn_mask.masked_fill(empty, 0), empty


def _check_heads(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | RelationWindow | None) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, tensor)
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have shape (batch, heads, time, width), got {tuple(tensor.shape)}")
        if tensor.shape[-1] == 0 and name != "value":
            raise ValueError(f"{name} must have a width of at least 1, got {tuple(tensor.shape)}")
        check_dtype(name, tensor, "query has", query.dtype)
    check_match("key", key, {0: "batch size", 1: "number of heads", 3: "width"}, "query", query)
    check_match("value", value, {0: "batch size", 1: "number of heads", 2: "length"}, "key", key)
    if attn_mask is not None:
        check_attention_mask("attn_mask", attn_mask, (*query.shape[:3], key.shape[2]), query, per_head=True)
