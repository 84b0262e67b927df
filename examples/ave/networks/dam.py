"""DAM: Wu et al., "Dual Attention Matching for Audio-Visual Event Localization", ICCV 2019, supervised.

Axes: B videos, T segments, H x W positions, C visual channels, A audio channels, K categories, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave import Setting
from ave.networks.agva import AGVA
from ave.networks.localizer import Recipe
from ave.networks.padded import mean_over_time
from ave.networks.two_scores import Logits, TwoScores
from crossmodal_attn import CMRA, zero_padding

__all__ = ["DAM", "matching_logit"]


def matching_logit(first: Tensor, second: Tensor) -> Tensor:
    r"""Return the logit of :math:`\tfrac12 (\sigma(x) + \sigma(y))`, computed without rounding the sigmoids to 0 or 1.

    Args:
        first: x, any shape.
        second: y, the same shape.

    Examples:
        >>> matching_logit(torch.tensor(3.0), torch.tensor(-3.0))  # (0.953 + 0.047) / 2 is a half
        tensor(0.)
        >>> matching_logit(torch.tensor(-200.0), torch.tensor(-200.0))  # the probability is 0 in float32
        tensor(-200.)
    """
    present = torch.logaddexp(F.logsigmoid(first), F.logsigmoid(second))
    return present - torch.logaddexp(F.logsigmoid(-first), F.logsigmoid(-second))


class DAM(TwoScores):
    r"""The network of Wu et al., ICCV 2019: match the global feature of each modality with all segments of the other.

    .. math::
        p_t = \tfrac12 \left(\sigma(g_v \cdot l_{a,t}) + \sigma(g_a \cdot l_{v,t})\right), \qquad
        \lambda L_\text{category} + (1 - \lambda) \operatorname{mean}_t \operatorname{BCE}(p_t, \text{event}_t)

    As in the paper, each modality has local features l for each segment. Those of video are computed with audio-guided
    attention. The global feature g of a modality is the mean over time of the self-attention of its local features. The
    category is predicted from both global features. The loss has :math:`\lambda = 0.5`, the best value in the paper.
    The event logits are the logits of p_t.

    There is no usable code, so these details are our interpretations:

    - Each modality is projected to D = 256. Each has its own self-attention, with one head and biases.
    - The inner products are divided by the square root of D. Otherwise their sigmoids are 0 or 1 from the start.
    - The category head has two linear layers with a ReLU between them.
    - The category of a video is defined as for CMRAN.
    - All hyperparameters of the training.

    Args:
        setting: "supervised", the only one that was published.
        video_dim: C, channels of the visual features.
        audio_dim: A, width of the audio features.
        num_categories: K, without background. Default: the number of ``categories``, or 28.
        embed_dim: D, width of the projected modalities.
        attention_dim: hidden units of the audio-guided attention.
        categories: the K names of the categories. They are saved with the network.

    Examples:
        >>> event_logits, category_logits = DAM()(torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128))
        >>> event_logits.shape, category_logits.shape
        (torch.Size([2, 10]), torch.Size([2, 28]))
    """

    recipes: ClassVar[Mapping[Setting, Recipe]] = {"supervised": Recipe(epochs=200)}

    def __init__(
        self,
        setting: Setting = "supervised",
        *,
        video_dim: int = 512,
        audio_dim: int = 128,
        num_categories: int | None = None,
        embed_dim: int = 256,
        attention_dim: int = 49,
        categories: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            setting, video_dim=video_dim, audio_dim=audio_dim, num_categories=num_categories, categories=categories
        )
        self.attention = AGVA(video_dim, audio_dim, attention_dim)
        self.video_proj = nn.Linear(video_dim, embed_dim)
        self.audio_proj = nn.Linear(audio_dim, embed_dim)
        self.video_self_attention = CMRA(embed_dim, 1)
        self.audio_self_attention = CMRA(embed_dim, 1)
        self.category_head = nn.Sequential(
            nn.Linear(2 * embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, self.num_categories)
        )

    def forward(self, video: Tensor, audio: Tensor, *, padding_mask: Tensor | None = None) -> Logits:
        """Localize the event of each video.

        Args:
            video: visual features (B, T, H, W, C).
            audio: (B, T, A).
            padding_mask: bool (B, T), True = padding.

        Returns:
            Logits: event logits (B, T) and category logits (B, K), finite but meaningless at padding.
        """
        video, audio = self._read(video, audio, padding_mask)
        video, audio = zero_padding(video, padding_mask), zero_padding(audio, padding_mask)
        local_video = self.video_proj(self.attention(video, audio))
        local_audio = self.audio_proj(audio)
        related_video = self.video_self_attention(local_video, query_padding_mask=padding_mask)
        related_audio = self.audio_self_attention(local_audio, query_padding_mask=padding_mask)
        global_video = mean_over_time(related_video, padding_mask)
        global_audio = mean_over_time(related_audio, padding_mask)
        scale = local_video.shape[-1] ** -0.5
        heard = (local_audio @ global_video.unsqueeze(-1)).squeeze(-1) * scale
        seen = (local_video @ global_audio.unsqueeze(-1)).squeeze(-1) * scale
        category_logits = self.category_head(torch.cat([global_audio, global_video], -1))
        return Logits(matching_logit(heard, seen), category_logits)

    def loss(
        self,
        logits: Logits,
        target: Tensor,
        *,
        padding_mask: Tensor | None = None,
        eventless_category: int | None = 0,
    ) -> Tensor:
        """Return half the binary cross-entropy of the events plus half the cross-entropy of the category."""
        return super().loss(logits, target, padding_mask=padding_mask, eventless_category=eventless_category) / 2
