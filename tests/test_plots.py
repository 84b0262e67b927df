"""Timelines: what is drawn of videos with and without truth. How they look is for people to see."""

import pytest
import torch

from ave.plots import draw_timelines

CATEGORIES = ["Bark", "Clock"]
PREDICTION = torch.tensor([[2, 0, 0, 2, 2], [1, 1, 2, 2, 1], [2, 2, 2, 2, 2]])
SCORE = torch.tensor([[0.1, 0.9, 0.8, 0.2, 0.1], [0.7, 0.6, 0.0, 0.1, 1.0], [0.0, 0.1, 0.0, 0.1, 0.2]])


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_without_truth():
    """A strip of each video, under its name; one that looks like a formula is not taken for one."""
    names = ["a", "b_{", "$c$"]
    figure = draw_timelines(PREDICTION, SCORE, CATEGORIES, "$title", names=names)
    figure.draw_without_rendering()
    assert [axes.get_title(loc="left") for axes in figure.axes] == names
    assert [texts(axes) for axes in figure.axes] == [
        ["background", "Bark", "background"],
        ["Clock", "background", "Clock"],
        ["background"],
    ]
    assert [label.get_text() for label in figure.legends[0].get_texts()] == ["predicted event", "background"]
    strips = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert strips == ["predicted", "event score\n(dotted: 0.5)"]


def test_with_truth():
    truth = torch.tensor([[2, 0, 0, 0, 2], [1, 1, 2, 2, 1], [2, 2, 2, 2, 2]])
    figure = draw_timelines(PREDICTION, SCORE, CATEGORIES, "title", truth=truth)
    # Second 3 is wrong, so that it is a run of its own.
    true, predicted = ["background", "Bark", "background"], ["background", "Bark", "background", "background"]
    assert texts(figure.axes[0]) == [*true, *predicted]
    colors = [patch.get_facecolor() for patch in figure.axes[0].patches if hasattr(patch, "get_width")]
    assert colors[4] not in (colors[5], colors[0])
    assert colors[3] == colors[0] == colors[6]
    assert len(figure.legends[0].get_texts()) == 4
    strips = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert strips == ["predicted", "true", "event score\n(dotted: 0.5)"]


@pytest.mark.parametrize("longest", [1, 13, 61])
def test_videos_of_different_lengths(longest):
    lengths = [longest, 1]
    predictions, scores = ([draw[0].repeat(13)[:length] for length in lengths] for draw in (PREDICTION, SCORE))
    figure = draw_timelines(predictions, scores, CATEGORIES, "title")
    figure.draw_without_rendering()
    for axes, length in zip(figure.axes, lengths, strict=True):
        assert axes.get_xlim() == (0, longest)
        assert sum(patch.get_width() for patch in axes.patches if hasattr(patch, "get_width")) == length
        assert len(axes.get_xticks()) <= 14


def test_long_names_are_left_out_of_short_runs():
    figure = draw_timelines(PREDICTION, SCORE, ["Bark", "Fixed-wing aircraft, a plane"], "title")
    assert texts(figure.axes[1]) == ["Fixed-wing aircraft, a plane", "background", "…"]
