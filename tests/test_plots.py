"""The main job's pictures: which videos and maps stand where. What is drawn of each is for test_attention_plots.py."""

import pytest
import torch
from matplotlib.patches import Rectangle

from ave.evaluation import Outcomes
from ave.plots import draw_attention, draw_timelines

CATEGORIES = ["Bark", "Clock"]
PREDICTION = torch.tensor([[2, 0, 0, 2, 2], [1, 1, 2, 2, 1], [2, 2, 2, 2, 2]])
SCORE = torch.tensor([[0.1, 0.9, 0.8, 0.2, 0.1], [0.7, 0.6, 0.0, 0.1, 1.0], [0.0, 0.1, 0.0, 0.1, 0.2]])


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


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
    assert legend(figure) == ["predicted event", "background"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "second"]


def test_with_truth():
    """Of each video, below the truth, and one legend for all."""
    truth = torch.tensor([[2, 0, 0, 0, 2], [1, 1, 2, 2, 1], [2, 2, 2, 2, 2]])
    figure = draw_timelines(PREDICTION, SCORE, CATEGORIES, "title", truth=truth)
    # Second 3 is wrong, so that it is a run of its own.
    true, predicted = ["background", "Bark", "background"], ["background", "Bark", "background", "background"]
    assert texts(figure.axes[0]) == [*predicted, *true]
    assert legend(figure) == ["true event", "predicted, right", "predicted, wrong", "background"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "predicted",
        "true",
        "event score\n(dotted: 0.5)",
    ]


@pytest.mark.parametrize("longest", [1, 13, 61])
@pytest.mark.parametrize("order", [1, -1])
def test_videos_of_different_lengths(longest, order):
    """All on one scale of seconds, whichever is the longest."""
    lengths = [longest, 1][::order]
    predictions, scores = ([draw[0].repeat(13)[:length] for length in lengths] for draw in (PREDICTION, SCORE))
    figure = draw_timelines(predictions, scores, CATEGORIES, "title")
    figure.draw_without_rendering()
    for axes, length in zip(figure.axes, lengths, strict=True):
        assert axes.get_xlim() == (0, longest)
        assert sum(patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)) == length
        assert len(axes.get_xticks()) <= 14


@pytest.mark.parametrize("segments", [1, 5, 7])
def test_attention_of_one_video(segments):
    """A map a second on one scale, the true cells outlined, beside the relations of the same video."""
    generator = torch.Generator().manual_seed(0)
    outcomes = Outcomes(
        truth=torch.randint(0, 3, (2, segments), generator=generator),
        prediction=torch.zeros(2, segments, dtype=torch.long),
        event_score=torch.zeros(2, segments),
        spatial_map=torch.rand(2, segments, 3, 7, generator=generator),
        relations=torch.rand(2, segments, 2 * segments, generator=generator),
    )
    cells = torch.zeros(segments, 3, 7, dtype=torch.bool)
    cells[0, 1:, 4] = True
    figure = draw_attention(outcomes, 1, CATEGORIES, "title", cells)
    figure.draw_without_rendering()
    names = [*CATEGORIES, "background"]
    maps = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(maps) == [f"{second} s: {names[label]}" for second, label in enumerate(outcomes.truth[1])]
    for second, axes in enumerate(maps.values()):
        assert torch.equal(torch.tensor(axes.images[0].get_array().data).float(), outcomes.spatial_map[1, second])
        assert axes.images[0].get_clim() == (0, outcomes.spatial_map[1].max().item())
        assert len(axes.lines) == (6 if second == 0 else 0)  # of the outline of two cells
    (relations,) = (axes for axes in figure.axes if axes.get_ylabel() == "second of the video segment (query)")
    assert torch.equal(torch.tensor(relations.images[0].get_array().data).float(), outcomes.relations[1])
    above = relations.child_axes[0].get_xticklabels()
    assert [label.get_text() for label in above] == ["to audio", "to video"]
