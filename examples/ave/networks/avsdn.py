"""AVSDN: Lin et al., "Dual-modality seq2seq network for audio-visual event localization", ICASSP 2019, two variants.

Axes: B videos, T segments, H x W positions, C visual channels, A audio channels, K categories, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave import Setting
from ave.networks.agva import AGVA
from ave.networks.avel import DualResidual
from ave.networks.localizer import Recipe, SegmentClassifier
from ave.networks.padded import mean_over_time, run_lstm
from ave.networks.two_scores import Logits, TwoScores
from crossmodal_attn import zero_padding

__all__ = ["AVSDN", "AVSDNTwoScores", "SequenceToSequence"]

RECIPES: dict[Setting, Recipe] = {
    "supervised": Recipe(epochs=45, milestones=(10, 20, 30), clip_norm=0.1),
    "weak": Recipe(epochs=45, milestones=(5, 20, 40), clip_norm=0.5),
}


class SequenceToSequence(nn.Module):
    """Encode each modality with an LSTM, fuse the last states, and use them as the first state of a decoder LSTM.

    As in the code of CPSP (Zhou et al., 2022) and in summaries of the paper, all LSTMs are bidirectional. One
    :class:`DualResidual` fuses the hidden states and the cell states of each direction, after a ReLU.

    Args:
        video_dim: C, width of the visual features.
        audio_dim: A, width of the audio features.
        hidden_dim: D, width of the LSTMs in each direction.
    """

    def __init__(self, video_dim: int, audio_dim: int, hidden_dim: int) -> None:
        super().__init__()
        lstm = {"batch_first": True, "bidirectional": True}
        self.audio_encoder = nn.LSTM(audio_dim, hidden_dim, **lstm)
        self.video_encoder = nn.LSTM(video_dim, hidden_dim, **lstm)
        self.fusion = DualResidual(hidden_dim)
        self.decoder = nn.LSTM(audio_dim + video_dim, hidden_dim, **lstm)

    def forward(self, video: Tensor, audio: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return non-negative features (B, T, 2 D) from ``video`` (B, T, C) and ``audio`` (B, T, A)."""
        _, audio_states = run_lstm(self.audio_encoder, audio, padding_mask)
        _, video_states = run_lstm(self.video_encoder, video, padding_mask)
        hidden, cell = (
            self.fusion(F.relu(heard), F.relu(seen)) for heard, seen in zip(audio_states, video_states, strict=True)
        )
        decoded, _ = run_lstm(self.decoder, torch.cat([audio, video], -1), padding_mask, (hidden, cell))
        return F.relu(decoded)


class AVSDN(SegmentClassifier):
    """The network of Lin et al., ICASSP 2019: mean over space, sequence to sequence, and a class for each segment.

    The authors released no code. Our interpretations: the parts of :class:`SequenceToSequence`, their widths and the
    training follow the CPSP code; the head is one linear layer; the loss is the cross-entropy; max pooling if weak.

    Args:
        setting: "supervised" or "weak".
        video_dim: C, channels of the visual features.
        audio_dim: A, width of the audio features.
        num_categories: K, without background. Default: the number of ``categories``, or 28.
        hidden_dim: width of the LSTMs in each direction.
        categories: the K names of the categories. They are saved with the network.

    Examples:
        >>> AVSDN()(torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128)).shape
        torch.Size([2, 10, 29])
    """

    recipes = RECIPES

    def __init__(
        self,
        setting: Setting = "supervised",
        *,
        video_dim: int = 512,
        audio_dim: int = 128,
        num_categories: int | None = None,
        hidden_dim: int = 128,
        categories: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            setting, video_dim=video_dim, audio_dim=audio_dim, num_categories=num_categories, categories=categories
        )
        self.sequence_to_sequence = SequenceToSequence(video_dim, audio_dim, hidden_dim)
        self.head = nn.Linear(2 * hidden_dim, self.num_categories + 1)

    def forward(self, video: Tensor, audio: Tensor, *, padding_mask: Tensor | None = None) -> Tensor:
        """Classify every segment.

        Args:
            video: visual features (B, T, H, W, C).
            audio: (B, T, A).
            padding_mask: bool (B, T), True = padding.

        Returns:
            Tensor: logits (B, T, K + 1), background last; finite but meaningless at padding.
        """
        video, audio = self._read(video, audio, padding_mask)
        video, audio = zero_padding(video.mean((2, 3)), padding_mask), zero_padding(audio, padding_mask)
        logits: Tensor = self.head(self.sequence_to_sequence(video, audio, padding_mask))
        return logits


class AVSDNTwoScores(TwoScores):
    """AVSDN as in the code of CPSP (Zhou et al., 2022): with audio-guided attention, and event and category scores.

    The category score is computed from the mean of the features over time. In the weak setting there is no score for
    background: that column of the target is ignored, and the code trains without background videos.

    Args:
        setting: "supervised" or "weak".
        video_dim: C, channels of the visual features.
        audio_dim: A, width of the audio features.
        num_categories: K, without background. Default: the number of ``categories``, or 28.
        hidden_dim: width of the LSTMs in each direction.
        attention_dim: hidden units of the attention.
        as_published: whether to use the attention of the code, for maps of ``attention_dim`` cells.
        categories: the K names of the categories. They are saved with the network.

    Examples:
        >>> event_logits, category_logits = AVSDNTwoScores()(torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128))
        >>> event_logits.shape, category_logits.shape
        (torch.Size([2, 10]), torch.Size([2, 28]))
    """

    recipes = RECIPES

    def __init__(
        self,
        setting: Setting = "supervised",
        *,
        video_dim: int = 512,
        audio_dim: int = 128,
        num_categories: int | None = None,
        hidden_dim: int = 128,
        attention_dim: int = 49,
        as_published: bool = False,
        categories: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            setting, video_dim=video_dim, audio_dim=audio_dim, num_categories=num_categories, categories=categories
        )
        self.attention = AGVA(video_dim, audio_dim, attention_dim, form="code" if as_published else "paper")
        self.sequence_to_sequence = SequenceToSequence(video_dim, audio_dim, hidden_dim)
        self.event_head = nn.Linear(2 * hidden_dim, 1)
        self.category_head = nn.Linear(2 * hidden_dim, self.num_categories)
        for head in (self.event_head, self.category_head):
            nn.init.xavier_uniform_(head.weight)

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
        features = self.sequence_to_sequence(self.attention(video, audio), audio, padding_mask)
        category_logits = self.category_head(mean_over_time(features, padding_mask))
        return Logits(self.event_head(features).squeeze(-1), category_logits)

    def loss(
        self,
        logits: Logits,
        target: Tensor,
        *,
        padding_mask: Tensor | None = None,
        eventless_category: int | None = 0,
    ) -> Tensor:
        """Return the loss, as in :meth:`Localizer.loss`. The weak setting ignores background."""
        if self.setting == "weak":
            if target.shape[-1] != self.num_categories + 1:
                raise ValueError(
                    f"target must have {self.num_categories + 1} columns, background last, got {tuple(target.shape)}"
                )
            target = target[..., :-1]
        return super().loss(logits, target, padding_mask=padding_mask, eventless_category=eventless_category)
