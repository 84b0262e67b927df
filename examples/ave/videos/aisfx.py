"""aisfx: an embedding network for sound effects. Its weights come with a package, which is not imported."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave.videos.inputs import check_waveform, count_samples
from ave.videos.mel import make_mel_filters, window_spectra
from ave.videos.weights import fill, find_packaged, read_state_dict, sha256

__all__ = ["AISFX", "compute_spectrogram"]

RATE, FFT, HOP, BANDS, FRAMES = 44_100, 2048, 1024, 96, 100
SAMPLES = FFT + (FRAMES - 1) * HOP
CONTEXT = (SAMPLES - RATE) / 2 / RATE
"""How many seconds of sound are needed before and after a second: 0.67, for 100 windows that are centered on it."""
CHANNELS = (64, 128, 256, 512)
SCALE = 9.457798957824707
"""The largest value of the spectrograms that the network was trained on."""
NEEDED = "aisfx needs its package: run pip install --no-deps aisfx==0.1.2 (its dependencies are not needed)"
ALLOWED = [
    np.dtype,
    type(np.dtype("int64")),
    type(np.dtype("float64")),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
]
"""The types that the checkpoint needs besides tensors, for the numbers in its list of datasets."""


@cache
def _constants() -> tuple[Tensor, Tensor]:
    filters = make_mel_filters(RATE, FFT, BANDS, 0, RATE / 2)
    window = torch.hann_window(FFT, periodic=False, dtype=torch.float64)
    return window.float(), (filters / filters.sum(0)).float()


def compute_spectrogram(waveform: Tensor) -> Tensor:
    """Compute log-mel spectra: power, 96 bands of weight 1 from 0 to 22,050 Hz, ``log10(1 + 10^4 x) / 9.458``.

    Args:
        waveform: float32, (N, samples), 44.1 kHz, divided by its peak.

    Returns:
        Tensor: float32, (N, windows, 96); a window of 2048 samples at every 1024th.
    """
    window, filters = (constant.to(waveform.device) for constant in _constants())
    with torch.autocast(waveform.device.type, enabled=False):
        bands = window_spectra(waveform, window, HOP, FFT).square() @ filters
        return torch.log10(1 + 1e4 * bands) / SCALE


class _Block(nn.Module):
    """Two convolutions, each with batch normalization and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class AISFX(nn.Module):
    """The embedding network of aisfx on the 100 spectra that are centered on a second.

    Args:
        weights: a file of the weights. Default: the one in the package aisfx.

    Shape:
        - waveform: float32, (N, 103424), the second with 0.67 s before and after it, at 44.1 kHz, divided by the peak
          of its video
        - output: float32, (N, 512), not negative

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file holds other weights, or the package is not installed.
    """

    name, rate, context, normalize_peak = "aisfx", RATE, CONTEXT, True

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        path = weights or find_packaged("aisfx", "checkpoint.pth")
        if path is None:
            raise ValueError(NEEDED)
        self.sha256: str | None = sha256(path)
        with torch.device("meta"):
            self.blocks = nn.ModuleList(map(_Block, (1, *CHANNELS), CHANNELS))
        state_dict = read_state_dict(path, ALLOWED)
        for index in range(len(CHANNELS)):
            ours, theirs = f"{index}.", f"embedding_net.conv_block{index + 1}."
            state_dict = {name.replace(theirs, ours): value for name, value in state_dict.items()}
        fill(self.blocks, state_dict, path, self.name, ignored=("fc.",))

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Compute the embeddings of seconds."""
        check_waveform(waveform, count_samples(self.rate, self.context))
        x = compute_spectrogram(waveform.to(next(self.parameters()).device))[:, None]
        for index, block in enumerate(self.blocks):
            x = block(F.max_pool2d(x, 2) if index else x)
        return x.mean(3).amax(2).float()
