"""Show the progress of work on videos: how many are finished, how fast, and the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from ave.printing import printable

__all__ = ["Progress"]

Item = TypeVar("Item")

REPORT_EVERY = 60.0
"""Seconds between two lines about the progress, if there is no terminal for a progress bar."""


class Progress:
    """Show how many videos are finished, how fast, and how long the rest will take.

    Args:
        finished: number of videos that were finished before.
        sizes: the size in bytes of each video that is not finished, to estimate the time that is left.
    """

    def __init__(self, finished: int, sizes: dict[str, int]) -> None:
        self.done, self.videos, self.sizes = finished, finished + len(sizes), sizes
        self.name, self.seconds, self.bytes, self.shown = "", 0, 0, 0.0
        self.begin = self.reported = time.monotonic()
        shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
        self.bar = tqdm(total=sum(sizes.values()), bar_format=shape, disable=None, leave=False, dynamic_ncols=True)

    def start(self, name: str) -> None:
        """Name the video that is extracted now."""
        self.name = name
        self.bar.set_description_str(f"video {self.done + 1} of {self.videos}, {printable(name, 30)}")

    def follow(self, seconds: Iterable[Item], duration: float | None) -> Iterator[Item]:
        """Yield the seconds of the video, and count them.

        Args:
            seconds: the seconds.
            duration: how many there will be, or None if that is unknown.
        """
        for count, second in enumerate(seconds, 1):
            yield second
            self.seconds += 1
            if duration:
                self._show(self.bytes + self.sizes[self.name] * min(1.0, count / duration))

    def finish(self) -> None:
        """Count the video, even if it could not be read to its end."""
        self.done += 1
        self.bytes += self.sizes[self.name]
        self._show(self.bytes)

    def say(self, *parts: str) -> None:
        """Print a line above the bar."""
        self.bar.write(printable("".join(parts)), file=sys.stdout)

    def _show(self, reached: float) -> None:
        """Update the bar. Without a terminal, print a line from time to time."""
        now = time.monotonic()
        speed = f"{self.seconds / max(now - self.begin, 1e-9):.1f} times real time"
        self.bar.set_postfix_str(speed, refresh=False)
        self.bar.update(reached - self.shown)
        self.shown = reached
        if self.bar.disable and now - self.reported >= REPORT_EVERY:
            self.reported = now
            left = (now - self.begin) / max(reached, 1) * (sum(self.sizes.values()) - reached)
            print(f"{self.done} of {self.videos} videos, {speed}, about {tqdm.format_interval(left)} left", flush=True)
