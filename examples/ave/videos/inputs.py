"""Check the input of a backbone: frames as uint8, and the sound of whole seconds."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_waveform", "count_samples", "normalize_imagenet", "to_float"]

MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The mean and the standard deviation of the colors of ImageNet: red, green, blue in [0, 1]."""


def to_float(frames: Tensor, size: int, device: torch.device) -> Tensor:
    """Move frames to a device, and convert them to float32 in [0, 255], with channels last in memory.

    Convolutions run faster on this layout: VGG-19 by 15 % on a CPU.

    Raises:
        ValueError: if the frames are not uint8 of shape (N, 3, size, size).
    """
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[1:] != (3, size, size):
        came = f"{frames.dtype} of shape {tuple(frames.shape)}"
        raise ValueError(f"frames must be torch.uint8 of shape (N, 3, {size}, {size}), got {came}")
    # Move first, then convert: uint8 has a quarter of the bytes of float32.
    return frames.to(device).to(torch.float32, memory_format=torch.channels_last)


def normalize_imagenet(frames: Tensor) -> Tensor:
    """Normalize frames as torchvision's networks expect: scale to [0, 1], subtract the mean, divide by the deviation.

    Args:
        frames: float, (N, 3, H, W), RGB in [0, 255].
    """
    return (frames / 255 - frames.new_tensor(MEANS)[:, None, None]) / frames.new_tensor(DEVIATIONS)[:, None, None]


def count_samples(rate: int, context: float = 0.0) -> int:
    """Return the number of samples of a second, with ``context`` seconds before it and after it."""
    return round(rate * (1 + 2 * context))


def check_waveform(waveform: Tensor, samples: int) -> None:
    """Check the waveform of whole seconds.

    Raises:
        ValueError: if it is not float32 of shape (N, samples).
    """
    if waveform.dtype != torch.float32 or waveform.dim() != 2 or waveform.shape[1] != samples:
        came = f"{waveform.dtype} of shape {tuple(waveform.shape)}"
        raise ValueError(f"waveform must be torch.float32 of shape (N, {samples}), got {came}")
