"""Events and windows: join seconds to events, cut long videos into windows, and join the decisions of the windows.

Axes: B videos, T segments of a second, K categories; label K is background.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ave.networks.localizer import Decision

__all__ = ["Event", "Prediction", "cut_windows", "find_events", "join_windows"]

T = TypeVar("T")


class Event(NamedTuple):
    """One event of a video."""

    start: int
    """The first second of the event."""
    end: int
    """The end in seconds, exclusive: the event lasts ``end - start`` seconds."""
    category: int
    score: float
    """In [0, 1]: the probability of an event times the probability of its category, averaged over its seconds."""

    def describe(self, categories: Sequence[str]) -> str:
        """Return the category and the score, as subtitles and annotated videos show them.

        Examples:
            >>> Event(2, 5, 0, 0.876).describe(["Bark"])
            'Bark (0.88)'
        """
        return f"{categories[self.category]} ({self.score:.2f})"


class Prediction(NamedTuple):
    """The decisions for one video of T seconds, on the CPU."""

    labels: Tensor
    """int64 (T,): the label of each second; background is the last label."""
    event_score: Tensor
    """float32 (T,), in [0, 1]"""
    events: list[Event]


def find_events(decision: Decision, *, background: int = 28, padding_mask: Tensor | None = None) -> list[list[Event]]:
    """Return the runs of consecutive seconds that have the same category.

    Args:
        decision: the decision for B videos.
        background: the label of background, which is the number of categories.
        padding_mask: bool (B, T), True = padding. There are no events in padding.

    Returns:
        list: for each of the B videos, its events in the order of time.

    Examples:
        >>> score = torch.tensor([[0.2, 0.9, 0.7, 0.1, 0.8]])
        >>> decision = Decision(torch.tensor([[3, 1, 1, 3, 1]]), score, torch.full((1, 5), 0.5))
        >>> for event in find_events(decision, background=3)[0]:
        ...     print(event.start, event.end, event.category, round(event.score, 2))
        1 3 1 0.4
        4 5 1 0.4
    """
    labels = decision.labels if padding_mask is None else decision.labels.masked_fill(padding_mask, background)
    score = decision.event_score * decision.category_score
    # A run begins where the label differs from the previous one, and ends where it differs from the next one.
    differs = F.pad(labels, (1, 1), value=background).diff(dim=1) != 0
    starts = (differs[:, :-1] & (labels != background)).nonzero().tolist()
    ends = (differs[:, 1:] & (labels != background)).nonzero().tolist()
    events: list[list[Event]] = [[] for _ in range(len(labels))]
    for (video, start), (_, last) in zip(starts, ends, strict=True):
        category = int(labels[video, start])
        events[video].append(Event(start, last + 1, category, float(score[video, start : last + 1].mean())))
    return events


def cut_windows(seconds: Iterable[T], window: int) -> Iterator[tuple[int, list[T]]]:
    """Cut a stream of seconds into windows that overlap by half, and hold no more than one window.

    Windows start every ``ceil(window / 2)`` seconds. The last one ends with the video, so all of them are full, unless
    the video is shorter than a window.

    Args:
        seconds: anything that has one item for each second.
        window: the length of a window in seconds; 0: one window with the whole video.

    Yields:
        tuple: the second at which a window starts, and the items of its seconds.

    Examples:
        >>> [(start, "".join(letters)) for start, letters in cut_windows("abcdefghi", 4)]
        [(0, 'abcd'), (2, 'cdef'), (4, 'efgh'), (5, 'fghi')]
        >>> list(cut_windows("ab", 4)), list(cut_windows("abc", 0))
        ([(0, ['a', 'b'])], [(0, ['a', 'b', 'c'])])
    """
    held: deque[T] = deque(maxlen=window or None)
    hop = -(-window // 2)
    count = 0
    for count, second in enumerate(seconds, 1):
        held.append(second)
        if window and count >= window and (count - window) % hop == 0:
            yield count - window, list(held)
    if held and (not window or count < window or (count - window) % hop):
        yield count - len(held), list(held)


def join_windows(starts: Sequence[int], decisions: Sequence[Decision], *, background: int) -> Decision:
    """Join the decisions of overlapping windows to the decision for the whole video.

    A second in only one window keeps the decision of that window. For a second in several windows, the event score is
    the mean of their scores. If the mean is at least 0.5, each of these windows with a score of at least 0.5 votes for
    its label. The weight of a vote is the category score of the window. The label with the largest sum wins. If the
    mean is less than 0.5, the second is background.

    Args:
        starts: the first second of each window; together they cover the video without gaps.
        decisions: the decisions of each window, of shape (1, seconds of the window).
        background: the label of background, which is the number of categories.

    Returns:
        Decision: of shape (1, T). The category score is the mean over the windows that have the label in that second,
        or over all of them if none has it.

    Raises:
        ValueError: if there is no window.

    Examples:
        >>> sure, unsure = torch.tensor([[0.9, 0.9]]), torch.tensor([[0.3, 0.1]])
        >>> first = Decision(torch.tensor([[1, 1]]), sure, sure)
        >>> second = Decision(torch.tensor([[2, 2]]), unsure, sure)
        >>> joined = join_windows([0, 1], [first, second], background=2)
        >>> joined.labels, joined.event_score
        (tensor([[1, 1, 2]]), tensor([[0.9000, 0.6000, 0.1000]]))
    """
    if not decisions:
        raise ValueError("decisions must have at least one window, got none")
    spans = [torch.arange(decision.labels.shape[1]) + start for start, decision in zip(starts, decisions, strict=True)]
    seconds = torch.cat(spans)  # the second of the video for each entry of the tensors below
    labels, event, category = (torch.cat([part[0] for part in parts]) for parts in zip(*decisions, strict=True))
    count = seconds.bincount()
    length = len(count)

    def add_up(values: Tensor) -> Tensor:
        return torch.zeros(length, dtype=values.dtype).index_add_(0, seconds, values)

    mean_event = add_up(event) / count
    known, places = labels.unique(return_inverse=True)
    votes = torch.zeros(length, len(known), dtype=category.dtype)
    votes.index_put_((seconds, places), category * (event >= 0.5), accumulate=True)
    joined = torch.where((mean_event >= 0.5) & votes.any(1), known[votes.argmax(1)], background)
    alone = count[seconds] == 1
    joined[seconds[alone]] = labels[alone]
    agrees = (labels == joined[seconds]).to(category.dtype)
    agreeing = add_up(agrees)
    mean_category = torch.where(
        agreeing > 0, add_up(agrees * category) / agreeing.clamp(min=1), add_up(category) / count
    )
    return Decision(joined[None], mean_event[None], mean_category[None])
