"""Make short clips with a moving square and a tone, to try the commands without videos of your own.

Each clip shows a red or a blue square in some of its seconds, and has a tone in some. Its event is where both meet:
neither sight nor hearing alone can find it. The category is the color of the square.
"""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ave.videos.containers import NO_PYAV

__all__ = ["Bands", "Clip", "draw_clip", "make_bands", "make_clips", "write_clip"]

COLORS = {"red square": (220, 40, 30), "blue square": (40, 80, 230)}
"""The categories and the colors of their squares."""
SIDE, SQUARE = 112, 32
"""Height and width of the frames, and of the square, in pixels."""
FRAMES_PER_SECOND, RATE, PITCH = 10, 16_000, 880


class Clip(NamedTuple):
    """What happens in a clip."""

    category: str
    seconds: int
    seen: range
    """The seconds that show the square."""
    heard: range
    """The seconds with the tone."""
    path: NDArray[np.float64]
    """(seconds + 1, 2): the upper left corner of the square, y and x, at the start of each second."""

    @property
    def event(self) -> range:
        """The seconds in which square and tone meet."""
        return range(max(self.seen.start, self.heard.start), min(self.seen.stop, self.heard.stop))

    def corner(self, time: float) -> tuple[int, int]:
        """Return the upper left corner of the square, y and x, at a time in seconds."""
        second = min(int(time), self.seconds - 1)
        y, x = self.path[second] + (time - second) * (self.path[second + 1] - self.path[second])
        return round(y), round(x)


def draw_clip(generator: np.random.Generator, seconds: int = 6) -> Clip:
    """Draw a clip at random: 2 to 4 seconds of the square and of the tone, which may meet or not."""

    def draw_span() -> range:
        length = int(generator.integers(2, 5))
        start = int(generator.integers(0, seconds - length + 1))
        return range(start, start + length)

    category = list(COLORS)[int(generator.integers(len(COLORS)))]
    path = generator.uniform(0, SIDE - SQUARE, (seconds + 1, 2))
    return Clip(category, seconds, draw_span(), draw_span(), path)


def write_clip(path: Path, clip: Clip, generator: np.random.Generator) -> None:
    """Write a clip as an mp4, with noise in sight and sound.

    Raises:
        ValueError: if PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(NO_PYAV) from error
    ground = generator.integers(90, 140, (SIDE // 8, SIDE // 8, 1)).repeat(8, 0).repeat(8, 1).repeat(3, 2)
    time = np.arange(clip.seconds * RATE) / RATE
    heard = np.isin(time.astype(int), list(clip.heard))
    sound = 0.4 * np.sin(2 * np.pi * PITCH * time) * heard + 0.02 * generator.standard_normal(len(time))
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"preset": "ultrafast", "crf": "18"})
        picture.width = picture.height = SIDE
        picture.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=RATE, layout="mono")
        for index in range(clip.seconds * FRAMES_PER_SECOND):
            image = (ground + generator.integers(-8, 9, ground.shape)).astype(np.uint8)
            if index // FRAMES_PER_SECOND in clip.seen:
                y, x = clip.corner(index / FRAMES_PER_SECOND)
                image[y : y + SQUARE, x : x + SQUARE] = COLORS[clip.category]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FRAMES_PER_SECOND)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for start in range(0, len(sound), 1024):
            block = sound[None, start : start + 1024].astype(np.float32)
            waveform = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            waveform.sample_rate, waveform.pts, waveform.time_base = RATE, start, Fraction(1, RATE)
            container.mux(track.encode(waveform))
        container.mux(track.encode(None))


def make_clips(directory: Path | str, count: int = 24, *, seconds: int = 6, seed: int = 0) -> list[Clip]:
    """Write clips, and their events as ``labels.csv``, into a directory, which is made if it is missing.

    Args:
        directory: where to write.
        count: the number of clips.
        seconds: the length of each.
        seed: of the random generator.

    Returns:
        list: the clips, in the order of their names.

    Raises:
        ValueError: if PyAV is not installed.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    clips = [draw_clip(generator, seconds) for _ in range(count)]
    with (directory / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["video", "start", "end", "category"])
        for number, clip in enumerate(clips):
            write_clip(directory / f"clip-{number:03}.mp4", clip, generator)
            span = (clip.event.start, clip.event.stop, clip.category) if clip.event else ("", "", "")
            writer.writerow([f"clip-{number:03}.mp4", *span])
    return clips


class Bands:
    """The loudness of a second in bands of its spectrum: a network for sound that needs no weights.

    It shows what your own extractor needs: the attribute ``rate``, and a call that turns waveforms into features.
    """

    rate = RATE
    bands = 32

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return (N, 32) for waveforms (N, 16000): ``log(1 + energy)`` of each band of 250 Hz."""
        spectrum = torch.fft.rfft(waveform, norm="ortho").abs().square()[:, 1:]
        return torch.log1p(spectrum.unflatten(1, (self.bands, -1)).sum(-1))


def make_bands(device: torch.device) -> Bands:
    """Return the extractor, as ``--audio ave.videos.procedural:make_bands`` asks for it. It runs on any device."""
    return Bands()
