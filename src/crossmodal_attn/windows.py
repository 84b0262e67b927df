"""Attention masks for time-aligned modalities of different rates: causal masks and time windows.

The unit of time is one query segment. Query segment i covers [i, i + 1). If a context has r segments per query segment,
its segment j covers [j / r, (j + 1) / r). Axes: T query length, S context length, M memory length.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from crossmodal_attn._checks import check_size

__all__ = ["relation_mask"]

Bounds: TypeAlias = tuple[float | None, float | None]
"""The distances (back, ahead) in time; None means no bound."""

TOLERANCE = 1e-6
"""Times that differ by less are equal. Most rates and windows, such as 0.1, have no exact binary value."""


def relation_mask(
    query_length: int,
    context_lengths: Sequence[int] = (),
    *,
    causal: bool = False,
    window: float | Bounds | None = None,
    context_windows: Sequence[float | Bounds | None] | None = None,
    context_rates: Sequence[float] | None = None,
    include_query: bool = True,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Return an attention mask that limits in time which memory segments each query segment may attend to.

    The memory is [contexts..., query], and the unit of time is one query segment. Query segment :math:`i` covers
    :math:`[i, i + 1)`. If a context has :math:`r` segments per query segment, its segment :math:`j` covers
    :math:`[j / r, (j + 1) / r)`. By default all modalities cover the same time, so :math:`r = S / T`. Without
    ``causal`` and ``window``, query segment :math:`i` may attend to every memory segment. For a segment that covers
    :math:`[s, e)`:

    - ``causal`` excludes segments that end after the query segment, :math:`e > i + 1`. So nothing later than the query
      segment affects its output. A long segment of a slow context is excluded until it has ended.
    - ``window`` (back, ahead) excludes segments that lie completely outside the window,
      :math:`e \le i - \text{back}` or :math:`s \ge i + 1 + \text{ahead}`. At equal rates, the segments from i - back to
      i + ahead remain. A window of 0 leaves the segments that overlap the query segment.

    Times that differ by less than a millionth of a query segment count as equal.

    The mask has no batch dimension and does not depend on padding. Give padding masks to the layer as well. If the
    modalities of a batch are padded to different durations, give ``context_rates``.

    Args:
        query_length: T, the number of query segments, at least 1.
        context_lengths: S of each context, at least 0, in the order of the layer's contexts.
        causal: whether to exclude segments that end after the query segment.
        window: the distance before the start and after the end of the query segment, in query segments: a number >= 0,
            a pair (back, ahead) of numbers or None, or None for any distance. It applies to all memories.
        context_windows: a window for each context. ``window`` then applies only to the query's own segments
            in the memory.
        context_rates: for each context its number of segments per query segment, > 0. Default: S / T.
        include_query: whether the query is the last memory, as in the :class:`CMRA` that gets the mask.
        device: device of the mask. Default: torch's default device.

    Returns:
        Tensor: bool (T, M), True = may not attend, for ``attn_mask``. If the query is in the memory, each segment may
        attend at least to itself. Otherwise a row can be all True, for example before the first segment of a slow
        context has ended; the layers give such a query segment zero attention.

    Examples:
        Three segments of video and six of audio. Video may look one segment back, and not ahead:

        >>> relation_mask(3, [6], causal=True, window=1).int()             # columns: six of audio, three of video
        tensor([[0, 0, 1, 1, 1, 1, 0, 1, 1],
                [0, 0, 0, 0, 1, 1, 0, 0, 1],
                [1, 1, 0, 0, 0, 0, 1, 0, 0]], dtype=torch.int32)

        Any distance within video, but only audio of the same time or half a segment later:

        >>> relation_mask(3, [6], context_windows=[(0, 0.5)]).int()
        tensor([[0, 0, 0, 1, 1, 1, 0, 0, 0],
                [1, 1, 0, 0, 0, 1, 0, 0, 0],
                [1, 1, 1, 1, 0, 0, 0, 0, 0]], dtype=torch.int32)

        In a layer:

        >>> from crossmodal_attn import CMRA
        >>> video, audio = torch.randn(2, 100, 256), torch.randn(2, 400, 256)
        >>> CMRA(256, num_heads=4)(video, audio, attn_mask=relation_mask(100, [400], window=(10, 2))).shape
        torch.Size([2, 100, 256])
    """
    check_size("query_length", query_length)
    lengths = _list("context_lengths", context_lengths)
    for index, length in enumerate(lengths):
        check_size(f"context_lengths[{index}]", length, minimum=0)
    if not lengths and not include_query:
        raise ValueError(f"context_lengths must have at least one entry if include_query=False, got {context_lengths}")
    if context_rates is None:
        rates = [length / query_length for length in lengths]
    else:
        rates = _one_each("context_rates", context_rates, lengths)
        for index, rate in enumerate(rates):
            _check_rate(f"context_rates[{index}]", rate)
    own = _bounds("window", window)
    if context_windows is None:
        windows = [own] * len(lengths)
    else:
        given = _one_each("context_windows", context_windows, lengths)
        windows = [_bounds(f"context_windows[{index}]", bounds) for index, bounds in enumerate(given)]
    memories = list(zip(lengths, rates, windows, strict=True))
    if include_query:
        memories.append((query_length, 1.0, own))
    mask = torch.cat([_mask(query_length, *memory, causal) for memory in memories], 1)
    return mask.to(torch.empty(0, device=device).device)


def _mask(query_length: int, length: int, rate: float, bounds: Bounds, causal: bool) -> Tensor:
    """Return the columns (T, S) of one memory. They are computed on the CPU, since not every device has float64."""
    start = torch.arange(query_length, dtype=torch.float64, device="cpu").unsqueeze(1)
    edges = torch.arange(length + 1, dtype=torch.float64, device="cpu") / rate
    starts, ends = edges[:-1], edges[1:]
    back, ahead = bounds
    mask = torch.zeros(query_length, length, dtype=torch.bool, device="cpu")
    if causal:
        mask = mask | (ends > start + 1 + TOLERANCE)
    if back is not None:
        mask = mask | (ends <= start - back + TOLERANCE)
    if ahead is not None:
        mask = mask | (starts >= start + 1 + ahead - TOLERANCE)
    return mask


def _list(name: str, values: object) -> list[Any]:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} must be a list or tuple with an entry for each context, got {type(values).__name__}")
    return list(values)


def _one_each(name: str, values: object, lengths: Sequence[int]) -> list[Any]:
    entries = _list(name, values)
    if len(entries) != len(lengths):
        raise ValueError(f"{name} must have an entry for each context, {len(lengths)} in all, got {len(entries)}")
    return entries


def _check_rate(name: str, rate: object) -> None:
    if not isinstance(rate, (int, float)) or isinstance(rate, bool):
        raise TypeError(f"{name} must be a number of segments per query segment, got {type(rate).__name__}")
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
