"""Networks with an event score per segment and a category score per video, such as CMRAN: losses and decision.

Axes: B videos, T segments, K categories; label K is background.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ave.networks.localizer import Decision, Localizer, full_precision
from ave.networks.padded import max_over_time

__all__ = ["Logits", "TwoScores", "decide", "supervised_loss", "video_scores", "weak_loss"]


class Logits(NamedTuple):
    """The logits of a batch of videos."""

    event: Tensor
    """(B, T): whether the segment shows an event that is both seen and heard."""
    category: Tensor
    """(B, K) supervised, (B, K + 1) weak, background last: which event the video shows."""


# Registered by name, so that torch.export.save and AOTInductor can save it. Import this module before loading.
if _register := getattr(torch.utils._pytree, "_register_namedtuple", None):
    _register(Logits, serialized_type_name="ave.Logits")


class TwoScores(Localizer):
    """A network that returns :class:`Logits`, with the losses and the decision of CMRAN."""

    def loss(
        self,
        logits: Logits,
        target: Tensor,
        *,
        padding_mask: Tensor | None = None,
        eventless_category: int | None = 0,
    ) -> Tensor:
        """Return the loss, as in :meth:`Localizer.loss`."""
        if self.setting == "weak":
            return weak_loss(logits, target, padding_mask=padding_mask)
        return supervised_loss(logits, target, padding_mask=padding_mask, eventless_category=eventless_category)

    def decide(self, logits: Logits) -> Decision:
        """Return the video's best category where the event score is at least 0.5, else background."""
        return decide(logits, background=self.num_categories)

    def name_logits(self, logits: Logits) -> dict[str, Tensor]:
        """Return the logits as a dict, by their names in ``predictions.npz``."""
        return {"event_logits": logits.event, "category_logits": logits.category}


def decide(logits: Logits, *, background: int = 28) -> Decision:
    """Label each segment: the video's best category where the event score is at least 0.5, else background.

    Args:
        logits: the logits of either setting.
        background: the label of background, which is the number of categories.

    Examples:
        >>> logits = Logits(torch.tensor([[-5.0, 5.0, 0.0]]), torch.tensor([[0.0, 9.0]]))
        >>> decide(logits, background=2).labels
        tensor([[2, 1, 1]])
    """
    event, (probability, category) = full_precision(logits.event), full_precision(logits.category).softmax(-1).max(-1)
    labels = torch.where(event >= 0, category.unsqueeze(-1), background)
    return Decision(labels, event.sigmoid(), probability.unsqueeze(-1).expand_as(event))


def supervised_loss(
    logits: Logits,
    labels: Tensor,
    *,
    padding_mask: Tensor | None = None,
    eventless_category: int | None = 0,
) -> Tensor:
    """Return the binary cross-entropy of the event per segment, plus the cross-entropy of the category per video.

    The category of a video is the highest category index in its labels, as in the authors' code. Segments without a
    label, and videos without a labeled segment, are left out.

    Args:
        logits: logits of the supervised setting.
        labels: one-hot (B, T, K + 1), background last; all zero for a segment without a label.
        padding_mask: bool (B, T), True = padding. Labels at padding are ignored.
        eventless_category: the category of a video that is all background: 0 in the authors' code. None leaves such a
            video out of the cross-entropy of the category.
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
        logits: logits of the weak setting.
        padding_mask: bool (B, T), True = padding, which the maximum ignores.

    Returns:
        Tensor: (B, K + 1), each row sums to one.
    """
    segments = logits.event.sigmoid().unsqueeze(-1) * logits.category.unsqueeze(1)
    return max_over_time(segments, padding_mask).softmax(-1)


def weak_loss(logits: Logits, video_labels: Tensor, *, padding_mask: Tensor | None = None) -> Tensor:
    """Return the multi-label soft margin loss of the video scores against the video-level label.

    Args:
        logits: logits of the weak setting.
        video_labels: (B, K + 1), background last; each row sums to one.
        padding_mask: bool (B, T), True = padding.
    """
    _check_labels("video_labels", video_labels, tuple(logits.category.shape))
    scores = video_scores(logits, padding_mask=padding_mask)
    return F.multilabel_soft_margin_loss(scores, video_labels.to(scores.dtype))


def _check_labels(name: str, labels: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(labels.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, background last, got {tuple(labels.shape)}")
