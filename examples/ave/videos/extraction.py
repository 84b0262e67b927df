"""Turn a video into features, second by second: decoding, then a network for frames and one for sound.

Axes: H x W positions, C visual channels, A audio channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ave.videos.decoding import Second
from ave.videos.isolation import read_seconds_isolated
from ave.videos.sampling import Sampling

if TYPE_CHECKING:
    from ave.videos.backbones import AudioBackbone, VisualBackbone

__all__ = ["Extraction", "choose_batch", "extract_seconds", "make_sampling", "probe"]

BATCH, GPU_BATCH = 16, 64
"""Batch sizes in frames: the number of frames in a second of the AVE release, and that on a GPU."""


@dataclass(frozen=True)
class Extraction:
    """How features were extracted. It is saved with their dataset, and with each network that is trained on it."""

    visual: str
    """The name of the network for frames."""
    visual_sha256: str | None
    """The digest of its weights; None if it has no file of weights."""
    audio: str
    """The name of the network for sound."""
    audio_sha256: str | None
    frames_per_second: int
    as_release: bool = False
    """Whether frames were chosen by the index rule of the AVE release."""

    @classmethod
    def of(cls, visual: VisualBackbone, audio: AudioBackbone, sampling: Sampling) -> Extraction:
        """Describe an extraction with these networks."""
        networks = (visual.name, visual.sha256, audio.name, audio.sha256)
        return cls(*networks, sampling.frames_per_second, sampling.as_release)

    def __str__(self) -> str:
        """Describe the networks, their weights and the sampling in one line."""
        names = ((self.visual, self.visual_sha256), (self.audio, self.audio_sha256))
        networks = " and ".join(name if digest is None else f"{name} ({digest[:8]})" for name, digest in names)
        rule = ", by the rule of the release" if self.as_release else ""
        rate = self.frames_per_second
        return f"{networks}, {rate} frame{'s' * (rate != 1)} a second{rule}"

    def find_difference(self, other: Extraction) -> str | None:
        """Return in words the first difference in networks or weights, or None. Sampling may differ.

        Examples:
            >>> first = Extraction("vgg19", "a1", "vggish", "b2", 16)
            >>> first.find_difference(Extraction("vgg19", "c3", "vggish", "b2", 8))
            'visual weights c3 in place of a1'
            >>> first.find_difference(first) is None
            True
        """
        for name in (field.name for field in fields(self) if field.type == "str" or "sha256" in field.name):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                if name.endswith("_sha256"):
                    modality = name.removesuffix("_sha256")
                    return f"{modality} weights {_short(theirs)} in place of {_short(ours)}"
                return f"{name} features by {theirs} in place of {ours}"
        return None


def _short(digest: str | None) -> str:
    return "unknown" if digest is None else digest[:12]


def make_sampling(
    visual: VisualBackbone, audio: AudioBackbone, frames_per_second: int = 16, *, as_release: bool = False
) -> Sampling:
    """Return how a video must be sampled for two networks."""
    return Sampling(
        frames_per_second, visual.input_size, audio.rate, audio.context, audio.normalize_peak, as_release=as_release
    )


def choose_batch(device: torch.device) -> int:
    """Return the batch size in frames for a device."""
    return BATCH if device.type == "cpu" else GPU_BATCH


def probe(visual: VisualBackbone, audio: AudioBackbone, sampling: Sampling) -> tuple[tuple[int, ...], int]:
    """Run two networks on a black frame and on silence, and return the shape of the features, (H, W, C) and A.

    Raises:
        ValueError: if the features have another number of axes, or are not finite.
    """
    frames = torch.zeros(sampling.frames_per_second, 3, sampling.size, sampling.size, dtype=torch.uint8)
    samples = round(sampling.rate * (1 + 2 * sampling.context))
    seen, heard = next(_extract(iter([Second(frames, torch.zeros(samples))]), visual, audio, 1, nullcontext))
    return tuple(seen.shape), len(heard)


def extract_seconds(
    path: Path,
    visual: VisualBackbone,
    audio: AudioBackbone,
    sampling: Sampling,
    remark: Callable[[str], None],
    *,
    batch: int = BATCH,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    read: Callable[[Path, Sampling, Callable[[str], None]], Iterator[Second]] = read_seconds_isolated,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Extract the features of a video, as a stream: memory does not grow with its length.

    Another process decodes while the networks run. The visual features of a second are the mean over its frames.

    Args:
        path: the video.
        visual: the network for frames.
        audio: the network for sound.
        sampling: how the video is sampled, from :func:`make_sampling`.
        remark: called with a line about each thing that is unusual, such as damaged packets.
        batch: batch size in frames, from :func:`choose_batch`.
        autocast: makes the context in which the networks run, such as that of bf16.
        read: decodes the video.

    Yields:
        tuple: for each second the visual features (H, W, C), and the audio features (A,), both float32 on the CPU.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is not a video that can be decoded.
    """
    with closing(read(path, sampling, remark)) as seconds:  # type: ignore[type-var]
        yield from _extract(seconds, visual, audio, batch, autocast)


@torch.no_grad()
def _extract(
    seconds: Iterator[Second],
    visual: VisualBackbone,
    audio: AudioBackbone,
    batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the features of each second."""
    count = 1  # few seconds at first, so that the networks do not wait long for the decoder
    while waiting := list(islice(seconds, count)):
        frames = torch.cat([second.frames for second in waiting])
        with autocast():
            seen = torch.cat([visual(part).float() for part in frames.split(batch)])
            heard = audio(torch.stack([second.waveform for second in waiting])).float()
        seen = seen.unflatten(0, (len(waiting), -1)).mean(1)
        if seen.dim() == 2:  # a vector is a map with one position
            seen = seen[:, None, None]
        yield from zip(seen.cpu(), heard.cpu(), strict=True)
        count = max(1, min(2 * count, len(waiting) * batch // len(frames)))
