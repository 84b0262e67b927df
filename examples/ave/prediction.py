"""What a CMRAN finds in videos: events, each a run of seconds with a category and a score.

Axes: B videos, T segments of a second, K categories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ave.model import Localization, localize
from ave.unlabelled import FeatureBatch

__all__ = ["Event", "Prediction", "find_events", "predict"]


class Event(NamedTuple):
    """One event of a video."""

    start: int
    """The second it begins at."""
    end: int
    """The second it ends at; it lasts ``end - start`` seconds."""
    category: int
    score: float
    """In [0, 1]: the mean over its seconds of the event's probability, times the probability of its category."""


class Prediction(NamedTuple):
    """What is said of one video of T seconds, on the CPU."""

    labels: Tensor
    """int64 (T,), background last: the label of every second."""
    event_score: Tensor
    """float32 (T,), in [0, 1]"""
    events: list[Event]


def find_events(
    localization: Localization, *, background: int = 28, padding_mask: Tensor | None = None
) -> list[list[Event]]:
    """The runs of consecutive seconds that are not background; all events of a video have its best category.

    Where background is that category, as it can be in the weak setting, there is no event.

    Args:
        localization: the logits of either setting.
        background: the index of background, which is the number of categories.
        padding_mask: bool (B, T), True = padding, in which there are no events.

    Returns:
        list: for each of the B videos its events, the earliest first.

    Examples:
        >>> event_logits = torch.tensor([[-5.0, 5.0, 5.0, -5.0, 5.0]])
        >>> category_logits = torch.tensor([[0.0, 9.0, 0.0]])
        >>> events = find_events(Localization(event_logits, category_logits), background=3)
        >>> [(event.start, event.end, event.category, round(event.score, 2)) for event in events[0]]
        [(1, 3, 1, 0.99), (4, 5, 1, 0.99)]
    """
    eventful = localize(localization, background=background) != background
    if padding_mask is not None:
        eventful &= ~padding_mask
    event_score = localization.event_logits.float().sigmoid()
    probability, category = localization.category_logits.float().softmax(-1).max(-1)
    # A run begins where a second differs from the one before, and ends where it differs from the one after.
    steps = F.pad(eventful.int(), (1, 1)).diff(dim=1)
    events: list[list[Event]] = [[] for _ in range(len(eventful))]
    starts, ends = (steps == 1).nonzero().tolist(), (steps == -1).nonzero().tolist()
    for (video, start), (_, end) in zip(starts, ends, strict=True):
        score = event_score[video, start:end].mean() * probability[video]
        events[video].append(Event(start, end, int(category[video]), float(score)))
    return events


@torch.no_grad()
def predict(
    model: Callable[..., Localization], batches: Iterable[FeatureBatch], background: int, device: torch.device
) -> list[Prediction]:
    """Run a network over videos.

    Args:
        model: a CMRAN in evaluation mode, on ``device``.
        batches: of the videos.
        background: the index of background, which is the number of categories.
        device: where to compute.

    Returns:
        list: the videos in their order.

    Raises:
        FloatingPointError: if the logits are not finite.
    """
    predictions: list[Prediction] = []
    for batch in batches:
        mask = None if batch.padding_mask is None else batch.padding_mask.to(device)
        localization = model(batch.visual.to(device), batch.audio.to(device), padding_mask=mask)
        localization = Localization(*(logits.float().cpu() for logits in localization))
        if not all(logits.isfinite().all() for logits in localization):
            raise FloatingPointError("the scores are not finite: try --precision fp32")
        labels = localize(localization, background=background)
        scores = localization.event_logits.sigmoid()
        events = find_events(localization, background=background, padding_mask=batch.padding_mask)
        for video, length in enumerate(batch.lengths):
            predictions.append(Prediction(labels[video, :length], scores[video, :length], events[video]))
    return predictions
