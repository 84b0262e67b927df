"""Subtitles and label tracks: read back, every format gives the captions that were written."""

import html
import re

import pytest

from ave.results.subtitles import Caption, format_labels, format_srt, format_vtt, write_subtitles

CAPTIONS = [
    Caption(0, 7, "Bark"),
    Caption(1_000, 61_001, "Rock & roll --> <i>loud</i>"),
    Caption(3_599_999, 3_600_000, "{\\an8} 100 %"),
    Caption(359_999_999, 360_000_000, "Flöte 笛"),
]
FULL_WIDTH = str.maketrans("\uff1c\uff1e\uff5b\uff5d", "<>{}")
TIMES = r"(\d\d+):(\d\d):(\d\d)POINT(\d{3})"


def milliseconds(hours, minutes, seconds, rest):
    return ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(rest)


def read_cues(blocks, point):
    """The captions of blocks whose first line has the times."""
    pattern = re.compile(f"{TIMES} --> {TIMES}".replace("POINT", re.escape(point)))
    cues = []
    for block in blocks:
        times, text = block.split("\n")
        groups = pattern.fullmatch(times).groups()
        cues.append((milliseconds(*groups[:4]), milliseconds(*groups[4:]), text))
    return cues


def read_srt(text):
    blocks = [block.split("\n", 1) for block in text.removesuffix("\n\n").split("\n\n")]
    assert [number for number, _ in blocks] == [str(number) for number in range(1, len(blocks) + 1)]
    cues = read_cues([rest for _, rest in blocks], ",")
    assert not any(set(text) & set("<>{}") for *_, text in cues)  # players would take them for markup
    return [Caption(start, end, text.translate(FULL_WIDTH)) for start, end, text in cues]


def read_vtt(text):
    header, *blocks = text.removesuffix("\n\n").split("\n\n")
    assert header == "WEBVTT"
    cues = read_cues(blocks, ".")
    assert not any("<" in text or "-->" in text for *_, text in cues)
    return [Caption(start, end, html.unescape(text)) for start, end, text in cues]


def read_labels(text):
    rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    return [Caption(round(1000 * float(start)), round(1000 * float(end)), text) for start, end, text in rows]


READERS = {".srt": read_srt, ".vtt": read_vtt, ".labels.txt": read_labels}


def test_files_are_read_back(tmp_path):
    write_subtitles(tmp_path, "a clip", iter(CAPTIONS))
    assert {path.name for path in tmp_path.iterdir()} == {f"a clip{suffix}" for suffix in READERS}
    for suffix, read in READERS.items():
        assert read((tmp_path / f"a clip{suffix}").read_bytes().decode()) == CAPTIONS


@pytest.mark.parametrize("name", ["two\n\nlines\r\n", "a\ttab", "\x1b[31mred", "\u2028", "x" * 1000])
def test_every_name_is_one_line(name):
    """What would end a caption or a cell is escaped, and long names are shortened."""
    (srt,), (vtt,), (label,) = (
        read(write([Caption(0, 1000, name)]))
        for read, write in ((read_srt, format_srt), (read_vtt, format_vtt), (read_labels, format_labels))
    )
    assert srt == vtt == label
    assert srt.text
    assert len(srt.text) <= 80


def test_a_blank_name_ends_no_caption():
    assert read_srt(format_srt([Caption(0, 1000, " "), Caption(1000, 2000, "Bark")]))[1].text == "Bark"


def test_no_event_gives_empty_tracks():
    assert (format_srt([]), format_vtt([]), format_labels([])) == ("", "WEBVTT\n\n", "")
