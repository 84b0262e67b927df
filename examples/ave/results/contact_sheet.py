"""Draw a contact sheet: a picture of small frames of a video, with its events."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from ave.results.figures import save_figures

if TYPE_CHECKING:
    from ave.results.annotation import Annotation

__all__ = ["choose_seconds", "draw_contact_sheet", "shrink"]

Pixels = NDArray[np.uint8]

EVENT_COLOR = (122, 104, 166)
"""The color of events on the timeline."""
COLUMNS, FRAMES, PIXELS = 3, 60, 320
"""A contact sheet has at most 60 frames, of at most 320 pixels in the longer side."""
TEXT, LINE = 0.075, 25
"""The size of its text, relative to the width of a frame, and how many characters fit into a line."""
DPI = 120
"""The resolution of :func:`save_figures`."""


def draw_contact_sheet(path: Path, annotation: Annotation, thumbnails: Mapping[int, Pixels]) -> None:
    """Write a picture of small frames (h, w, 3) of a video, each below its second, its event and the event's score.

    Three in a row leave the text large enough to read on a narrow screen. A bar marks the seconds with an event.
    """
    height, width, _ = next(iter(thumbnails.values())).shape
    size, gap = TEXT * width, width // 32
    columns, seconds = min(COLUMNS, len(thumbnails)), sorted(thumbnails)
    names = [textwrap.fill(f"{second} s: {annotation.name(second)}", LINE) for second in seconds]
    tops, bottom = [], 0  # of the frames in each row
    for row in range(0, len(names), columns):
        lines = 1 + max(name.count("\n") for name in names[row : row + columns])
        tops.append(bottom + round(1.3 * lines * size) + 2 * gap)
        bottom = tops[-1] + height
    rows, wide = bottom + gap, columns * (width + gap) + gap
    sheet = np.full((rows, wide, 3), 255, np.uint8)
    figure = Figure(figsize=(wide / DPI, rows / DPI), dpi=DPI)
    for place, (second, name) in enumerate(zip(seconds, names, strict=True)):
        top, left = tops[place // columns], place % columns * (width + gap) + gap
        sheet[top : top + height, left : left + width] = thumbnails[second]
        event = int(annotation.prediction.labels[second]) < len(annotation.categories)
        if event:
            sheet[top - gap : top, left : left + width] = EVENT_COLOR
        style = {"fontsize": 72 / DPI * size, "color": "black" if event else "#666666", "linespacing": 1.1}
        cell = Bbox.from_bounds(left, 0, width, rows)  # wide letters are cut, and do not cover the next frame's text
        figure.text(left / wide, 1 - (top - gap) / rows, name, va="bottom", clip_on=True, clip_box=cell, **style)
    figure.figimage(sheet)
    save_figures(path.parent, {path.name: figure})


def choose_seconds(seconds: int) -> list[int]:
    """Return the seconds of a contact sheet: all, or evenly spaced ones if there are more than 60.

    Examples:
        >>> choose_seconds(3), choose_seconds(3600)[:4]
        ([0, 1, 2], [0, 60, 120, 180])
    """
    shown = min(seconds, FRAMES)
    return [place * seconds // shown for place in range(shown)]


def shrink(pixels: Pixels) -> Pixels:
    """Return a copy of a frame for the contact sheet: every n-th pixel of it."""
    step = -(-max(pixels.shape) // PIXELS)
    return pixels[::step, ::step].copy()
