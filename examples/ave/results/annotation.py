"""Annotate a video: AGSCA's attention as a heat map over the frames, its events on a timeline, and the original sound.

The video is read as a stream, so memory does not depend on its length. The times of frames and sound are those of the
source, so a variable frame rate is kept.

Axes: T seconds, H x W cells of the attention, h x w pixels.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ave.events import Event, Prediction
from ave.printing import printable
from ave.results.contact_sheet import choose_seconds, draw_contact_sheet, shrink
from ave.results.files import writing
from ave.videos.containers import (
    Damage,
    decode,
    describe_error,
    ffmpeg_lacks_memory,
    find_audio,
    find_video,
    open_video,
    orient,
    timed_frames,
    use_threads,
)
from crossmodal_attn.plots import plot_timeline

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.video.frame import VideoFrame

__all__ = [
    "WEAKEST_PEAK",
    "Annotation",
    "Overlay",
    "Timeline",
    "annotate_video",
    "scale_attention",
]

Pixels = NDArray[np.uint8]

LARGEST, SMALLEST = 1280, 480
"""The limits for the longer side of a frame in pixels. Larger frames are shrunk, and smaller ones enlarged."""
OPACITY = 0.7
"""The opacity of the heat map where the attention is largest."""
WEAKEST_PEAK = 2.0
"""The color scale ends at least at this attention, relative to uniform attention, so that noise is not amplified."""
CURSOR_COLOR = (213, 94, 0)
COPIED_SOUND = ("aac", "mp3", "opus", "flac")
"""Sound that browsers play in an mp4. All other sound is encoded as AAC."""
LOWEST_COPIED = 16_000
"""An mp4 holds no mp3 of a lower rate."""
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
LONGEST_NAME = 40


class Annotation(NamedTuple):
    """What is drawn over a video of T seconds."""

    prediction: Prediction
    categories: Sequence[str]
    """The names of the labels, without background."""
    attention: Tensor | None = None
    """The spatial attention of AGSCA (T, H, W), or None: no heat map."""
    frames_per_second: int = 16
    """The number of frames that the network saw in each second, at equal intervals from its start."""

    def name(self, second: int) -> str:
        """Return the event in a second, with its score, or "background"."""
        for event in self.prediction.events:
            if event.start <= second < event.end:
                return event.describe(self.names)
        return "background"

    def to_json(self) -> dict[str, Any]:
        """Return the same in types that JSON has, without a loss of precision."""
        labels, event_score, events = self.prediction
        tensors = {"labels": labels, "event_score": event_score, "attention": self.attention}
        lists = {name: None if tensor is None else tensor.tolist() for name, tensor in tensors.items()}
        categories, frames_per_second = list(self.categories), self.frames_per_second
        return {**lists, "events": events, "categories": categories, "frames_per_second": frames_per_second}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Annotation:
        """Read what :meth:`to_json` returned."""
        events = [Event(*event) for event in content["events"]]
        prediction = Prediction(torch.tensor(content["labels"]), torch.tensor(content["event_score"]), events)
        attention = None if content["attention"] is None else torch.tensor(content["attention"])
        return cls(prediction, content["categories"], attention, content["frames_per_second"])

    @property
    def names(self) -> list[str]:
        """The categories as they are drawn: on one line, and not too long."""
        return [printable(name, LONGEST_NAME) for name in self.categories]

    @property
    def middle(self) -> float:
        """The middle of the frames that the network saw, in seconds after the start of each second."""
        return (self.frames_per_second - 1) / (2 * self.frames_per_second)


def scale_attention(attention: Tensor) -> Tensor:
    """Scale spatial attention to [0, 1] for a heat map, with one scale for all seconds.

    0 is uniform attention or less. 1 is the largest attention of the video, or twice the uniform attention if that is
    more: attention that is almost uniform everywhere stays invisible.

    Args:
        attention: (T, H, W), where each second sums to one.

    Examples:
        >>> from torch import tensor
        >>> scale_attention(tensor([[[0.7, 0.1], [0.1, 0.1]], [[0.25, 0.25], [0.25, 0.25]]])).flatten(1).tolist()
        [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    relative = attention.float() * attention[0].numel()
    return ((relative - 1) / (max(float(relative.max()), WEAKEST_PEAK) - 1)).clamp(0, 1)


class Overlay:
    """Blend the heat map of each second into the frames. A map is stretched over the whole frame.

    Args:
        heat: (T, H, W), in [0, 1].
    """

    def __init__(self, heat: Tensor) -> None:
        self.heat = heat
        self._drawn: tuple[int, int, int] | None = None

    def blend(self, frame: Pixels, second: int) -> Pixels:
        """Return a frame (h, w, 3) with the heat map of a second over it."""
        if self._drawn != (second, *frame.shape[:2]):
            self._drawn = (second, *frame.shape[:2])
            heat = F.interpolate(self.heat[second][None, None], size=frame.shape[:2], mode="bilinear")[0, 0].numpy()
            color = colormaps["inferno"](heat)[..., :3] * 255
            opacity = OPACITY * heat[..., None]
            self._kept = np.uint16(256 * (1 - opacity) + 0.5)
            self._added = np.uint16(256 * opacity * color + 128)
        blended: Pixels = ((frame * self._kept + self._added) >> 8).clip(max=255).astype(np.uint8)
        return blended


class Timeline:
    """Draw the strip below a video: labels and event scores over time, the event of this second, and a moving cursor.

    Args:
        annotation: the events of T seconds.
        width: of the strip in pixels.
    """

    def __init__(self, annotation: Annotation, width: int) -> None:
        self.annotation, self.width = annotation, width
        self.seconds = len(annotation.prediction.labels)
        self.height = 2 * round(0.1 * min(width, 1000) + 12)
        size = max(6.5, min(width, 1000) / 85)
        figure = Figure(figsize=(width / 100, self.height / 100), dpi=100)
        self._canvas = cast("Any", FigureCanvasAgg(figure))  # matplotlib declares no types for it
        self._axes = figure.add_axes((0.11, 0.24, 0.86, 0.56))
        prediction = annotation.prediction
        plot_timeline(prediction.labels, prediction.event_score, categories=annotation.names, ax=self._axes)
        self._axes.set(xlim=(0, self.seconds), xlabel="")
        self._axes.set_yticks(self._axes.get_yticks(), ["label", "event\nscore"])
        for axes in (self._axes, *self._axes.child_axes):
            axes.tick_params(labelsize=size, pad=1, length=0)
        for text in self._axes.texts:
            text.set(fontsize=size, parse_math=False)
        self._text = figure.text(0.11, 0.98, "", va="top", parse_math=False, animated=True)
        self._text_size = 1.5 * size
        self._canvas.draw()
        self._empty = self._canvas.copy_from_bbox(figure.bbox)
        self._drawn: int | None = None
        self._strip: Pixels = np.empty(0, np.uint8)

    def draw(self, time: float) -> Pixels:
        """Return the strip (height, width, 3) at a time in seconds."""
        second = min(max(int(time), 0), self.seconds - 1)
        if self._drawn != second:
            self._drawn = second
            minutes, rest = divmod(second, 60)
            self._text.set(text=f"{minutes}:{rest:02}   {self.annotation.name(second)}", fontsize=self._text_size)
            if (over := self._text.get_window_extent().width / (0.87 * self.width)) > 1:
                self._text.set(fontsize=self._text_size / over)
            self._canvas.restore_region(self._empty)
            self._canvas.figure.draw_artist(self._text)
            self._strip = np.asarray(self._canvas.buffer_rgba())[..., :3].copy()
        strip = self._strip.copy()
        left = round(self._axes.transData.transform((min(max(time, 0.0), self.seconds), 0))[0])
        strip[round(0.2 * self.height) : round(0.76 * self.height), max(left - 1, 0) : left + 1] = CURSOR_COLOR
        return strip


def annotate_video(
    source: Path,
    output: Path,
    sheet: Path,
    annotation: Annotation,
    remark: Callable[[str], None],
    *,
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Write an annotated video, H.264 in an mp4 that browsers play, and a contact sheet.

    Args:
        source: the video.
        output: the annotated video, ``.mp4``. Without the timeline, its longer side has 480 to 1280 pixels.
        sheet: the contact sheet, ``.png``: a frame for each second, or 60 of them if the video is longer.
        annotation: what is drawn.
        remark: called with a line about each thing that differs from the source.
        alive: called often.

    Raises:
        MemoryError: if there is too little memory, or a memory limit is reached.
        OSError: if a file cannot be read or written.
        ValueError: if the source is no video that can be decoded.
    """
    import av

    try:
        thumbnails = _write_video(source, output, annotation, remark, alive)
    except av.FFmpegError as error:
        if ffmpeg_lacks_memory(error):
            raise MemoryError(describe_error(error)) from error
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # a full disk stops the command
            raise OSError(error.errno, error.strerror, str(output)) from error
        raise ValueError(f"FFmpeg cannot write {printable(output)}: {describe_error(error)}") from error
    draw_contact_sheet(sheet, annotation, thumbnails)


def _write_video(
    source: Path, output: Path, annotation: Annotation, remark: Callable[[str], None], alive: Callable[[], None]
) -> dict[int, Pixels]:
    """Write the annotated video, and return small frames of the seconds of the contact sheet."""
    import av

    seconds = len(annotation.prediction.labels)
    overlay = None if annotation.attention is None else Overlay(scale_attention(annotation.attention))
    thumbnails: dict[int, Pixels] = {}
    shown = set(choose_seconds(seconds))
    with ExitStack() as stack:
        container = stack.enter_context(open_video(source))
        stream = find_video(container, source)
        use_threads(stream)
        frames = timed_frames(container, stream, source, Damage(alive=alive))
        first = next(frames, None)
        if first is None:
            raise ValueError(f"no frame of {printable(source)} can be decoded")
        origin = max(Fraction(container.start_time or 0, 1_000_000), Fraction(0))
        temporary = stack.enter_context(writing(output))
        # Without "file:", FFmpeg takes the text before a colon in a path for a protocol.
        result = stack.enter_context(av.open(f"file:{temporary}", "w", options={"movflags": "+faststart"}))
        # The sound has a reader of its own. With one reader, sound and frames that are far apart in the file would fill
        # memory.
        sound = _Sound(stack.enter_context(open_video(source)), result, origin, remark, alive)
        scale = _Scaler(float(stream.sample_aspect_ratio or 1), first[1])
        height, width, _ = scale(first[1]).shape
        timeline = Timeline(annotation, width)
        pictures = _Pictures(result, stream, (height + timeline.height, width), origin)
        for time, frame in chain([first], frames):
            passed = float(time - first[0])
            second = min(int(passed), seconds - 1)
            pixels = scale(frame)
            if overlay is not None:
                pixels = overlay.blend(pixels, second)
            if second in shown and (second not in thumbnails or passed <= second + annotation.middle):
                thumbnails[second] = shrink(pixels)  # the last one is the middle of those that the network saw
            sound.write(time)
            pictures.write(np.concatenate([pixels, timeline.draw(passed)]), time)
        pictures.close()
        sound.write(None)
    return thumbnails


class _Pictures:
    """Encode frames as H.264, at the times of the source."""

    def __init__(self, result: OutputContainer, source: Any, size: tuple[int, int], origin: Fraction) -> None:
        self.result, self.origin = result, origin
        self.unit = Fraction(source.time_base)
        self.last: int | None = None
        rate = source.average_rate or source.guessed_rate or 25
        self.stream: Any = result.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "20"})
        use_threads(self.stream)
        self.stream.pix_fmt, (self.stream.height, self.stream.width) = "yuv420p", size
        self.stream.time_base = self.stream.codec_context.time_base = self.unit

    def write(self, pixels: Pixels, time: Fraction) -> None:
        """Encode a frame (height, width, 3). A frame at the time of the previous one is left out."""
        import av

        stamp = round((time - self.origin) / self.unit)
        if self.last is not None and stamp <= self.last:
            return
        self.last = stamp
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = stamp, self.unit
        self.result.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write the frames that the encoder still holds."""
        self.result.mux(self.stream.encode(None))


class _Sound:
    """Copy the packets of the sound, or encode it as AAC if browsers cannot play it in an mp4."""

    def __init__(
        self,
        source: InputContainer,
        result: OutputContainer,
        origin: Fraction,
        remark: Callable[[str], None],
        alive: Callable[[], None],
    ) -> None:
        self.result, self.origin, self.alive = result, origin, alive
        self.packets: Iterator[Any] = iter(())
        if (stream := find_audio(source)) is None:
            return
        codec = stream.codec_context.codec.canonical_name  # the decoder of mp3 has the name mp3float
        self.copied = codec in COPIED_SOUND and (codec != "mp3" or stream.codec_context.sample_rate >= LOWEST_COPIED)
        if self.copied:
            self.stream: Any = result.add_stream_from_template(stream)
        else:
            remark(f"the annotated video has its sound encoded as AAC, as browsers do not play {codec} in an mp4")
            rate = stream.codec_context.sample_rate
            rate = rate if rate in AAC_RATES else 48_000
            self.stream = result.add_stream("aac", rate=rate, layout="mono" if stream.channels == 1 else "stereo")
        self.packets = self._read(source, stream)

    def write(self, until: Fraction | None) -> None:
        """Write the packets up to a time of the source; None: all that are left."""
        for packet, time in self.packets:
            self.alive()
            self.result.mux(packet)
            if until is not None and time >= until:
                return

    def _read(self, source: InputContainer, stream: Any) -> Iterator[tuple[Any, Fraction]]:
        """Yield packets for the result, and their times in the source."""
        import av

        unit = Fraction(stream.time_base)
        shift = round(self.origin / unit)
        if not self.copied:
            time = Fraction(0)
            for frame in chain(decode(source, stream, Damage()), [None]):  # None: what the encoder still holds
                if frame is not None:
                    time = frame.pts * Fraction(frame.time_base)
                    # In samples: in the coarser unit of AVI, the encoder would give two packets the same time.
                    frame.time_base = Fraction(1, frame.sample_rate)
                    frame.pts = round((time - self.origin) * frame.sample_rate)
                for packet in self.stream.encode(frame):
                    yield packet, time
            return
        packets = source.demux(stream)
        with suppress(av.FFmpegError):  # the file ends early
            for packet in packets:
                if packet.pts is not None and packet.dts is not None:
                    time = packet.pts * unit
                    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                    packet.stream = self.stream
                    yield packet, time


class _Scaler:
    """Convert frames to RGB (h, w, 3) with square pixels, turned upright, of even size.

    Args:
        aspect: the width of a pixel of the source, divided by its height.
        first: a frame of the source. All frames get its size, since the size may change in the middle of a video. Its
            display matrix is used for all frames, since PyAV makes a reference cycle when a matrix is read, and only
            the garbage collector then frees the frame.
    """

    def __init__(self, aspect: float, first: VideoFrame) -> None:
        from av.video.reformatter import VideoReformatter

        self._first = first
        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame
        width = first.width * aspect
        longest = max(width, first.height)
        scale = min(max(longest, SMALLEST), LARGEST) / longest
        self._columns, self._rows = (2 * max(round(side * scale / 2), 1) for side in (width, first.height))

    def __call__(self, frame: VideoFrame) -> Pixels:
        scaled = self._reformatter.reformat(frame, self._columns, self._rows, "rgb24").to_ndarray()
        return orient(self._first, np.asarray(scaled, np.uint8))
