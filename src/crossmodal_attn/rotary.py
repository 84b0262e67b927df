"""Rotary positions in time: queries and keys are rotated by the time of their segment, each modality on its own clock.

A product of a rotated query and a rotated key depends on the difference of their times, but not on the times
themselves.
Axes: B batch, H heads, T length, D width of a head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crossmodal_attn._checks import check_device, check_dtype, check_tensor, has_shape
from crossmodal_attn._eager import runs_eagerly

__all__ = ["RotaryTime", "rotate_by_time"]


def rotate_by_time(features: Tensor, times: Tensor, *, min_period: float, max_period: float) -> Tensor:
    r"""Rotate pairs of channels of projected heads by the time of each segment.

    Channels :math:`2 i` and :math:`2 i + 1` are rotated by the angle :math:`2 \pi t / P_i` at time :math:`t`. The
    periods are geometric, with both ends included. With :math:`n = \lfloor D / 2 \rfloor` pairs,

    .. math:: P_i = P_{\min} \left(P_{\max} / P_{\min}\right)^{i / (n - 1)}, \qquad i = 0, \dots, n - 1.

    A single pair has the shortest period. If D is odd, the last channel is not rotated.

    Args:
        features: (B, H, T, D), queries or keys.
        times: (T,) or (B, T), floating point or integers.
        min_period: the shortest period, in the unit of ``times``, greater than 0.
        max_period: the longest period, at least ``min_period``.

    Returns:
        Tensor: (B, H, T, D), in the dtype of ``features``. Angles are computed in at least float32, and in float64 if
        ``times`` or ``features`` have that dtype or ``times`` are integers, also under autocast.

    Examples:
        A quarter of the shortest period turns the first pair by 90 degrees:

        >>> features, times = torch.tensor([1.0, 0.0, 1.0, 0.0]).expand(1, 1, 2, 4), torch.tensor([0.0, 1.0])
        >>> print(rotate_by_time(features, times, min_period=4.0, max_period=1e9)[0, 0].round(decimals=3).abs())
        tensor([[1., 0., 1., 0.],
                [0., 1., 1., 0.]])
    """
    check_tensor("features", features)
    if features.dim() != 4:
        raise ValueError(f"features must have shape (batch, heads, time, width), got {tuple(features.shape)}")
    check_dtype("features", features, "features have", features.dtype)
    _check_times("times", times, (features.shape[0], features.shape[2]), features)
    _check_periods(min_period, max_period)

    pairs = features.shape[-1] // 2
    wide = torch.promote_types(features.dtype, torch.float32)
    times = _widen_times(times, features)
    # The periods have the dtype of the features, so that they do not depend on the dtype of the times.
    steps = torch.arange(pairs, dtype=wide, device=features.device) / max(pairs - 1, 1)
    periods = (min_period * (max_period / min_period) ** steps).to(times.dtype)
    # Take the remainder of the period first. It is exact, so the angle is as exact at late times as at early ones.
    angles = times.unsqueeze(-1).fmod(periods) * (2 * math.pi / periods)
    # Within one turn, the dtype of the features is exact enough; and not every ONNX runtime has a float64 cosine.
    angles = angles.to(wide).unsqueeze(-3)  # the same for all heads
    cos, sin = angles.cos(), angles.sin()
    paired = features[..., : 2 * pairs].to(wide).unflatten(-1, (pairs, 2))
    if _views_as_complex(paired):
        # One vectorized product, which is six times as fast on a CPU. Compilers and exporters lack complex numbers.
        rotated = torch.view_as_real(torch.view_as_complex(paired) * torch.complex(cos, sin))
        if rotated.requires_grad:
            rotated.register_hook(_align_pairs)
    else:
        real, imaginary = paired.unbind(-1)
        rotated = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
    rotated = rotated.flatten(-2).to(features.dtype)
    return torch.cat([rotated, features[..., 2 * pairs :]], -1) if features.shape[-1] % 2 else rotated


def _views_as_complex(paired: Tensor) -> bool:
    """Return whether pairs (..., 2) are on a CPU, can be viewed as complex numbers, and no code is traced."""
    return paired.device.type == "cpu" and runs_eagerly() and _are_aligned(paired)


def _are_aligned(paired: Tensor) -> bool:
    """Return whether torch can view pairs (..., 2) as complex numbers without copying them."""
    *strides, last = paired.stride()
    return last == 1 and not any(step % 2 for step in (*strides, paired.storage_offset()))


def _align_pairs(gradient: Tensor | None) -> Tensor | None:
    """Copy a gradient (..., 2) that torch could not view as complex numbers. It may be a part of another gradient."""
    if gradient is None or _are_aligned(gradient):
        return gradient
    return gradient.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class RotaryTime:
    """Rotary positions in time, for the option ``rotary`` of the layers. It has no parameters.

    Each pair of channels of a head rotates with its own period; the periods are geometric, from ``min_period`` to
    ``max_period``, as :func:`rotate_by_time` says. They are in the unit of the times that you give to the layer, such
    as seconds. Without times, the unit is one query segment.

    - Times that differ by a quarter of ``min_period`` are clearly distinguished. With times in seconds, use 0.16 to
      distinguish neighboring frames at 25 Hz, and 4 to distinguish segments of one second.
    - A pair cannot distinguish times that differ by its period. So let ``max_period`` be at least twice the longest
      difference in time. Then the slowest pair tells which of two segments is earlier.
    - The usual rotary embeddings, with base 10000 and a head of width D, correspond to ``min_period=2 * pi`` and
      ``max_period=2 * pi * 10000 ** ((D - 2) / D)``.

    Args:
        min_period: the shortest period, greater than 0.
        max_period: the longest period, finite and at least ``min_period``.

    Raises:
        ValueError: if a period is out of range.

    Examples:
        >>> from crossmodal_attn import CMRA
        >>> layer = CMRA(256, num_heads=4, rotary=RotaryTime(min_period=0.5, max_period=600))
        >>> video, audio = torch.randn(2, 10, 256), torch.randn(2, 40, 256)
        >>> seconds = torch.arange(10.0)
        >>> layer(video, audio, query_times=seconds, context_times=torch.arange(40) / 4 + 0.1).shape
        torch.Size([2, 10, 256])
    """

    min_period: float = 4.0
    max_period: float = 4000.0

    def __post_init__(self) -> None:
        _check_periods(self.min_period, self.max_period)

    def __call__(self, features: Tensor, times: Tensor) -> Tensor:
        """Rotate queries or keys by the time of each segment.

        Args:
            features: (B, H, T, D).
            times: (T,) or (B, T), floating point or integers.

        Returns:
            Tensor: (B, H, T, D), in the dtype of ``features``.
        """
        return rotate_by_time(features, times, min_period=self.min_period, max_period=self.max_period)


class Clock(NamedTuple):
    """The times of one modality of a batch, and the features and the mask that they must fit."""

    name: str
    """The name of the argument that gives the times."""
    times: Tensor | None
    features: Tensor
    """(B, T, width)."""
    padding: Tensor | None
    """bool (B, T), True = padding."""

    def check(self, other_name: str) -> Tensor:
        """Check the times, (T,) or (B, T), and return them with zeros at padding, where they may be NaN."""
        name, times, features, padding = self
        if times is None:
            raise ValueError(f"{name} must be given if {other_name} is, since both must have the same unit, got None")
        _check_times(name, times, features.shape[:2], features)
        return times if padding is None else torch.where(padding, 0, times)


def list_times(layer: nn.Module, rotary: RotaryTime | None, clocks: Sequence[Clock]) -> list[Tensor]:
    """Check the times of all modalities of a batch, the query last, and return them with zeros at padding.

    If none are given, return times that spread each modality over the query's segments: segment j of S is at j * T / S.
    Without ``rotary`` no times may be given, and the list is empty.
    """
    given = [clock for clock in clocks if clock.times is not None]
    if rotary is None:
        if given:
            raise ValueError(
                f"{given[0].name} must be None, since this {type(layer).__name__} was built without rotary, got "
                f"{type(given[0].times).__name__}: build it with rotary=RotaryTime()"
            )
        return []
    if not given:
        length = clocks[-1].features.shape[1]
        return [_spread_times(length, clock.features) for clock in clocks]
    return [clock.check(given[0].name) for clock in clocks]


def join_times(times: Sequence[Tensor], like: Tensor) -> Tensor:
    """Concatenate the times of several memories of the batch ``like``: (M,), or (B, M) if any of them has a batch."""
    widened = [_widen_times(own, like) for own in times]
    if any(own.dim() == 2 for own in widened):
        widened = [own.expand(like.shape[0], own.shape[-1]) for own in widened]
    return torch.cat(widened, -1)


def _spread_times(query_length: int, features: Tensor) -> Tensor:
    """Return the starts of segments that cover the time of ``query_length`` segments of length 1."""
    length = features.shape[1]
    dtype = torch.promote_types(features.dtype, torch.float32)
    return torch.arange(length, dtype=dtype, device=features.device) * query_length / length


def _widen_times(times: Tensor, like: Tensor) -> Tensor:
    """Convert times to at least float32 and the dtype of the features ``like``; integers to float64, to be exact."""
    if not times.is_floating_point() and times.device.type != "mps":  # which has no float64
        return times.double()
    return times.to(torch.promote_types(torch.promote_types(times.dtype, like.dtype), torch.float32))


def _check_times(name: str, times: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Check that times are numbers, have shape (T,) or (B, T), and are on the device of the features ``like``."""
    check_tensor(name, times)
    if times.is_complex() or times.dtype == torch.bool:
        raise TypeError(f"{name} must be floating point or integers, got {times.dtype}")
    if not has_shape(times, (shape[1],), shape):
        raise ValueError(f"{name} must have shape {(shape[1],)} or {tuple(shape)}, got {tuple(times.shape)}")
    check_device(name, times, "its features", like)


def check_rotary(rotary: object, embed_dim: int, num_heads: int) -> None:
    """Check the option ``rotary`` of a layer, whose heads must have at least one pair of channels to rotate."""
    if rotary is None:
        return
    if not isinstance(rotary, RotaryTime):
        raise TypeError(f"rotary must be a RotaryTime or None, got {type(rotary).__name__}")
    if embed_dim // num_heads < 2:
        raise ValueError(
            "rotary rotates pairs of channels of a head, so embed_dim must be at least twice num_heads, got "
            f"embed_dim={embed_dim} and num_heads={num_heads}"
        )


def _check_periods(min_period: float, max_period: float) -> None:
    for name, value in (("min_period", min_period), ("max_period", max_period)):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be greater than 0 and finite, got {value}")
    if max_period < min_period:
        raise ValueError(f"max_period must be at least min_period={min_period}, got {max_period}")
