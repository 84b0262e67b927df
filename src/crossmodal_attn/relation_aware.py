"""Blocks of relation attention: cross-modal relation, internal temporal relation, and the relation-aware module.

All consist of the same block: attention, then a feed-forward network. They differ in the memory of the attention.
Axes: B batch, T query length, S context length.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from crossmodal_attn._checks import (
    check_contexts,
    check_divisible,
    check_features,
    check_mask,
    check_match,
    check_probability,
    check_size,
    check_widths,
    list_contexts,
)
from crossmodal_attn.cmra import CMRA
from crossmodal_attn.dropout import Dropout, ReLUDropout
from crossmodal_attn.masks import check_attention_mask, zero_steps
from crossmodal_attn.memory import Memory
from crossmodal_attn.rotary import Clock, RotaryTime, check_rotary, list_times
from crossmodal_attn.windows import RelationWindow

__all__ = ["CrossModalRelation", "InternalTemporalRelation", "RelationAware"]

Activation = Literal["relu", "gelu"] | Callable[[Tensor], Tensor]


class CrossModalRelation(nn.Module):
    r"""Cross-modal relation M_cmra: CMRA and a feed-forward network, each with residual connection and layer norm.

    .. math::
        H_r &= \operatorname{LayerNorm}(\operatorname{CMRA}(F_v, F_a) + F_v) \\
        v_o &= \operatorname{LayerNorm}(\operatorname{ReLU}(H_r W_3) W_4 + H_r)

    Eq. 7-8 of Xu et al., ACM MM 2020. Argument order and dropout are those of
    :class:`torch.nn.TransformerEncoderLayer`: dropout follows the attention, the ReLU and the feed-forward network.
    Without a context, this is a block of self-attention.

    Args:
        embed_dim: width of query, contexts and output.
        num_heads: number of attention heads; must divide ``embed_dim``.
        dim_feedforward: hidden width of the feed-forward network.
        dropout: dropout probability, in [0, 1].
        attention_dropout: probability of dropping an attention weight, in [0, 1]. Default: ``dropout``.
        context_dim: width of the contexts, or a list with the width of each, as in :class:`CMRA`.
        include_query: whether the query is part of the memory, as in :class:`CMRA`. The query has a residual
            connection in either case.
        rotary: rotate queries and keys by the time of their segments, as in :class:`CMRA`.
        norm_first: whether to use pre-norm (normalize the inputs of the attention and the feed-forward network) instead
            of post-norm (normalize after the residual sums). Contexts are not normalized.
        activation: "relu", "gelu" or any function of a tensor, such as :func:`torch.nn.functional.silu`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Examples:
        >>> layer = CrossModalRelation(256, num_heads=4)
        >>> layer(torch.randn(2, 10, 256), torch.randn(2, 12, 256)).shape
        torch.Size([2, 10, 256])
        >>> layer = CrossModalRelation(256, 4, context_dim=[128, 300], norm_first=True, activation="gelu")
        >>> layer(torch.randn(2, 10, 256), [torch.randn(2, 40, 128), None]).shape     # without its second modality
        torch.Size([2, 10, 256])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
        attention_dropout: float | None = None,
        context_dim: int | Sequence[int] | None = None,
        include_query: bool = True,
        rotary: RotaryTime | None = None,
        norm_first: bool = False,
        activation: Activation = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("dim_feedforward", dim_feedforward)
        check_probability("dropout", dropout)
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        check_probability("attention_dropout", attention_dropout)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm_first = norm_first
        self.attention = CMRA(
            embed_dim,
            num_heads,
            attention_dropout,
            context_dim=context_dim,
            include_query=include_query,
            rotary=rotary,
            **factory,
        )
        self.norm1 = nn.LayerNorm(embed_dim, **factory)
        self.linear1 = nn.Linear(embed_dim, dim_feedforward, **factory)
        self.linear2 = nn.Linear(dim_feedforward, embed_dim, **factory)
        self.norm2 = nn.LayerNorm(embed_dim, **factory)
        self.activation = _make_activation(activation, dropout)
        self.dropout = Dropout(dropout)

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
        """Relate the query to the memory [contexts..., query].

        Args:
            query: (B, T, embed_dim).
            context: as in :meth:`CMRA.forward`.
            query_padding_mask: bool (B, T), True = padding.
            context_padding_mask: bool (B, S), True = padding. For several contexts, a list with a mask or None for
                each.
            query_times: as in :meth:`CMRA.forward`, for a block with ``rotary``.
            context_times: as in :meth:`CMRA.forward`.
            attn_mask: as in :meth:`CMRA.forward`.
            need_weights: whether to return the attention weights too.

        Returns:
            Tensor | tuple[Tensor, Tensor]: the output (B, T, embed_dim), finite but meaningless at padding. With
            ``need_weights`` also the attention weights (B, H, T, M), or with a window the banded ones, as in
            :meth:`CMRA.forward`.
        """
        attending = self._normalize("query", query, query_padding_mask) if self.norm_first else query
        result = self.attention(
            attending,
            context,
            query_padding_mask=query_padding_mask,
            context_padding_mask=context_padding_mask,
            query_times=query_times,
            context_times=context_times,
            attn_mask=attn_mask,
            need_weights=need_weights,
        )
        attended, weights = result if need_weights else (result, None)
        hidden = zero_steps(query, query_padding_mask) + self.dropout(attended)
        hidden = hidden if self.norm_first else self.norm1(hidden)
        feedforward = self.linear2(self.activation(self.linear1(self.norm2(hidden) if self.norm_first else hidden)))
        output: Tensor = hidden + self.dropout(feedforward)
        output = output if self.norm_first else self.norm2(output)
        return output if weights is None else (output, weights)

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
        self, context: Any, *, context_padding_mask: Any = None, context_times: Any = None, own: bool = False
    ) -> Memory | list[Memory | None]:
        """Project contexts, or the query's past, once: see :meth:`CMRA.remember`.

        Give the query's past before any normalization: with ``norm_first``, this method normalizes it.

        Args:
            context: as in :meth:`CMRA.remember`.
            context_padding_mask: as in :meth:`CMRA.remember`.
            context_times: as in :meth:`CMRA.remember`.
            own: whether ``context`` is the query's past.

        Returns:
            Memory | list[Memory | None]: a memory, or for a list of contexts a list with a memory for each.

        Examples:
            >>> block = CrossModalRelation(256, num_heads=4)
            >>> past = block.remember(torch.randn(2, 9, 256), own=True)
            >>> block(torch.randn(2, 1, 256), past).shape
            torch.Size([2, 1, 256])
        """
        if own and self.norm_first:
            context = self._normalize("context", context, context_padding_mask)
        return self.attention.remember(
            context, context_padding_mask=context_padding_mask, context_times=context_times, own=own
        )

    def _normalize(self, name: str, query: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Check a query and its mask before the attention does, and return the normalized query."""
        check_features(name, query, self.attention.embed_dim, "embed_dim", self, self.attention.q_proj)
        if padding_mask is not None:
            check_mask(f"{name}_padding_mask", padding_mask, query.shape[:2], query)
        normalized: Tensor = self.norm1(zero_steps(query, padding_mask))
        return normalized


class _Function(nn.Module):
    """Wrap a function of a tensor in a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> Tensor:
        return self.function(features)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


def _make_activation(activation: Activation, dropout: float) -> nn.Module:
    """Return a module that applies the activation, then dropout."""
    if activation == "relu":
        return ReLUDropout(dropout)
    if activation == "gelu":
        activation = nn.GELU()
    if isinstance(activation, str):
        raise ValueError(f'activation must be "relu", "gelu" or a function of a tensor, got {activation!r}')
    if not callable(activation):
        raise TypeError(f'activation must be "relu", "gelu" or a function of a tensor, got {type(activation).__name__}')
    module = activation if isinstance(activation, nn.Module) else _Function(activation)
    return nn.Sequential(module, Dropout(dropout))


class InternalTemporalRelation(nn.Module):
    """Internal temporal relation M_self: self-attention blocks over the segments of one modality.

    Xu et al., ACM MM 2020, section 3.4. Each block is a :class:`CrossModalRelation`, called without a context.

    Args:
        embed_dim: width of the features.
        num_heads: number of attention heads; must divide ``embed_dim``.
        num_layers: number of blocks. With 0 the output is the features, with zeros at padding.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: dropout probability, in [0, 1].
        attention_dropout: probability of dropping an attention weight, in [0, 1]. Default: ``dropout``.
        rotary: rotate queries and keys by the time of their segments, as in :class:`CMRA`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Examples:
        >>> layer = InternalTemporalRelation(256, num_heads=4)
        >>> layer(torch.randn(2, 10, 256)).shape
        torch.Size([2, 10, 256])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_layers: int = 2,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
        attention_dropout: float | None = None,
        rotary: RotaryTime | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_divisible(embed_dim, num_heads)
        check_size("num_layers", num_layers, minimum=0)
        check_rotary(rotary, embed_dim, num_heads)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.rotary = rotary
        options: dict[str, Any] = {
            "attention_dropout": attention_dropout,
            "rotary": rotary,
            "device": device,
            "dtype": dtype,
        }
        self.layers = nn.ModuleList(
            CrossModalRelation(embed_dim, num_heads, dim_feedforward, dropout, **options) for _ in range(num_layers)
        )

    def forward(
        self,
        features: Tensor,
        *,
        padding_mask: Tensor | None = None,
        times: Tensor | None = None,
        attn_mask: Tensor | RelationWindow | None = None,
    ) -> Tensor:
        """Relate the segments to one another.

        Args:
            features: (B, T, embed_dim).
            padding_mask: bool (B, T), True = padding.
            times: (T,) or (B, T), the time of each segment, for a block with ``rotary``. A time at padding may be NaN.
                Default: 0, 1, ..., T - 1.
            attn_mask: as in :meth:`CMRA.forward`. The memory is the features themselves, so M = T.

        Returns:
            Tensor: (B, T, embed_dim), finite but meaningless at padding. Use :func:`record_attention` for the attention
            weights of every block.
        """
        # Without blocks there are no weights whose dtype the features must have.
        projection = cast("CrossModalRelation", self.layers[0]).attention.q_proj if self.layers else self
        check_features("features", features, self.embed_dim, "embed_dim", self, projection)
        if padding_mask is not None:
            check_mask("padding_mask", padding_mask, features.shape[:2], features)
        if times is not None:
            (times,) = list_times(self, self.rotary, [Clock("times", times, features, padding_mask)])
        if not self.layers:
            if attn_mask is not None:
                shape = (len(features), self.num_heads, *[features.shape[1]] * 2)
                check_attention_mask("attn_mask", attn_mask, shape, features, per_head=False, lengths=shape[-1:])
            return zero_steps(features, padding_mask)
        for layer in self.layers:
            features = layer(features, query_padding_mask=padding_mask, query_times=times, attn_mask=attn_mask)
        return features


class RelationAware(nn.Module):
    r"""Relation-aware module: relate a query modality to itself and to a context modality.

    .. math::
        F_a^s = M_{self}(F_a), \qquad v_o = M_{cmra}(F_v, F_a^s)

    Eq. 4 of Xu et al., ACM MM 2020, here with video as the query. Both modalities are first projected to ``embed_dim``.
    CMRAN has two such modules with separate weights: the query of one is video, that of the other audio. Beyond the
    paper there may be several context modalities, each with its own projection and M_self.

    Args:
        query_dim: width of the query modality.
        context_dim: width of the context modality, or a list with the width of each.
        embed_dim: d_m, the width of the output.
        num_heads: number of attention heads; must divide ``embed_dim``.
        num_layers: number of blocks in M_self. With 0 it is the identity.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: dropout probability, in [0, 1].
        attention_dropout: probability of dropping an attention weight, in [0, 1]. Default: ``dropout``.
        include_query: whether the query is part of the memory of M_cmra. False gives co-attention.
        own_projections: whether each modality in the memory of M_cmra has its own key and value projection.
        rotary: rotate queries and keys by the time of their segments, as in :class:`CMRA`, in M_self and in M_cmra.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Examples:
        >>> video_relation = RelationAware(query_dim=512, context_dim=128)
        >>> video_relation(torch.randn(2, 10, 512), torch.randn(2, 10, 128)).shape
        torch.Size([2, 10, 256])
        >>> video_relation = RelationAware(query_dim=512, context_dim=[128, 300])
        >>> audio, text = torch.randn(2, 40, 128), torch.randn(2, 7, 300)
        >>> video_relation(torch.randn(2, 10, 512), [audio, text]).shape
        torch.Size([2, 10, 256])
    """

    context_proj: nn.Linear  # or None if context_dim is a list
    internal_relation: InternalTemporalRelation  # or None if context_dim is a list

    def __init__(
        self,
        query_dim: int,
        context_dim: int | Sequence[int],
        embed_dim: int = 256,
        num_heads: int = 4,
        num_layers: int = 2,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
        attention_dropout: float | None = None,
        include_query: bool = True,
        own_projections: bool = False,
        rotary: RotaryTime | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("query_dim", query_dim)
        self.context_dim = check_widths("context_dim", context_dim)
        check_size("embed_dim", embed_dim)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query_dim = query_dim
        self.query_proj = nn.Linear(query_dim, embed_dim, **factory)
        self.context_projs: nn.ModuleList | None = None
        self.internal_relations: nn.ModuleList | None = None
        sizes = (embed_dim, num_heads, num_layers, dim_feedforward, dropout)
        options = {"attention_dropout": attention_dropout, "rotary": rotary, **factory}
        if isinstance(self.context_dim, tuple):
            self.register_module("context_proj", None)
            self.register_module("internal_relation", None)
            self.context_projs = nn.ModuleList(nn.Linear(width, embed_dim, **factory) for width in self.context_dim)
            self.internal_relations = nn.ModuleList(
                InternalTemporalRelation(*sizes, **options) for _ in self.context_dim
            )
        else:
            self.context_proj = nn.Linear(self.context_dim, embed_dim, **factory)
            self.internal_relation = InternalTemporalRelation(*sizes, **options)
        contexts = len(self.context_dim) if isinstance(self.context_dim, tuple) else 1
        self.cross_relation = CrossModalRelation(
            embed_dim,
            num_heads,
            dim_feedforward,
            dropout,
            context_dim=[embed_dim] * contexts if own_projections else None,
            include_query=include_query,
            **options,
        )

    def forward(
        self,
        query: Tensor,
        context: Tensor | Sequence[Tensor | None],
        *,
        query_padding_mask: Tensor | None = None,
        context_padding_mask: Tensor | Sequence[Tensor | None] | None = None,
        query_times: Tensor | None = None,
        context_times: Tensor | Sequence[Tensor | None] | None = None,
        attn_mask: Tensor | RelationWindow | None = None,
        context_attn_mask: Tensor | RelationWindow | Sequence[Tensor | RelationWindow | None] | None = None,
    ) -> Tensor:
        """Relate the query modality to the context modalities and to itself.

        Args:
            query: (B, T, query_dim).
            context: (B, S, context_dim). If ``context_dim`` is a list: a list or tuple with a tensor for each width,
                whose lengths S may differ. None marks a modality that is missing from the batch; its parameters then
                get no gradient.
            query_padding_mask: bool (B, T), True = padding.
            context_padding_mask: bool (B, S), True = padding. For several contexts, a list with a mask or None for
                each.
            query_times: as in :meth:`CMRA.forward`, for a module with ``rotary``.
            context_times: as in :meth:`CMRA.forward`. M_self and M_cmra use the same times, also by default.
            attn_mask: mask of M_cmra, as in :meth:`CMRA.forward`. The memory is [contexts..., query].
            context_attn_mask: mask of M_self, as in :meth:`CMRA.forward`. The memory is the context, so M = S. For
                several contexts, a list with a mask or None for each.

        Returns:
            Tensor: (B, T, embed_dim), finite but meaningless at padding. Use :func:`record_attention` for the attention
            weights of every block.
        """
        check_features("query", query, self.query_dim, "query_dim", self, self.query_proj)
        if query_padding_mask is not None:
            check_mask("query_padding_mask", query_padding_mask, query.shape[:2], query)
        contexts, paddings, masks, query_clock, clocks = self._check_contexts(
            query, context, query_padding_mask, context_padding_mask, query_times, context_times, context_attn_mask
        )
        projections = self.context_projs or [self.context_proj]
        relations = self.internal_relations or [self.internal_relation]
        related = [
            features
            if features is None
            else relate(project(zero_steps(features, padding)), padding_mask=padding, times=clock, attn_mask=mask)
            for project, relate, features, padding, clock, mask in zip(
                projections, relations, contexts, paddings, clocks, masks, strict=True
            )
        ]
        output: Tensor = self.cross_relation(
            self.query_proj(zero_steps(query, query_padding_mask)),
            related,
            query_padding_mask=query_padding_mask,
            context_padding_mask=paddings,
            query_times=query_clock,
            context_times=None if query_clock is None else clocks,
            attn_mask=attn_mask,
        )
        return output

    def _check_contexts(
        self,
        query: Tensor,
        context: Tensor | Sequence[Tensor | None],
        query_padding_mask: Tensor | None,
        context_padding_mask: Tensor | Sequence[Tensor | None] | None,
        query_times: Tensor | None,
        context_times: Tensor | Sequence[Tensor | None] | None,
        context_attn_mask: Tensor | RelationWindow | Sequence[Tensor | RelationWindow | None] | None,
    ) -> tuple[
        list[Tensor | None],
        list[Tensor | None],
        list[Tensor | RelationWindow | None],
        Tensor | None,
        list[Tensor | None],
    ]:
        """Check the contexts, their masks and all times.

        Return contexts, padding masks and attention masks as lists, the times of the query, and those of each context.
        Times are None without ``rotary``, and for a context that is None.
        """
        names, contexts, (paddings, masks, stamps) = list_contexts(
            context,
            (Tensor, Memory),
            context_padding_mask=context_padding_mask,
            context_attn_mask=context_attn_mask,
            context_times=context_times,
        )
        widths = self.context_dim if isinstance(self.context_dim, tuple) else (self.context_dim,)
        check_contexts(contexts, self.context_dim, self)
        clocks: list[Clock] = []
        for index, (name, features, padding, times, mask) in enumerate(
            zip(names, contexts, paddings, stamps, masks, strict=True)
        ):
            if features is None:
                continue
            option = f"context_dim[{index}]" if isinstance(self.context_dim, tuple) else "context_dim"
            projection = self.context_projs[index] if self.context_projs else self.context_proj
            check_features(f"context{name}", features, widths[index], option, self, projection)
            check_match(f"context{name}", features, {0: "batch size"}, "query", query)
            if padding is not None:
                check_mask(f"context_padding_mask{name}", padding, features.shape[:2], features)
            if mask is not None:
                shape = (len(features), self.cross_relation.attention.num_heads, *[features.shape[1]] * 2)
                label = f"context_attn_mask{name}"
                check_attention_mask(label, mask, shape, features, per_head=False, lengths=shape[-1:])
            clocks.append(Clock(f"context_times{name}", times, features, padding))
        clocks.append(Clock("query_times", query_times, query, query_padding_mask))
        found = list_times(self, self.cross_relation.attention.rotary, clocks)
        if not found:
            return contexts, paddings, masks, None, [None] * len(contexts)
        *present, query_clock = found
        clocks_of_present = iter(present)
        context_clocks = [None if features is None else next(clocks_of_present) for features in contexts]
        return contexts, paddings, masks, query_clock, context_clocks
