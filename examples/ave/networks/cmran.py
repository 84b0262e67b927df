"""CMRAN: the cross-modal relation-aware network for audio-visual event localization, with its losses and decisions.

Axes: B videos, T segments, H x W positions, C visual channels, A audio channels, K categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave import Setting
from ave.networks.pretrained import Pretrained
from crossmodal_attn import AGSCA, AVInteraction, RelationAware
from crossmodal_attn.dropout import ReLUDropout

__all__ = ["CMRAN", "Logits", "localize", "supervised_loss", "video_scores", "weak_loss"]

Senses = Literal["both", "sight", "hearing"]


class Logits(NamedTuple):
    """The logits of a batch of videos."""

    event: Tensor
    """(B, T): whether the segment shows an event that is both seen and heard."""
    category: Tensor
    """(B, K) supervised, (B, K + 1) weak, background last: which event the video shows."""


# Named, so that torch.export.save and AOTInductor can write what returns it; import this module before loading.
if _register := getattr(torch.utils._pytree, "_register_namedtuple", None):
    _register(Logits, serialized_type_name="ave.Logits")


class CMRAN(Pretrained):
    """The whole network of Xu et al., ACM MM 2020, with the behavior of the authors' code where the paper is silent.

    ``save_pretrained`` writes it with its arguments to a directory, ``from_pretrained`` reads it from there or from the
    Hugging Face Hub, and ``push_to_hub`` uploads it.

    Args:
        setting: "supervised" trains on segment labels; "weak" on video labels, with background as a category of its
            own and 2 heads in the interaction, as in the authors' code.
        video_dim: C, channels of the visual features.
        audio_dim: A, width of the audio features.
        num_categories: K, without background; by default as many as ``categories``, or 28 without these.
        embed_dim: width of the relation-aware modules, d_m.
        num_heads: attention heads of the relation-aware modules.
        num_layers: self-attention blocks of each relation-aware module.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: in attention, blocks and interaction.
        input_dropout: after the projection of the visual map.
        categories: the K names, which are saved with the network.
        senses: the features that the network is given: "both", or only "sight" or "hearing", with the other zeroed.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if one is out of range, or there are not as many names as categories.

    Examples:
        >>> model = CMRAN()
        >>> event_logits, category_logits = model(torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128))
        >>> event_logits.shape, category_logits.shape
        (torch.Size([2, 10]), torch.Size([2, 28]))
        >>> CMRAN("weak", categories=["Bark", "Clock", "Horse"]).num_categories
        3
    """

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
    ) -> None:
        super().__init__()
        if setting not in ("supervised", "weak"):
            raise ValueError(f'setting must be "supervised" or "weak", got {setting!r}')
        if senses not in ("both", "sight", "hearing"):
            raise ValueError(f'senses must be "both", "sight" or "hearing", got {senses!r}')
        if num_categories is None:
            num_categories = 28 if categories is None else len(categories)
        if not isinstance(num_categories, int) or num_categories < 1:
            raise ValueError(f"num_categories must be an int of at least 1, got {num_categories!r}")
        if categories is not None:
            if not isinstance(categories, (list, tuple)) or not all(isinstance(name, str) for name in categories):
                raise TypeError(f"categories must be a list or tuple of str, got {categories!r}")
            if not len(categories) == len(different := set(categories)) == num_categories:
                raise ValueError(
                    f"categories must be {num_categories} different names, as num_categories says, got "
                    f"{len(categories)}, {len(different)} of them different"
                )
        self.setting, self.senses = setting, senses
        self.video_dim, self.audio_dim, self.num_categories = video_dim, audio_dim, num_categories
        self.categories = None if categories is None else tuple(categories)
        weak = setting == "weak"
        widths = (embed_dim, num_heads, num_layers, dim_feedforward, dropout)
        self.video_proj = nn.Linear(video_dim, video_dim)
        self.input_dropout = ReLUDropout(input_dropout)
        self.spatial_channel_attention = AGSCA(video_dim, audio_dim)
        self.video_relation = RelationAware(video_dim, audio_dim, *widths)
        self.audio_relation = RelationAware(audio_dim, video_dim, *widths)
        self.interaction = AVInteraction(embed_dim, 2 if weak else num_heads, dropout)
        self.event_head = nn.Linear(embed_dim, 1)
        self.category_head = nn.Linear(embed_dim, num_categories + weak)

    def forward(self, video: Tensor, audio: Tensor, *, padding_mask: Tensor | None = None) -> Logits:
        """Localize the event of each video.

        Args:
            video: visual features (B, T, H, W, C).
            audio: (B, T, A).
            padding_mask: bool (B, T), True = padding.

        Returns:
            Logits: the logits, finite but meaningless at padding.

        Raises:
            TypeError: if an argument has the wrong type or dtype.
            ValueError: if an argument has the wrong shape.
        """
        self._check(video, audio, padding_mask)
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
        return Logits(event_logits, self.category_head(_pool(fused, padding_mask)))

    def _check(self, video: Tensor, audio: Tensor, padding_mask: Tensor | None) -> None:
        """Check what the layers inside would report under other names, or only after some work."""
        for name, features in (("video", video), ("audio", audio)):
            if not isinstance(features, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(features).__name__}")
        # A wrapped or quantized projection may hold no floating-point weight to compare with.
        weight = getattr(self.video_proj, "weight", None)
        dtype = weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else video.dtype
        if video.dtype != dtype and not torch.is_autocast_enabled(video.device.type):
            raise TypeError(f"video must have the dtype of the weights, {dtype}, got {video.dtype}")
        if video.dim() != 5 or video.shape[-1] != self.video_dim or 0 in video.shape[1:]:
            raise ValueError(
                f"video must have shape (batch, time, height, width, {self.video_dim}), none of them empty but the "
                f"batch, got {tuple(video.shape)}"
            )
        if audio.dim() != 3 or audio.shape[:2] != video.shape[:2]:
            raise ValueError(
                f"audio must have shape (batch, time, channels) and the batch and time of video, "
                f"{tuple(video.shape[:2])}, got {tuple(audio.shape)}"
            )
        if padding_mask is not None and (padding_mask.dtype != torch.bool or padding_mask.shape != audio.shape[:2]):
            raise ValueError(
                f"padding_mask must be bool, of the batch and time of video, {tuple(audio.shape[:2])}, "
                f"got {padding_mask.dtype} {tuple(padding_mask.shape)}"
            )


def _pool(fused: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Take the maximum over time without padding; zero for a video that is all padding."""
    if padding_mask is None:
        return fused.amax(1)
    pooled = fused.masked_fill(padding_mask.unsqueeze(-1), -torch.inf).amax(1)
    return pooled.masked_fill(padding_mask.all(1, keepdim=True), 0)


def localize(logits: Logits, *, background: int = 28) -> Tensor:
    """Decide every segment: the video's best category where the event score is at least 0.5, else background.

    Args:
        logits: the logits of either setting.
        background: the index of background, which is the number of categories.

    Returns:
        Tensor: int64 (B, T), in 0 ... background.
    """
    category = logits.category.argmax(-1, keepdim=True)
    return torch.where(logits.event >= 0, category, background)


def supervised_loss(
    logits: Logits,
    labels: Tensor,
    *,
    padding_mask: Tensor | None = None,
    eventless_category: int | None = 0,
) -> Tensor:
    """Return the binary cross-entropy of the event per segment, plus the cross-entropy of the category per video.

    The category of a video is the highest foreground index in its labels, as in the authors' code. A segment without a
    label, and a video without a labeled segment, weigh nothing.

    Args:
        logits: of the supervised setting.
        labels: one-hot (B, T, K + 1), background last; all zero where a segment has no label.
        padding_mask: bool (B, T), True = padding, whose labels are ignored.
        eventless_category: what a video that is all background counts as: category 0 in the authors' code; with None it
            weighs nothing in the cross-entropy of the category.

    Raises:
        ValueError: if ``labels`` has another shape.
    """
    _check_labels("labels", labels, (*logits.event.shape, logits.category.shape[-1] + 1))
    if padding_mask is not None:
        labels = labels.masked_fill(padding_mask.unsqueeze(-1), 0)
    labeled = labels.any(-1)
    event, category = labels[..., :-1].max(-1)
    dtype = logits.event.dtype
    event_loss = F.binary_cross_entropy_with_logits(logits.event, event.to(dtype), labeled.to(dtype))
    count = labeled.sum(dtype=torch.promote_types(dtype, torch.float32)).clamp(min=1)
    event_loss = event_loss * (labeled.numel() / count)  # the mean over labeled segments
    silent = -1 if eventless_category is None else eventless_category
    video_category = torch.where(event.any(1), category.amax(1), silent).masked_fill(~labeled.any(1), -1)
    category_loss = F.cross_entropy(logits.category, video_category, ignore_index=-1, reduction="sum")
    return event_loss + category_loss / (video_category >= 0).sum().clamp(min=1)


def video_scores(logits: Logits, *, padding_mask: Tensor | None = None) -> Tensor:
    """Return video-level scores of the weak setting: event score times category logits, max over time, softmax.

    Args:
        logits: of the weak setting.
        padding_mask: bool (B, T), True = padding, left out of the maximum.

    Returns:
        Tensor: (B, K + 1), each row sums to one.
    """
    segments = logits.event.sigmoid().unsqueeze(-1) * logits.category.unsqueeze(1)
    return _pool(segments, padding_mask).softmax(-1)


def weak_loss(logits: Logits, video_labels: Tensor, *, padding_mask: Tensor | None = None) -> Tensor:
    """Return the multi-label soft margin loss of the video scores against the video-level label.

    Args:
        logits: of the weak setting.
        video_labels: (B, K + 1), background last; each row sums to one.
        padding_mask: bool (B, T), True = padding.

    Raises:
        ValueError: if ``video_labels`` has another shape.
    """
    _check_labels("video_labels", video_labels, tuple(logits.category.shape))
    scores = video_scores(logits, padding_mask=padding_mask)
    return F.multilabel_soft_margin_loss(scores, video_labels.to(scores.dtype))


def _check_labels(name: str, labels: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(labels.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, background last, got {tuple(labels.shape)}")
