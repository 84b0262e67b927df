"""Blocks of relation attention: cross-modal relation, internal temporal relation, and the relation-aware module.

All are made of one post-norm block, attention and then a feed-forward network. They differ in the attention's memory.
Axes: B batch, T query length, S context length.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from crossmodal_attn._checks import check_features, check_mask, check_match, check_probability, check_size
from crossmodal_attn.cmra import CMRA
from crossmodal_attn.dropout import Dropout, ReLUDropout
from crossmodal_attn.masks import zero_steps

__all__ = ["CrossModalRelation", "InternalTemporalRelation", "RelationAware"]


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
        device: device of the parameters.
        dtype: dtype of the parameters.

    Examples:
        >>> layer = CrossModalRelation(256, num_heads=4)
        >>> layer(torch.randn(2, 10, 256), torch.randn(2, 12, 256)).shape
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("dim_feedforward", dim_feedforward)
        check_probability("dropout", dropout)
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        check_probability("attention_dropout", attention_dropout)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attention = CMRA(embed_dim, num_heads, attention_dropout, **factory)
        self.norm1 = nn.LayerNorm(embed_dim, **factory)
        self.linear1 = nn.Linear(embed_dim, dim_feedforward, **factory)
        self.linear2 = nn.Linear(dim_feedforward, embed_dim, **factory)
        self.norm2 = nn.LayerNorm(embed_dim, **factory)
        self.activation = ReLUDropout(dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        context: Tensor | Sequence[Tensor] | None = None,
        *,
        query_padding_mask: Tensor | None = None,
        context_padding_mask: Tensor | Sequence[Tensor | None] | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Relate the query to the memory [contexts..., query].

        Args:
            query: (B, T, embed_dim).
            context: (B, S, embed_dim), a list or tuple of such tensors, or None.
            query_padding_mask: bool (B, T), True = padding.
            context_padding_mask: bool (B, S), True = padding. For several contexts, a list with a mask or None for
                each.
            attn_mask: as in :meth:`CMRA.forward`.
            need_weights: whether to return the attention weights too.

        Returns:
            Tensor | tuple[Tensor, Tensor]: the output (B, T, embed_dim), finite but meaningless at padding. With
            ``need_weights`` also the attention weights (B, H, T, M).
        """
        result = self.attention(
            query,
            context,
            query_padding_mask=query_padding_mask,
            context_padding_mask=context_padding_mask,
            attn_mask=attn_mask,
            need_weights=need_weights,
        )
        attended, weights = result if need_weights else (result, None)
        hidden = self.norm1(zero_steps(query, query_padding_mask) + self.dropout(attended))
        feedforward = self.linear2(self.activation(self.linear1(hidden)))
        output: Tensor = self.norm2(hidden + self.dropout(feedforward))
        return output if weights is None else (output, weights)


class InternalTemporalRelation(nn.Module):
    """Internal temporal relation M_self: self-attention blocks over the segments of one modality.

    Xu et al., ACM MM 2020, section 3.4. Each block is a :class:`CrossModalRelation`, called without a context.

    Args:
        embed_dim: width of the features.
        num_heads: number of attention heads; must divide ``embed_dim``.
        num_layers: number of blocks.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: dropout probability, in [0, 1].
        attention_dropout: probability of dropping an attention weight, in [0, 1]. Default: ``dropout``.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("num_layers", num_layers)
        factory: dict[str, Any] = {"attention_dropout": attention_dropout, "device": device, "dtype": dtype}
        self.layers = nn.ModuleList(
            CrossModalRelation(embed_dim, num_heads, dim_feedforward, dropout, **factory) for _ in range(num_layers)
        )

    def forward(
        self, features: Tensor, *, padding_mask: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Relate the segments to one another.

        Args:
            features: (B, T, embed_dim).
            padding_mask: bool (B, T), True = padding.
            attn_mask: as in :meth:`CMRA.forward`. The memory is the features themselves, so M = T.

        Returns:
            Tensor: (B, T, embed_dim), finite but meaningless at padding. Use :func:`record_attention` for the attention
            weights of every block.
        """
        attention = cast("CrossModalRelation", self.layers[0]).attention
        check_features("features", features, attention.embed_dim, "embed_dim", self, attention.q_proj)
        if padding_mask is not None:
            check_mask("padding_mask", padding_mask, features.shape[:2], features)
        for layer in self.layers:
            features = layer(features, query_padding_mask=padding_mask, attn_mask=attn_mask)
        return features


class RelationAware(nn.Module):
    r"""Relation-aware module: relate a query modality to itself and to a context modality.

    .. math::
        F_a^s = M_{self}(F_a), \qquad v_o = M_{cmra}(F_v, F_a^s)

    Eq. 4 of Xu et al., ACM MM 2020, here with video as the query. Both modalities are first projected to ``embed_dim``.
    CMRAN has two such modules with separate weights: the query of one is video, that of the other audio.

    Args:
        query_dim: width of the query modality.
        context_dim: width of the context modality.
        embed_dim: d_m, the width of the output.
        num_heads: number of attention heads; must divide ``embed_dim``.
        num_layers: number of blocks in M_self.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: dropout probability, in [0, 1].
        attention_dropout: probability of dropping an attention weight, in [0, 1]. Default: ``dropout``.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Examples:
        >>> video_relation = RelationAware(query_dim=512, context_dim=128)
        >>> video_relation(torch.randn(2, 10, 512), torch.randn(2, 10, 128)).shape
        torch.Size([2, 10, 256])
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int,
        embed_dim: int = 256,
        num_heads: int = 4,
        num_layers: int = 2,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
        attention_dropout: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("query_dim", query_dim)
        check_size("context_dim", context_dim)
        check_size("embed_dim", embed_dim)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query_dim = query_dim
        self.context_dim = context_dim
        self.query_proj = nn.Linear(query_dim, embed_dim, **factory)
        self.context_proj = nn.Linear(context_dim, embed_dim, **factory)
        factory["attention_dropout"] = attention_dropout
        self.internal_relation = InternalTemporalRelation(
            embed_dim, num_heads, num_layers, dim_feedforward, dropout, **factory
        )
        self.cross_relation = CrossModalRelation(embed_dim, num_heads, dim_feedforward, dropout, **factory)

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        *,
        query_padding_mask: Tensor | None = None,
        context_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Relate the query modality to the context modality and to itself.

        Args:
            query: (B, T, query_dim).
            context: (B, S, context_dim).
            query_padding_mask: bool (B, T), True = padding.
            context_padding_mask: bool (B, S), True = padding.

        Returns:
            Tensor: (B, T, embed_dim), finite but meaningless at padding. Use :func:`record_attention` for the attention
            weights of every block.
        """
        check_features("query", query, self.query_dim, "query_dim", self, self.query_proj)
        check_features("context", context, self.context_dim, "context_dim", self, self.context_proj)
        check_match("context", context, {0: "batch size"}, "query", query)
        if query_padding_mask is not None:
            check_mask("query_padding_mask", query_padding_mask, query.shape[:2], query)
        if context_padding_mask is not None:
            check_mask("context_padding_mask", context_padding_mask, context.shape[:2], context)
        related: Tensor = self.internal_relation(
            self.context_proj(zero_steps(context, context_padding_mask)), padding_mask=context_padding_mask
        )
        output: Tensor = self.cross_relation(
            self.query_proj(zero_steps(query, query_padding_mask)),
            related,
            query_padding_mask=query_padding_mask,
            context_padding_mask=context_padding_mask,
        )
        return output
