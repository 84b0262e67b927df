"""Draw figures: learning curves, confusion matrix, timelines of videos, and attention in space and time.

Axes: B videos, T segments of a second, H x W positions, K categories.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from ave.data.dataset import AVEData, Split
from ave.printing import printable
from ave.results.files import writing
from ave.results.metrics import Epoch, Outcomes, choose_epoch
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
# Colors that are safe for color-blind readers (Okabe and Ito).
LOSS_COLOR, VAL_COLOR, TEST_COLOR = "#555555", "#0072b2", "#d55e00"
NO_TRUTH_COLOR = "#dddddd"
LEAST_PRINTED = 0.05
"""The smallest share that is printed in its cell."""
CELL = 0.36
"""Size of a cell in inches, large enough to read a share."""
COLUMNS = 5
"""Number of spatial maps in a row."""
LONGEST_NAME, LONGEST_TITLE = 40, 200
"""Maximum length in characters. The middle of longer text is left out."""
TITLE_DENSITY = 9
"""Number of characters of a title per inch."""


def draw_learning_curves(histories: Mapping[int, Sequence[Epoch]], title: str) -> Figure:
    """Draw the training loss and the accuracy on val and test over the epochs.

    Each run is a thin line, with a dot at the epoch chosen on val. The mean of several runs is a bold line, over the
    epochs that all runs have. A caption names the seeds whose last epoch is the best on val.
    """
    runs = list(histories.values())
    validated = all(epoch.val_accuracy is not None for epoch in chain(*runs))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    _set_title(figure, title)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _draw_curves(loss_axes, runs, "loss", LOSS_COLOR)
    if validated:
        _draw_curves(accuracy_axes, runs, "val_accuracy", VAL_COLOR)
    _draw_curves(accuracy_axes, runs, "test_accuracy", TEST_COLOR)
    last = max(epoch.epoch for epoch in chain(*runs))
    for axes, label in ((loss_axes, "training loss"), (accuracy_axes, "segment accuracy")):
        axes.set(ylabel=label, xlabel="epoch", xlim=(1 - 0.02 * last, 1.02 * last))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    dot = "epoch chosen on val" if validated else "last epoch, as there is no val split"
    handles = [
        Line2D([], [], color=TEST_COLOR, label="test"),
        Line2D([], [], color="white", marker="o", markeredgecolor="black", linestyle="", label=dot),
    ]
    if validated:
        handles.insert(0, Line2D([], [], color=VAL_COLOR, label="val"))
    if len(runs) > 1:
        handles.append(Line2D([], [], color="black", linewidth=2.5, label=f"mean of {len(runs)} seeds"))
    climbing = ", ".join(str(seed) for seed, run in histories.items() if len(run) > 1 and choose_epoch(run) is run[-1])
    caption = f"seed {climbing}: best on val at the last epoch, so more epochs may help" if climbing else None
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, title=caption)
    return figure


def _draw_curves(axes: Axes, runs: Sequence[Sequence[Epoch]], name: str, color: str) -> None:
    """Draw a thin line with a dot at the chosen epoch for each run, and a bold line for the mean of several."""
    width, alpha = (1.6, 1) if len(runs) == 1 else (0.8, 0.45)
    for run in runs:
        best = choose_epoch(run)
        epochs, values = [epoch.epoch for epoch in run], [getattr(epoch, name) for epoch in run]
        axes.plot(epochs, values, color=color, linewidth=width, alpha=alpha)
        axes.plot([best.epoch], [getattr(best, name)], "o", color=color, markeredgecolor="black", zorder=3)
    if len(runs) > 1:
        common = list(zip(*runs, strict=False))
        means = [mean(getattr(epoch, name) for epoch in same) for same in common]
        axes.plot([same[0].epoch for same in common], means, color=color, linewidth=2.5)


def draw_confusion(confusion: Sequence[Sequence[int]], categories: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix of (K + 1) x (K + 1) counts of seconds, background last.

    Rows are true labels, columns are predicted ones. The color is the share of the row.
    """
    names, counts = _label_names(categories), np.array(confusion)
    totals = counts.sum(1, keepdims=True)
    shares = np.ma.masked_array(counts / np.maximum(totals, 1), np.broadcast_to(totals == 0, counts.shape))
    side = CELL * len(names)
    figure = Figure(figsize=(side + 5, side + 3), layout="constrained")
    _set_title(figure, title)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=colormaps["Blues"].with_extremes(bad=NO_TRUTH_COLOR), vmin=0, vmax=1)
    for row, column in np.argwhere(shares.filled(0) >= LEAST_PRINTED):
        share = shares[row, column]
        color = "white" if share > 0.55 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=color)
    true_names = [f"{name}  ({total})" for name, total in zip(names, totals[:, 0], strict=True)]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), true_names, fontsize=8)
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
    """Draw the predicted labels and event scores of several videos, one above the other, with the true labels if known.

    Args:
        prediction: int64 (B, T), or a sequence with (T,) for each video if their lengths differ; background is the last
            label.
        event_score: the event scores, in [0, 1], of the same shape.
        categories: the names, without background.
        title: the title of the figure.
        truth: the true labels, of the same shape.
        names: the titles of the videos.
    """
    row_height = 0.9 + (0 if truth is None else 0.45) + (0 if names is None else 0.25)
    layout = ConstrainedLayoutEngine(hspace=0.12)  # space between videos
    figure = Figure(figsize=(10, 0.9 + row_height * len(prediction)), layout=layout)
    _set_title(figure, title)
    grid = figure.subplots(len(prediction), 1, sharex=True, squeeze=False)[:, 0]
    for video, axes in enumerate(grid):
        true = None if truth is None else truth[video]
        plot_timeline(prediction[video], event_score[video], true, categories=_label_names(categories)[:-1], ax=axes)
        axes.set(xlabel="second", xlim=(0, max(map(len, prediction))))
        axes.label_outer()
        if names is not None:
            axes.set_title(printable(names[video], LONGEST_TITLE), loc="left", fontsize="small", pad=2)
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
    """Draw the spatial attention of AGSCA in each second of a video, and the relations of its segments.

    If the network lacks one of them, only the other is drawn. ``object_cells``, bool (T, H, W), are outlined in the
    seconds of an event: the cells of the true object. ``decoy_cells`` are crossed: an unrelated object.
    """
    length = int(outcomes.lengths[video])
    truth = outcomes.truth[video, :length]
    event = (truth >= 0) & (truth < len(categories))
    figure = Figure(figsize=(15, 1.6 + 1.9 * -(-length // COLUMNS)), layout="constrained")
    _set_title(figure, title)
    parts = [part for part in (outcomes.spatial_map, outcomes.relations) if part is not None]
    panels = figure.subfigures(1, len(parts), squeeze=False)[0].tolist()
    if outcomes.spatial_map is not None:
        names = [*_label_names(categories), "no label"]  # for label -1
        titles = [f"{second} s: {names[label]}" for second, label in enumerate(truth.tolist())]
        outlined = None if object_cells is None else object_cells[:length] & event[:, None, None]
        _draw_maps(panels.pop(0), outcomes.spatial_map[video, :length], titles, outlined, decoy_cells)
    if outcomes.relations is not None:
        relations = [part[:length, :length] for part in outcomes.relations[video].chunk(2, 1)]
        _draw_relations(panels.pop(0), torch.cat(relations, 1), event)
    return figure


def _draw_maps(
    figure: SubFigure, maps: Tensor, titles: Sequence[str], outlined: Tensor | None, crossed: Tensor | None
) -> None:
    """Draw the spatial attention of a video (T, H, W) with one color scale, and mark the given cells."""
    marks = [] if outlined is None else ["outlined: the true object, during the event"]
    marks += [] if crossed is None else ["crossed: an unrelated object"]
    heading = "Spatial attention of AGSCA, second by second"
    figure.suptitle(f"{heading}\n({'; '.join(marks)})" if marks else heading, fontsize="medium")
    grid = figure.subplots(-(-len(maps) // COLUMNS), COLUMNS, squeeze=False)
    scaled = maps * maps[0].numel()
    for axes in grid.flat[len(maps) :]:
        axes.set_axis_off()
    for second, axes in enumerate(grid.flat[: len(maps)]):
        plot_spatial_attention(scaled[second], vmax=scaled.max().item(), ax=axes)
        axes.set_title(titles[second], fontsize=7)
        if outlined is not None:
            _outline(axes, outlined[second].numpy())
        if crossed is not None:
            rows, columns = crossed[second].numpy().nonzero()
            axes.plot(columns, rows, "x", color="cyan", markersize=6, scalex=False, scaley=False)
    ticks = MaxNLocator(5)  # labels of more ticks would overlap
    label = "attention relative to uniform (1: the same for all cells)"
    figure.colorbar(grid[0, 0].images[0], ax=grid, location="bottom", shrink=0.6, ticks=ticks, label=label)


def _outline(axes: Axes, cells: np.ndarray) -> None:
    """Draw the border of a set of cells: each side between a cell of the set and one outside."""
    padded = np.pad(cells, 1).astype(int)  # cell (0, 0), drawn from -0.5 to 0.5, is at index (1, 1)
    for row, column in np.argwhere(np.diff(padded, axis=0)):
        axes.plot([column - 1.5, column - 0.5], [row - 0.5, row - 0.5], color="cyan", linewidth=2)
    for row, column in np.argwhere(np.diff(padded, axis=1)):
        axes.plot([column - 0.5, column - 0.5], [row - 1.5, row - 0.5], color="cyan", linewidth=2)


def _draw_relations(figure: SubFigure, relations: Tensor, event: Tensor) -> None:
    """Draw the relations of a video (T, 2 T), with a caption that explains them. ``event`` is bool (T,)."""
    length = len(event)
    figure.suptitle("Relations: which seconds every video segment attends to", fontsize="medium")
    axes = plot_relations(relations, (length, length), ("to audio", "to video"), ax=figure.subplots())
    axes.set(xlabel="attended second (memory)", ylabel="second of the video segment (query)")
    figure.colorbar(axes.images[0], ax=axes, location="right", label="attention, mean over heads")
    audio = relations[:, :length].sum(1).mean()
    text = "Each row sums to 1; a bright column is a second that many seconds attend to.\n"
    text += f"Here {audio:.0%} of the attention goes to audio (uniform: 50%)"
    if event.any():
        within, uniform = relations[event][:, event.repeat(2)].sum(1).mean(), event.float().mean()
        text += f",\nand of the attention of event seconds, {within:.0%} goes to event seconds (uniform: {uniform:.0%})"
    figure.supxlabel(f"{text}.", fontsize="small")


def choose_videos(
    labels: Sequence[Tensor], background: int, count: int, wrong: Sequence[bool] | None = None, seed: int = 0
) -> list[int]:
    """Choose up to ``count`` random videos of as many different categories as possible, by their labels, int64 (T,).

    If possible, the first video has both an event and background, and one video has a wrong prediction.

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
    """Return the id of a video, if it has one, and its row as text."""
    return f"row {row}" if names is None else f"{printable(names[row], LONGEST_NAME)} (row {row})"


def draw_examples(outcomes: Outcomes, data: AVEData, split: Split, title: str) -> dict[str, Figure]:
    """Draw timelines of some videos, and the attention of the first one. Return the figures by file name."""
    lengths = outcomes.lengths.tolist()
    truth, prediction, event_score = (
        [values[:length] for values, length in zip(tensor, lengths, strict=True)]
        for tensor in (outcomes.truth, outcomes.prediction, outcomes.event_score)
    )
    labeled = [row for row, labels in enumerate(truth) if (labels >= 0).all()]
    candidates = labeled or list(range(len(truth)))
    wrong = [bool((prediction[row] != truth[row]).any()) for row in candidates]
    places = choose_videos([truth[row] for row in candidates], len(data.categories), SHOWN_VIDEOS, wrong)
    shown = [candidates[place] for place in places]
    rows = data.splits[split][shown].tolist()
    names = [name_video(data.names, row) for row in rows]
    figures = {
        "timelines.png": draw_timelines(
            [prediction[row] for row in shown],
            [event_score[row] for row in shown],
            data.categories,
            title,
            truth=[truth[row] for row in shown] if labeled else None,
            names=names,
        )
    }
    if outcomes.spatial_map is not None or outcomes.relations is not None:
        cells = (None if known is None else known[rows[0]] for known in (data.object_cells, data.decoy_cells))
        heading = f"Attention of {title}: {names[0]}"
        figures["attention.png"] = draw_attention(outcomes, shown[0], data.categories, heading, *cells)
    return figures


def _label_names(categories: Sequence[str]) -> list[str]:
    """Return the names of all labels, background last, escaped and shortened."""
    return [*(printable(name, LONGEST_NAME) for name in categories), "background"]


def _set_title(figure: Figure, title: str) -> None:
    lines = textwrap.wrap(printable(title, LONGEST_TITLE), int(TITLE_DENSITY * figure.get_figwidth()))
    figure.suptitle("\n".join(lines))


def save_figures(output: Path, figures: Mapping[str, Figure]) -> None:
    """Write figures by file name. Text is not parsed for formulas, and missing glyphs are drawn as boxes."""
    for name, figure in figures.items():
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        with writing(output / name) as path, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            figure.savefig(path, dpi=120)
