"""The plots show the given values at the right places. Their appearance is not tested."""

import importlib
import io
import pickle
import re
import subprocess
import sys
from itertools import combinations, pairwise

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

from crossmodal_attn import AGSCA, CMRA
from crossmodal_attn.plots import COLORS, plot_relations, plot_spatial_attention, plot_timeline

CATEGORIES = ["Bark", "Clock", "Fixed-wing aircraft, airplane"]
BACKGROUND = len(CATEGORIES)
ONE_OF_EACH = [
    (plot_relations, (np.eye(5), [2, 3]), {}),
    (plot_spatial_attention, (np.eye(5),), {}),
    (plot_timeline, ([0, 1],), {"categories": CATEGORIES}),
]


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


def rendered(ax):
    """Draw a figure, so that its layout is final."""
    ax.figure.savefig(io.BytesIO())
    return ax


def tick_labels(axis):
    return dict(zip(axis.get_ticklocs(), (label.get_text() for label in axis.get_ticklabels()), strict=True))


KINDS = {
    "float64 array": lambda values: values,
    "float16 array": lambda values: values.astype(np.float16),
    "read-only array": lambda values: np.broadcast_to(values, values.shape),
    "list": lambda values: values.tolist(),
    "float32 tensor": lambda values: torch.tensor(values, dtype=torch.float32),
    "bfloat16 tensor": lambda values: torch.tensor(values, dtype=torch.bfloat16),
    "tensor with gradient": lambda values: torch.tensor(values, requires_grad=True) * 1,
    "transposed tensor": lambda values: torch.tensor(values.T).T,
    "tensor of inference": lambda values: torch.inference_mode()(torch.tensor)(values),
}


@pytest.fixture(params=KINDS)
def convert(request):
    """Return a conversion to a type of input; multiples of 1/8 are exact in all of them."""
    return KINDS[request.param]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
        pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device")),
    ],
)
def test_what_the_layers_return_is_drawn_as_it_is(device):
    """Plots take the weights of the layers with their gradients, from any device, and average the heads."""
    video, audio = torch.rand(2, 5, 3, 7, 11, device=device), torch.rand(2, 5, 13, device=device)
    seen, _, spatial_map = AGSCA(11, 13, 17, device=device)(video, audio, need_weights=True)
    weights = CMRA(11, 1, context_dim=13, device=device)(seen, audio, need_weights=True)[1]
    assert weights.requires_grad
    assert spatial_map.requires_grad
    ax = plot_relations(weights[1], [5, 5], ["audio", "video"])
    np.testing.assert_allclose(ax.images[0].get_array(), weights[1].detach().cpu().mean(0), rtol=1e-6)
    ax = plot_spatial_attention(spatial_map[1, 3])
    np.testing.assert_allclose(ax.images[0].get_array(), spatial_map[1, 3].detach().cpu(), rtol=1e-6)


class TestRelations:
    def test_map_is_split_by_memory(self, ax, draw, convert):
        """Rows are query segments from top to bottom; columns are the memories, each numbered from zero."""
        weights = draw(5, 12).mul(8).round().abs().numpy() / 8
        assert plot_relations(convert(weights), [3, 2, 7], ["audio", "$text_{", "video"], ax=ax) is ax
        image = ax.images[0]
        np.testing.assert_array_equal(image.get_array(), weights)
        assert tuple(image.get_extent()) == (-0.5, 11.5, 4.5, -0.5)
        assert image.get_clim() == (0, weights.max())
        assert [list(line.get_xdata()) for line in ax.lines] == [[2.5, 2.5], [4.5, 4.5]]
        assert list(tick_labels(ax.xaxis).items()) == list(enumerate("012010123456"))
        assert list(tick_labels(ax.yaxis).items()) == list(enumerate("01234"))
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("memory segment", "query segment")
        (above,) = ax.child_axes
        assert tick_labels(above.xaxis) == {1: "audio", 3.5: "$text_{", 8: "video"}
        rendered(ax)
        assert ax.get_xlim() == (-0.5, 11.5)
        assert ax.get_ylim() == (4.5, -0.5)

    def test_heads_are_averaged(self, draw):
        weights = draw(3, 5, 7).abs()
        ax = plot_relations(weights, [7])
        expected = sum(weights[head].numpy() for head in range(3)) / 3
        np.testing.assert_allclose(ax.images[0].get_array(), expected)
        bar = ax.figure.axes[1]
        assert bar.get_ylabel() == "attention, mean over heads"
        assert plot_relations(weights[0], [7]).figure.axes[1].get_ylabel() == "attention"

    def test_one_memory_without_a_name(self, ax):
        plot_relations(np.eye(5), [5], ax=ax)
        assert len(ax.lines) == len(ax.child_axes) == 0

    @pytest.mark.parametrize("size", [(8, 4.5), (2.5, 1.7)])
    @pytest.mark.parametrize(
        ("query", "lengths"),
        [(1, [1]), (11, [13, 11]), (61, [61, 59, 2]), (601, [1999, 1]), (5, [25, 2000]), (2, [1] * 61)],
    )
    def test_ticks_have_room(self, size, query, lengths):
        """Tick labels do not overlap at any size, and each memory is numbered from zero."""
        ax = Figure(size, layout="constrained").subplots()
        plot_relations(np.zeros((query, sum(lengths))), lengths, ax=ax)
        rendered(ax)
        columns, rows = tick_labels(ax.xaxis), tick_labels(ax.yaxis)
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        for place, label in columns.items():
            start = max(start for start in starts if start <= place)
            assert place == start + int(label)
        assert 0 in columns
        assert max(columns) < sum(lengths)
        assert all(str(place) == label for place, label in rows.items())
        assert min(query, 3) <= len(rows) <= 20
        assert max(rows) < query
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
        boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
        assert all(one.y0 > other.y1 for one, other in pairwise(boxes))

    def test_every_memory_with_room_starts_with_zero(self, ax):
        plot_relations(np.zeros((5, 122)), [61, 59, 2], ax=ax)
        rendered(ax)
        assert {0, 61, 120} <= set(ax.get_xticks())

    @pytest.mark.parametrize("width", [2.5, 4, 8])
    @pytest.mark.parametrize("lengths", [[40, 3, 10, 10], [25, 2000, 7, 3], [10, 12, 11, 13], [1, 1, 1, 1]])
    def test_names_have_room(self, lengths, width):
        """Names that would overlap move up, and no more than needed."""
        names = ["audio", "text", "the depth\nof the picture", "video"]
        ax = Figure((width, 3), layout="constrained").subplots()
        plot_relations(np.zeros((5, sum(lengths))), lengths, names, ax=ax)
        rendered(ax)
        labels = ax.child_axes[0].get_xticklabels()
        assert [label.get_text().rstrip("\n") for label in labels] == names
        boxes = []
        for label in labels:
            box, lines = label.get_window_extent(), label.get_text().count("\n") + 1
            lifted = len(label.get_text()) - len(label.get_text().rstrip("\n"))
            boxes.append((box.x0, box.x1, box.y0 + box.height * lifted / lines, box.y1))
        for one, other in combinations(boxes, 2):
            beside = one[1] < other[0] or other[1] < one[0]
            assert beside or one[3] <= other[2] + 1 or other[3] <= one[2] + 1
        if (lengths, width) == ([10, 12, 11, 13], 8):
            assert [label.get_text() for label in labels] == names

    def test_a_memory_of_length_zero_is_not_seen(self, ax):
        plot_relations(np.eye(5), [0, 3, 0, 2, 0], ["none", "audio", "text", "video", "touch"], ax=ax)
        rendered(ax)
        assert [list(line.get_xdata()) for line in ax.lines] == [[2.5, 2.5]]
        assert list(tick_labels(ax.xaxis).items()) == list(enumerate("01201"))
        assert tick_labels(ax.child_axes[0].xaxis) == {1: "audio", 3.5: "video"}

    def test_zooming_in_numbers_more_closely(self, ax):
        plot_relations(np.zeros((5, 600)), [25, 575], ax=ax)
        ax.set_xlim(22.5, 34.5)
        rendered(ax)
        assert list(tick_labels(ax.xaxis).items()) == list(zip(range(23, 35), ["23", "24", *"0123456789"], strict=True))

    def test_figure_can_be_pickled(self):
        """A figure without names can be pickled; matplotlib cannot pickle the axis of names."""
        ax = plot_relations(np.eye(5), [3, 2])
        figure = pickle.loads(pickle.dumps(ax.figure))  # noqa: S301
        assert tick_labels(figure.axes[0].xaxis) == tick_labels(ax.xaxis)

    def test_scale_can_be_shared(self, ax):
        plot_relations(np.eye(5) / 8, [5], vmax=0.5, ax=ax)
        assert ax.images[0].get_clim() == (0, 0.5)

    def test_title_keeps_clear_of_the_names(self):
        ax = plot_relations(np.eye(5), [3, 2], ["audio", "video"])
        ax.set_title("Title")
        rendered(ax)
        names = [label.get_window_extent() for label in ax.child_axes[0].get_xticklabels()]
        assert all(ax.title.get_window_extent().y0 > box.y1 > box.y0 > ax.bbox.y1 for box in names)

    @pytest.mark.parametrize(
        ("weights", "lengths", "names", "error", "message"),
        [
            (np.ones(5), [5], None, ValueError, r"weights must have shape \(query length, .*one video, got \(5,\)"),
            (np.ones((2, 3, 5, 7)), [7], None, ValueError, r"weights .* for one video, got \(2, 3, 5, 7\)"),
            (np.ones((0, 7)), [7], None, ValueError, r"weights must have shape .*, got \(0, 7\)"),
            (np.ones((5, 7)), [5, 3], None, ValueError, r"lengths must sum to .* of weights, 7, got \[5, 3\]"),
            (np.ones((5, 7)), [8, -1], None, ValueError, r"lengths\[1\] must be at least 0, got -1"),
            (
                np.where(np.eye(5) > 0, np.nan, 1),
                [5],
                None,
                ValueError,
                "at least 0, got NaN in 5 of 25 entries: some layers",
            ),
            (np.ones((5, 7)), [3.5, 3.5], None, TypeError, r"lengths\[0\] must be an int, got float"),
            (np.ones((5, 7)), [5, 2], ["a"], ValueError, r"names must have one name for each of the 2 lengths, got"),
            (
                [[-1.0, 2]],
                [2],
                None,
                ValueError,
                "weights must be finite and at least 0, got -1 to 2: .* apply softmax",
            ),
            ([["a"]], [1], None, TypeError, "weights must contain real numbers, got <U1"),
            ([[1], [2, 3]], [1], None, ValueError, "weights must be a tensor, an array, or lists of equal"),
            (np.ones((5, 7), complex), [7], None, TypeError, "weights must contain real numbers, got complex128"),
        ],
    )
    def test_errors(self, ax, weights, lengths, names, error, message):
        with pytest.raises(error, match=message):
            plot_relations(weights, lengths, names, ax=ax)
        assert not ax.has_data()


class TestSpatialAttention:
    def test_plain_grid_has_cells_at_whole_numbers(self, ax, draw, convert):
        weights = draw(3, 7).mul(8).round().abs().numpy() / 8
        assert plot_spatial_attention(convert(weights), ax=ax) is ax
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array(), weights)
        assert tuple(image.get_extent()) == (-0.5, 6.5, 2.5, -0.5)
        assert image.get_clim() == (0, weights.max())
        assert image.get_interpolation() == "nearest"
        assert image.get_alpha() is None
        assert list(ax.get_xticks()) == list(ax.get_yticks()) == []
        rendered(ax)

    @pytest.mark.parametrize("channels", [None, 1, 3, 4])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
    def test_map_covers_the_frame(self, ax, channels, dtype):
        """The map covers the pixels of the frame; uint8 and floating-point frames give the same picture."""
        pixels = torch.randint(0, 2, (23, 31, *([] if channels is None else [channels]))) * 255
        frame = pixels.to(dtype) if dtype == torch.uint8 else (pixels / 255).to(dtype)
        plot_spatial_attention(np.eye(5), frame, alpha=0.25, interpolation="bilinear", vmax=2, ax=ax)
        below, above = ax.images
        np.testing.assert_array_equal(np.squeeze(below.get_array()), np.squeeze(pixels.numpy() / 255))
        assert below.get_clim() == (0, 1)
        assert tuple(above.get_extent()) == tuple(below.get_extent()) == (-0.5, 30.5, 22.5, -0.5)
        assert above.get_array().shape == (5, 5)
        assert (above.get_alpha(), above.get_interpolation(), above.get_clim()) == (0.25, "bilinear", (0, 2))
        assert below.get_alpha() is None
        assert below.get_zorder() <= above.get_zorder()
        rendered(ax)
        assert ax.get_aspect() == 1

    def test_no_attention_at_all(self):
        """A map of zeros is drawn without a warning."""
        ax = rendered(plot_spatial_attention(np.zeros((5, 7)), np.zeros((11, 13))))
        assert not ax.images[1].get_array().any()

    def test_color_bar_says_what_uniform_would_be(self):
        for frame, label in ((None, "attention (uniform: 0.048)"), (np.zeros((11, 13)), "attention (uniform: 0.048)")):
            ax = rendered(plot_spatial_attention(np.ones((3, 7)) / 21, frame))
            assert ax.figure.axes[1].get_ylabel() == label

    @pytest.mark.parametrize(
        ("weights", "frame", "error", "message"),
        [
            (np.ones(49), None, ValueError, r"weights must have shape \(height, width\), .* one segment, got \(49,\)"),
            (np.ones((2, 7, 7)), None, ValueError, r"weights must have shape .*, got \(2, 7, 7\)"),
            (np.ones((0, 7)), None, ValueError, r"weights must have shape .*, got \(0, 7\)"),
            ([[np.inf, 0]], None, ValueError, "weights must be finite and at least 0, got 0 to inf"),
            ([[np.nan, 0]], None, ValueError, "weights must be finite and at least 0, got NaN in 1 of 2 entries"),
            (np.eye(7), np.ones(5), ValueError, r"frame must have shape .*, got \(5,\)$"),
            (np.eye(7), np.ones((5, 7, 2)), ValueError, r"frame must have shape .*, got \(5, 7, 2\)$"),
            (
                np.eye(7),
                np.ones((3, 5, 7)),
                ValueError,
                r"got \(3, 5, 7\): move the channels last, as with frame.permute",
            ),
            (np.eye(7), np.full((5, 7, 3), 255.0), ValueError, r"must be in \[0, 1\], got 255 to 255"),
            (
                np.eye(7),
                np.full((5, 7), np.nan),
                ValueError,
                r"must be in \[0, 1\], got NaN in 35 of 35 entries$",
            ),
            (np.eye(7), np.ones((5, 7), dtype=np.int64), TypeError, "frame must be uint8, or floating .*, got int64"),
            (np.eye(7), "frame.png", TypeError, "frame must contain real numbers, got <U9"),
        ],
    )
    def test_errors(self, ax, weights, frame, error, message):
        with pytest.raises(error, match=message):
            plot_spatial_attention(weights, frame, ax=ax)
        assert not ax.has_data()


def strip(ax, row, length):
    """Return the color and the name of each segment of a row; neighboring boxes must differ."""
    boxes = [box for box in ax.patches if isinstance(box, Rectangle) and box.get_width() and int(box.get_y()) == row]
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    boxes.sort(key=Rectangle.get_x)
    stretches = [(box.get_facecolor(), texts[tuple(box.get_center())]) for box in boxes]
    assert all(one != other for one, other in pairwise(stretches))
    segments = []
    for box, stretch in zip(boxes, stretches, strict=True):
        assert box.get_x() == len(segments)
        segments += [stretch] * int(box.get_width())
    assert len(segments) == length
    return segments


class TestTimeline:
    @pytest.mark.parametrize("length", [1, 2, 13, 61])
    def test_every_segment_has_its_label_and_color(self, ax, length):
        generator = torch.Generator().manual_seed(length)
        truth, prediction = torch.randint(0, BACKGROUND + 1, (2, length), generator=generator)
        score = torch.rand(length, generator=generator)
        assert plot_timeline(prediction, score, truth, categories=CATEGORIES, ax=ax) is ax
        names = [*CATEGORIES, "background"]
        predicted, true = strip(ax, 0, length), strip(ax, 1, length)
        for segment in range(length):
            said, was = int(prediction[segment]), int(truth[segment])
            quiet = said == BACKGROUND
            kind = ("background" if quiet else "predicted, right") if said == was else "predicted, wrong"
            assert predicted[segment] == (to_rgba(COLORS[kind]), names[said])
            kind = "background" if was == BACKGROUND else "true event"
            assert true[segment] == (to_rgba(COLORS[kind]), names[was])
        for steps in (patch.get_data() for patch in ax.patches if isinstance(patch, StepPatch)):
            np.testing.assert_array_equal(steps.edges, np.arange(length + 1))
            np.testing.assert_allclose(steps.values, 2.15 + 0.8 * score.numpy())
        assert len([patch for patch in ax.patches if isinstance(patch, StepPatch)]) == 2
        assert list(tick_labels(ax.yaxis).values()) == ["predicted", "true", "event score\n(dotted: 0.5)"]
        assert ax.get_xlim() == (0, length)
        assert len(ax.get_xticks()) <= 14
        assert all(float(tick).is_integer() for tick in ax.get_xticks())
        rendered(ax)

    def test_without_truth_nothing_is_judged(self, ax):
        plot_timeline(np.array([3, 0, 0, 1]), categories=CATEGORIES, ax=ax)
        colors = {name: to_rgba(COLORS[name]) for name in ("background", "predicted event")}
        event = colors["predicted event"]
        expected = [(colors["background"], "background"), (event, "Bark"), (event, "Bark"), (event, "Clock")]
        assert strip(ax, 0, 4) == expected
        assert list(tick_labels(ax.yaxis).values()) == ["predicted"]
        assert ax.get_legend_handles_labels()[1] == ["predicted event", "background"]
        assert not ax.lines

    def test_threshold_is_drawn_where_the_score_reaches_it(self, ax):
        plot_timeline([0, 3], [0.25, 0.25], categories=CATEGORIES, threshold=0.25, ax=ax)
        steps = next(patch.get_data() for patch in ax.patches if isinstance(patch, StepPatch))
        assert list(ax.lines[0].get_ydata()) == list(steps.values)
        assert list(tick_labels(ax.yaxis).values()) == ["predicted", "event score\n(dotted: 0.25)"]

    def test_scores_of_every_kind(self, ax, convert):
        score = np.array([[0.125, 1.0, 0.0]])
        plot_timeline([0, 1, 2], convert(score)[0], categories=CATEGORIES, ax=ax)
        steps = next(patch.get_data() for patch in ax.patches if isinstance(patch, StepPatch))
        np.testing.assert_allclose(steps.values, 1.15 + 0.8 * score[0])

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
    def test_labels_of_every_kind(self, ax, dtype):
        labels = torch.tensor([3, 0, 0, 1], dtype=dtype)
        plot_timeline(labels, truth=labels.numpy(), categories=CATEGORIES, ax=ax)
        assert [name for _, name in strip(ax, 1, 4)] == ["background", "Bark", "Bark", "Clock"]
        assert to_rgba(COLORS["predicted, wrong"]) not in {color for color, _ in strip(ax, 0, 4)}

    def test_legend_explains_every_color_once(self):
        ax = plot_timeline([0, 3], categories=CATEGORIES, truth=[0, 3])
        (legend,) = rendered(ax).figure.legends
        colors = {
            text.get_text(): patch.get_facecolor()
            for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
        }
        kinds = ("predicted, right", "predicted, wrong", "background", "true event")
        assert colors == {kind: to_rgba(COLORS[kind]) for kind in kinds}

    def test_names_are_written_as_they_fit(self):
        """Names are written on one line, on two, or not at all, and are not read as formulas."""
        figure = Figure(layout="constrained")
        categories = ["Fixed-wing aircraft, airplane", "$a_{", "Bark"]
        plot_timeline([0, 0, 1, 2], categories=categories, ax=figure.subplots())
        # In boxes of ever less room, and of more again.
        for size, written in {
            (12, 2): ["Fixed-wing aircraft, airplane", "$a_{", "Bark"],
            (3.4, 2): ["Fixed-wing", "aircraft, airplane", "$a_{", "Bark"],
            (3.4, 0.7): ["…", "$a_{", "Bark"],
            (2.5, 2): ["…", "$a_{", "Bark"],
            (13, 2): ["Fixed-wing aircraft, airplane", "$a_{", "Bark"],
        }.items():
            figure.set_size_inches(size)
            with mpl.rc_context({"svg.fonttype": "none"}):
                figure.savefig(picture := io.StringIO(), format="svg")
            texts = re.findall(r"<(?:text|tspan)[^>]*>([^<\n]+)<", picture.getvalue())
            assert [
                text for text in texts if text in {"…", "Bark", "$a_{"} or "air" in text or "wing" in text
            ] == written

    @pytest.mark.parametrize(
        ("prediction", "event_score", "truth", "error", "message"),
        [
            ([[0, 1]], None, None, ValueError, r"prediction must have shape \(length,\), .* one video, got \(1, 2\)"),
            (torch.zeros(0, dtype=torch.long), None, None, ValueError, r"prediction must have shape .*, got \(0,\)"),
            ([0.0, 1.0], None, None, TypeError, "prediction must contain integer labels, got float64"),
            ([True], None, None, TypeError, "prediction must contain integer labels, got bool"),
            ([0, 4], None, None, ValueError, r"prediction must contain labels from 0 to 3 \(background\), got 0 to 4"),
            ([0, 1], None, [-1, 1], ValueError, r"truth must contain labels from 0 to 3 \(background\), got -1 to 1"),
            ([0, 1], None, [0], ValueError, "truth must have the length of prediction, 2, got 1"),
            ([0, 1], [0.5], None, ValueError, r"event_score must have the shape of prediction, \(2,\), got \(1,\)"),
            ([0, 1], [-2.0, 3], None, ValueError, r"event_score must be in \[0, 1\], got -2 to 3: .* apply sigmoid"),
            ([0, 1], [0.5, np.nan], None, ValueError, r"event_score must be in \[0, 1\], got NaN in 1 of 2 entries$"),
            ([0, 1], ["a", "b"], None, TypeError, "event_score must contain real numbers, got <U1"),
        ],
    )
    def test_errors(self, ax, prediction, event_score, truth, error, message):
        with pytest.raises(error, match=message):
            plot_timeline(prediction, event_score, truth, categories=CATEGORIES, ax=ax)
        assert not ax.has_data()


@pytest.mark.parametrize(("plot", "arguments", "options"), ONE_OF_EACH)
class TestAxes:
    def test_given_axes_are_all_that_is_touched(self, plot, arguments, options):
        """Plots draw only into the given Axes, also in a subfigure, without pyplot."""
        figure = Figure(layout="constrained")
        left, right = figure.subfigures(1, 2)
        first, second, third = *left.subplots(2), right.subplots()
        for ax in (first, third):
            assert plot(*arguments, **options, ax=ax) is ax
            assert ax.has_data()
        assert figure.axes == [first, second, third]
        assert not second.has_data()
        assert [*figure.legends, *left.legends, *right.legends] == []
        assert pyplot.get_fignums() == []
        figure.savefig(io.BytesIO())

    def test_without_axes_a_figure_is_made(self, plot, arguments, options):
        """Each call makes a new pyplot figure with a color bar or a legend."""
        before = pyplot.figure().subplots()
        one, other = plot(*arguments, **options), plot(*arguments, **options)
        assert len({ax.figure for ax in (before, one, other)}) == 3
        assert pyplot.gcf() is other.figure
        assert not before.has_data()
        assert len(one.figure.axes) - 1 + len(one.figure.legends) == 1
        rendered(one)

    def test_other_things_than_axes(self, plot, arguments, options):
        figure = Figure()
        for ax, kind in ((figure, "Figure"), (figure.subplots(2), "ndarray")):
            with pytest.raises(TypeError, match=f"ax must be a matplotlib Axes, got {kind}"):
                plot(*arguments, **options, ax=ax)


def test_nothing_is_imported_before_it_is_needed():
    """The package does not import matplotlib, and plots in given Axes do not import pyplot."""
    script = """
import sys, crossmodal_attn
assert "matplotlib" not in sys.modules
from matplotlib.figure import Figure
from crossmodal_attn.plots import plot_relations, plot_spatial_attention, plot_timeline
axes = Figure().subplots(3)
plot_relations([[0.5, 0.5]], [1, 1], ax=axes[0])
plot_spatial_attention([[0.5, 0.5]], ax=axes[1])
plot_timeline([0], categories=["Bark"], ax=axes[2])
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)  # noqa: S603


def test_without_matplotlib_the_import_says_what_to_install(monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "crossmodal_attn.plots")
    with pytest.raises(ImportError, match=r"needs matplotlib.*pip install 'crossmodal-attn\[plots\]'"):
        importlib.import_module("crossmodal_attn.plots")
