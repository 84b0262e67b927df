"""Pictures of what a CMRAN says: timelines of videos, and where and when it attends.

Axes: B videos, T segments of a second, H x W positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from ave.evaluation import Outcomes

__all__ = ["draw_attention", "draw_timelines"]

BACKGROUND_COLOR, RIGHT_COLOR, WRONG_COLOR, TRUTH_COLOR = "#e6e6e6", "#4c9f70", "#c8553d", "#3b6ea5"
UNJUDGED_COLOR = "#7a68a6"


def draw_timelines(
    prediction: Tensor | Sequence[Tensor],
    event_score: Tensor | Sequence[Tensor],
    categories: Sequence[str],
    title: str,
    *,
    truth: Tensor | Sequence[Tensor] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Prediction and event score of some videos, one above the other, and the truth where it is known.

    Args:
        prediction: int64 (B, T), or one (T,) for each video where their lengths differ; background is the last label.
        event_score: in [0, 1], likewise.
        categories: the names; background follows them.
        title: the figure's title.
        truth: the true labels, likewise.
        names: what to write above each of the videos.
    """
    background = len(categories)
    labels = [*categories, "background"]
    longest = max(len(scores) for scores in event_score)
    strips = 1 if truth is None else 2
    row_height = 0.45 * (strips + 1) + (0 if names is None else 0.25)
    figure = Figure(figsize=(10, 0.9 + row_height * len(prediction)), layout="constrained")
    figure.suptitle(title, parse_math=False, wrap=True)
    grid = figure.subplots(len(prediction), 1, sharex=True, squeeze=False)
    for video, axes in enumerate(grid[:, 0]):
        predicted = prediction[video].tolist()
        if truth is None:
            colors = [UNJUDGED_COLOR] * len(predicted)
        else:
            true = truth[video].tolist()
            colors = [RIGHT_COLOR if said == was else WRONG_COLOR for said, was in zip(predicted, true, strict=True)]
            _draw_runs(axes, 1.0, true, [TRUTH_COLOR] * len(true), labels, background, longest)
        _draw_runs(axes, 0.0, predicted, colors, labels, background, longest)
        seconds = np.arange(len(predicted) + 1)
        base = strips + 0.15
        score = base + 0.8 * event_score[video].numpy()
        axes.stairs(score, seconds, baseline=base, color="black", fill=True, alpha=0.25)
        axes.stairs(score, seconds, baseline=None, color="black")
        axes.plot([0, len(predicted)], [base + 0.4] * 2, color="black", linewidth=0.6, linestyle=":")
        ticks = [*(strip + 0.45 for strip in range(strips)), base + 0.4]
        axes.set(xlim=(0, longest), ylim=(-0.05, base + 0.9), yticks=ticks)
        axes.set_xticks(range(0, longest + 1, -(-longest // 12)))
        axes.set_yticklabels([*("predicted", "true")[:strips], "event score\n(dotted: 0.5)"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if names is not None:
            axes.set_title(names[video], loc="left", fontsize="small", pad=2, parse_math=False)
    grid[-1, 0].set_xlabel("second")
    if truth is None:
        legend = {"predicted event": UNJUDGED_COLOR}
    else:
        legend = {"true event": TRUTH_COLOR, "predicted, right": RIGHT_COLOR, "predicted, wrong": WRONG_COLOR}
    legend["background"] = BACKGROUND_COLOR
    figure.legend(
        handles=[Patch(color=color, label=label) for label, color in legend.items()],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    return figure


def _draw_runs(
    axes: Axes, bottom: float, labels: list[int], colors: list[str], names: Sequence[str], background: int, longest: int
) -> None:
    """One strip: a box for every run of seconds with one label and color, named inside where the name fits."""
    start = 0
    for second in range(1, len(labels) + 1):
        if second < len(labels) and (labels[second], colors[second]) == (labels[start], colors[start]):
            continue
        label, color = labels[start], colors[start]
        quiet = label == background and color != WRONG_COLOR
        width = second - start
        face = BACKGROUND_COLOR if quiet else color
        axes.add_patch(Rectangle((start, bottom), width, 0.9, facecolor=face, edgecolor="white", linewidth=1.5))
        text = names[label] if len(names[label]) < 120 * width / longest else "…"
        axes.text(
            start + width / 2,
            bottom + 0.45,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="#777777" if quiet else "white",
            clip_on=True,
            parse_math=False,
        )
        start = second


def draw_attention(
    outcomes: Outcomes, video: int, categories: Sequence[str], title: str, object_cells: Tensor | None = None
) -> Figure:
    """Where AGSCA looks in every second, and which seconds the video segments relate to, for one video.

    Args:
        outcomes: of the split.
        video: which of its videos to show.
        categories: the names; background follows them.
        title: the figure's title.
        object_cells: bool (T, H, W), the true cells to outline, where they are known.
    """
    names = [*categories, "background"]
    spatial_map = outcomes.spatial_map[video].numpy()
    segments, height, width = spatial_map.shape
    columns = 5
    rows = -(-segments // columns)
    figure = Figure(figsize=(15, 1.2 + 1.9 * rows), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    left.suptitle(
        "Spatial attention of AGSCA, second by second" + ("" if object_cells is None else " (true object outlined)"),
        fontsize="medium",
    )
    grid = left.subplots(rows, columns, squeeze=False)
    for second, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if second >= segments:
            continue
        image = axes.imshow(spatial_map[second], cmap="magma", vmin=0, vmax=spatial_map.max())
        axes.set_title(f"{second} s: {names[outcomes.truth[video, second]]}", fontsize=7)
        if object_cells is not None:
            _outline(axes, object_cells[second].numpy())
    left.colorbar(
        image, ax=grid, location="bottom", shrink=0.6, label=f"attention (uniform: {1 / (height * width):.3f})"
    )

    axes = right.subplots()
    right.suptitle("Relations: which seconds every video segment attends to", fontsize="medium")
    image = axes.imshow(outcomes.relations[video].numpy(), cmap="viridis", vmin=0, aspect="auto")
    axes.axvline(segments - 0.5, color="white", linewidth=3)
    seconds = range(segments)
    axes.set_xticks(range(2 * segments), [*seconds, *seconds], fontsize=7)
    axes.set_yticks(seconds, [f"{second}" for second in seconds], fontsize=7)
    axes.set(xlabel="attended second (memory)", ylabel="second of the video segment (query)")
    for place, modality in ((0.25, "to audio"), (0.75, "to video")):
        axes.text(place, 1.02, modality, transform=axes.transAxes, ha="center")
    right.colorbar(image, ax=axes, location="right", label="attention, mean over heads")
    return figure


def _outline(axes: Axes, cells: np.ndarray) -> None:
    """Draw the border of a set of cells: every side that has no cell beyond it."""
    padded = np.pad(cells, 1)
    for row, column in np.argwhere(cells):
        for step_row, step_column, xs, ys in (
            (-1, 0, (-0.5, 0.5), (-0.5, -0.5)),
            (1, 0, (-0.5, 0.5), (0.5, 0.5)),
            (0, -1, (-0.5, -0.5), (-0.5, 0.5)),
            (0, 1, (0.5, 0.5), (-0.5, 0.5)),
        ):
            if not padded[row + 1 + step_row, column + 1 + step_column]:
                axes.plot([column + x for x in xs], [row + y for y in ys], color="cyan", linewidth=2)
