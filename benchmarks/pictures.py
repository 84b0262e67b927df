"""Draw the charts of the report: time ratios, growth on logarithmic axes, and the parts of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

__all__ = ["draw_epochs", "draw_growth", "draw_ratios"]

# Colors that people with any color vision can distinguish (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
FILLS = ("full", "none", "left")
MOST_RATIOS = len(COLORS) * len(FILLS)
WIDTH = 5.6
"""The width of a chart in inches. Its text is readable even on a phone, which shows it at half this width."""
LINE = 0.17
"""The height of a line of text in inches."""


def draw_ratios(results: dict[str, Any]) -> Figure:
    """Draw the time ratios of each case, with a marker and the quartiles for each pair of forms.

    The label of a case stands above its ratios, so that the chart is narrow enough for a phone.
    """
    cases = [case for case in results["cases"] if case.get("ratios")]
    pairs = list(dict.fromkeys((ratio["of"], ratio["to"]) for case in cases for ratio in case["ratios"]))[:MOST_RATIOS]
    lines = 1.5 + len(pairs)  # lines of a case: its label, and the ratios below it
    height = LINE * (lines * max(1, len(cases)) + 1.2 * len(pairs)) + 1.3
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    for index, pair in enumerate(pairs):
        places, medians, lower, upper = [], [], [], []
        for place, case in enumerate(cases):
            for ratio in case["ratios"]:
                if (ratio["of"], ratio["to"]) == pair:
                    median, quartiles = ratio["time"]["median"], ratio["time"]["quartiles"]
                    places.append(place * lines + 1 + index)
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
            markersize=6,
            linestyle="",
            label=" / ".join(pair),
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel(_explain_ratios(pairs))
    _plain_ticks(axes)
    _label_above(axes, [place * lines for place in range(len(cases))], _short_names([case["case"] for case in cases]))
    axes.set_ylim(lines * max(1, len(cases)) - 0.5, -1)
    axes.grid(axis="x", which="both", color="#dddddd", linewidth=0.6)
    axes.tick_params(axis="x", labeltop=True)  # a chart of many cases is longer than a screen
    if pairs:
        title = f"{results['title']}: ratios of time"
        figure.legend(loc="outside upper left", frameon=False, fontsize=9, title=title, alignment="left")
    return figure


def _explain_ratios(pairs: Sequence[tuple[str, str]]) -> str:
    """Return the label of the axis of time ratios."""
    seconds = {to.partition(",")[0] for _, to in pairs}
    name = seconds.pop() if len(seconds) == 1 else "the second of a pair"
    return f"times as long as {name}\nleft of 1: {name} is slower, right of 1: faster"


def _label_above(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Write the names at the left edge of the axes, in place of the labels of their y axis."""
    for place, name in zip(places, names, strict=True):
        axes.annotate(
            name,
            xy=(0, place),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)


def _plain_ticks(axes: Axes) -> None:
    """Label the logarithmic x axis with plain numbers."""
    lower, upper = axes.get_xlim()
    narrow = upper < 2 * lower  # the marks of a logarithmic axis would be too few
    axes.xaxis.set_major_locator(
        MaxNLocator(8, steps=[1, 2, 5, 10]) if narrow else LogLocator(10, subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short_names(cases: Sequence[dict[str, Any]]) -> list[str]:
    """Return the labels of cases, by the values that tell them apart.

    Examples:
        >>> _short_names([{"batch": 8, "length": 10, "dtype": "bf16"}, {"batch": 2, "length": 128, "dtype": "bf16"}])
        ['length 10', 'length 128']
    """
    cases = [dict(case) for case in cases]
    for key in list(cases[0]) if cases else ():
        without = [{name: value for name, value in case.items() if name != key} for case in cases]
        if without[0] and all(case not in without[:place] for place, case in enumerate(without)):
            cases = without
    return [_name(case) for case in cases]


def _name(case: dict[str, Any]) -> str:
    """Return the label of a case: its values, with their names where these are needed."""
    return ", ".join(
        str(value) if key in ("dtype", "task") else f"{key} {value}" for key, value in case.items() if value != "none"
    )


def draw_growth(results: dict[str, Any]) -> Figure:
    """Draw time and peak memory against each size on logarithmic axes, with the fitted exponents."""
    cases = results["cases"]
    axes_names = list(dict.fromkeys(case["case"]["against"] for case in cases))
    figure = Figure(figsize=(WIDTH, 6 * len(axes_names)), layout="constrained")
    figure.suptitle(results["title"], fontsize="medium")
    grid = figure.subplots(2 * len(axes_names), 1, squeeze=False).reshape(-1, 2)
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
            axes.legend(frameon=False, fontsize=9)
    return figure


def draw_epochs(results: dict[str, Any]) -> Figure:
    """Draw a bar for each training, divided into the parts of an epoch."""
    cases = [case for case in results["cases"] if case.get("parts")]  # a training that ran out of time may have none
    figure = Figure(figsize=(WIDTH, 1.8 + 4.5 * LINE * max(1, len(cases))), layout="constrained")
    figure.suptitle(f"{results['title']}: seconds", fontsize="medium")
    axes = figure.subplots()
    places = range(len(cases))
    starts = [0.0] * len(cases)
    for color, part in zip(COLORS, cases[0]["parts"] if cases else (), strict=False):
        widths = [case["parts"][part]["median"] for case in cases]
        axes.barh(places, widths, 0.4, left=starts, color=color, label=part)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    _label_above(axes, [place - 0.4 for place in places], _short_names([case["case"] for case in cases]))
    axes.set_ylim(max(1, len(cases)) - 0.6, -0.7)
    axes.set(xlabel="seconds of an epoch after the first, median of each part")
    if cases:
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return figure
