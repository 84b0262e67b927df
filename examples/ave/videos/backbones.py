"""Find the networks that turn frames and sound into features: by name, or any function of your own."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ave.videos import resnet152, vgg19, vggish
from ave.videos.aisfx import AISFX
from ave.videos.efficientnet_lite import EfficientNetLite0
from ave.videos.inputs import check_waveform, count_samples, to_float
from ave.videos.resnet152 import ResNet152
from ave.videos.vgg19 import VGG19
from ave.videos.vggish import VGGish
from ave.videos.weights import sha256

__all__ = ["AudioBackbone", "MissingWeightsError", "VisualBackbone", "find_audio", "find_visual"]

T = TypeVar("T")
HIGHEST_RATE, LARGEST_SIZE, LONGEST_CONTEXT = 192_000, 4096, 60.0


class MissingWeightsError(ValueError):
    """Raised if a network needs a file of weights, and none is given."""


class VisualBackbone(Protocol):
    """A network that turns frames into features."""

    name: str
    """The name on the command line."""
    input_size: int
    """The height and width of the frames."""
    sha256: str | None
    """The digest of the file of its weights; None if it has no such file."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Turn frames, uint8 (N, 3, S, S) in RGB on any device, into float32 (N, H, W, C) or (N, C)."""
        ...


class AudioBackbone(Protocol):
    """A network that turns the sound of whole seconds into features."""

    name: str
    """The name on the command line."""
    rate: int
    """The sampling rate of the waveform in Hz."""
    context: float
    """How many seconds of sound it also needs before and after each second."""
    normalize_peak: bool
    """Whether the sound of a video is divided by its peak."""
    sha256: str | None
    """The digest of the file of its weights; None if it has no such file."""

    def __call__(self, waveform: Tensor) -> Tensor:
        """Turn waveforms, float32 (N, samples) in [-1, 1] on any device, into float32 (N, A)."""
        ...


VISUAL: Mapping[str, Callable[[Any], Any]] = {
    "vgg19": VGG19,
    "resnet152": ResNet152,
    "efficientnet-lite0": EfficientNetLite0,
}
AUDIO: Mapping[str, Callable[[Any], Any]] = {"vggish": VGGish, "aisfx": AISFX}
"""The networks by name. Each takes the file of its weights; None stands for the one in its package."""
NEEDED_FILES = {"vgg19": vgg19.FILES, "resnet152": resnet152.FILES, "vggish": vggish.FILES}
"""The files of weights for the networks whose weights come with no package."""


def find_visual(name: str, weights: Path | None = None, device: torch.device | str = "cpu") -> VisualBackbone:
    """Make the network for frames that ``--visual`` and ``--visual-weights`` name.

    Args:
        name: "vgg19", "resnet152" or "efficientnet-lite0"; or "module:function", a function of yours that takes the
            device, and ``weights`` if a file is given, and returns an extractor. This is any object with the attribute
            ``input_size`` that turns frames, uint8 (N, 3, input_size, input_size), into features (N, H, W, C) or
            (N, C).
        weights: the file of the weights.
        device: where the network runs.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if there is no such network, its package or weights are missing, or the file is of another network.
    """
    if ":" in name:
        return _OwnVisual(name, weights, torch.device(device), "--visual")
    found: VisualBackbone = _find(VISUAL, name, weights, device, "--visual")
    return found


def find_audio(name: str, weights: Path | None = None, device: torch.device | str = "cpu") -> AudioBackbone:
    """Make the network for sound that ``--audio`` and ``--audio-weights`` name.

    Args:
        name: "vggish" or "aisfx"; or "module:function", as for :func:`find_visual`: the extractor has the attribute
            ``rate`` in Hz, and turns waveforms, float32 (N, samples), into features (N, A). It may have the attributes
            ``context``, how many seconds of sound it also needs before and after each second, and ``normalize_peak``.
        weights: the file of the weights.
        device: where the network runs.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if there is no such network, its package or weights are missing, or the file is of another network.
    """
    if ":" in name:
        return _OwnAudio(name, weights, torch.device(device), "--audio")
    found: AudioBackbone = _find(AUDIO, name, weights, device, "--audio")
    return found


def _find(
    kinds: Mapping[str, Callable[[Any], Any]],
    name: str,
    weights: Path | None,
    device: torch.device | str,
    option: str,
) -> Any:
    if name not in kinds:
        raise ValueError(f"{option} must be {', '.join(kinds)}, or MODULE:FUNCTION of your own, got {name!r:.60}")
    _check_exists(weights, option)
    if weights is None and name in NEEDED_FILES:
        raise MissingWeightsError(f"{option} {name} needs {option}-weights, the file {NEEDED_FILES[name]}")
    with _naming(f"{option}-weights" if weights else option):
        return kinds[name](weights).to(device)


def _check_exists(weights: Path | None, option: str) -> None:
    if weights is not None and not weights.exists():
        raise FileNotFoundError(f"{option}-weights must be a file, got {weights}, which does not exist")


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Put the name of an option before the message of an error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def _make_own(name: str, weights: Path | None, device: torch.device, option: str) -> Any:
    """Import the module of "module:function", and call the function."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{option} must be MODULE:FUNCTION, such as my_networks:make, got {name!r:.60}")
    _check_exists(weights, option)
    if (here := str(Path.cwd())) not in sys.path:  # as `python -m` does
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            came = f"there is no module {error.name} in {here} or among the installed packages"
            raise ValueError(f"{option} {name}: {came}") from error
        raise ValueError(f"{option} {name}: importing {module_name} failed: {_locate(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"{option} {name}: {module_name} ({module.__file__}) has no function {attribute}")
    options = {} if weights is None else {"weights": weights}
    try:
        inspect.signature(function).bind(device, **options)
    except (TypeError, ValueError) as error:
        needed = "the device and weights=FILE" if options else "the device"
        raise ValueError(f"{option} {name}: {attribute} must take {needed}, got: {error}") from error
    try:
        return function(device, **options)
    except Exception as error:
        raise ValueError(f"{option} {name}: {attribute} failed: {_locate(error)}") from error


def _locate(error: Exception) -> str:
    """Return an error in the user's code, with its file and line, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"


class _Own:
    """An extractor of the user, whose output is checked."""

    def __init__(self, name: str, weights: Path | None, device: torch.device, option: str) -> None:
        self.name, self.option, self.device = name, option, device
        self.extractor = _make_own(name, weights, device, option)
        if not callable(self.extractor):
            came = type(self.extractor).__name__
            raise ValueError(f"{option} {name} must return an extractor that can be called, got {came}")
        if isinstance(self.extractor, nn.Module):
            self.extractor.eval().to(device)
        own = self._get("sha256", str, "") or None
        self.sha256: str | None = own if weights is None else sha256(weights)

    def _get(self, attribute: str, kind: type[T], default: T | None = None) -> T:
        value = getattr(self.extractor, attribute, default)
        if kind is float and type(value) is int:
            value = kind(value)  # type: ignore[call-arg]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            came = "none" if value is None else repr(value)
            needed = f"the attribute {attribute}, of type {kind.__name__}"
            raise ValueError(f"{self.option} {self.name} must return an extractor with {needed}, got {came:.60}")
        return value

    def _check_range(self, attribute: str, value: float, lowest: float, highest: float) -> None:
        if not lowest <= value <= highest:
            expected = f"{attribute} from {lowest:g} to {highest:g}"
            raise ValueError(f"{self.option} {self.name} must return an extractor with {expected}, got {value}")

    @torch.no_grad()
    def _extract(self, values: Tensor, shapes: Mapping[int, str]) -> Tensor:
        features = self.extractor(values.to(self.device))
        expected = f"features of shape {' or '.join(shapes.values())} with N = {len(values)}"
        if not isinstance(features, Tensor):
            came = type(features).__name__
        elif features.dim() not in shapes or len(features) != len(values) or not features.numel():
            came = f"shape {tuple(features.shape)}"
        elif not features.is_floating_point():
            came = f"{features.dtype}"
        elif not features.isfinite().all():
            came = "NaN or infinite values"
        else:
            return features.detach().float()
        raise ValueError(f"{self.option} {self.name} must return {expected}, finite, as a float tensor, got {came}")


class _OwnVisual(_Own):
    def __init__(self, name: str, weights: Path | None, device: torch.device, option: str) -> None:
        super().__init__(name, weights, device, option)
        self.input_size = self._get("input_size", int)
        self._check_range("input_size", self.input_size, 1, LARGEST_SIZE)

    def __call__(self, frames: Tensor) -> Tensor:
        to_float(frames[:0], self.input_size, frames.device)
        return self._extract(frames, {4: "(N, H, W, C)", 2: "(N, C)"})


class _OwnAudio(_Own):
    def __init__(self, name: str, weights: Path | None, device: torch.device, option: str) -> None:
        super().__init__(name, weights, device, option)
        self.rate, self.context = self._get("rate", int), self._get("context", float, 0.0)
        self.normalize_peak = self._get("normalize_peak", bool, False)
        self._check_range("rate", self.rate, 1, HIGHEST_RATE)
        self._check_range("context", self.context, 0, LONGEST_CONTEXT)

    def __call__(self, waveform: Tensor) -> Tensor:
        check_waveform(waveform, count_samples(self.rate, self.context))
        return self._extract(waveform, {2: "(N, A)"})
