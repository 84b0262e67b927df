"""Pictures of what a CMRAN says: timelines of videos, and where and when it attends.

Axes: B videos, T segments of a second, H x W positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ave.evaluation import Outcomes
from crossmodal_attn.plots import plot_relations, plot_spatial_attention, plot_timeline

__all__ = ["draw_attention", "draw_timelines"]


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
    row_height = 0.9 + (0 if truth is None else 0.45) + (0 if names is None else 0.25)
    figure = Figure(figsize=(10, 0.9 + row_height * len(prediction)), layout="constrained")
    figure.suptitle(title, parse_math=False, wrap=True)
    grid = figure.subplots(len(prediction), 1, sharex=True, squeeze=False)[:, 0]
    for video, axes in enumerate(grid):
        true = None if truth is None else truth[video]
        plot_timeline(prediction[video], event_score[video], true, categories=categories, ax=axes)
        axes.set(xlabel="second", xlim=(0, max(map(len, prediction))))
        axes.label_outer()
        if names is not None:
            axes.set_title(names[video], loc="left", fontsize="small", pad=2, parse_math=False)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


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
    spatial_map = outcomes.spatial_map[video]
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
        if second >= segments:
            axes.set_axis_off()
            continue
        plot_spatial_attention(spatial_map[second], vmax=spatial_map.max().item(), ax=axes)
        axes.set_title(f"{second} s: {names[outcomes.truth[video, second]]}", fontsize=7)
        if object_cells is not None:
            _outline(axes, object_cells[second].numpy())
    uniform = f"attention (uniform: {1 / (height * width):.3f})"
    ticks = MaxNLocator(5)  # of many the labels would touch
    left.colorbar(grid[0, 0].images[0], ax=grid, location="bottom", shrink=0.6, ticks=ticks, label=uniform)

    right.suptitle("Relations: which seconds every video segment attends to", fontsize="medium")
    axes = plot_relations(
        outcomes.relations[video], (segments, segments), ("to audio", "to video"), ax=right.subplots()
    )
    axes.set(xlabel="attended second (memory)", ylabel="second of the video segment (query)")
    right.colorbar(axes.images[0], ax=axes, location="right", label="attention, mean over heads")
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
