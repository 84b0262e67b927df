"""Write the events of a video as subtitles (SRT and WebVTT) and as an Audacity label track."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ave.printing import printable
from ave.results.files import writing

__all__ = ["SUFFIXES", "Caption", "format_labels", "format_srt", "format_vtt", "write_subtitles"]

LONGEST_TEXT = 80
"""Maximum length in characters. The middle of longer text is left out."""
SRT_MARKUP = str.maketrans("<>{}", "\uff1c\uff1e\uff5b\uff5d")
"""SRT has no escapes: characters that players read as markup become their full-width forms."""
VTT_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Caption(NamedTuple):
    """Text that is shown from one time to another."""

    start: int
    """The start in milliseconds."""
    end: int
    """The end in milliseconds."""
    text: str


def format_srt(captions: Iterable[Caption]) -> str:
    """Format captions as SRT.

    Examples:
        >>> print(format_srt([Caption(3_661_500, 3_663_000, "Bark")]), end="")
        1
        01:01:01,500 --> 01:01:03,000
        Bark
        <BLANKLINE>
    """
    return "".join(
        f"{number}\n{_clock(start)} --> {_clock(end)}\n{_line(text).translate(SRT_MARKUP)}\n\n"
        for number, (start, end, text) in enumerate(captions, 1)
    )


def format_vtt(captions: Iterable[Caption]) -> str:
    """Format captions as WebVTT.

    Examples:
        >>> print(format_vtt([Caption(1000, 3000, "Bark & <b>")]), end="")
        WEBVTT
        <BLANKLINE>
        00:00:01.000 --> 00:00:03.000
        Bark &amp; &lt;b&gt;
        <BLANKLINE>
    """
    cues = (
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_line(text).translate(VTT_MARKUP)}\n\n"
        for start, end, text in captions
    )
    return "WEBVTT\n\n" + "".join(cues)


def format_labels(captions: Iterable[Caption]) -> str:
    r"""Format captions as a label track of Audacity: start and end in seconds, and the text, separated by tabs.

    Examples:
        >>> format_labels([Caption(1000, 3500, "Bark")])
        '1.000000\t3.500000\tBark\n'
    """
    return "".join(f"{start / 1000:.6f}\t{end / 1000:.6f}\t{_line(text)}\n" for start, end, text in captions)


SUFFIXES: Mapping[str, Callable[[Iterable[Caption]], str]] = {
    ".srt": format_srt,
    ".vtt": format_vtt,
    ".labels.txt": format_labels,
}
"""How the text of each file is formatted, by its suffix."""


def write_subtitles(directory: Path, name: str, captions: Iterable[Caption]) -> None:
    """Write captions in every format, in UTF-8, as ``directory/NAME.srt``, ``NAME.vtt`` and ``NAME.labels.txt``."""
    captions = list(captions)
    for suffix, format_captions in SUFFIXES.items():
        with writing(directory / f"{name}{suffix}") as temporary:
            temporary.write_text(format_captions(captions), encoding="utf-8", newline="\n")


def _clock(milliseconds: int, point: str = ",") -> str:
    """Format a time as hours, minutes, seconds and milliseconds."""
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _line(text: str) -> str:
    """Return text as one line without tabs. Blank text becomes a hyphen."""
    return printable(text, LONGEST_TEXT).strip() or "-"
