"""CMRAN: the cross-modal relation-aware network for audio-visual event localization.

Axes: B videos, T segments, H x W positions, C visual channels, A audio channels, K categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ave import Setting
from ave.networks.localizer import Recipe
from ave.networks.padded import max_over_time
from ave.networks.two_scores import Logits, TwoScores
from ave.networks.variants import (
    Guidance,
    Interaction,
    Relation,
    make_guidance,
    make_interaction,
    make_relation,
)
from crossmodal_attn.dropout import ReLUDropout

__all__ = ["CMRAN", "Senses"]

Senses = Literal["both", "sight", "hearing"]


class CMRAN(TwoScores):
    """The whole network of Xu et al., ACM MM 2020. Details that the paper leaves open follow the authors' code.

    ``save_pretrained`` saves it with its arguments in a directory, ``from_pretrained`` loads it from a directory or the
    Hugging Face Hub, and ``push_to_hub`` uploads it. ``relation``, ``guidance``, ``interaction``, ``num_layers`` and
    ``own_projections`` select the variants of the paper's ablation study.

    Args:
        setting: "supervised" trains on labels of segments; "weak" trains on labels of videos. As in the authors' code,
            "weak" has an additional category for background, and 2 heads in the interaction.
        video_dim: C, channels of the visual features.
        audio_dim: A, width of the audio features.
        num_categories: K, without background. Default: the number of ``categories``, or 28.
        embed_dim: width of the relation-aware modules, d_m.
        num_heads: attention heads of the relation-aware modules.
        num_layers: self-attention blocks of each relation-aware module; 0 leaves out M_self.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: dropout probability in attention, blocks and interaction.
        input_dropout: dropout probability after the projection of the visual map.
        categories: the K names of the categories. They are saved with the network.
        senses: the input of the network: "both", or only "sight" (video) or "hearing" (audio). The other is zeroed.
        relation: the relation-aware modules: "cmra", "self", "co", "cmra-f", "none", "self-stacked" or
            "none-feedforward"; see :func:`ave.networks.variants.make_relation`.
        guidance: how to sum the visual map over its cells: "agsca", "agva" or "mean".
        interaction: how to fuse the modalities: "av", "self" (self-attention over their product) or "product".
        own_projections: whether each modality in the memory of "cmra" has its own key and value projection.

    Examples:
        >>> model = CMRAN()
        >>> event_logits, category_logits = model(torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128))
        >>> event_logits.shape, category_logits.shape
        (torch.Size([2, 10]), torch.Size([2, 28]))
        >>> CMRAN("weak", categories=["Bark", "Clock", "Horse"]).num_categories
        3
    """

    recipes: ClassVar[Mapping[Setting, Recipe]] = {
        "supervised": Recipe(epochs=200, batch_size=32, lr=5e-4, milestones=(10, 20, 30), clip_norm=0.1),
        "weak": Recipe(epochs=200, batch_size=32, lr=5e-4, milestones=(5, 20, 40), clip_norm=0.5),
    }

    def __init__(
        self,
        setting: Setting = "supervised",
        *,
        video_dim: int = 512,
        audio_dim: int = 128,
        num_categories: int | None = None,
        embed_dim: int = 256,
        num_heads: int = 4,
        num_layers: int = 2,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        input_dropout: float = 0.2,
        categories: Sequence[str] | None = None,
        senses: Senses = "both",
        relation: Relation = "cmra",
        guidance: Guidance = "agsca",
        interaction: Interaction = "av",
        own_projections: bool = False,
    ) -> None:
        super().__init__(
            setting, video_dim=video_dim, audio_dim=audio_dim, num_categories=num_categories, categories=categories
        )
        if senses not in ("both", "sight", "hearing"):
            raise ValueError(f'senses must be "both", "sight" or "hearing", got {senses!r}')
        self.senses = senses
        self.variant: dict[str, str | bool] = {
            "relation": relation,
            "guidance": guidance,
            "interaction": interaction,
            "own_projections": own_projections,
        }
        weak = setting == "weak"
        widths = (embed_dim, num_heads, num_layers, dim_feedforward, dropout)
        self.video_proj = nn.Linear(video_dim, video_dim)
        self.input_dropout = ReLUDropout(input_dropout)
        self.spatial_channel_attention = make_guidance(guidance, video_dim, audio_dim)
        self.video_relation = make_relation(relation, video_dim, audio_dim, *widths, own_projections=own_projections)
        self.audio_relation = make_relation(relation, audio_dim, video_dim, *widths, own_projections=own_projections)
        self.interaction = make_interaction(interaction, embed_dim, 2 if weak else num_heads, dropout)
        self.event_head = nn.Linear(embed_dim, 1)
        self.category_head = nn.Linear(embed_dim, self.num_categories + weak)

    def forward(self, video: Tensor, audio: Tensor, *, padding_mask: Tensor | None = None) -> Logits:
        """Localize the event of each video.

        Args:
            video: visual features (B, T, H, W, C).
            audio: (B, T, A).
            padding_mask: bool (B, T), True = padding.

        Returns:
            Logits: event logits (B, T), and category logits (B, K), or (B, K + 1) if weak. They are finite but
            meaningless at padding.
        """
        video, audio = self._read(video, audio, padding_mask)
        if padding_mask is not None:
            video = video.masked_fill(padding_mask[..., None, None, None], 0)
            audio = audio.masked_fill(padding_mask[..., None], 0)
        if self.senses == "sight":
            audio = torch.zeros_like(audio)
        elif self.senses == "hearing":
            video = torch.zeros_like(video)
        video = self.input_dropout(self.video_proj(video))
        video = self.spatial_channel_attention(video, audio)  # Eq. 1-3
        masks = {"query_padding_mask": padding_mask, "context_padding_mask": padding_mask}
        related_video = self.video_relation(video, audio, **masks)  # Eq. 4-8
        related_audio = self.audio_relation(audio, video, **masks)
        fused = self.interaction(related_video, related_audio, padding_mask=padding_mask)  # Eq. 9
        event_logits = self.event_head(fused).squeeze(-1)
        return Logits(event_logits, self.category_head(max_over_time(fused, padding_mask)))
