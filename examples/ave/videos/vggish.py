"""VGGish, as the AVE release used it: 128 numbers after the last ReLU, without PCA and without quantization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ave.videos.inputs import check_waveform
from ave.videos.mel import make_mel_filters, window_spectra
from ave.videos.vgg19 import build_stack
from ave.videos.weights import fill, is_hdf5, read_state_dict, sha256

__all__ = ["FILES", "VGGish", "VGGishNetwork", "compute_log_mel"]

RATE, WINDOW, HOP, FFT, BANDS = 16_000, 400, 160, 512, 64
LOWEST, HIGHEST = 125, 7500  # Hz
OFFSET = 0.01
EXAMPLE = 96
"""The spectra of an example. A second has 98 of them; the last two are not used."""
CHANNELS = ((64,), (128,), (256, 256), (512, 512))
SINE_MEAN, SINE_DEVIATION, TOLERANCE = 0.131, 0.238, 0.1
"""The features of a sine of 1 kHz, and the relative difference that is allowed."""
FILES = "vggish-10086976.pth, vggish_orig.pth, or torchaudio's vggish.pt"
PCA = "pca_"
"""The beginning of names in the files of PCA parameters, which VGGish's own release applies after the network."""


@cache
def _constants() -> tuple[Tensor, Tensor]:
    window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64)
    return window.float(), make_mel_filters(RATE, FFT, BANDS, LOWEST, HIGHEST).float()


def compute_log_mel(waveform: Tensor) -> Tensor:
    """Compute log-mel spectra: magnitudes, 64 bands of peak 1 from 125 to 7500 Hz, ``ln(x + 0.01)``.

    Args:
        waveform: float32, (N, samples), 16 kHz.

    Returns:
        Tensor: float32, (N, windows, 64); a window of 400 samples at every 160th.

    Examples:
        >>> compute_log_mel(torch.zeros(1, 16_000)).shape
        torch.Size([1, 98, 64])
    """
    window, filters = (constant.to(waveform.device) for constant in _constants())
    with torch.autocast(waveform.device.type, enabled=False):
        return (window_spectra(waveform, window, HOP, FFT) @ filters + OFFSET).log()


class VGGishNetwork(nn.Module):
    """The network of VGGish: from 96 log-mel spectra to 128 numbers.

    Args:
        channels: the channels of the convolutions, between four poolings.
        hidden: the width of the two hidden layers.

    Shape:
        - input: (N, 96, 64)
        - output: (N, 128), not negative
    """

    def __init__(self, channels: Sequence[Sequence[int]] = CHANNELS, hidden: int = 4096) -> None:
        super().__init__()
        self.features = build_stack(channels, inputs=1)
        width = channels[-1][-1] * (EXAMPLE // 16) * (BANDS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 128), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features of examples."""
        maps = self.features(x[:, None])  # (N, channels, time, frequency)
        features: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return features


class VGGish(nn.Module):
    """VGGish on seconds of sound.

    Args:
        weights: ``vggish-10086976.pth``, ``vggish_orig.pth``, or torchaudio's ``vggish.pt``. They are checked with a
            sine, whose features are known.

    Shape:
        - waveform: float32, (N, 16000), 16 kHz, in [-1, 1]
        - output: float32, (N, 128), not negative

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is damaged, or holds other weights.
    """

    name, rate, context, normalize_peak = "vggish", RATE, 0.0, False

    def __init__(self, weights: Path) -> None:
        super().__init__()
        with torch.device("meta"):
            self.network = VGGishNetwork()
        self.sha256: str | None = sha256(weights)
        fill(self.network, _read(weights), weights, self.name, ignored=("classifier.",))
        _check_sine(self.network, weights)

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """Compute the features of seconds."""
        check_waveform(waveform, self.rate)
        x = compute_log_mel(waveform.to(next(self.parameters()).device))
        features: Tensor = self.network(x[:, :EXAMPLE])
        return features.float()


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file of weights, under our names."""
    if "pca_params" in path.name:
        raise ValueError(f"{path} must be {FILES}, got parameters of PCA, which the AVE release does not use")
    if is_hdf5(path):
        raise ValueError(f"{path} must be {FILES}, got an HDF5 file")
    state_dict = read_state_dict(path)
    if any(name.startswith(PCA) for name in state_dict) and "embeddings.0.weight" not in state_dict:
        raise ValueError(f"{path} must be {FILES}, got parameters of PCA, which the AVE release does not use")
    renamed = {
        name.replace("features_network.", "features.").replace("embedding_network.", "embeddings."): value
        for name, value in state_dict.items()
    }
    return {name: value for name, value in renamed.items() if not name.removeprefix("pproc.").startswith(PCA)}


@torch.no_grad()
def _check_sine(network: nn.Module, path: Path) -> None:
    """Check the features of three seconds of a sine of 1 kHz, in three examples of 0.96 s."""
    sine = torch.sin(2 * math.pi * 1000 * torch.arange(3 * RATE, dtype=torch.float64) / RATE).float()
    features = network(compute_log_mel(sine[None])[0, : 3 * EXAMPLE].view(3, EXAMPLE, BANDS))
    mean, deviation = features.mean().item(), features.std(correction=0).item()
    expected = zip((mean, deviation), (SINE_MEAN, SINE_DEVIATION), strict=True)
    if any(not abs(came - known) <= TOLERANCE * known for came, known in expected):
        came = f"mean {mean:.3g} and standard deviation {deviation:.3g}"
        expected_text = f"mean {SINE_MEAN} and standard deviation {SINE_DEVIATION} for a sine of 1 kHz"
        raise ValueError(f"{path} must hold the weights of VGGish, which give {expected_text}, got {came}")
