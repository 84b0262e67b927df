"""Draw attention over segments, attention over space, and predictions over time.

Each function draws into a matplotlib Axes and returns it. Without an Axes it makes a figure with a color bar or a
legend. No figure is shown or saved. Inputs may be tensors of any device and dtype, arrays or lists.
Dimensions: T query length, M memory length, h x w cells.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate, count, groupby
from typing import Any

from torch import Tensor

from crossmodal_attn._checks import check_size

try:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.backend_bases import RendererBase
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text
    from matplotlib.textpath import text_to_path
    from matplotlib.ticker import Formatter, Locator, MaxNLocator
    from numpy.typing import ArrayLike, NDArray
except ImportError as _error:
    raise ImportError(
        "crossmodal_attn.plots needs matplotlib, which could not be imported: pip install 'crossmodal-attn[plots]'"
    ) from _error

__all__ = ["plot_relations", "plot_spatial_attention", "plot_timeline"]

# Colors that are safe for color blindness; blue, green and vermilion are from Okabe and Ito.
COLORS = {
    "true event": "#0072b2",
    "predicted event": "#7a68a6",
    "predicted, right": "#009e73",
    "predicted, wrong": "#d55e00",
    "background": "#e6e6e6",
}
"""The color of each kind of box in a timeline."""
STRIP_HEIGHT, SCORE_HEIGHT = 0.9, 0.8
"""Heights in a timeline, whose rows have a height of 1."""


def plot_relations(
    weights: Tensor | ArrayLike,
    lengths: Sequence[int],
    names: Sequence[str] | None = None,
    *,
    vmax: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw attention weights as an image: a row for each query segment, a column for each memory segment.

    Each memory is a block of columns with its own numbers from zero. White lines separate the blocks. Where space is
    short, tick numbers are left out and names move up, so that no two overlap. The axis labels are "query segment" and
    "memory segment"; change them with ``ax.set(xlabel=..., ylabel=...)``. The image is ``ax.images[0]``.

    Args:
        weights: the attention weights of one video, at least 0: (T, M), or (heads, T, M), whose mean over heads is
            drawn. From a :class:`~crossmodal_attn.CMRA` this is ``weights[0]``.
        lengths: the length of each memory, in the order [contexts..., query]; they sum to M. A memory of length 0 is
            not drawn.
        names: the name of each memory, written above its block.
        vmax: the weight at the end of the color scale, which starts at 0. Default: the largest weight.
        ax: the Axes to draw into. Default: a new figure with a color bar.

    Returns:
        Axes: ``ax``, or the Axes of the new figure.

    Raises:
        ValueError: if a weight is negative or not finite, or ``lengths`` do not sum to M.

    Examples:
        >>> import torch
        >>> from crossmodal_attn import CMRA
        >>> layer = CMRA(embed_dim=64, num_heads=4)
        >>> video, audio = torch.randn(2, 10, 64), torch.randn(2, 12, 64)
        >>> output, weights = layer(video, audio, need_weights=True)
        >>> ax = plot_relations(weights[0], [12, 10], ["audio", "video"])
        >>> ax.set_title("the first video")
        Text(0.5, 1.0, 'the first video')
    """
    values = _read_weights(weights)
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            "weights must have shape (query length, memory length) or (heads, query length, memory length), "
            f"for one video, got {values.shape}"
        )
    meaning = "attention" if values.ndim == 2 else "attention, mean over heads"
    mean = values if values.ndim == 2 else values.mean(0)
    segments, memory = mean.shape
    for index, length in enumerate(lengths):
        check_size(f"lengths[{index}]", length, minimum=0)
    if sum(lengths) != memory:
        raise ValueError(
            f"lengths must sum to the memory length of weights, {memory}, got {list(lengths)}: if the weights are "
            "those of a relation_window, convert them by its method to_dense"
        )
    if names is not None and len(names) != len(lengths):
        raise ValueError(f"names must have one name for each of the {len(lengths)} lengths, got {list(names)}")
    own, ax = ax is None, _axes(ax, figsize=(8, 4.5))
    image = ax.imshow(mean, cmap="viridis", vmin=0, vmax=vmax, aspect="auto")
    starts = list(accumulate(lengths, initial=0))[:-1]
    blocks = [(start, length) for start, length in zip(starts, lengths, strict=True) if length]
    for start, _ in blocks[1:]:
        ax.axvline(start - 0.5, color="white", linewidth=3)
    _count_segments(ax.xaxis, blocks)
    _count_segments(ax.yaxis, [(0, segments)])
    ax.set(xlabel="memory segment", ylabel="query segment")
    if names is not None:
        # On a secondary axis, which a title does not overlap.
        above = ax.secondary_xaxis("top")
        shown = [name for name, length in zip(names, lengths, strict=True) if length]
        centers = {start + (length - 1) / 2: name for (start, length), name in zip(blocks, shown, strict=True)}
        above.set_xticks(list(centers), shown, parse_math=False)
        above.xaxis.set_major_formatter(_LiftedNames(ax, centers))
        above.tick_params(length=0)
    if own:
        ax.figure.colorbar(image, ax=ax, label=meaning)
    return ax


def plot_spatial_attention(
    weights: Tensor | ArrayLike,
    frame: Tensor | ArrayLike | None = None,
    *,
    alpha: float = 0.6,
    interpolation: str = "nearest",
    vmax: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the spatial attention of one segment as an image, over its video frame if one is given.

    Like Figure 6 of Xu et al., ACM MM 2020. Coordinates are those of ``imshow``: pixels of the frame, or cells of the
    map if there is no frame, with whole numbers at the centers. The map is the last of ``ax.images``.

    Args:
        weights: the attention weights of one segment, at least 0, (h, w). From an :class:`~crossmodal_attn.AGSCA` with
            video (B, T, h, w, C) this is ``spatial_map[0, 0]``.
        frame: the picture under the map: (height, width) in gray, or (height, width, channels) with 1, 3 or 4 channels;
            uint8, or floating point in [0, 1]. The map is stretched to its size.
        alpha: opacity of the map over the frame, in [0, 1].
        interpolation: an interpolation of matplotlib. By default each cell is visible; "bilinear" is smooth.
        vmax: the weight at the end of the color scale, which starts at 0. Use one value for all segments of a video to
            compare them. Default: the largest weight.
        ax: the Axes to draw into. Default: a new figure. The label of its color bar gives the weight of uniform
            attention.

    Returns:
        Axes: ``ax``, or the Axes of the new figure.

    Raises:
        ValueError: if a weight is negative or not finite, or a floating-point ``frame`` is not in [0, 1].

    Examples:
        >>> import torch
        >>> from crossmodal_attn import AGSCA
        >>> layer = AGSCA(video_dim=512, audio_dim=128)
        >>> video, audio = torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128)
        >>> output, channel_map, spatial_map = layer(video, audio, need_weights=True)
        >>> frame = torch.rand(224, 224, 3)
        >>> ax = plot_spatial_attention(spatial_map[0, 3], frame)
        >>> [image.get_array().shape for image in ax.images]
        [(224, 224, 3), (7, 7)]
    """
    values = _read_weights(weights)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"weights must have shape (height, width), for one segment, got {values.shape}")
    picture = None if frame is None else _read_frame(frame)
    own, ax = ax is None, _axes(ax, figsize=(5, 4))
    over: dict[str, Any] = {}
    if picture is not None:
        height, width = picture.shape[:2]
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
        over = {"alpha": alpha, "extent": (-0.5, width - 0.5, height - 0.5, -0.5)}
    image = ax.imshow(values, cmap="magma", vmin=0, vmax=vmax, interpolation=interpolation, **over)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if own:
        ax.figure.colorbar(image, ax=ax, label=f"attention (uniform: {1 / values.size:.2g})")
    return ax


def plot_timeline(
    prediction: Tensor | ArrayLike,
    event_score: Tensor | ArrayLike | None = None,
    truth: Tensor | ArrayLike | None = None,
    *,
    categories: Sequence[str],
    threshold: float = 0.5,
    ax: Axes | None = None,
) -> Axes:
    """Draw the predicted labels of a video over time, with the true labels and the event score if they are given.

    Like Figure 5 of Xu et al., ACM MM 2020. From bottom to top: prediction, truth, event score. Segment t lies between
    t and t + 1. Consecutive segments of one label form a box, with the name of the label inside if it fits.
    ``ax.legend()`` explains the colors.

    Args:
        prediction: the predicted labels, integers (T,): indices of ``categories``, and ``len(categories)`` for
            background.
        event_score: the score that the segment is an event, in [0, 1], (T,).
        truth: the true labels, integers (T,). If given, right and wrong predictions have different colors.
        categories: the names of the categories, without background.
        threshold: the event threshold, drawn as a dotted line over the scores. It has no other effect.
        ax: the Axes to draw into. Default: a new figure with a legend.

    Returns:
        Axes: ``ax``, or the Axes of the new figure.

    Raises:
        ValueError: if the arguments are not all (T,), a label is out of range, or a score is not in [0, 1].

    Examples:
        >>> import torch
        >>> prediction, truth = [2, 2, 0, 0, 0, 2], [2, 0, 0, 0, 0, 2]
        >>> score = torch.tensor([0.1, 0.4, 0.9, 0.9, 0.8, 0.2])
        >>> ax = plot_timeline(prediction, score, truth, categories=["Church bell", "Bark"])
        >>> ax.get_legend_handles_labels()[1]
        ['true event', 'predicted, right', 'predicted, wrong', 'background']
    """
    names = [*categories, "background"]
    background = len(categories)
    predicted = _read_labels("prediction", prediction, background)
    length = len(predicted)
    if truth is None:
        legend = ["predicted event", "background"]
        kinds = ["background" if label == background else "predicted event" for label in predicted]
        strips = {"predicted": (predicted, kinds)}
    else:
        legend = ["true event", "predicted, right", "predicted, wrong", "background"]
        true = _read_labels("truth", truth, background)
        if len(true) != length:
            raise ValueError(f"truth must have the length of prediction, {length}, got {len(true)}")
        kinds = [_kind(label, true_label, background) for label, true_label in zip(predicted, true, strict=True)]
        true_kinds = ["background" if label == background else "true event" for label in true]
        strips = {"predicted": (predicted, kinds), "true": (true, true_kinds)}
    score = None if event_score is None else _read_score(event_score, length)
    rows = len(strips) + (score is not None)
    own, ax = ax is None, _axes(ax, figsize=(10, 0.9 + 0.45 * rows))
    for kind in legend:
        # Add empty boxes, so that the legend also lists kinds that do not occur.
        ax.add_patch(Rectangle((0, 0), 0, 0, facecolor=COLORS[kind], label=kind))
    ticks = {}
    for bottom, (name, (labels, of_kind)) in enumerate(strips.items()):
        _draw_strip(ax, bottom, labels, of_kind, names)
        ticks[name] = bottom + STRIP_HEIGHT / 2
    if score is not None:
        base = len(strips) + 0.15
        line = base + SCORE_HEIGHT * score
        ax.stairs(line, range(length + 1), baseline=base, color="black", fill=True, alpha=0.25)
        ax.stairs(line, range(length + 1), baseline=None, color="black")
        level = base + SCORE_HEIGHT * threshold
        ax.plot([0, length], [level, level], color="black", linewidth=0.6, linestyle=":")
        ticks[f"event score\n(dotted: {threshold:g})"] = base + SCORE_HEIGHT / 2
        scale = ax.secondary_yaxis("right")
        scale.set_yticks([base, base + SCORE_HEIGHT], ["0", "1"], fontsize="small")
        scale.spines[:].set_visible(False)
    ax.set(xlim=(0, length), ylim=(-0.05, rows + 0.05), xlabel="segment")
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    ax.set_yticks(list(ticks.values()), list(ticks))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if own:
        ax.figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return ax


def _kind(label: int, true_label: int, background: int) -> str:
    """Return the kind of a predicted segment whose true label is known."""
    if label != true_label:
        return "predicted, wrong"
    return "background" if label == background else "predicted, right"


def _draw_strip(ax: Axes, bottom: float, labels: Sequence[int], kinds: Sequence[str], names: Sequence[str]) -> None:
    """Draw a box with a name for each run of segments of one label and kind."""
    start = 0
    for (label, kind), run in groupby(zip(labels, kinds, strict=True)):
        width = len(list(run))
        box = Rectangle((start, bottom), width, STRIP_HEIGHT, facecolor=COLORS[kind], edgecolor="white", linewidth=1.5)
        ax.add_patch(box)
        ax.add_artist(_BoxName(box, names[label], color="#666666" if kind == "background" else "white"))
        start += width


class _BoxName(Text):
    """Write a name in the center of a box: on one line or two, or as an ellipsis, whichever fits."""

    def __init__(self, box: Rectangle, name: str, **style: Any) -> None:
        x, y = box.get_center()
        super().__init__(x, y, name, ha="center", va="center", fontsize=8, clip_on=True, parse_math=False, **style)
        self._box = box
        self._forms = (name, _halve(name), "…")

    def draw(self, renderer: RendererBase) -> None:
        self.set_text(next((form for form in self._forms if self._fits(form, renderer)), ""))
        super().draw(renderer)

    def _fits(self, form: str, renderer: RendererBase) -> bool:
        room, lines = self._box.get_window_extent(renderer), form.split("\n")

        def size(line: str) -> tuple[float, float]:
            return renderer.get_text_width_height_descent(line, self.get_fontproperties(), False)[:2]

        # The name has a margin at both sides. A line is as high as "lp", and the gap between lines is a fifth of that.
        return (
            max(size(line)[0] for line in lines) < 0.9 * room.width and 1.2 * len(lines) * size("lp")[1] < room.height
        )


def _halve(name: str) -> str:
    """Split a name of several words into two lines of similar length."""
    words = name.split(" ")
    forms = [" ".join(words[:cut]) + "\n" + " ".join(words[cut:]) for cut in range(1, len(words))]
    return min(forms, key=lambda form: max(map(len, form.split("\n"))), default=name)


def _count_segments(axis: Axis, blocks: Sequence[tuple[int, int]]) -> None:
    """Set the ticks of an axis: they number the segments of each block (start, length) from zero."""
    axis.set_major_locator(_SegmentLocator(blocks))
    axis.set_major_formatter(_SegmentNumbers([start for start, _ in blocks]))
    axis.set_tick_params(labelsize="small")


class _SegmentLocator(Locator):
    """Place ticks at the start of each block and at round numbers after it, if their labels do not overlap."""

    def __init__(self, blocks: Sequence[tuple[int, int]]) -> None:
        self._blocks = blocks

    def __call__(self) -> list[int]:
        axis: Any = self.axis
        label = axis.get_major_ticks(1)[0].label1
        end = sum(self._blocks[-1])
        if axis.axis_name == "x":
            scale, gap, room = _pixels(axis.axes, end)[0] / end, 0.8 * _font_size(label), _text_width
        else:
            scale, gap, room = _pixels(axis.axes, end)[1] / end, 1.2 * _font_size(label), _text_height
        widest = room(label, str(max(length for _, length in self._blocks) - 1))
        step = _tick_step(end, max(1, int(end * scale / (widest + gap))))
        # The starts come first, since later ticks are left out where they would overlap.
        rounds = [(start, number) for start, length in self._blocks for number in range(step, length, step)]
        low, high = sorted(axis.get_view_interval())
        ticks: dict[int, float] = {}
        for start, number in [*((start, 0) for start, _ in self._blocks), *rounds]:
            half = (room(label, str(number)) + gap) / 2
            if low <= start + number <= high and all(
                abs(start + number - place) * scale >= half + other for place, other in ticks.items()
            ):
                ticks[start + number] = half
        return sorted(ticks)


class _SegmentNumbers(Formatter):
    """Format a tick as the number of its segment, counted from the start of its block."""

    def __init__(self, starts: Sequence[int]) -> None:
        self._starts = starts

    def __call__(self, place: float, _position: int | None = None) -> str:
        return str(round(place) - self._starts[bisect(self._starts, round(place)) - 1])


class _LiftedNames(Formatter):
    """Format ticks as the names of blocks, and move names up that would overlap others."""

    def __init__(self, ax: Axes, names: dict[float, str]) -> None:
        self._ax, self._names = ax, names

    def __call__(self, center: float, _position: int | None = None) -> str:
        return self._names.get(center, "")

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return the names of the blocks with the given centers, with an empty line below for each level moved up."""
        axis: Any = self.axis
        label = axis.get_major_ticks(1)[0].label2
        scale, gap = _pixels(self._ax, 1)[0], 0.6 * _font_size(label)
        placed: list[tuple[float, float, int, int]] = []
        lifted = []
        for center in values:
            name = self(center)
            half = (_text_width(label, name) + gap) / 2
            left, right, lines = center * scale - half, center * scale + half, name.count("\n") + 1
            beside = [(low, high) for start, end, low, high in placed if start < right and left < end]
            lift = min(
                level
                for level in (0, *(high for _, high in beside))
                if all(level + lines <= low or high <= level for low, high in beside)
            )
            placed.append((left, right, lift, lift + lines))
            lifted.append(name + lift * "\n")
        return lifted


def _pixels(ax: Axes, count: int) -> tuple[float, float]:
    """Return the current width of ``count`` columns and height of ``count`` rows, in pixels."""
    across, down = ax.transData.transform((count, count)) - ax.transData.transform((0, 0))
    return abs(float(across)), abs(float(down))


def _font_size(label: Text) -> float:
    """Return the font size of a label in pixels."""
    return float(label.get_fontsize()) * label.figure.dpi / 72


def _text_width(label: Text, text: str) -> float:
    """Return the width of a text in the font of ``label``, in pixels."""
    font = label.get_fontproperties()
    lines = [text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n") if line]
    return float(max(lines, default=0)) * label.figure.dpi / 72


def _text_height(label: Text, text: str) -> float:
    """Return the height of a text in the font of ``label``, in pixels."""
    return _font_size(label) * (text.count("\n") + 1)


def _tick_step(length: int, most: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that gives at most ``most`` ticks over ``length``."""
    steps = (digit * 10**power for power in count() for digit in (1, 2, 5))
    return int(next(step for step in steps if step * most >= length))


def _axes(ax: Axes | None, **figure: Any) -> Axes:
    """Return ``ax``, or the Axes of a new pyplot figure, which notebooks show by themselves."""
    if ax is None:
        from matplotlib import pyplot  # imported only here, since it looks for a screen

        return pyplot.figure(layout="constrained", **figure).add_subplot()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be a matplotlib Axes, got {type(ax).__name__}")
    return ax


def _read(name: str, value: Tensor | ArrayLike) -> NDArray[Any]:
    """Convert a value to an array of real numbers; floating-point numbers become float64."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        # NumPy has no bfloat16.
        value = value.double().numpy() if value.is_floating_point() else value.numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a tensor, an array, or lists of equal lengths, got {value!r}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must contain real numbers, got {array.dtype}")
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _read_weights(weights: Tensor | ArrayLike) -> NDArray[Any]:
    """Convert attention weights of any shape to an array, and check their range."""
    values = _read("weights", weights)
    if not ((values >= 0) & (values < np.inf)).all():
        advice = (
            "some layers return NaN for a query that may attend to nothing; numpy.nan_to_num sets it to zero"
            if np.isnan(values).any()
            else "if these are scores, apply softmax first"
        )
        raise ValueError(f"weights must be finite and at least 0, got {_range(values)}: {advice}")
    return values


def _range(values: NDArray[Any]) -> str:
    """Describe the range of some numbers, or count the NaN among them, for an error message."""
    nan = int(np.isnan(values).sum())
    return f"NaN in {nan} of {values.size} entries" if nan else f"{values.min():g} to {values.max():g}"


def _read_frame(frame: Tensor | ArrayLike) -> NDArray[Any]:
    """Convert a picture to an array in [0, 1]."""
    picture = _read("frame", frame)
    if picture.ndim not in (2, 3) or 0 in picture.shape or picture.shape[2:] not in ((), (1,), (3,), (4,)):
        first = picture.ndim == 3 and picture.shape[0] in (1, 3, 4)
        raise ValueError(
            "frame must have shape (height, width), or (height, width, channels) with 1, 3 or 4 channels, "
            f"got {picture.shape}" + (": move the channels last, as with frame.permute(1, 2, 0)" if first else "")
        )
    if picture.dtype == np.uint8:
        return picture / 255
    if picture.dtype.kind != "f":
        raise TypeError(f"frame must be uint8, or floating point in [0, 1], got {picture.dtype}")
    if not ((picture >= 0) & (picture <= 1)).all():
        raise ValueError(f"a floating-point frame must be in [0, 1], got {_range(picture)}")
    return picture


def _read_labels(name: str, labels: Tensor | ArrayLike, background: int) -> list[int]:
    """Convert the labels of segments to a list, and check their range; background is the largest."""
    array = _read(name, labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must contain integer labels, got {array.dtype}")
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} must have shape (length,), for one video, got {array.shape}")
    if array.min() < 0 or array.max() > background:
        raise ValueError(
            f"{name} must contain labels from 0 to {background} (background), got {array.min()} to {array.max()}"
        )
    return [int(label) for label in array]


def _read_score(event_score: Tensor | ArrayLike, length: int) -> NDArray[Any]:
    """Convert the event scores of segments to an array, and check their range."""
    score = _read("event_score", event_score)
    if score.shape != (length,):
        raise ValueError(f"event_score must have the shape of prediction, {(length,)}, got {score.shape}")
    if not ((score >= 0) & (score <= 1)).all():
        advice = "" if np.isnan(score).any() else ": if these are logits, apply sigmoid first"
        raise ValueError(f"event_score must be in [0, 1], got {_range(score)}{advice}")
    return score
