"""The progress of work on videos: it moves within a video, and is told from time to time without a terminal."""

import io
import sys

import pytest

from ave.videos import progress
from ave.videos.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by 10 s whenever it is asked."""
    times = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(times)))


def test_progress_moves_within_a_video(clock, capsys):
    """Lines come once a minute; the time left is estimated from the share of the videos' bytes."""
    shown = Progress(3, {"long": 600, "short": 300})
    shown.start("long")
    assert [*shown.follow("abcdefghijkl", 12.0)] == [*"abcdefghijkl"]  # at the 6th second, 60 s and a third of all
    shown.finish()
    shown.start("short")
    assert [*shown.follow("abc", None)] == [*"abc"]  # the length is unknown, so nothing is shown before the end
    shown.finish()
    assert capsys.readouterr().out.splitlines() == [
        "3 of 5 videos, 0.1 times real time, about 02:00 left",
        "3 of 5 videos, 0.1 times real time, about 01:00 left",
    ]
    assert shown.shown == 900


def test_the_bar_names_the_video(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    shown = Progress(0, {"a": 100, "b": 300})
    shown.start("a")
    assert [*shown.follow(range(5), 4.9)] == [*range(5)]  # a header may say less than there is
    shown.finish()
    shown.start("b")
    shown.finish()
    shown.bar.close()
    assert "video 1 of 2, a" in terminal.getvalue()
    assert "times real time" in terminal.getvalue()
    assert shown.bar.n == 400
