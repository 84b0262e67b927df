"""Decode a video to the frames and the sound of each of its seconds, without holding more than a few seconds.

Frames are sampled by time and resized as for the AVE release: in RGB, to a square, bilinear without antialiasing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ave.printing import printable
from ave.videos.containers import (
    LONGEST_STILL,
    RGB,
    Damage,
    display_matrix,
    find_video,
    open_video,
    timed_frames,
    turn,
    use_threads,
)
from ave.videos.sampling import Sampling
from ave.videos.sound import Sound

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

__all__ = ["Sampling", "Second", "read_duration", "read_seconds"]

RELEASE_SECONDS = 10
"""Seconds into which the rule of the release divides every clip."""
NOTABLE = 0.5
"""A video may be shorter than its header says by this many seconds, without a remark."""


class Second(NamedTuple):
    """A second of a video.

    Attributes:
        frames: uint8 of shape (frames_per_second, 3, size, size), RGB.
        waveform: float32 of shape (round(rate * (1 + 2 * context)),), mono, from -1 to 1.
    """

    frames: Tensor
    waveform: Tensor


def read_seconds(
    path: Path, sampling: Sampling, remark: Callable[[str], None], *, alive: Callable[[], None] = lambda: None
) -> Iterator[Second]:
    """Decode a video second by second.

    The number of seconds is the rounded length of the video stream, but at least one; with ``as_release``, it is 10.
    Where there is no sound, there is silence.

    Args:
        path: the file.
        sampling: frames and sound of a second.
        remark: called with a line about each thing that is unusual, such as damaged packets.
        alive: called often while the whole file is read before the first second. Some samplings need this.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is not a video that can be decoded.
    """
    damage = Damage()
    with ExitStack() as stack:
        container = stack.enter_context(open_video(path))
        stream = find_video(container, path)
        use_threads(stream)
        track = _Track(timed_frames(container, stream, path, damage))
        if track.start is None:
            packets = f" ({damage.packets} damaged packets)" if damage.packets else ""
            raise ValueError(f"no frame of {printable(path)} can be decoded{packets}")
        sound = Sound(path, track.start, sampling, damage, remark, alive)
        stack.callback(sound.close)
        timed = track.by_index(_count(path, alive)) if sampling.as_release else track.by_time()
        seconds = 0
        for frames in _sample(timed, sampling):
            yield Second(frames, torch.from_numpy(next(sound)))
            seconds += 1
        sound.finish(min(seconds, float(track.end)))
        _compare_end(float(track.end), seconds, _header_duration(container, stream), sampling, remark)
    for line in damage.remarks():
        remark(line)


def read_duration(path: Path) -> float | None:
    """Return the seconds that a video lasts, as its headers say, or None if they do not say it.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is not a video.
    """
    with open_video(path) as container:
        return _header_duration(container, find_video(container, path))


class _Track:
    """The frames of a video stream, by their times after the first one.

    Attributes:
        start: time of the first frame in the file, or None if no frame can be decoded.
        end: time from the start of the first frame to the end of the last one. It is known when all frames were read.
    """

    def __init__(self, frames: Iterator[tuple[Fraction, VideoFrame]]) -> None:
        first = next(frames, None)
        self.start = None if first is None else first[0]
        self.end = Fraction(0)
        self._frames = frames if first is None else chain([first], frames)

    def by_time(self) -> Iterator[tuple[Fraction, VideoFrame | None]]:
        """Yield the time of each frame and the frame, and at last the end and None."""
        start = time = self.start or Fraction(0)
        before, frame = time - Fraction(1, 25), None
        for stamp, frame in self._frames:
            if stamp != time:
                before, time = time, stamp
            yield time - start, frame
        last = time - before
        if frame is not None and frame.duration and frame.time_base:
            last = min(frame.duration * frame.time_base, Fraction(LONGEST_STILL))
        self.end = time - start + last
        yield self.end, None

    def by_index(self, count: int) -> Iterator[tuple[Fraction, VideoFrame | None]]:
        """Yield frames as if each of 10 seconds had a tenth of them: the rule of the release.

        Args:
            count: number of frames of the stream.
        """
        each = count // RELEASE_SECONDS
        for index, (_, frame) in enumerate(self.by_time()):
            if frame is not None and index < max(1, each * RELEASE_SECONDS):
                yield Fraction(index, each or 1), frame
        yield Fraction(RELEASE_SECONDS), None


def _sample(timed: Iterator[tuple[Fraction, VideoFrame | None]], sampling: Sampling) -> Iterator[Tensor]:
    """Yield the frames of each second that is covered by at least a half.

    Args:
        timed: times and frames in ascending order, and at last the end and None.
        sampling: number and size of the frames.
    """
    number, size = sampling.frames_per_second, sampling.size
    resizer = _Resizer(size)
    shown: VideoFrame | None = None
    second = filled = 0
    images = np.empty((number, 3, size, size), np.uint8)
    for time, frame in timed:
        # At the end, the last second is complete or left out.
        limit = time if frame is not None else Fraction(max(1, floor(time + Fraction(1, 2))))
        slots = ceil(limit * number)
        image: NDArray[np.float32] | None = None
        while shown is not None:
            if filled == number:
                if second + Fraction(1, 2) > limit:
                    break
                yield torch.from_numpy(images)
                images, second, filled = np.empty_like(images), second + 1, 0
            if second * number + filled >= slots:
                break
            if image is None:
                image = resizer(shown)
            images[filled] = image
            filled += 1
        shown = frame


class _Resizer:
    """Convert frames to squares in RGB, of shape (3, size, size), with whole numbers."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rgb = RGB()
        self._pixels = torch.empty(0)
        self._started = False
        self._matrix: bytes | None = None

    def __call__(self, frame: VideoFrame) -> NDArray[np.float32]:
        """Return a frame as it is shown, resized to the square."""
        image = torch.from_numpy(self._rgb(frame))[None]
        if self._pixels.shape != image.shape:
            self._pixels = torch.empty(image.shape)  # once for all frames, because allocation takes longer than copying
        if not self._started:
            # When the display matrix of a frame is read, PyAV makes a reference cycle. Only the garbage collector then
            # frees the frame.
            self._started, self._matrix = True, display_matrix(frame)
        # Scaling by FFmpeg, or with antialiasing, would give other features. The batch axis is permuted too, since
        # torch takes the layout from its stride: otherwise it would copy the result twice.
        images = self._pixels.copy_(image).permute(0, 3, 1, 2)
        square = F.interpolate(images, (self._size, self._size), mode="bilinear", antialias=False).round_()
        return turn(self._matrix, square[0].permute(1, 2, 0).numpy()).transpose(2, 0, 1)


def _count(path: Path, alive: Callable[[], None]) -> int:
    """Return the number of frames that can be decoded."""
    with open_video(path) as container:
        stream = find_video(container, path)
        use_threads(stream)
        return sum(1 for _ in timed_frames(container, stream, path, Damage(alive=alive)))


def _header_duration(container: InputContainer, stream: Any) -> float | None:
    """Return the seconds that the video stream lasts, or else the whole file, as the headers say."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1_000_000


def _compare_end(
    end: float, seconds: int, header: float | None, sampling: Sampling, remark: Callable[[str], None]
) -> None:
    """Report a length that differs from the header, or that is unusual."""
    if header is not None and header - end > NOTABLE:
        remark(f"the picture ends at {end:.2f} s, though the header says {header:.2f} s: the file may be truncated")
    if sampling.as_release and abs(end - seconds) > NOTABLE:
        remark(f"the video lasts {end:.2f} s: the rule of the release spreads its frames over {seconds} s")
    elif end < 0.5:
        remark(f"the video lasts only {end:.2f} s: the last frame and silence fill its single second")
