"""Cross-modal relation attention (CMRA): a query attends to the temporal concatenation of any number of memories.

With the memory [x] it is self-attention, with [y] co-attention, with [y, x] the CMRA of the paper (Eq. 5-6).
Axes: B batch, H heads, T query length, M memory length, D width of a head.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast, overload

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import Self

from crossmodal_attn._blocks import band_weights, gather_blocks, join_blocks
from crossmodal_attn._checks import (
    check_contexts,
    check_divisible,
    check_dtype,
    check_features,
    check_mask,
    check_match,
    check_probability,
    check_projected,
    check_tensor,
    check_widths,
    list_contexts,
)
from crossmodal_attn._eager import autocasts, runs_eagerly
from crossmodal_attn._recorders import record_maps
from crossmodal_attn.masks import check_attention_mask, join_masks, zero_steps, zero_where
from crossmodal_attn.memory import Memory, check_memory
from crossmodal_attn.rotary import Clock, RotaryTime, check_rotary, join_times, list_times
from crossmodal_attn.windows import RelationWindow

__all__ = ["CMRA", "relation_attention", "relation_weights"]

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


def _attend_to_parts(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    attn_mask: Tensor | RelationWindow | None,
    dropout_p: float,
) -> Tensor:
    """Compute :func:`relation_attention` over one or more memories, without checks."""
    if len(keys) > 1 and not isinstance(attn_mask, RelationWindow) and _saves_joining(query, keys):
        return _attend_apart(query, keys, values, attn_mask, dropout_p)
    return _attend(query, _join(keys), _join(values), attn_mask, dropout_p)


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


def _join(parts: Sequence[Tensor]) -> Tensor:
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


def _copy(*parameters: Tensor, rows: slice = slice(None)) -> nn.Parameter:
    """Copy rows of parameters into one parameter, and freeze it if all sources are frozen."""
    return nn.Parameter(
        torch.cat([parameter[rows] for parameter in parameters]),
        any(parameter.requires_grad for parameter in parameters),
    )


class CMRA(nn.Module):
    r"""Cross-modal relation attention: multi-head attention of a query over the concatenation of memories.

    .. math::
        m &= \operatorname{Concat}(y_1, \dots, y_n, x) \\
        \operatorname{head}_i &= \operatorname{softmax}\left(
            \frac{(x W_i^Q)(m W_i^K)^\top}{\sqrt{D}}\right) m W_i^V \\
        \operatorname{CMRA}(x, y_1, \dots, y_n) &= \operatorname{Concat}(\operatorname{head}_1, \dots) W^O

    Eq. 5-6 of Xu et al., "Cross-Modal Relation-Aware Networks for Audio-Visual Event Localization", ACM MM 2020.
    Argument order and initialization are those of :class:`torch.nn.MultiheadAttention`. Tensors are batch first.

    Args:
        embed_dim: width of the query and of the output.
        num_heads: number of heads H; must divide ``embed_dim``.
        dropout: probability of dropping an attention weight in training, in [0, 1].
        bias: whether the projections have biases.
        context_dim: width of the contexts. If it differs from ``embed_dim``, all contexts share one key and value
            projection, separate from the query's. A list gives the width of each context; then each has its own
            projection, even if widths are equal. Default: ``embed_dim``.
        include_query: whether the query is part of the memory, after the contexts. False gives co-attention.
        rotary: rotate queries and keys by the time of their segments, see :class:`RotaryTime`. With None, the default,
            the order of the segments in the memory makes no difference.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Examples:
        >>> video, audio = torch.randn(2, 10, 256), torch.randn(2, 12, 256)
        >>> layer = CMRA(256, num_heads=4)
        >>> layer(video).shape                                   # self-attention
        torch.Size([2, 10, 256])
        >>> output, weights = layer(video, audio, need_weights=True)
        >>> output.shape, weights.shape                          # memory: [audio, video]
        (torch.Size([2, 10, 256]), torch.Size([2, 4, 10, 22]))
        >>> layer = CMRA(256, num_heads=4, context_dim=[128, 300])
        >>> layer(video, [torch.randn(2, 40, 128), torch.randn(2, 7, 300)]).shape
        torch.Size([2, 10, 256])
    """

    kv_proj: nn.Linear  # None if context_dim is a list and include_query=False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        context_dim: int | Sequence[int] | None = None,
        include_query: bool = True,
        rotary: RotaryTime | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_divisible(embed_dim, num_heads)
        check_probability("dropout", dropout)
        check_rotary(rotary, embed_dim, num_heads)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.context_dim = check_widths("context_dim", embed_dim if context_dim is None else context_dim)
        self.include_query = include_query
        self.rotary = rotary
        factory: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, embed_dim, **factory)
        self.context_kv_proj: nn.Linear | None = None
        self.context_kv_projs: nn.ModuleList | None = None
        if include_query:
            self.kv_proj = nn.Linear(embed_dim, 2 * embed_dim, **factory)
        elif isinstance(self.context_dim, tuple):
            self.register_module("kv_proj", None)
        else:
            self.kv_proj = nn.Linear(self.context_dim, 2 * embed_dim, **factory)
        if isinstance(self.context_dim, tuple):
            self.context_kv_projs = nn.ModuleList(
                nn.Linear(width, 2 * embed_dim, **factory) for width in self.context_dim
            )
        elif include_query and self.context_dim != embed_dim:
            self.context_kv_proj = nn.Linear(self.context_dim, 2 * embed_dim, **factory)
        self.out_proj = nn.Linear(embed_dim, embed_dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as :class:`torch.nn.MultiheadAttention` does: Xavier-uniform q, k and v weights, zero biases.

        If you call ``reset_parameters`` on every module, for example after creating the model on the meta device, call
        it on children before their parents, as :meth:`torch.nn.Module.apply` does.
        """
        # With equal widths, torch initializes q, k and v as one packed weight, whose bound is smaller.
        widths = self.context_dim if isinstance(self.context_dim, tuple) else (self.context_dim,)
        gain = 2**-0.5 if all(width == self.embed_dim for width in widths) else 1.0
        self.out_proj.reset_parameters()
        for projection in (self.q_proj, self.kv_proj, self.context_kv_proj, *(self.context_kv_projs or ())):
            if projection is not None:
                # Use the Xavier bound of separate k and v weights. Initializing each half by slicing would not work in
                # place on a weight that FSDP sharded.
                bound = gain * math.sqrt(6 / (projection.weight.shape[1] + self.embed_dim))
                nn.init.uniform_(projection.weight, -bound, bound)
        for module in (*self.children(), *(self.context_kv_projs or ())):
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @classmethod
    def from_multihead_attention(cls, attention: nn.MultiheadAttention) -> Self:
        """Return a CMRA with a copy of the weights of an ``nn.MultiheadAttention``.

        ``layer(query, memory)`` computes what ``attention(query, memory, memory)`` computes.

        Args:
            attention: the layer to copy, with either value of ``batch_first``. The copy is batch first and has
                ``include_query=False``.

        Returns:
            CMRA: a layer with the device, dtype, mode and frozen parameters of ``attention``. It can be trained, even
            if it was made under :class:`torch.no_grad` or :class:`torch.inference_mode`.

        Raises:
            TypeError: if ``attention`` is not a :class:`torch.nn.MultiheadAttention`, or overrides its ``forward``.
            ValueError: if it has ``add_bias_kv``, ``add_zero_attn`` or ``kdim != vdim``, which CMRA does not support.

        Examples:
            >>> attention = torch.nn.MultiheadAttention(256, 4, batch_first=True)
            >>> query, memory = torch.randn(2, 10, 256), torch.randn(2, 20, 256)
            >>> output = CMRA.from_multihead_attention(attention)(query, memory)
            >>> torch.allclose(output, attention(query, memory, memory)[0], atol=1e-5)
            True
        """
        # A subclass that overrides forward, such as the quantizable one, may compute something else.
        if getattr(type(attention), "forward", None) is not nn.MultiheadAttention.forward:
            raise TypeError(f"attention must be a torch.nn.MultiheadAttention, got {type(attention).__name__}")
        if attention.bias_k is not None:
            raise ValueError("attention must have add_bias_kv=False, since CMRA has no such option, got True")
        if attention.add_zero_attn:
            raise ValueError("attention must have add_zero_attn=False, since CMRA has no such option, got True")
        if attention.kdim != attention.vdim:
            raise ValueError(
                "attention must have kdim equal to vdim, since CMRA projects keys and values from one memory, "
                f"got kdim={attention.kdim} and vdim={attention.vdim}"
            )
        # The copy can be trained, whatever mode the caller is in.
        with torch.inference_mode(False), torch.no_grad():
            layer = cls(
                attention.embed_dim,
                attention.num_heads,
                attention.dropout,
                attention.in_proj_bias is not None,
                context_dim=attention.kdim,
                include_query=False,
                device="meta",  # no initialization, so that the random state does not change
            )
            query_rows, memory_rows = slice(attention.embed_dim), slice(attention.embed_dim, None)
            if attention.in_proj_weight is not None:
                layer.q_proj.weight = _copy(attention.in_proj_weight, rows=query_rows)
                layer.kv_proj.weight = _copy(attention.in_proj_weight, rows=memory_rows)
            else:
                layer.q_proj.weight = _copy(attention.q_proj_weight)
                layer.kv_proj.weight = _copy(attention.k_proj_weight, attention.v_proj_weight)
            layer.out_proj.weight = _copy(attention.out_proj.weight)
            if attention.in_proj_bias is not None:
                layer.q_proj.bias = _copy(attention.in_proj_bias, rows=query_rows)
                layer.kv_proj.bias = _copy(attention.in_proj_bias, rows=memory_rows)
                layer.out_proj.bias = _copy(attention.out_proj.bias)
        return layer.train(attention.training)

    def forward(
        self,
        query: Tensor,
        context: Tensor | Memory | Sequence[Tensor | Memory | None] | None = None,
        *,
        query_padding_mask: Tensor | None = None,
        context_padding_mask: Tensor | Sequence[Tensor | None] | None = None,
        query_times: Tensor | None = None,
        context_times: Tensor | Sequence[Tensor | None] | None = None,
        attn_mask: Tensor | RelationWindow | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from the query to the memory [contexts..., query].

        Args:
            query: (B, T, embed_dim).
            context: (B, S, context_dim); a list or tuple of tensors, whose lengths S may differ; or None. A None in the
                list marks a modality that is missing from the batch. It has no columns in ``attn_mask`` and in the
                weights, and its own projection, if it has one, gets no gradient. A :class:`Memory` of this layer can
                replace any context; it includes padding and times. A list may end with one more memory, that of the
                query's past. See :meth:`remember`.
            query_padding_mask: bool (B, T), True = padding.
            context_padding_mask: bool (B, S), True = padding. For several contexts, a list with a mask or None for
                each.
            query_times: (T,) or (B, T), the time of each segment, for a layer with ``rotary``. Floating point or
                integers, in the unit of its periods. A time at padding may be NaN. Give the times of all modalities or
                of none. Without times, the query's segments are at 0, 1, ..., T - 1, and a context covers the same
                span: its segment j of S is at j * T / S. These lengths include padding. So if the longest query and the
                longest context of a padded batch differ in duration, give times.
            context_times: (S,) or (B, S). For several contexts, a list with the times of each, and None for a missing
                modality.
            attn_mask: bool, True = may not attend, or floating point, added to the scores. Its shape is (T, M),
                (B, T, M) or (B * H, T, M), where T may be 1, or any four dimensions that broadcast to (B, H, T, M). M
                is the length of the whole memory. Or a :func:`relation_window`, whose cost does not grow with T x M.
            need_weights: whether to return the attention weights too.

        Returns:
            Tensor | tuple[Tensor, Tensor]: the output (B, T, embed_dim), finite but meaningless at padding. With
            ``need_weights`` also the weights (B, H, T, M), before dropout; with a window the banded weights
            (B, H, T, W), which its method ``to_dense`` converts. Padded values, even NaN or Inf, never affect valid
            steps, forward or backward. A query that may attend to nothing gets zero attention.

        Raises:
            ValueError: if no context is given, but the layer needs one: with ``include_query=False``, with a
                ``context_dim`` other than ``embed_dim``, or with a list as ``context_dim``. If times are given for some
                modalities only, or without ``rotary``.
        """
        contexts, paddings, projections, times = self._check(
            query, context, query_padding_mask, context_padding_mask, query_times, context_times
        )
        contexts = [
            features if isinstance(features, Memory) else zero_steps(features, padding)
            for features, padding in zip(contexts, paddings, strict=True)
        ]
        query = zero_steps(query, query_padding_mask)
        memory = [*contexts, query] if self.include_query else contexts
        paddings = [*paddings, query_padding_mask] if self.include_query else paddings
        lengths = [part.length if isinstance(part, Memory) else part.shape[1] for part in memory]
        batch, length = query.shape[:2]
        if attn_mask is not None:
            shape = (batch, self.num_heads, length, sum(lengths))
            check_attention_mask("attn_mask", attn_mask, shape, query, per_head=False, lengths=lengths)

        own = query if self.include_query else None
        if None in projections:
            parts = self._list_memories(contexts, projections, own, times[: len(memory)])
        else:
            parts = [self._project_memory(contexts, projections, own, times[: len(memory)])]
        keys, values = zip(*parts, strict=True)
        projected_query = self.q_proj(query)
        check_projected("q_proj", projected_query, self.embed_dim, self)
        queries = self._split_heads(projected_query)
        if self.rotary is not None:
            queries = self.rotary(queries, times[-1])
        mask = join_masks(attn_mask, paddings, lengths, batch, self.num_heads)
        dropout_p = self.dropout if self.training else 0.0
        attended = _attend_to_parts(queries, keys, values, mask, dropout_p)
        output: Tensor = self.out_proj(rearrange(attended, "batch heads time width -> batch time (heads width)"))
        record_maps(self, lambda: {"": relation_weights(queries, _join(keys), attn_mask=mask)})
        # The weights are computed separately, only on request.
        return (output, relation_weights(queries, _join(keys), attn_mask=mask)) if need_weights else output

    @overload
    def remember(
        self,
        context: Tensor,
        *,
        context_padding_mask: Tensor | None = None,
        context_times: Tensor | None = None,
        own: bool = False,
    ) -> Memory: ...

    @overload
    def remember(
        self,
        context: Sequence[Tensor | None],
        *,
        context_padding_mask: Sequence[Tensor | None] | None = None,
        context_times: Sequence[Tensor | None] | None = None,
    ) -> list[Memory | None]: ...

    def remember(
        self,
        context: Tensor | Sequence[Tensor | None],
        *,
        context_padding_mask: Tensor | Sequence[Tensor | None] | None = None,
        context_times: Tensor | Sequence[Tensor | None] | None = None,
        own: bool = False,
    ) -> Memory | list[Memory | None]:
        """Project contexts once, for many calls of this layer, or for a stream that grows.

        ``layer(query, layer.remember(context))`` returns what ``layer(query, context)`` returns. The memory includes
        padding and times, so leave out ``context_padding_mask`` and ``context_times`` in that call.

        With ``own=True`` the context is the query's past, which is projected in the same way as the query. The memory
        of ``layer(segments, [*contexts, past])`` is then [contexts..., past, segments], so that a stream gets the
        outputs of the whole sequence under a causal mask. If several new segments come at a time, they need a causal
        mask among them.

        A memory is computed with the current weights: call ``remember`` again after each training step. With FSDP2,
        register this method by :func:`torch.distributed.fsdp.register_fsdp_forward_method`.

        Args:
            context: (B, S, context_dim), with ``own=True`` (B, S, embed_dim). Or a list or tuple, as in
                :meth:`forward`, where a None stays None.
            context_padding_mask: bool (B, S), True = padding. For several contexts, a list with a mask or None for
                each.
            context_times: (S,) or (B, S). A layer with ``rotary`` needs them, and then needs ``query_times`` in each
                call with a memory. For several contexts, a list with the times of each.
            own: whether ``context`` is the query's past. This needs ``include_query=True``.

        Returns:
            Memory | list[Memory | None]: a memory, or for a list of contexts a list with a memory for each.

        Raises:
            ValueError: if ``own=True`` and the layer has ``include_query=False``, or if the layer has ``rotary`` and no
                times are given.

        Examples:
            >>> layer = CMRA(256, num_heads=4, context_dim=[128, 300])
            >>> audio, text = layer.remember([torch.randn(2, 40, 128), torch.randn(2, 7, 300)])
            >>> past = layer.remember(torch.randn(2, 9, 256), own=True)
            >>> output, weights = layer(torch.randn(2, 1, 256), [audio, text, past], need_weights=True)
            >>> weights.shape                                  # 40 of audio, 7 of text, 9 of the past, and itself
            torch.Size([2, 4, 1, 57])
        """
        if own:
            return self._remember_own(context, context_padding_mask, context_times)
        if context is None:
            check_tensor("context", context)
        names, given, (masks, stamps) = list_contexts(
            context, (Tensor, Memory), context_padding_mask=context_padding_mask, context_times=context_times
        )
        if isinstance(self.context_dim, tuple):
            check_contexts(given, self.context_dim, self)
        memories: list[Memory | None] = []
        for index, (name, features, padding, times) in enumerate(zip(names, given, masks, stamps, strict=True)):
            if features is None:
                memories.append(None)
                continue
            projection = self._check_context(index, name, features, padding)
            checked = self._check_remembered_times(Clock(f"context_times{name}", times, features, padding))
            projected = self._project_memory([zero_steps(features, padding)], [projection], None, checked)
            memories.append(Memory(*projected, padding))
        return cast("Memory", memories[0]) if isinstance(context, Tensor) else memories

    def _remember_own(self, features: Any, padding: Any, times: Any) -> Memory:
        if not self.include_query:
            raise ValueError(
                "own must be False, since this CMRA was built with include_query=False and does not attend to its query"
                ", got True"
            )
        check_features("context", features, self.embed_dim, "embed_dim", self, self.kv_proj)
        if padding is not None:
            check_mask("context_padding_mask", padding, features.shape[:2], features)
        checked = self._check_remembered_times(Clock("context_times", times, features, padding))
        return Memory(*self._project_memory([], [], zero_steps(features, padding), checked), padding)

    def _check_remembered_times(self, clock: Clock) -> list[Tensor]:
        if self.rotary is not None and clock.times is None:
            raise ValueError(f"{clock.name} must be given, since this CMRA was built with rotary, got None")
        return list_times(self, self.rotary, [clock])

    def _list_memories(
        self, contexts: list[Any], projections: list[Any], query: Tensor | None, times: list[Any]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and the values (B, H, S, D) of each part of the memory, where some contexts are memories.

        The arguments are those of :meth:`_project_memory`. A context that is a memory has no projection and no times.
        """
        parts = []
        for index, (context, projection) in enumerate(zip(contexts, projections, strict=True)):
            if isinstance(context, Memory):
                parts.append((context.keys, context.values))
            else:
                parts.append(self._project_memory([context], [projection], None, times[index : index + 1]))
        if query is not None:
            parts.append(self._project_memory([], [], query, times[len(contexts) :]))
        return parts

    def _project_memory(
        self, contexts: list[Tensor], projections: list[nn.Module], query: Tensor | None, times: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and the values (B, H, M, D) of the memory [contexts..., query].

        Args:
            contexts: features (B, S, width), zero at padding.
            projections: the projection of each context.
            query: (B, T, embed_dim), zero at padding, or None if it is not part of the memory.
            times: the times of each context, then of the query, (S,) or (B, S) each. The keys are rotated by them.
        """
        own = [] if query is None else [query]
        if self.context_kv_proj is None and self.context_kv_projs is None:
            parts = [*contexts, *own]
            # Joining one part would copy it.
            alone = len(parts) == 1 and parts[0].is_contiguous()
            joined = self.kv_proj(parts[0] if alone else torch.cat(parts, 1))
        else:
            if self.context_kv_proj is not None and contexts:
                contexts, projections = [torch.cat(contexts, 1)], [self.context_kv_proj]
            projected = [project(features) for project, features in zip(projections, contexts, strict=True)]
            joined = torch.cat([*projected, *(self.kv_proj(features) for features in own)], 1)
        check_projected("kv_proj", joined, 2 * self.embed_dim, self)
        keys, values = (self._split_heads(projected) for projected in joined.chunk(2, -1))
        return keys if self.rotary is None else self.rotary(keys, join_times(times, keys)), values

    def _split_heads(self, projected: Tensor) -> Tensor:
        # Not by einops, whose three calls would take a tenth of the time of a small forward pass.
        batch, time, width = projected.shape
        return projected.reshape(batch, time, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _check(
        self,
        query: Tensor,
        context: Tensor | Memory | Sequence[Tensor | Memory | None] | None,
        query_padding_mask: Tensor | None,
        context_padding_mask: Tensor | Sequence[Tensor | None] | None,
        query_times: Tensor | None,
        context_times: Tensor | Sequence[Tensor | None] | None,
    ) -> tuple[list[Any], list[Tensor | None], list[Any], list[Any]]:
        """Check the arguments of ``forward``, and return the contexts other than None, their masks and projections.

        The fourth list has the times of these contexts, then of the query. It is empty without ``rotary``. The
        projection and the times of a memory are None.
        """
        check_features("query", query, self.embed_dim, "embed_dim", self, self.q_proj)
        if query_padding_mask is not None:
            check_mask("query_padding_mask", query_padding_mask, query.shape[:2], query)
        names, given, (masks, stamps) = list_contexts(
            context, (Tensor, Memory), context_padding_mask=context_padding_mask, context_times=context_times
        )
        if isinstance(self.context_dim, tuple):
            # After the contexts, a memory may hold the query's past.
            past = self.include_query and len(given) > len(self.context_dim) and isinstance(given[-1], Memory)
            check_contexts(given[:-1] if past else given, self.context_dim, self)
        elif not given and self.context_kv_proj is not None:
            raise ValueError(
                f"context must be given, since this CMRA was built with context_dim={self.context_dim}, got {context}: "
                "pass [None] if the modality is missing from this batch"
            )
        timed = self.rotary is not None or query_times is not None or context_times is not None
        contexts: list[Any] = []
        paddings: list[Tensor | None] = []
        projections: list[Any] = []
        clocks: list[Clock] = []
        for index, (name, features, padding, times) in enumerate(zip(names, given, masks, stamps, strict=True)):
            if features is None:
                continue
            contexts.append(features)
            if isinstance(features, Memory):
                self._check_memory(name, features, padding, times, query, query_times)
                paddings.append(features.padding_mask)
                projections.append(None)
                continue
            projections.append(self._check_context(index, name, features, padding))
            check_match(f"context{name}", features, {0: "batch size"}, "query", query)
            paddings.append(padding)
            if timed:
                clocks.append(Clock(f"context_times{name}", times, features, padding))
        if not contexts and not self.include_query:
            raise ValueError(
                f"context must be given, since this CMRA was built with include_query=False, got {context}: a list may "
                "contain None for missing modalities, but needs at least one tensor"
            )
        if not timed:
            return contexts, paddings, projections, []
        clocks.append(Clock("query_times", query_times, query, query_padding_mask))
        checked: list[Any] = list_times(self, self.rotary, clocks)
        if self.rotary is not None:
            for index, features in enumerate(contexts):
                if isinstance(features, Memory):
                    checked.insert(index, None)
        return contexts, paddings, projections, checked

    def _check_context(self, index: int, name: str, features: Tensor, padding: Tensor | None) -> nn.Module:
        """Check one context and its padding mask, and return its projection."""
        if isinstance(self.context_dim, tuple):
            width, option = self.context_dim[index], f"context_dim[{index}]"
        else:
            width, option = self.context_dim, "context_dim"
        projection = self.context_kv_projs[index] if self.context_kv_projs else self.context_kv_proj or self.kv_proj
        check_features(f"context{name}", features, width, option, self, projection)
        if padding is not None:
            check_mask(f"context_padding_mask{name}", padding, features.shape[:2], features)
        return projection

    def _check_memory(
        self, name: str, memory: Memory, padding: object, times: object, query: Tensor, query_times: object
    ) -> None:
        """Check a memory, and that no other padding and times are given for it."""
        for argument, value in (("context_padding_mask", padding), ("context_times", times)):
            if value is not None:
                raise ValueError(
                    f"{argument}{name} must be None where context{name} is a Memory, which already includes it, "
                    f"got {type(value).__name__}"
                )
        check_memory(f"context{name}", memory, query, self, (self.num_heads, self.embed_dim // self.num_heads))
        if self.rotary is not None and query_times is None:
            raise ValueError(
                f"query_times must be given where context{name} is a Memory of a layer with rotary, since its keys are "
                "rotated by their times, got None"
            )

    def extra_repr(self) -> str:
        """Return the options that ``repr`` shows."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}, "
            f"context_dim={self.context_dim}, include_query={self.include_query}"
            + ("" if self.rotary is None else f", rotary={self.rotary}")
        )
