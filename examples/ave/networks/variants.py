"""Modules that replace parts of CMRAN in its ablation study (Xu et al., ACM MM 2020, Tables 3 and 4).

The paper describes each in one sentence, and no code was released, so these are our interpretations of the text.
Axes: B batch, T segments, C visual channels.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ave.networks.agva import AGVA
from crossmodal_attn import (
    AGSCA,
    CMRA,
    AVInteraction,
    CrossModalRelation,
    InternalTemporalRelation,
    RelationAware,
    zero_padding,
)
from crossmodal_attn.dropout import Dropout, ReLUDropout

__all__ = [
    "FeedForwardRelation",
    "Guidance",
    "Interaction",
    "MeanOverCells",
    "OwnRelation",
    "Product",
    "Relation",
    "SelfInteraction",
    "SideBySideRelation",
    "make_guidance",
    "make_interaction",
    "make_relation",
]

Relation = Literal["cmra", "self", "co", "cmra-f", "none", "self-stacked", "none-feedforward"]
Guidance = Literal["agsca", "agva", "mean"]
Interaction = Literal["av", "self", "product"]


def make_relation(
    relation: Relation,
    query_dim: int,
    context_dim: int,
    embed_dim: int,
    num_heads: int,
    num_layers: int,
    dim_feedforward: int,
    dropout: float,
    *,
    own_projections: bool = False,
) -> nn.Module:
    """Return the relation-aware module of a row in Table 3. The list below has video as the query.

    - "cmra": v_o = M_cmra(F_v, F_a^s), where F_a^s = M_self(F_a). The memory of M_cmra is [F_a^s, F_v].
    - "co": the memory of M_cmra is F_a^s alone.
    - "self": the memory of M_cmra is F_v alone. F_a^s is not used, so there is no M_self.
    - "cmra-f": the memory is F_a^s and F_v concatenated by feature instead of by time.
    - "none": there is no M_cmra, and v_o = M_self(F_v).
    - "self-stacked": another interpretation of "self", in which M_self(F_v) is both the query and the memory of M_cmra.
    - "none-feedforward": another interpretation of "none", in which only the attention is removed from M_cmra.

    Args:
        relation: the name of the row.
        query_dim: width of the query modality.
        context_dim: width of the context modality.
        embed_dim: d_m, the width of the output.
        num_heads: number of attention heads; must divide ``embed_dim``.
        num_layers: number of blocks in M_self.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: dropout probability, in [0, 1].
        own_projections: whether each modality in the memory of "cmra" has its own key and value projection.

    Returns:
        nn.Module: a module with the arguments of :meth:`RelationAware.forward`.

    Raises:
        ValueError: if ``relation`` is unknown, or other than "cmra" with ``own_projections``.
    """
    if own_projections and relation != "cmra":
        raise ValueError(f'own_projections=True needs relation="cmra", got {relation!r}')
    sizes = (embed_dim, num_heads, num_layers, dim_feedforward, dropout)
    if relation in ("cmra", "co"):
        include_query = relation == "cmra"
        return RelationAware(
            query_dim, context_dim, *sizes, include_query=include_query, own_projections=own_projections
        )
    if relation == "cmra-f":
        return SideBySideRelation(query_dim, context_dim, *sizes)
    if relation == "none-feedforward":
        return FeedForwardRelation(query_dim, embed_dim, dim_feedforward, dropout)
    if relation in ("self", "self-stacked", "none"):
        num_layers = {"self": 1, "self-stacked": num_layers + 1, "none": num_layers}[relation]
        return OwnRelation(query_dim, embed_dim, num_heads, num_layers, dim_feedforward, dropout)
    raise ValueError(f"relation must be one of {', '.join(get_args(Relation))}, got {relation!r}")


def make_guidance(guidance: Guidance, video_dim: int, audio_dim: int) -> nn.Module:
    """Return the spatial attention of a row in Table 4: "agsca", "agva", or "mean" for no attention."""
    if guidance == "agsca":
        return AGSCA(video_dim, audio_dim)
    if guidance == "agva":
        return AGVA(video_dim, audio_dim)
    if guidance == "mean":
        return MeanOverCells()
    raise ValueError(f"guidance must be one of {', '.join(get_args(Guidance))}, got {guidance!r}")


def make_interaction(interaction: Interaction, embed_dim: int, num_heads: int, dropout: float) -> nn.Module:
    """Return the interaction of a row in Table 4: "av", "self", or "product" for no attention."""
    if interaction == "av":
        return AVInteraction(embed_dim, num_heads, dropout)
    if interaction == "self":
        return SelfInteraction(embed_dim, num_heads, dropout)
    if interaction == "product":
        return Product()
    raise ValueError(f"interaction must be one of {', '.join(get_args(Interaction))}, got {interaction!r}")


class OwnRelation(nn.Module):
    """Project the query modality, and apply M_self. The context is ignored."""

    def __init__(
        self, query_dim: int, embed_dim: int, num_heads: int, num_layers: int, dim_feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.query_proj = nn.Linear(query_dim, embed_dim)
        self.internal_relation = InternalTemporalRelation(embed_dim, num_heads, num_layers, dim_feedforward, dropout)

    def forward(
        self,
        query: Tensor,
        context: Tensor,  # noqa: ARG002
        *,
        query_padding_mask: Tensor | None = None,
        context_padding_mask: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return (B, T, embed_dim) for a query (B, T, query_dim)."""
        projected = self.query_proj(zero_padding(query, query_padding_mask))
        related: Tensor = self.internal_relation(projected, padding_mask=query_padding_mask)
        return related


class FeedForwardRelation(nn.Module):
    r"""Project the query modality, and apply M_cmra without its attention. The context is ignored.

    .. math::
        H_r = \operatorname{LayerNorm}(F_v), \qquad
        v_o = \operatorname{LayerNorm}(\operatorname{ReLU}(H_r W_3) W_4 + H_r)
    """

    def __init__(self, query_dim: int, embed_dim: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.query_proj = nn.Linear(query_dim, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.activation = ReLUDropout(dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        context: Tensor,  # noqa: ARG002
        *,
        query_padding_mask: Tensor | None = None,
        context_padding_mask: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return (B, T, embed_dim) for a query (B, T, query_dim)."""
        hidden = self.norm1(self.query_proj(zero_padding(query, query_padding_mask)))
        output: Tensor = self.norm2(hidden + self.dropout(self.linear2(self.activation(self.linear1(hidden)))))
        return output


class SideBySideRelation(nn.Module):
    """CMRA-F: the relation-aware module with both modalities concatenated by feature instead of by time.

    The memory is (B, T, 2 * embed_dim), context first, so both modalities must have the same length.
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        dim_feedforward: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.query_proj = nn.Linear(query_dim, embed_dim)
        self.context_proj = nn.Linear(context_dim, embed_dim)
        self.internal_relation = InternalTemporalRelation(embed_dim, num_heads, num_layers, dim_feedforward, dropout)
        self.cross_relation = CrossModalRelation(
            embed_dim, num_heads, dim_feedforward, dropout, context_dim=2 * embed_dim, include_query=False
        )

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        *,
        query_padding_mask: Tensor | None = None,
        context_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return (B, T, embed_dim) for a query (B, T, query_dim) and a context (B, T, context_dim).

        Raises:
            ValueError: if query and context have different lengths.
        """
        if query.shape[:2] != context.shape[:2]:
            raise ValueError(
                f"context must have the batch and time of query, {tuple(query.shape[:2])}, got {tuple(context.shape)}"
            )
        projected = self.query_proj(zero_padding(query, query_padding_mask))
        related = self.internal_relation(
            self.context_proj(zero_padding(context, context_padding_mask)), padding_mask=context_padding_mask
        )
        paddings = [mask for mask in (query_padding_mask, context_padding_mask) if mask is not None]
        output: Tensor = self.cross_relation(
            projected,
            torch.cat([related, projected], -1),
            query_padding_mask=query_padding_mask,
            context_padding_mask=torch.stack(paddings).any(0) if paddings else None,
        )
        return output


class MeanOverCells(nn.Module):
    """Average a visual map over its cells. The audio is ignored."""

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        """Return (*, C) for a map (*, *spatial, C) and audio (*, A)."""
        return video.flatten(audio.dim() - 1, -2).mean(-2)


class SelfInteraction(nn.Module):
    r"""Fuse audio and video by self-attention over their product. CMRAN uses 4 heads if supervised, 2 if weak.

    .. math::
        f = a_o \odot v_o, \qquad O_{av} = \operatorname{LayerNorm}(f + \operatorname{CMRA}(f))
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = CMRA(embed_dim, num_heads, dropout)
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = Dropout(dropout)

    def forward(self, video: Tensor, audio: Tensor, *, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, T, embed_dim) for video and audio of that shape."""
        fused = zero_padding(video, padding_mask) * zero_padding(audio, padding_mask)
        output: Tensor = self.norm(fused + self.dropout(self.attention(fused, query_padding_mask=padding_mask)))
        return output


class Product(nn.Module):
    """Fuse audio and video by their product alone, without attention, residual connection and layer norm."""

    def forward(self, video: Tensor, audio: Tensor, *, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, T, embed_dim) for video and audio of that shape."""
        return zero_padding(video, padding_mask) * zero_padding(audio, padding_mask)
