"""Draw the charts of the report: time ratios, growth on logarithmic axes, and the parts of an epoch."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

__all__ = ["draw_epochs", "draw_growth", "draw_ratios"]

# Colors that people with any color vision can distinguish (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
FILLS = ("full", "none", "left")
MOST_RATIOS = len(COLORS) * len(FILLS)


def draw_ratios(results: dict[str, Any]) -> Figure:
    """Draw the time ratios of each case, with a marker and the quartiles for each pair of forms."""
    cases = [case for case in results["cases"] if case.get("ratios")]
    pairs = list(dict.fromkeys((ratio["of"], ratio["to"]) for case in cases for ratio in case["ratios"]))[:MOST_RATIOS]
    line = 0.34 * max(1.0, len(pairs) / len(COLORS))
    figure = Figure(figsize=(10, 1.6 + 0.3 * len(pairs) / 2 + line * max(1, len(cases))), layout="constrained")
    figure.suptitle(f"{results['title']}: ratios of time")
    axes = figure.subplots()
    for index, pair in enumerate(pairs):
        offset = (index - (len(pairs) - 1) / 2) * 0.7 / len(pairs)
        places, medians, lower, upper = [], [], [], []
        for place, case in enumerate(cases):
            for ratio in case["ratios"]:
                if (ratio["of"], ratio["to"]) == pair:
                    median, quartiles = ratio["time"]["median"], ratio["time"]["quartiles"]
                    places.append(place + offset)
                    medians.append(median)
                    lower.append(median - quartiles[0])
                    upper.append(quartiles[1] - median)
        axes.errorbar(
            medians,
            places,
            xerr=[lower, upper],
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            fillstyle=FILLS[index // len(COLORS)],
            markersize=5,
            linestyle="",
            label=" / ".join(pair),
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("time of the first form / time of the second (right of 1: the first takes longer)")
    _plain_ticks(axes)
    axes.set_yticks(range(len(cases)), [_name(case["case"]) for case in cases], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if pairs:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _plain_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 1.5, 2.0, 3.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name(case: dict[str, Any]) -> str:
    """Return the label of a case: its values, with their names where these are needed."""
    return ", ".join(
        str(value) if key in ("dtype", "task") else f"{key} {value}" for key, value in case.items() if value != "none"
    )


def draw_growth(results: dict[str, Any]) -> Figure:
    """Draw time and peak memory against each size on logarithmic axes, with the fitted exponents."""
    cases = results["cases"]
    axes_names = list(dict.fromkeys(case["case"]["against"] for case in cases))
    figure = Figure(figsize=(10, 3.6 * len(axes_names)), layout="constrained")
    figure.suptitle(results["title"])
    grid = figure.subplots(len(axes_names), 2, squeeze=False)
    for row, against in zip(grid, axes_names, strict=True):
        for index, case in enumerate(case for case in cases if case["case"]["against"] == against):
            forms = {name: form for name, form in case["forms"].items() if "seconds" in form}
            sizes = [case["points"][name] for name in forms]
            times = [form["seconds"]["median"] * 1e3 for form in forms.values()]
            memories = [form["peak_bytes"] / 1e6 for form in forms.values()]
            fit = case["fits"]
            exponents = (fit["time"]["median"], fit["memory"]) if fit else (None, None)
            for axes, costs, exponent in zip(row, (times, memories), exponents, strict=True):
                label = case["case"]["task"] + ("" if exponent is None else f": exponent {exponent:.2f}")
                axes.loglog(sizes, costs, color=COLORS[index], marker=MARKERS[index], label=label, base=2)
        for axes, cost in zip(row, ("time, ms", "peak memory, MB"), strict=True):
            axes.set_yscale("log", base=10)
            axes.set(xlabel=against, ylabel=cost)
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8)
    return figure


def draw_epochs(results: dict[str, Any]) -> Figure:
    """Draw a bar for each training, divided into the parts of an epoch."""
    cases = [case for case in results["cases"] if case.get("parts")]  # a training that ran out of time may have none
    figure = Figure(figsize=(10, 1.8 + 0.4 * max(1, len(cases))), layout="constrained")
    figure.suptitle(f"{results['title']}: seconds")
    axes = figure.subplots()
    starts = [0.0] * len(cases)
    for color, part in zip(COLORS, cases[0]["parts"] if cases else (), strict=False):
        widths = [case["parts"][part]["median"] for case in cases]
        axes.barh(range(len(cases)), widths, left=starts, color=color, label=part)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_yticks(range(len(cases)), [_name(case["case"]) for case in cases], fontsize=8)
    axes.set(xlabel="seconds of an epoch after the first, median of each part")
    axes.spines[["top", "right"]].set_visible(False)
    if cases:
        figure.legend(loc="outside lower center", ncols=len(starts) + 4, frameon=False)
    return figure
