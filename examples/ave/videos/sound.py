"""Read the sound of a video as mono waveforms of its successive seconds.

The decoded samples are clipped as in 16-bit files, averaged over the channels, and aligned with the frames by their
time stamps. PyAV then resamples each second alone, or the whole sound continuously if seconds have context.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from fractions import Fraction
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ave.printing import printable
from ave.videos.containers import LONGEST_STILL, Damage, decode, find_audio, open_video
from ave.videos.sampling import Sampling

if TYPE_CHECKING:
    from av import AudioFrame

__all__ = ["Sound"]

Samples = NDArray[np.float32]
SCALES = {"uint8": 1 / 128, "int16": 1 / 32768, "int32": 1 / 2147483648, "float32": 1.0, "float64": 1.0}
"""Factor from each type of samples to the range from -1 to 1."""
TOGETHER = 32
"""Number of frames of sound that are converted at once. Converting them one by one takes longer than decoding."""
JITTER = 0.02
"""If time stamps and the number of samples differ by more seconds, samples are inserted or dropped."""
NOTABLE = 0.1
"""The shortest missing sound that gets a remark, in seconds."""


class Sound:
    """The sound of a video, as an iterator over the waveforms of successive seconds, without end.

    Each is float32 of shape (round(rate * (1 + 2 * context)),), from -1 to 1. Beyond the ends of the sound, it is zero.

    Args:
        path: the file.
        start: the time in the file at which the first second starts, in seconds.
        sampling: rate and context of the waveforms, and whether to divide them by the largest magnitude of the sound,
            which is then read twice.
        damage: counts the damaged packets.
        remark: called with a line about sound that is missing.
        alive: called often while the sound is read for its peak.
    """

    def __init__(
        self,
        path: Path,
        start: Fraction,
        sampling: Sampling,
        damage: Damage,
        remark: Callable[[str], None],
        alive: Callable[[], None],
    ) -> None:
        self._remark = remark
        self._track = track = _Track(path, start, damage)
        self._peak = 1.0
        if track.rate == 0:
            remark(f"{track.missing}: silence is used")
        elif track.late > NOTABLE:
            remark(f"sound starts {track.late:.2f} s late: silence is used before")
        elif track.late < -NOTABLE:
            remark(f"sound starts {-track.late:.2f} s before the first frame: that part is left out")
        if sampling.normalize_peak and track.rate:
            again = _Track(path, start, Damage(alive=alive))
            blocks = _resample(again.blocks, again.rate, sampling.rate)
            self._peak = max((float(np.abs(block).max(initial=0)) for block in blocks), default=0.0) or 1.0
        self._waveforms = _read_waveforms(track, sampling.rate, sampling.context)

    def __next__(self) -> Samples:
        """Return the waveform of the next second."""
        waveform: Samples = np.clip(next(self._waveforms) / np.float32(self._peak), -1, 1)
        return waveform

    def close(self) -> None:
        """Close the file."""
        self._track.blocks.close()

    def finish(self, end: float) -> None:
        """Report what was missing up to the end of the video, which is given in seconds."""
        track, rate = self._track, self._track.rate
        if rate == 0:
            return
        if track.gaps:
            self._remark(f"sound has gaps of {track.gaps / rate:.2f} s in all: silence is used")
        if track.overlaps:
            self._remark(f"sound overlaps itself by {track.overlaps / rate:.2f} s in all: that part is left out")
        if track.ended and (early := end - track.length / rate) > NOTABLE:
            self._remark(f"sound ends {early:.2f} s early: silence is used")


class _Track:
    """The sound of a file at its own rate, from a given time on.

    Attributes:
        rate: samples per second, or 0 if there is no sound.
        missing: what is missing if there is no sound.
        late: seconds from the start to the first sample; negative if that comes before.
        length: number of samples from the start to the end of what was read; negative if that is earlier.
        gaps: number of samples that were inserted where time stamps jump ahead.
        overlaps: number of samples that were dropped where time stamps go back.
        ended: whether all was read.
        blocks: the samples, mono, in blocks of any length.
    """

    def __init__(self, path: Path, start: Fraction, damage: Damage) -> None:
        self.rate = self.length = self.gaps = self.overlaps = 0
        self.late = 0.0
        self.missing = "no sound"
        self.ended = False
        self.blocks = self._read(path, start, damage)
        next(self.blocks)  # reads until the rate is known

    def _read(self, path: Path, start: Fraction, damage: Damage) -> Generator[Samples, None, None]:
        """Yield an empty block when the first frame is read, and then all blocks."""
        nothing = np.zeros(0, np.float32)
        blocks: Iterator[Samples] = iter(())
        with open_video(path) as container:
            stream = find_audio(container)
            if stream is not None:
                name = printable(path)
                blocks = _mix(self._align(decode(container, stream, damage), start, name), name)
            elif container.streams.audio:
                self.missing = "the codec of the sound is unknown"
            first = next(blocks, nothing)
            yield nothing
            yield first
            yield from blocks
        self.ended = True

    def _align(self, frames: Iterator[AudioFrame], start: Fraction, name: str) -> Iterator[NDArray[Any]]:
        """Yield the samples of frames, (channels, samples), from the start on, with silence in gaps."""
        self.missing = "no sound can be decoded"
        offset = float(start)
        for frame in frames:
            block = frame.to_ndarray()
            if frame.format.is_packed:
                block = block.reshape(-1, frame.layout.nb_channels).T
            first = self.rate == 0
            if first:
                self.rate = frame.sample_rate
            elif frame.sample_rate != self.rate:
                raise ValueError(
                    f"the sound of {name} changes from {self.rate} to {frame.sample_rate} samples per second, "
                    f"so convert it to one rate first"
                )
            ahead = 0
            if frame.pts is not None and frame.time_base is not None:
                ahead = round((frame.pts * float(frame.time_base) - offset) * self.rate) - self.length
            if abs(ahead) > LONGEST_STILL * self.rate:
                raise ValueError(f"{name} is damaged: the time stamps of its sound jump by {ahead / self.rate:.2f} s")
            if first:
                self.late = ahead / self.rate
                self.length = min(ahead, 0)  # what comes before the start is left out
                ahead = max(ahead, 0)
            elif abs(ahead) <= JITTER * self.rate:
                ahead = 0
            elif ahead > 0:
                self.gaps += ahead
            else:
                self.overlaps += min(-ahead, block.shape[1])
                block = block[:, -ahead:]
            while ahead > 0:
                silence = np.zeros((1, min(ahead, self.rate)), np.float32)
                ahead -= silence.size
                self.length += silence.size
                yield silence
            self.length += block.shape[1]
            yield block[:, max(0, block.shape[1] - max(self.length, 0)) :]


def _mix(blocks: Iterable[NDArray[Any]], name: str) -> Iterator[Samples]:
    """Yield the mean of the channels, each clipped from -1 to 1."""
    for (kind, _), alike in groupby(blocks, lambda block: (block.dtype.name, len(block))):
        if kind not in SCALES:
            raise ValueError(f"the sound of {name} has samples of type {kind}, so convert it to 16-bit samples first")
        while together := list(islice(alike, TOGETHER)):
            samples = np.concatenate(together, 1).astype(np.float32)
            scaled = (samples - (128 if kind == "uint8" else 0)) * np.float32(SCALES[kind])
            mono = np.asarray(scaled.clip(-1, 1).mean(0), np.float32)
            yield mono if np.isfinite(mono.sum()) else np.nan_to_num(mono, nan=0.0)


def _read_waveforms(track: _Track, rate: int, context: float) -> Iterator[Samples]:
    """Yield the waveform of each second, without end."""
    length = round(rate * (1 + 2 * context))
    if context > 0 or track.rate == 0:
        before = np.zeros(round(rate * context), np.float32)
        yield from _cut(chain([before], _resample(track.blocks, track.rate, rate)), length, rate)
    for second in _cut(track.blocks, track.rate, track.rate):
        yield next(_cut(_resample([second], track.rate, rate), rate, rate))


def _cut(blocks: Iterable[Samples], length: int, step: int) -> Iterator[Samples]:
    """Yield windows of a signal every ``step`` samples, without end: beyond the signal they are zero."""
    blocks = iter(blocks)
    held = np.zeros(0, np.float32)
    while True:
        parts = [held]
        missing = length - len(held)
        while missing > 0 and (block := next(blocks, None)) is not None:
            parts.append(block)
            missing -= len(block)
        held = np.concatenate(parts)
        window = held[:length]
        yield np.pad(window, (0, length - len(window)))
        held = held[step:]


def _resample(blocks: Iterable[Samples], own: int, rate: int) -> Iterator[Samples]:
    """Yield a signal at another rate."""
    if own in (0, rate):
        yield from blocks
        return
    import av

    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    for block in blocks:
        if block.size:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None]), format="fltp", layout="mono")
            frame.sample_rate = own
            yield from (part.to_ndarray()[0] for part in resampler.resample(frame))
    yield from (part.to_ndarray()[0] for part in resampler.resample(None))
