"""Open video files with PyAV, and decode their streams packet by packet, even if they are damaged.

PyAV is imported when the first file is opened, so that the rest of the program works without the extra ``video``.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ave.printing import printable
from ave.reading import check_regular

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

__all__ = ["LONGEST_STILL", "RGB", "Damage", "decode", "display_matrix", "ffmpeg_lacks_memory", "find_audio"]
__all__ += ["find_video", "open_video", "orient", "timed_frames", "turn", "use_threads"]

Number = TypeVar("Number", bound=np.number[Any])
NO_PYAV = 'PyAV is needed to read videos: run pip install -e ".[video]" in the root of the repository'
NESTED = {"protocol_whitelist": "none"}
"""Options of FFmpeg that forbid a file to refer to other files or to addresses, as playlists do."""
LONGEST_STILL = 3600
"""The longest time for which one frame may be shown, in seconds. A longer time counts as a damaged time stamp."""


@dataclass
class Damage:
    """What was damaged in the streams of a file.

    Attributes:
        packets: number of packets that could not be decoded.
        unordered: number of frames with an earlier time than the frame before them.
        stopped: why reading stopped before the end of the file, or None.
        alive: called for every packet.
    """

    packets: int = 0
    unordered: int = 0
    stopped: str | None = None
    alive: Callable[[], None] = field(default=lambda: None, repr=False)

    def remarks(self) -> Iterator[str]:
        """Yield a line for each kind of damage."""
        if self.packets == 1:
            yield "1 damaged packet was skipped"
        elif self.packets:
            yield f"{self.packets} damaged packets were skipped"
        if self.unordered:
            yield f"{self.unordered} frames whose time stamps go backwards were skipped"
        if self.stopped is not None:
            yield f"reading stopped before the end of the file: {self.stopped}"


def describe_error(error: Exception) -> str:
    """Return the message of an error of FFmpeg in one line, without number and file name."""
    return printable(getattr(error, "strerror", None) or error or type(error).__name__, 200)


def ffmpeg_lacks_memory(error: Exception) -> bool:
    """Return whether an error of FFmpeg is about too little memory, such as that for a thread."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.EAGAIN, errno.ENOMEM)


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """Open a video file.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if PyAV is not installed, the file is not a regular one, or FFmpeg does not know its format.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(NO_PYAV) from error
    try:
        check_regular(path)
    except ValueError as error:
        raise ValueError(printable(error)) from None
    with path.open("rb") as file:
        if not file.read(1):
            raise ValueError(f"{printable(path)} is empty, so it is not a video")
        file.seek(0)
        try:
            # FFmpeg gets the open file, because it takes some names for addresses.
            container = av.open(file, "r", container_options=dict(NESTED), **_damaged_tags(av.__version__))
        except MemoryError:
            raise
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ValueError(
                f"{printable(path)} is not a video that FFmpeg can read, or it is truncated: {describe_error(error)}"
            ) from error
        with container:
            yield container


def _damaged_tags(version: str) -> dict[str, Any]:
    """Return the options of ``av.open`` with which tags that are not UTF-8 are no error. PyAV 19 needs none."""
    return {"metadata_errors": "replace"} if int(version.partition(".")[0]) < 19 else {}


def find_video(container: InputContainer, path: Path) -> Any:
    """Return the video stream.

    Raises:
        ValueError: if there is none, or its codec is unknown.
    """
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise ValueError(f"{printable(path)} has no video stream")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise ValueError(f"{printable(path)} has a video stream of a codec that this FFmpeg cannot decode")
    return known[0]


def find_audio(container: InputContainer) -> Any | None:
    """Return the first audio stream whose codec is known, or None."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def use_threads(stream: Any) -> None:
    """Let a stream be decoded or encoded by up to 4 threads, whose stacks also count for a memory limit."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = min(4, cores)


def decode(container: InputContainer, stream: Any, damage: Damage) -> Iterator[Any]:
    """Yield the decoded frames of a stream. Packets that cannot be decoded are skipped and counted."""
    import av

    packets = container.demux(stream)
    while True:
        damage.alive()
        try:
            packet = next(packets, None)
        except MemoryError:
            raise
        except av.FFmpegError as error:
            damage.stopped = describe_error(error)
            packet = None
        try:
            # Without a packet, the decoder gives the frames that it still holds.
            frames = stream.codec_context.decode(None) if packet is None else packet.decode()
        except MemoryError:
            raise
        except av.EOFError:  # the last packet of PyAV has already flushed the decoder
            frames = []
        except av.FFmpegError:
            damage.packets += 1
            frames = []
        yield from frames
        if packet is None:
            return


def timed_frames(container: InputContainer, stream: Any, path: Path, damage: Damage) -> Iterator[tuple[Fraction, Any]]:
    """Yield the frames of a video stream with their times in seconds, in ascending order.

    Raises:
        ValueError: if the time stamps jump by more than an hour.
    """
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    # In AVI, packets have no presentation times, but each lasts as long as one frame. Decoding delays the first frames
    # by a few packets.
    by_order = container.format.name == "avi"
    delay: int | None = None
    last: Fraction | None = None
    for frame in decode(container, stream, damage):
        stamp = frame.pts
        if by_order and (stamp := frame.dts) is not None:
            delay = stamp - (stream.start_time or 0) if delay is None else delay
            stamp -= delay
        if stamp is None:
            time = Fraction(0) if last is None else last + 1 / Fraction(rate)
        else:
            base = frame.time_base
            time = Fraction(stamp * base.numerator, base.denominator)
        step = 0 if last is None else time - last
        if step < 0:
            damage.unordered += 1
            continue
        if last is not None and step > LONGEST_STILL:
            raise ValueError(
                f"{printable(path)} is damaged: the time stamps of its frames jump from {float(last):.2f} s to "
                f"{float(time):.2f} s"
            )
        yield time, frame
        last = time


class RGB:
    """Convert frames to RGB, in FFmpeg's colors and at their own size."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return the pixels of a frame, in shape (height, width, 3), not rotated.

        Raises:
            MemoryError: if there is too little memory, or a memory limit is reached.
            ValueError: if FFmpeg cannot convert it.
        """
        try:
            return cast("NDArray[np.uint8]", self._reformatter.reformat(frame, format="rgb24").to_ndarray())
        except MemoryError:
            raise
        except (OSError, ValueError) as error:
            if ffmpeg_lacks_memory(error):
                raise MemoryError(describe_error(error)) from error
            raise ValueError(
                f"frames of the pixel format {frame.format.name} cannot be converted to RGB: {describe_error(error)}"
            ) from error


def display_matrix(frame: VideoFrame) -> bytes | None:
    """Return the display matrix of a frame, nine numbers of 32 bits, or None."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else bytes(cast("bytes", matrix))


def orient(frame: VideoFrame, image: NDArray[Number]) -> NDArray[Number]:
    """Rotate and mirror an image as the display matrix of its frame says, in steps of 90 degrees.

    Args:
        frame: the decoded frame.
        image: its pixels, in shape (height, width, channels), of any size.
    """
    return turn(display_matrix(frame), image)


def turn(matrix: bytes | None, image: NDArray[Number]) -> NDArray[Number]:
    """Rotate and mirror an image, (height, width, channels), as a display matrix says; None leaves it as it is."""
    if matrix is None:
        return image
    (xx, xy, _), (yx, yy, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3).tolist()
    if abs(xy) + abs(yx) > abs(xx) + abs(yy):
        image, xx, yy = image.swapaxes(0, 1), yx, xy
    return image[:: -1 if yy < 0 else 1, :: -1 if xx < 0 else 1]
