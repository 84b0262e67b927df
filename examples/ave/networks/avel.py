"""AVEL: Tian et al., "Audio-Visual Event Localization in Unconstrained Videos", ECCV 2018, with all variants.

Axes: B videos, T segments, H x W positions, C visual channels, A audio channels, K categories, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave import Setting
from ave.networks.agva import AGVA
from ave.networks.localizer import Recipe, SegmentClassifier
from ave.networks.padded import mean_over_time, run_lstm
from crossmodal_attn import zero_padding

__all__ = ["AVEL", "DualResidual"]


class DualResidual(nn.Module):
    r"""The block of the dual multimodal residual network (DMRN), followed by the average of its two outputs.

    .. math::
        m = \tfrac12 (U_v v + U_a a), \qquad \tfrac12 \left(\tanh(v + m) + \tanh(a + m)\right)

    U_v and U_a are each a linear layer, a tanh and a linear layer. Code and paper differ in which residual goes to
    which modality. With one block and the average, the result is the same.

    Args:
        dim: D, width of both modalities.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.video_map = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))
        self.audio_map = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        """Fuse ``audio`` and ``video``, both (*, D), into (*, D)."""
        mean = (self.video_map(video) + self.audio_map(audio)) / 2
        fused: Tensor = ((video + mean).tanh() + (audio + mean).tanh()) / 2
        return fused


class AVEL(SegmentClassifier):
    """The network of Tian et al., ECCV 2018: audio-guided attention, an LSTM per modality, and late fusion.

    It predicts one class for each segment. The authors' code has two of the variants: the audio-visual network with
    attention (supervised and weak), and DMRN (supervised). All others are our interpretations of the paper. A variant
    with a single modality, or with the mean over space instead of attention, leaves out the parts that it does not
    need, and keeps bidirectional LSTMs. DMRN can also be trained weakly.

    The loss is the cross-entropy, as in the paper. ``as_published`` follows the code instead: a multi-label soft margin
    loss on probabilities, which changes far less with the logits, and attention with ``form="code"``, for maps of
    ``attention_dim`` cells. The code also does not shuffle, and drops the last, incomplete batch.

    Args:
        setting: "supervised" or "weak".
        video_dim: C, channels of the visual features.
        audio_dim: A, width of the audio features.
        num_categories: K, without background. Default: the number of ``categories``, or 28.
        streams: the modalities that have an LSTM: "both", "video" or "audio". With "video", audio still guides the
            attention.
        attention: whether to sum the visual map with audio-guided attention (:class:`AGVA`), or to take its mean. Must
            be False with ``streams="audio"``.
        fusion: how to fuse two modalities: "concat" as in the code, "add", or "dmrn".
        pooling: how to pool the logits of segments over time in the weak setting: "max" as in the code, or "mean" as in
            the paper.
        hidden_dim: width of the LSTMs in each direction.
        attention_dim: hidden units of the attention.
        as_published: whether to use the loss and the attention of the code.
        categories: the K names of the categories. They are saved with the network.

    Examples:
        >>> model = AVEL()
        >>> logits = model(torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128))
        >>> logits.shape, model.decide(logits).labels.shape
        (torch.Size([2, 10, 29]), torch.Size([2, 10]))
        >>> AVEL("weak", streams="audio", attention=False, categories=["Bark", "Clock"]).num_categories
        2
    """

    recipes: ClassVar[Mapping[Setting, Recipe]] = {
        # A tenth of the learning rate after 15,000 steps: 288 epochs of 52 steps if supervised, never reached if weak.
        "supervised": Recipe(epochs=300, milestones=(288,), lr_decay=0.1),
        "weak": Recipe(epochs=250),
    }

    def __init__(
        self,
        setting: Setting = "supervised",
        *,
        video_dim: int = 512,
        audio_dim: int = 128,
        num_categories: int | None = None,
        streams: Literal["both", "video", "audio"] = "both",
        attention: bool = True,
        fusion: Literal["concat", "add", "dmrn"] = "concat",
        pooling: Literal["max", "mean"] = "max",
        hidden_dim: int = 128,
        attention_dim: int = 49,
        as_published: bool = False,
        categories: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            setting, video_dim=video_dim, audio_dim=audio_dim, num_categories=num_categories, categories=categories
        )
        for name, value, known in (
            ("streams", streams, ("both", "video", "audio")),
            ("fusion", fusion, ("concat", "add", "dmrn")),
            ("pooling", pooling, ("max", "mean")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if streams == "audio" and attention:
            raise ValueError('attention must be False with streams="audio", which has no map, got True')
        if streams != "both" and fusion != "concat":
            raise ValueError(f'fusion must be left out with streams="{streams}", got {fusion!r}')
        self.streams, self.fusion, self.pooling, self.as_published = streams, fusion, pooling, as_published
        form: Literal["paper", "code"] = "code" if as_published else "paper"
        self.attention = AGVA(video_dim, audio_dim, attention_dim, form=form) if attention else None
        lstm = {"batch_first": True, "bidirectional": True}
        self.audio_lstm = None if streams == "video" else nn.LSTM(audio_dim, hidden_dim, **lstm)
        self.video_lstm = None if streams == "audio" else nn.LSTM(video_dim, hidden_dim, **lstm)
        width = 2 * hidden_dim
        self.residual = DualResidual(width) if fusion == "dmrn" else None
        labels = self.num_categories + 1
        if fusion == "dmrn":
            self.head = nn.Sequential(nn.Linear(width, labels))
            for layer in [] if self.attention is None else self.attention.children():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()  # in this variant, the code uses Xavier only for the head
        else:
            width *= 1 + (streams == "both" and fusion == "concat")
            self.head = nn.Sequential(nn.ReLU(), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, labels))
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

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
        audio = zero_padding(audio, padding_mask)
        related = []
        if self.audio_lstm is not None:
            related.append(run_lstm(self.audio_lstm, audio, padding_mask)[0])
        if self.video_lstm is not None:
            if self.attention is None:
                video = zero_padding(video.mean((2, 3)), padding_mask)
            else:
                video = self.attention(zero_padding(video, padding_mask), audio)
            related.append(run_lstm(self.video_lstm, video, padding_mask)[0])
        if self.residual is not None:
            related = [self.residual(*related)]
        elif self.fusion == "add":
            related = [related[0] + related[1]]
        logits: Tensor = self.head(related[0] if len(related) == 1 else torch.cat(related, -1))
        return logits

    def pool(self, logits: Tensor, *, padding_mask: Tensor | None = None) -> Tensor:
        """Pool logits of segments (B, T, K + 1) to logits of videos (B, K + 1), which are 0 if all is padding."""
        if self.pooling == "mean":
            return mean_over_time(logits, padding_mask)
        return super().pool(logits, padding_mask=padding_mask)

    def _sum_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.as_published:
            losses = F.multilabel_soft_margin_loss(logits.softmax(-1), target, reduction="none")
            return (losses * target.any(-1)).sum()
        return super()._sum_losses(logits, target)
