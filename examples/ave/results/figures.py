"""Figures: learning curves, confusion matrix, timelines of videos, and attention in space and time.

Axes: B videos, T segments of a second, H x W positions, K categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from ave.data.dataset import AVEData, Split
from ave.results.files import writing
from ave.results.metrics import Epoch, Outcomes, chosen
from crossmodal_attn.plots import plot_relations, plot_spatial_attention, plot_timeline

__all__ = [
    "choose_videos",
    "draw_attention",
    "draw_confusion",
    "draw_examples",
    "draw_learning_curves",
    "draw_timelines",
    "name_video",
    "save_figures",
]

SHOWN_VIDEOS = 6
# Colors that are told apart with any color vision (Okabe and Ito).
LOSS_COLOR, VAL_COLOR, TEST_COLOR = "#555555", "#0072b2", "#d55e00"
NO_TRUTH_COLOR = "#dddddd"
LEAST_PRINTED = 0.05
"""Shares below this are not printed in their cells."""
CELL = 0.36
"""Inches of a cell in which a share can be read."""


def draw_learning_curves(histories: Mapping[int, Sequence[Epoch]], title: str) -> Figure:
    """Draw the loss, and the accuracy on val and test, epoch by epoch.

    Every run is a thin line, with a dot at the epoch chosen on val. A bold line is the mean of several runs, over the
    epochs that all of them have. A caption names the runs that still climb at their last epoch.

    Args:
        histories: the epochs of each run, by its seed.
        title: the figure's title.

    Raises:
        ValueError: if there is no run, or one without an epoch.
    """
    if not histories or not all(histories.values()):
        raise ValueError(f"histories must hold runs of at least one epoch, got seeds {list(histories)}")
    runs = list(histories.values())
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _draw_curves(loss_axes, runs, "loss", LOSS_COLOR)
    validated = all(epoch.val_accuracy is not None for run in runs for epoch in run)
    if validated:
        _draw_curves(accuracy_axes, runs, "val_accuracy", VAL_COLOR)
    _draw_curves(accuracy_axes, runs, "test_accuracy", TEST_COLOR)
    loss_axes.set(ylabel="training loss")
    accuracy_axes.set(ylabel="segment accuracy")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    last = max(run[-1].epoch for run in runs)
    for axes in (loss_axes, accuracy_axes):
        axes.set(xlabel="epoch", xlim=(1 - 0.02 * last, 1.02 * last))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    dot = "epoch chosen on val" if validated else "last epoch, kept as there is no val split"
    handles = [
        *([Line2D([], [], color=VAL_COLOR, label="val")] if validated else []),
        Line2D([], [], color=TEST_COLOR, label="test"),
        Line2D([], [], color="white", marker="o", markeredgecolor="black", linestyle="", label=dot),
    ]
    if len(runs) > 1:
        handles.append(Line2D([], [], color="black", linewidth=2.5, label=f"mean of {len(runs)} seeds"))
    climbing = [str(seed) for seed, run in histories.items() if len(run) > 1 and chosen(run) is run[-1]]
    caption = f"seed {', '.join(climbing)}: best on val at the last epoch, so more epochs may give more"
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        title=caption if climbing else None,
    )
    return figure


def _draw_curves(axes: Axes, runs: Sequence[Sequence[Epoch]], name: str, color: str) -> None:
    """Draw a thin line for each run with a dot at the epoch chosen on val, and a bold line for their mean."""
    several = len(runs) > 1
    for run in runs:
        best = chosen(run)
        axes.plot(
            [epoch.epoch for epoch in run],
            [getattr(epoch, name) for epoch in run],
            color=color,
            linewidth=0.8 if several else 1.6,
            alpha=0.45 if several else 1,
        )
        axes.plot(
            [best.epoch],
            [getattr(best, name)],
            color=color,
            marker="o",
            markeredgecolor="black",
            linestyle="",
            zorder=3,
        )
    if several:
        common = list(zip(*runs, strict=False))
        axes.plot(
            [epochs[0].epoch for epochs in common],
            [mean(getattr(epoch, name) for epoch in epochs) for epochs in common],
            color=color,
            linewidth=2.5,
        )


def draw_confusion(confusion: Sequence[Sequence[int]], categories: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix of seconds: rows are true, each sums to one; columns are predicted.

    Args:
        confusion: counts, K + 1 rows of K + 1, background last.
        categories: the K names.
        title: the figure's title.

    Raises:
        ValueError: if ``confusion`` does not have K + 1 rows and columns.
    """
    names = [*categories, "background"]
    counts = np.array(confusion)
    if counts.shape != (len(names), len(names)):
        raise ValueError(
            f"confusion must have shape {(len(names), len(names))}, the categories and background, got {counts.shape}"
        )
    totals = counts.sum(1, keepdims=True)
    shares = np.ma.masked_array(counts / np.maximum(totals, 1), np.broadcast_to(totals == 0, counts.shape))
    side = CELL * len(names)
    figure = Figure(figsize=(side + 5, side + 3), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=colormaps["Blues"].with_extremes(bad=NO_TRUTH_COLOR), vmin=0, vmax=1)
    for row, column in np.argwhere(shares.filled(0) >= LEAST_PRINTED):
        share = shares[row, column]
        color = "white" if share > 0.55 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=color)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, fontsize=8)
    axes.set_yticks(places, [f"{name}  ({total})" for name, total in zip(names, totals[:, 0], strict=True)], fontsize=8)
    axes.set_xticks(np.arange(-0.5, len(names)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(names)), minor=True)
    axes.grid(which="minor", color="#eeeeee", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true  (seconds)")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, format=PercentFormatter(1.0), label="share of the true seconds")
    bar.outline.set_visible(False)
    return figure


def draw_timelines(
    prediction: Tensor | Sequence[Tensor],
    event_score: Tensor | Sequence[Tensor],
    categories: Sequence[str],
    title: str,
    *,
    truth: Tensor | Sequence[Tensor] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw prediction and event score of some videos, one above the other, and the truth if it is known.

    Args:
        prediction: int64 (B, T), or one (T,) for each video if their lengths differ; background is the last label.
        event_score: in [0, 1], likewise.
        categories: the names; background follows them.
        title: the figure's title.
        truth: the true labels, likewise.
        names: what to write above each of the videos.
    """
    row_height = 0.9 + (0 if truth is None else 0.45) + (0 if names is None else 0.25)
    layout = ConstrainedLayoutEngine(hspace=0.12)  # space between videos
    figure = Figure(figsize=(10, 0.9 + row_height * len(prediction)), layout=layout)
    figure.suptitle(title, parse_math=False, wrap=True)
    grid = figure.subplots(len(prediction), 1, sharex=True, squeeze=False)[:, 0]
    for video, axes in enumerate(grid):
        true = None if truth is None else truth[video]
        plot_timeline(prediction[video], event_score[video], true, categories=categories, ax=axes)
        axes.set(xlabel="second", xlim=(0, max(map(len, prediction))))
        axes.label_outer()
        if names is not None:
            axes.set_title(names[video], loc="left", fontsize="small", pad=2, parse_math=False)
    boxes = [patch for axes in grid for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_width()]
    colors = {box.get_facecolor() for box in boxes}
    handles = [handle for handle in grid[0].get_legend_handles_labels()[0] if handle.get_facecolor() in colors]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_attention(
    outcomes: Outcomes,
    video: int,
    categories: Sequence[str],
    title: str,
    object_cells: Tensor | None = None,
    decoy_cells: Tensor | None = None,
) -> Figure:
    """Draw the spatial attention of AGSCA in every second of a video, and the relations of its segments.

    Args:
        outcomes: of the split.
        video: the video to show.
        categories: the names; background follows them.
        title: the figure's title.
        object_cells: bool (T, H, W), the true cells, if they are known; outlined in the seconds of an event.
        decoy_cells: likewise those of an object that does not count; crossed.
    """
    names = [*categories, "background", "no label"]  # which is label -1
    relations, maps, truth = outcomes.relations[video], outcomes.spatial_map[video], outcomes.truth[video]
    if outcomes.lengths is not None:
        length = int(outcomes.lengths[video])
        relations = torch.cat([part[:length, :length] for part in relations.chunk(2, 1)], 1)
        maps, truth = maps[:length], truth[:length]
    event = (truth >= 0) & (truth < len(categories))
    segments, height, width = maps.shape
    spatial_map = maps * (height * width)
    columns = 5
    rows = -(-segments // columns)
    figure = Figure(figsize=(15, 1.6 + 1.9 * rows), layout="constrained")
    figure.suptitle(title, parse_math=False)
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    marks = [] if object_cells is None else ["outlined: the true object, during the event"]
    marks += [] if decoy_cells is None else ["crossed: the decoy"]
    heading = "Spatial attention of AGSCA, second by second"
    left.suptitle(f"{heading}\n({'; '.join(marks)})" if marks else heading, fontsize="medium")
    grid = left.subplots(rows, columns, squeeze=False)
    for second, axes in enumerate(grid.flat):
        if second >= segments:
            axes.set_axis_off()
            continue
        plot_spatial_attention(spatial_map[second], vmax=spatial_map.max().item(), ax=axes)
        axes.set_title(f"{second} s: {names[outcomes.truth[video, second]]}", fontsize=7)
        if object_cells is not None and event[second]:
            _outline(axes, object_cells[second].numpy())
        if decoy_cells is not None:
            places = np.argwhere(decoy_cells[second].numpy())
            axes.plot(places[:, 1], places[:, 0], "x", color="cyan", markersize=6, scalex=False, scaley=False)
    ticks = MaxNLocator(5)  # of many the labels would touch
    label = "attention, times uniform (1: as if all cells had the same)"
    left.colorbar(grid[0, 0].images[0], ax=grid, location="bottom", shrink=0.6, ticks=ticks, label=label)

    right.suptitle("Relations: which seconds every video segment attends to", fontsize="medium")
    axes = plot_relations(relations, (segments, segments), ("to audio", "to video"), ax=right.subplots())
    axes.set(xlabel="attended second (memory)", ylabel="second of the video segment (query)")
    right.colorbar(axes.images[0], ax=axes, location="right", label="attention, mean over heads")
    right.supxlabel(_describe_relations(relations, event), fontsize="small")
    return figure


def _describe_relations(relations: Tensor, event: Tensor) -> str:
    """Say what to see in the relations of a video, (T, 2 T), whose seconds with an event are bool (T,)."""
    audio = relations[:, : len(event)].sum(1).mean()
    text = "Each row sums to 1; a bright column is a second that many look to.\n"
    text += f"Here {audio:.0%} of the attention goes to audio (uniform: 50%)"
    if event.any():
        within = relations[event][:, event.repeat(2)].sum(1).mean()
        text += (
            f",\nand event seconds give {within:.0%} of theirs to event seconds (uniform: {event.float().mean():.0%})"
        )
    return f"{text}."


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


def choose_videos(
    labels: Sequence[Tensor], background: int, count: int, wrong: Sequence[bool] | None = None, seed: int = 0
) -> list[int]:
    """Choose videos at random, of as many categories as there are.

    If there is any, the first has an event and background, and one is among those that went wrong.

    Args:
        labels: of every video, int64 (T,).
        background: their last label.
        count: how many videos to choose; all, if there are no more.
        wrong: whether the prediction of each has an error.
        seed: decides the choice.

    Returns:
        list: the chosen videos.

    Examples:
        >>> labels = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 3, 3], [1, 1, 1], [2, 2, 2], [3, 3, 3]])
        >>> choose_videos(labels, 3, 3, wrong=[False, False, False, False, True, False])[:2]
        [2, 4]
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    eventful = [video != background for video in labels]
    category = [int(video.where(video != background, -1).max()) for video in labels]
    wanted = [[bool(event.any() and not event.all()) for event in eventful], list(wrong or ())]
    shown: list[int] = []
    for _ in range(min(count, len(order))):
        left = [video for video in order if video not in shown]
        for kind in wanted:
            if any(kind) and not any(kind[video] for video in shown):
                left = [video for video in left if kind[video]]
                break
        seen = {category[video] for video in shown}
        shown.append(min(left, key=lambda video: category[video] in seen))
    return shown


def name_video(names: Sequence[str] | None, row: int) -> str:
    """Name a video by its id, if it has one, and its row."""
    return f"row {row}" if names is None else f"{names[row]} (row {row})"


def draw_examples(outcomes: Outcomes, data: AVEData, split: Split, title: str) -> dict[str, Figure]:
    """Draw timelines of some videos of different categories, and the attention of the first; by file name."""
    lengths = [outcomes.truth.shape[1]] * len(outcomes.truth) if outcomes.lengths is None else outcomes.lengths.tolist()
    truth = [labels[:length] for labels, length in zip(outcomes.truth, lengths, strict=True)]
    prediction = [labels[:length] for labels, length in zip(outcomes.prediction, lengths, strict=True)]
    labeled = [row for row, labels in enumerate(truth) if (labels >= 0).all()]
    candidates = labeled or list(range(len(truth)))
    wrong = [bool((prediction[row] != truth[row]).any()) for row in candidates]
    places = choose_videos([truth[row] for row in candidates], len(data.categories), SHOWN_VIDEOS, wrong)
    shown = [candidates[place] for place in places]
    rows = data.splits[split][shown].tolist()
    cells = (None if known is None else known[rows[0]] for known in (data.object_cells, data.decoy_cells))
    names = [name_video(data.names, row) for row in rows]
    return {
        "timelines.png": draw_timelines(
            [prediction[row] for row in shown],
            [outcomes.event_score[row, : lengths[row]] for row in shown],
            data.categories,
            title,
            truth=[truth[row] for row in shown] if labeled else None,
            names=names,
        ),
        "attention.png": draw_attention(
            outcomes, shown[0], data.categories, f"Attention of {title}: {names[0]}", *cells
        ),
    }


def save_figures(output: Path, figures: Mapping[str, Figure]) -> None:
    """Write figures by file name."""
    for name, figure in figures.items():
        with writing(output / name) as path:
            figure.savefig(path, dpi=120)
