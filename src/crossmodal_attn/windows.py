"""Attention masks for time-aligned modalities of different rates: how far each segment may look, back and ahead.

Time is counted in segments of the query: segment i of the query covers [i, i + 1), and segment j of a context that has
r segments to one of the query covers [j / r, (j + 1) / r). Axes: T query length, S context length, M memory length.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from crossmodal_attn._checks import check_size

__all__ = ["relation_mask"]

Bounds: TypeAlias = tuple[float | None, float | None]
"""How far back and how far ahead; None is no bound."""

TOLERANCE = 1e-6
"""Times closer than this are one time: most rates and windows, such as 0.1, have no exact binary form."""


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
    r"""Say which segments of the memory [contexts..., query] each segment of the query may attend to.

    Time is counted in segments of the query. Segment :math:`i` of the query covers :math:`[i, i + 1)`; segment
    :math:`j` of a context, which has :math:`r` segments to one of the query, covers :math:`[j / r, (j + 1) / r)`.
    Without ``context_rates`` all modalities cover the same span, :math:`r = S / T`: segment :math:`j` covers the part
    :math:`[j / S, (j + 1) / S)` of it. Query segment :math:`i` may attend to a memory segment that covers
    :math:`[s, e)` unless an option forbids it:

    - ``causal`` forbids what is not over when the query segment is, :math:`e > i + 1`. So nothing later than the query
      segment reaches its output, not even by a longer segment of a slower context that it lies in.
    - ``window`` (back, ahead) forbids what lies wholly outside of it, :math:`e \le i - \text{back}` or
      :math:`s \ge i + 1 + \text{ahead}`. At equal rates it leaves the segments from i - back to i + ahead; a window of
      0 leaves what coincides with the query segment, if only in part.

    Times that differ by less than a millionth of a query segment are taken as equal.

    The mask has no batch dimension, and so no padding: padding masks are given to the layer beside it. In a batch whose
    modalities are not all padded to the same span, give ``context_rates``.

    Args:
        query_length: T, the number of segments of the query, at least 1.
        context_lengths: S of each context, at least 0, in the order in which the layer is given them.
        causal: whether to forbid what is not over when the query segment is.
        window: how far to look before the start and beyond the end of the query segment, in segments of the query: a
            number >= 0, a pair (back, ahead) of such or None, or None for any distance. It holds for all memories.
        context_windows: windows of the contexts, one each, in place of ``window``, which then holds for the query.
        context_rates: for each context its number of segments to one of the query, > 0. Default: S / T.
        include_query: whether the query is the last memory: the option of the :class:`CMRA` that the mask is for.
        device: where the mask is made. Default: torch's default device.

    Returns:
        Tensor: bool (T, M), True = may not attend: an ``attn_mask``. With the query in the memory each segment may
        attend at least to itself. Without it a row can be all True, as where no segment of a slow context is over yet;
        the layers give such a query segment zero attention.

    Raises:
        TypeError: if an option has the wrong type.
        ValueError: if an option is out of range, there is not one window or rate for each context, or the memory is
            empty.

    Examples:
        Three segments of video and six of audio; video may look one segment back, and nowhere ahead:

        >>> relation_mask(3, [6], causal=True, window=1).int()             # columns: six of audio, three of video
        tensor([[0, 0, 1, 1, 1, 1, 0, 1, 1],
                [0, 0, 0, 0, 1, 1, 0, 0, 1],
                [1, 1, 0, 0, 0, 0, 1, 0, 0]], dtype=torch.int32)

        Any distance within video, but of audio only what is heard at the same time, and half a segment after:

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
        raise ValueError(f"context_lengths must name a context where include_query=False, got {context_lengths}")
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
    """The columns (T, S) of one memory. Made on the CPU, since not every device has float64."""
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
        raise TypeError(f"{name} must be a number of segments to one of the query, got {type(rate).__name__}")
    if not 0 < rate < math.inf:
        raise ValueError(f"{name} must be a finite number greater than 0, got {rate}")


def _bounds(name: str, window: object) -> Bounds:
    """Both bounds of a window, checked."""
    pair: Any = window if isinstance(window, (list, tuple)) and len(window) == 2 else (window, window)
    back, ahead = pair
    for bound in (back, ahead):
        if bound is None:
            continue
        if not isinstance(bound, (int, float)) or isinstance(bound, bool):
            raise TypeError(f"{name} must be a number, None, or a pair (back, ahead) of such, got {window!r}")
        if not 0 <= bound < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, or None for any distance, got {window!r}")
    return back, ahead
