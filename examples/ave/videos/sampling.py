"""Describe how the frames and the sound of a video are sampled."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How a video is sampled.

    Attributes:
        frames_per_second: frames of each second. Frame k of second s is the last one that is shown by the time
            s + k / frames_per_second after the first frame.
        size: height and width of the frames, in pixels. The ratio of height to width is not kept.
        rate: samples of the waveform in a second.
        context: seconds of sound before and after each second that belong to its waveform. Without context, each
            second is resampled alone.
        normalize_peak: whether to divide the sound by its largest magnitude in the file.
        as_release: sample as the scripts of the AVE release, for clips of 10 s: divide n frames into 10 seconds of
            n // 10 frames each, whatever their times.

    Raises:
        ValueError: if a number is out of range.
    """

    frames_per_second: int = 16
    size: int = 224
    rate: int = 16_000
    context: float = 0.0
    normalize_peak: bool = False
    as_release: bool = False

    def __post_init__(self) -> None:
        for name in ("frames_per_second", "size", "rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.context < float("inf"):
            raise ValueError(f"context must be a number of seconds from 0, got {self.context}")
