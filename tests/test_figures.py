"""Figures of the example: they show the given values, and text does not overlap.

The plots of the package are tested in test_attention_plots.py.
"""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from ave.data.dataset import AVE_CATEGORIES, AVEData
from ave.results.figures import (
    LEAST_PRINTED,
    choose_videos,
    draw_attention,
    draw_confusion,
    draw_examples,
    draw_learning_curves,
    draw_timelines,
    save_figures,
)
from ave.results.metrics import Epoch, Outcomes

FIELDS = ("loss", "val_accuracy", "test_accuracy")


def draw_history(epochs, seed=0):
    rng = np.random.default_rng(seed)
    return [Epoch(epoch, 5e-4, 3 * rng.random() + 1, rng.random(), rng.random()) for epoch in range(1, epochs + 1)]


def rendered(figure):
    """Render a figure; warnings of the layout are errors."""
    FigureCanvasAgg(figure).draw()
    return figure


def curves(figure):
    """Return the points of all lines, by panel and color."""
    loss, accuracy = figure.axes
    colors = {}
    for axes, names in ((loss, FIELDS[:1]), (accuracy, FIELDS[1:])):
        lines = list(axes.lines)
        for name, color in zip(names, dict.fromkeys(line.get_color() for line in lines), strict=True):
            colors[name] = [
                list(zip(*(np.asarray(points).tolist() for points in line.get_data()), strict=True))
                for line in lines
                if line.get_color() == color
            ]
    return colors


@pytest.mark.parametrize("lengths", [(1,), (2, 2), (11, 11, 11), (5, 13, 7), (200,) * 10, (1,) * 10])
def test_curves_show_every_epoch_of_every_run(lengths):
    histories = {seed: draw_history(length, seed) for seed, length in enumerate(lengths)}
    drawn = curves(rendered(draw_learning_curves(histories, "Some title")))
    for name in FIELDS:
        expected = []
        for history in histories.values():
            expected.append([(epoch.epoch, getattr(epoch, name)) for epoch in history])
            chosen = history[0]
            for epoch in history:
                if epoch.val_accuracy > chosen.val_accuracy:
                    chosen = epoch
            expected.append([(chosen.epoch, getattr(chosen, name))])
        if len(histories) > 1:
            common = range(min(lengths))
            expected.append(
                [
                    (epoch + 1, pytest.approx(sum(getattr(h[epoch], name) for h in histories.values()) / len(lengths)))
                    for epoch in common
                ]
            )
        assert drawn[name] == expected


def test_chosen_epoch_is_the_first_of_the_best():
    history = [Epoch(epoch, 5e-4, 1.0, val, 0.5) for epoch, val in enumerate((0.2, 0.7, 0.7, 0.1), 1)]
    drawn = curves(draw_learning_curves({3: history}, "Some title"))
    assert drawn["val_accuracy"][1] == [(2, 0.7)]
    assert drawn["test_accuracy"][1] == [(2, 0.5)]


def draw_counts(categories, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 7, (categories + 1, categories + 1))
    counts[np.diag_indices(categories + 1)] += rng.integers(0, 150, categories + 1)
    counts[1] = 0
    return counts.tolist()


@pytest.mark.parametrize("categories", [1, 3, 28])
def test_confusion_is_of_shares_of_the_truth(categories):
    counts = draw_counts(categories)
    axes, bar = rendered(draw_confusion(counts, AVE_CATEGORIES[:categories], "Some title")).axes
    shares, printed = axes.images[0].get_array(), {text.get_position(): text.get_text() for text in axes.texts}
    expected = {}
    for row in range(categories + 1):
        total = sum(counts[row])
        for column in range(categories + 1):
            if total == 0:
                assert np.ma.getmaskarray(shares)[row, column]
                continue
            share = counts[row][column] / total
            assert shares[row, column] == pytest.approx(share)
            if share >= LEAST_PRINTED:
                expected[column, row] = f"{100 * share:.0f}"
    assert printed == expected
    assert len(expected) > 0
    assert axes.yaxis_inverted()
    assert bar.get_ylabel() == "share of the true seconds"


def test_confusion_names_rows_and_columns_without_overlap():
    counts = draw_counts(28)
    axes = rendered(draw_confusion(counts, AVE_CATEGORIES, "Some title")).axes[0]
    names = [*AVE_CATEGORIES, "background"]
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{name}  ({sum(row)})" for name, row in zip(names, counts, strict=True)
    ]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels(), axes.texts):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(box.overlaps(other) for number, box in enumerate(boxes) for other in boxes[:number])
        assert all(axes.figure.bbox.containsx(x) for box in boxes for x in (box.x0, box.x1))
        assert all(axes.figure.bbox.containsy(y) for box in boxes for y in (box.y0, box.y1))


CATEGORIES = ["Bark", "Clock"]
PREDICTION = torch.tensor([[2, 0, 0, 2, 2], [1, 1, 2, 2, 1], [2, 2, 2, 2, 2]])
SCORE = torch.tensor([[0.1, 0.9, 0.8, 0.2, 0.1], [0.7, 0.6, 0.0, 0.1, 1.0], [0.0, 0.1, 0.0, 0.1, 0.2]])


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_without_truth():
    """Without true labels, each video has one strip, with its name as the title."""
    names = ["a", "b", "c"]
    figure = rendered(draw_timelines(PREDICTION, SCORE, CATEGORIES, "title", names=names))
    assert [axes.get_title(loc="left") for axes in figure.axes] == names
    assert [texts(axes) for axes in figure.axes] == [
        ["background", "Bark", "background"],
        ["Clock", "background", "Clock"],
        ["background"],
    ]
    assert legend(figure) == ["predicted event", "background"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "second"]


@pytest.mark.parametrize("truth", [None, PREDICTION[1:2]])
def test_only_what_occurs_is_in_the_legend_and_videos_keep_apart(truth):
    figure = draw_timelines(PREDICTION[1:2].expand(3, 5), SCORE[1:2].expand(3, 5), CATEGORIES, "title")
    if truth is not None:
        always = torch.ones(1, 5, dtype=torch.long)
        figure = draw_timelines(always.expand(3, 5), SCORE, CATEGORIES, "title", truth=always.expand(3, 5))
    rendered(figure)
    assert legend(figure) == (
        ["predicted event", "background"] if truth is None else ["true event", "predicted, right"]
    )
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert all(above.y0 - below.y1 > 5 for above, below in itertools.pairwise(boxes))
    for axes in figure.axes:
        (scale,) = axes.child_axes
        assert [label.get_text() for label in scale.get_yticklabels()] == ["0", "1"]


def test_with_truth():
    """With true labels, each video has a second strip above the prediction; there is one legend."""
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
    """All videos share one time axis, as long as the longest video."""
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
    """Spatial maps share one scale and outline the true cells in event seconds, beside the relations of the video."""
    generator = torch.Generator().manual_seed(0)
    spatial_map = torch.rand(2, segments, 3, 7, generator=generator)
    outcomes = Outcomes(
        truth=torch.tensor([[2] * segments, [1] + [2] * (segments - 1)]),
        prediction=torch.zeros(2, segments, dtype=torch.long),
        event_score=torch.full((2, segments), 0.5),
        lengths=torch.tensor([segments, segments]),
        spatial_map=spatial_map,
        relations=torch.rand(2, segments, 2 * segments, generator=generator).softmax(-1),
    )
    cells = torch.zeros(segments, 3, 7, dtype=torch.bool)
    cells[:, 1:, 4] = True
    decoy = torch.zeros(segments, 3, 7, dtype=torch.bool)
    decoy[-1, 2, 5] = True
    figure = draw_attention(outcomes, 1, CATEGORIES, "title", cells, decoy)
    figure.draw_without_rendering()
    maps = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(maps) == [f"{second} s: {'background' if second else 'Clock'}" for second in range(segments)]
    for second, axes in enumerate(maps.values()):
        expected = 21 * spatial_map[1]
        assert torch.equal(torch.tensor(axes.images[0].get_array().data).float(), expected[second])
        assert axes.images[0].get_clim() == (0, expected.max().item())
        crosses = [line for line in axes.lines if line.get_marker() == "x"]
        assert len(axes.lines) - len(crosses) == (6 if second == 0 else 0)  # of the outline of two cells
        places = [place for line in crosses for place in zip(*line.get_data(), strict=True)]
        assert places == ([(5, 2)] if second == segments - 1 else [])
    (relations,) = (axes for axes in figure.axes if axes.get_ylabel() == "second of the video segment (query)")
    assert torch.equal(torch.tensor(relations.images[0].get_array().data).float(), outcomes.relations[1])
    above = relations.child_axes[0].get_xticklabels()
    assert [label.get_text() for label in above] == ["to audio", "to video"]
    first, audio = outcomes.relations[1, 0], outcomes.relations[1, :, :segments].sum(1).mean()
    sentence = figure.subfigs[1].get_supxlabel()
    assert f"{audio:.0%} of the attention goes to audio" in sentence
    assert f"{first[0] + first[segments]:.0%} goes to event seconds (uniform: {1 / segments:.0%})" in sentence


HOSTILE = ["$a_{$ $b$", "\x1b[31mred\n\udcff", 50_000 * "long", "\N{BUG}\N{HANGUL SYLLABLE HAN}"]
"""Names as no formula, control characters, a byte that is not UTF-8, and glyphs that matplotlib's font lacks."""


def test_names_out_of_files_are_drawn_plain(tmp_path, capfd):
    """Names from files are drawn as plain text in every figure, without a warning."""
    labels = torch.arange(4).unsqueeze(1).expand(4, 5)
    outcomes = Outcomes(
        labels,
        labels,
        torch.zeros(4, 5),
        torch.full((4,), 5),
        torch.rand(4, 5, 2, 3),
        torch.rand(4, 5, 10),
    )
    data = AVEData(
        torch.zeros(4, 5, 2, 3, 1),
        torch.zeros(4, 5, 1),
        torch.zeros(4, 5, 5),
        {"test": torch.arange(4)},
        tuple(HOSTILE),
        tuple(HOSTILE),
    )
    figures = draw_examples(outcomes, data, "test", HOSTILE[0])
    figures["confusion.png"] = draw_confusion(np.eye(5, dtype=int), HOSTILE, HOSTILE[2])
    figures["curves.png"] = draw_learning_curves({0: draw_history(3)}, HOSTILE[3])
    save_figures(tmp_path, figures)
    assert {path.name for path in tmp_path.iterdir()} == set(figures)
    assert capfd.readouterr() == ("", "")
    for figure in figures.values():
        for text in figure.findobj(Text):
            assert not text.get_parse_math()
            assert text.get_text().replace("\n", "").isprintable()
            assert len(text.get_text()) < 250
    names = [label.get_text() for label in figures["confusion.png"].axes[0].get_xticklabels()]
    assert names[:2] == ["$a_{$ $b$", r"\x1b[31mred\n\udcff"]
    assert (names[2][:4], len(names[2])) == ("long", 40)


def test_caption_names_the_runs_that_still_climb():
    vals = {3: (0.1, 0.2, 0.3), 5: (0.1, 0.4, 0.4), 7: (0.2, 0.1, 0.5)}
    histories = {seed: [Epoch(e, 5e-4, 1.0, val, 0.5) for e, val in enumerate(run, 1)] for seed, run in vals.items()}
    caption = rendered(draw_learning_curves(histories, "title")).legends[0].get_title().get_text()
    assert caption.startswith("seed 3, 7: best on val at the last epoch")
    assert not draw_learning_curves({5: histories[5]}, "title").legends[0].get_title().get_text()


@pytest.mark.parametrize("seed", range(5))
def test_chosen_videos_are_of_different_categories(seed):
    """The drawn videos differ in category, although the first rows of the release are all of category 0."""
    category = torch.arange(10).repeat_interleave(7)
    labels = list(category.unsqueeze(1).expand(70, 5).clone())
    labels[3][2:] = labels[66][:2] = 10
    wrong = [video == 5 for video in range(70)]
    shown = choose_videos(labels, 10, 6, wrong, seed)
    assert shown[0] in (3, 66)
    assert 5 in shown
    assert len(set(shown)) == 6
    assert len({category[video].item() for video in shown}) == (6 if shown[0] == 66 else 5)
    assert shown == choose_videos(labels, 10, 6, wrong, seed) != choose_videos(labels, 10, 6, wrong, seed + 1)
    every = choose_videos(labels[:7], 10, 12, None, seed)
    assert sorted(every) == list(range(7))
    assert every[0] == 3
