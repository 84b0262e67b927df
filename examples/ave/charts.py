"""Charts of a training: how loss and accuracy went, and which categories are taken for which.

Axes: K categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ave.training import Epoch

__all__ = ["draw_confusion", "draw_learning_curves"]

# Colours that are told apart with any colour vision (Okabe and Ito).
LOSS_COLOR, VAL_COLOR, TEST_COLOR = "#555555", "#0072b2", "#d55e00"
NO_TRUTH_COLOR = "#dddddd"
LEAST_PRINTED = 0.05
"""Shares below this are left to the color of their cell."""
CELL = 0.36
"""Inches that a cell needs for its share."""


def draw_learning_curves(histories: Mapping[int, Sequence[Epoch]], title: str) -> Figure:
    """Loss, and accuracy on val and test, epoch by epoch.

    Every run is a thin line, with a dot at the epoch that is chosen on val, the first of the best. A bold line is the
    mean of several runs, over the epochs that all of them have.

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
    handles = [
        Line2D([], [], color=VAL_COLOR, label="val"),
        Line2D([], [], color=TEST_COLOR, label="test"),
        Line2D([], [], color="white", marker="o", markeredgecolor="black", linestyle="", label="epoch chosen on val"),
    ]
    if len(runs) > 1:
        handles.append(Line2D([], [], color="black", linewidth=2.5, label=f"mean of {len(runs)} seeds"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _draw_curves(axes: Axes, runs: Sequence[Sequence[Epoch]], name: str, color: str) -> None:
    """One thin line a run with a dot at the epoch chosen on val, and a bold one for their mean."""
    several = len(runs) > 1
    for run in runs:
        chosen = max(run, key=lambda epoch: epoch.val_accuracy)
        axes.plot(
            [epoch.epoch for epoch in run],
            [getattr(epoch, name) for epoch in run],
            color=color,
            linewidth=0.8 if several else 1.6,
            alpha=0.45 if several else 1,
        )
        axes.plot(
            [chosen.epoch],
            [getattr(chosen, name)],
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
    """What the seconds of each category are called: rows are true, each sums to one; columns are predicted.

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
