"""Align the segments of modalities on one time axis: from rates, offsets and time stamps to starts and ends.

Axes: T query length, S context length.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from crossmodal_attn._checks import check_size, check_tensor, has_shape

__all__ = ["Bounds", "Segments", "align"]

Bounds: TypeAlias = tuple[float | None, float | None]
"""The distances (back, ahead) in time; None means no bound."""

TOLERANCE = 1e-6
"""Times that differ by less count as equal. Most rates and windows, such as 0.1, have no exact binary value."""


class Segments(NamedTuple):
    """Hold when the segments of a memory start and end, float64 (S,) each on the CPU, and its window."""

    starts: Tensor
    ends: Tensor
    window: Bounds


def align(
    query_length: int,
    context_lengths: Sequence[int],
    window: float | Bounds | None,
    context_windows: Sequence[float | Bounds | None] | None,
    context_rates: Sequence[float | None] | None,
    context_offsets: Sequence[float] | None,
    query_times: Tensor | None,
    context_times: Sequence[Tensor | None] | None,
    include_query: bool,
) -> tuple[tuple[Tensor, Tensor], list[Segments], float | Tensor]:
    """Check the arguments, and return the query's starts and ends, the memories, and the tolerance.

    Times are computed on the CPU, since not every device has float64.
    """
    check_size("query_length", query_length)
    lengths = _list("context_lengths", context_lengths)
    for index, length in enumerate(lengths):
        check_size(f"context_lengths[{index}]", length, minimum=0)
    if not lengths and not include_query:
        raise ValueError(f"context_lengths must have at least one entry if include_query=False, got {context_lengths}")
    own = _bounds("window", window)
    windows = [own] * len(lengths)
    if context_windows is not None:
        given = _one_each("context_windows", context_windows, lengths)
        windows = [_bounds(f"context_windows[{index}]", bounds) for index, bounds in enumerate(given)]
    times = [None] * len(lengths) if context_times is None else _one_each("context_times", context_times, lengths)
    rates = [None] * len(lengths) if context_rates is None else _one_each("context_rates", context_rates, lengths)
    offsets = [0] * len(lengths) if context_offsets is None else _one_each("context_offsets", context_offsets, lengths)

    begin: float | Tensor
    duration: float | Tensor
    if query_times is None:
        starts = torch.arange(query_length, dtype=torch.float64, device="cpu")
        query, begin, duration = (starts, starts + 1), 0, query_length
    else:
        query = _stamps("query_times", query_times, query_length)
        begin, duration = query[0][0], query[1][-1] - query[0][0]
    memories = []
    for index, (length, rate, offset, stamps) in enumerate(zip(lengths, rates, offsets, times, strict=True)):
        _check_number(f"context_offsets[{index}]", offset, "units of time that the context is late")
        if stamps is not None:
            if rate is not None:
                raise ValueError(
                    f"context_rates[{index}] must be None, since context_times[{index}] is given, got {rate}"
                )
            starts, ends = _stamps(f"context_times[{index}]", stamps, length)
        else:
            if context_rates is not None:
                _check_rate(f"context_rates[{index}]", rate)
            edges = torch.arange(length + 1, dtype=torch.float64, device="cpu")
            edges = begin + edges / (length / duration if rate is None else rate)
            starts, ends = edges[:-1], edges[1:]
        memories.append(Segments(starts + offset, ends + offset, windows[index]))
    if include_query:
        memories.append(Segments(*query, own))
    return query, memories, _tolerance([query_times, *times])


def _stamps(name: str, times: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Check time stamps, and return when the segments start and end, float64 (length,) each on the CPU."""
    check_tensor(name, times)
    if times.dtype in (torch.float16, torch.bfloat16, torch.bool) or times.is_complex():
        raise TypeError(f"{name} must have the dtype float32, float64 or an integer one, got {times.dtype}")
    if not has_shape(times, (length,), (length, 2)):
        raise ValueError(f"{name} must have shape ({length},) or ({length}, 2), got {tuple(times.shape)}")
    if times.dim() == 1 and length == 1:
        raise ValueError(
            f"{name} must have shape (1, 2), start and end, for a single segment, got {tuple(times.shape)}"
        )
    exact = times.detach().to("cpu", torch.float64)
    if times.dim() == 2:
        starts, ends = exact.unbind(1)
    else:
        starts = exact
        ends = torch.cat([starts[1:], 2 * starts[-1:] - starts[-2:-1]])
    if not torch.compiler.is_compiling():  # compiled code cannot depend on values
        if not exact.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or Inf")
        if (starts.diff() < 0).any() or (ends.diff() < 0).any():
            raise ValueError(f"{name} must be sorted: a segment must start and end no earlier than the one before it")
        if (ends - starts <= _tolerance([times])).any():
            raise ValueError(
                f"{name} must have segments that end after they start, but some are too short or empty: give (start, "
                "end) for each, in float64 if float32 rounds them to the same time"
            )
    return starts.contiguous(), ends.contiguous()


def _tolerance(times: Sequence[Tensor | None]) -> float | Tensor:
    """Return the largest difference of times that count as equal: more for times in float32, which are rounded."""
    rounded = [stamps for stamps in times if stamps is not None and stamps.dtype == torch.float32]
    largest = [stamps.detach().abs().max().to("cpu", torch.float64) for stamps in rounded if stamps.numel()]
    if not largest:
        return TOLERANCE
    return (2 * torch.finfo(torch.float32).eps * torch.stack(largest).amax()).clamp(min=TOLERANCE)


def _list(name: str, values: object) -> list[Any]:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} must be a list or tuple with an entry for each context, got {type(values).__name__}")
    return list(values)


def _one_each(name: str, values: object, lengths: Sequence[int]) -> list[Any]:
    entries = _list(name, values)
    if len(entries) != len(lengths):
        raise ValueError(f"{name} must have an entry for each context, {len(lengths)} in all, got {len(entries)}")
    return entries


def _check_number(name: str, value: object, meaning: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of {meaning}, got {type(value).__name__}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def _check_rate(name: str, rate: Any) -> None:
    if not isinstance(rate, (int, float)) or isinstance(rate, bool):
        raise TypeError(f"{name} must be a number of segments per unit of time, got {type(rate).__name__}")
    if not 0 < rate < math.inf:
        raise ValueError(f"{name} must be a finite number greater than 0, got {rate}")


def _bounds(name: str, window: object) -> Bounds:
    """Check a window, and return its bounds (back, ahead)."""
    pair: Any = window if isinstance(window, (list, tuple)) and len(window) == 2 else (window, window)
    back, ahead = pair
    for bound in (back, ahead):
        if bound is None:
            continue
        if not isinstance(bound, (int, float)) or isinstance(bound, bool):
            raise TypeError(f"{name} must be a number, None, or a pair (back, ahead) of these, got {window!r}")
        if not 0 <= bound < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, or None for any distance, got {window!r}")
    return back, ahead
