"""Where the time of an epoch goes, measured without holding up the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the seconds of named parts.

    On a GPU the host runs ahead, so events in the stream are timed instead of the host, and only read at the end.

    Args:
        device: what runs the parts.

    Examples:
        >>> watch = Stopwatch(torch.device("cpu"))
        >>> with watch.part("data"):
        ...     pass
        >>> list(watch.read())
        ['data']
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._on_gpu = device.type == "cuda"
        self._marks: defaultdict[str, list[tuple[Any, Any]]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside as part of ``name``."""
        start = self._mark()
        yield
        self._marks[name].append((start, self._mark()))

    def read(self) -> dict[str, float]:
        """The seconds of every part since the last reading. Waits for the device."""
        if self._on_gpu:
            torch.cuda.synchronize(self.device)
        seconds = {
            name: sum(start.elapsed_time(stop) / 1e3 if self._on_gpu else stop - start for start, stop in marks)
            for name, marks in self._marks.items()
        }
        self._marks.clear()
        return seconds

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
