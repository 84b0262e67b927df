"""Mel spectrograms: the filters on HTK's mel scale, and the spectra of overlapping windows."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hertz_to_mel", "make_mel_filters", "window_spectra"]


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """Convert frequencies to HTK's mel scale, ``1127 ln(1 + f / 700)``."""
    return 1127.0 * torch.log1p(hertz / 700.0)


def make_mel_filters(rate: int, fft: int, bands: int, lowest: float, highest: float) -> Tensor:
    """Make triangular filters of peak 1 that are equally spaced, and linear, on the mel scale.

    Args:
        rate: the sampling rate in Hz.
        fft: the length of the Fourier transform.
        bands: number of filters.
        lowest: the lower edge of the first filter, in Hz.
        highest: the upper edge of the last filter, in Hz.

    Returns:
        Tensor: the weights in float64, (fft / 2 + 1, bands). The frequency 0 has the weight 0, since it is at or below
            the lowest edge.

    Examples:
        >>> make_mel_filters(16_000, 512, 64, 125, 7500).shape
        torch.Size([257, 64])
    """
    ends = hertz_to_mel(torch.tensor([lowest, highest], dtype=torch.float64))
    edges = torch.linspace(ends[0].item(), ends[1].item(), bands + 2, dtype=torch.float64)
    mel = hertz_to_mel(torch.linspace(0, rate / 2, fft // 2 + 1, dtype=torch.float64))[:, None]
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def window_spectra(waveform: Tensor, window: Tensor, hop: int, fft: int) -> Tensor:
    """Compute the magnitudes of the Fourier transform of overlapping windows, without any padding of the waveform.

    Args:
        waveform: (N, samples).
        window: the window function, (length).
        hop: the step from window to window, in samples.
        fft: the length of the transform; each window is padded with zeros up to it.

    Returns:
        Tensor: (N, windows, fft / 2 + 1). A window that would reach beyond the end is left out.
    """
    spectra: Tensor = torch.fft.rfft(waveform.unfold(-1, len(window), hop) * window, fft)
    return spectra.abs()
