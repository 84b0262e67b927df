"""Events and windows: the search for events, the cut into windows and the joining of decisions, against slow loops."""

import pytest
import torch

from ave.events import Event, cut_windows, find_events, join_windows
from ave.networks.localizer import Decision
from ave.networks.two_scores import Logits, decide
from crossmodal_attn import padding_mask
from oracles import slow_events


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_events(width, padded, draw):
    """Events equal a slow search, in both settings. Of four categories, the last is background."""
    logits = Logits(draw(53, 11) - 1, draw(53, width))
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 12, (53,), generator=generator) if padded else torch.full((53,), 11)
    mask = padding_mask(lengths, 11) if padded else None
    found = find_events(decide(logits, background=3), background=3, padding_mask=mask)
    expected = slow_events(logits, 3, lengths.tolist())
    assert found == [[(*event[:3], pytest.approx(event[3], abs=1e-6)) for event in events] for events in expected]
    assert any(len(events) > 1 for events in found)
    assert any(not events for events in found)


@pytest.mark.parametrize(
    ("event_logits", "spans"),
    [
        ([0.0, 0.0, 0.0], [(0, 3)]),
        ([-1.0, -1.0, -1.0], []),
        ([1.0, -1.0, 1.0], [(0, 1), (2, 3)]),
        ([-1.0, 1.0, 1.0], [(1, 3)]),
        ([1.0], [(0, 1)]),
    ],
)
def test_spans(event_logits, spans):
    logits = Logits(torch.tensor([event_logits]), torch.tensor([[0.0, 5.0]]))
    (events,) = find_events(decide(logits, background=2), background=2)
    assert [(event.start, event.end) for event in events] == spans
    assert all(0 <= event.score <= 1 and event.category == 1 for event in events)


def test_background_in_the_weak_setting_is_no_event():
    logits = Logits(torch.ones(1, 5), torch.tensor([[0.0, 1.0, 2.0]]))
    assert find_events(decide(logits, background=2), background=2) == [[]]


def test_events_of_different_categories_may_touch():
    decision = Decision(torch.tensor([[1, 1, 0, 2, 0]]), torch.full((1, 5), 0.5), torch.full((1, 5), 0.5))
    (events,) = find_events(decision, background=2)
    assert events == [Event(0, 2, 1, 0.25), Event(2, 3, 0, 0.25), Event(4, 5, 0, 0.25)]


def slow_join(starts, decisions, background):
    """Join the decisions of windows second by second: labels, event scores and category scores."""
    joined = []
    length = max(start + decision.labels.shape[1] for start, decision in zip(starts, decisions, strict=True))
    for second in range(length):
        here = [
            tuple(part[0, second - start].item() for part in decision)
            for start, decision in zip(starts, decisions, strict=True)
            if start <= second < start + decision.labels.shape[1]
        ]
        event = sum(score for _, score, _ in here) / len(here)
        label = background
        if len(here) == 1:
            label = here[0][0]
        elif event >= 0.5:
            votes = {}
            for own, score, certainty in here:
                if score >= 0.5:
                    votes[own] = votes.get(own, 0.0) + certainty
            label = max(sorted(votes), key=votes.get)
        certainties = [certainty for own, _, certainty in here if own == label] or [part[2] for part in here]
        joined.append((label, event, sum(certainties) / len(certainties)))
    return [list(part) for part in zip(*joined, strict=True)]


@pytest.mark.parametrize(("length", "window"), [(53, 7), (23, 2), (19, 1), (29, 10), (3, 5), (11, 11), (13, 0)])
@pytest.mark.parametrize("width", [3, 4])
def test_joined_windows(length, window, width, draw):
    """Joined decisions equal slow loops, in both settings. Of four categories, the last is background."""
    windows = list(cut_windows(range(length), window))
    decisions = [decide(Logits(draw(1, len(items)), draw(1, width)), background=3) for _, items in windows]
    joined = join_windows([start for start, _ in windows], decisions, background=3)
    labels, event, category = slow_join([start for start, _ in windows], decisions, 3)
    assert joined.labels.tolist() == [labels]
    assert joined.event_score.tolist() == [pytest.approx(event, abs=1e-12)]
    assert joined.category_score.tolist() == [pytest.approx(category, abs=1e-12)]
    if len(windows) == 1:
        for part, own in zip(joined, decisions[0], strict=True):
            assert torch.equal(part, own)


@pytest.mark.parametrize("window", range(8))
@pytest.mark.parametrize("length", range(20))
def test_windows_are_full_and_overlap_by_half(length, window):
    """Windows cover every second and start half a window apart, except the last, which ends with the video."""
    windows = list(cut_windows(iter(range(length)), window))
    assert all(items == list(range(start, start + len(items))) for start, items in windows)
    assert {second for _, items in windows for second in items} == set(range(length))
    if window == 0 or length <= window:
        assert len(windows) == (length > 0)
        return
    assert all(len(items) == window for _, items in windows)
    starts = [start for start, _ in windows]
    assert starts[-1] == length - window
    assert starts[:-1] == [place * ((window + 1) // 2) for place in range(len(starts) - 1)]
    assert starts == sorted(set(starts))


def test_windows_of_a_stream_are_cut_while_it_is_read():
    """A window is complete as soon as its last second is read, so only its seconds have to be in memory."""
    read = []
    for start, items in cut_windows((read.append(second) or second for second in range(101)), 10):
        assert len(read) == start + len(items)


def test_touching_events_of_one_category_are_joined():
    """Two windows that meet in the middle of an event, and a third with another category."""
    scores = torch.full((1, 4), 0.75)
    decisions = [Decision(torch.full((1, 4), label), scores, scores) for label in (1, 1, 0)]
    joined = join_windows([0, 2, 6], decisions, background=2)
    assert find_events(joined, background=2) == [[Event(0, 6, 1, 0.75**2), Event(6, 10, 0, 0.75**2)]]
