"""Charts of a training: what they draw is what they were given, and it can be read."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ave.charts import LEAST_PRINTED, draw_confusion, draw_learning_curves
from ave.data import AVE_CATEGORIES
from ave.training import Epoch

FIELDS = ("loss", "val_accuracy", "test_accuracy")


def draw_history(epochs, seed=0):
    rng = np.random.default_rng(seed)
    return [Epoch(epoch, 5e-4, 3 * rng.random() + 1, rng.random(), rng.random()) for epoch in range(1, epochs + 1)]


def rendered(figure):
    """Draw it as a picture is; warnings of the layout are errors."""
    FigureCanvasAgg(figure).draw()
    return figure


def curves(figure):
    """The points of all lines by panel and color."""
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


@pytest.mark.parametrize("histories", [{}, {3: []}, {3: draw_history(2), 5: []}])
def test_curves_need_an_epoch(histories):
    with pytest.raises(ValueError, match="histories must hold runs of at least one epoch, got seeds"):
        draw_learning_curves(histories, "Some title")


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


def test_confusion_needs_a_row_and_column_for_every_label():
    with pytest.raises(ValueError, match=r"confusion must have shape \(4, 4\), .*, got \(3, 3\)"):
        draw_confusion([[1, 0, 0], [0, 1, 0], [0, 0, 1]], AVE_CATEGORIES[:3], "Some title")
