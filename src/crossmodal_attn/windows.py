"""Time-aligned modalities of different rates: causal masks and time windows, as a mask or at linear cost.

Without time stamps, the unit of time is one query segment: query segment i covers [i, i + 1), and if a context has r
segments per query segment, its segment j covers [j / r, (j + 1) / r).
Axes: B batch, H heads, T query length, S context length, M memory length, D width of a head, W width of the band.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossmodal_attn._alignment import Bounds, align
from crossmodal_attn._block_mask import make_block_mask
from crossmodal_attn._blocks import Blocks, make_blocks
from crossmodal_attn._checks import check_mask, check_tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["RelationWindow", "relation_mask", "relation_window"]


def relation_mask(
    query_length: int,
    context_lengths: Sequence[int] = (),
    *,
    causal: bool = False,
    window: float | Bounds | None = None,
    context_windows: Sequence[float | Bounds | None] | None = None,
    context_rates: Sequence[float | None] | None = None,
    context_offsets: Sequence[float] | None = None,
    query_times: Tensor | None = None,
    context_times: Sequence[Tensor | None] | None = None,
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

    Words, or frames at a variable rate, have time stamps: ``query_times`` and ``context_times``. They take the place of
    :math:`i`, :math:`i + 1` and of :math:`s`, :math:`e`. With ``query_times``, windows, rates and offsets are in the
    unit of these times, such as seconds. A context without times then covers the time of the query, from the first
    start to the last end. If the context has a rate, only its start is that of the query.

    Times that differ by less than a millionth of the unit count as equal. So do times in float32 that differ by less
    than the rounding error of float32.

    The mask has no batch dimension and does not depend on padding. Give padding masks to the layer as well. If the
    modalities of a batch are padded to different durations, give ``context_rates``.

    Args:
        query_length: T, the number of query segments, at least 1.
        context_lengths: S of each context, at least 0, in the order of the layer's contexts.
        causal: whether to exclude segments that end after the query segment.
        window: the distance before the start and after the end of the query segment, in units of time: a number >= 0,
            a pair (back, ahead) of numbers or None, or None for any distance. It applies to all memories.
        context_windows: a window for each context. ``window`` then applies only to the query's own segments
            in the memory.
        context_rates: for each context its number of segments per unit of time, > 0, or None if it has times. Default:
            S / T.
        context_offsets: how much later each context starts, in units of time. It is added to the times that follow from
            ``context_rates`` or are given in ``context_times``. It is positive for audio that starts after the video.
            Default: 0.
        query_times: when the query segments start, (T,), or when they start and end, (T, 2). If only starts are given,
            a segment ends where the next one starts, and the last is as long as the one before it. The times are those
            of the whole batch. Starts and ends must be sorted; segments may overlap and leave gaps.
        context_times: for each context, when its segments start, (S,), or start and end, (S, 2), on the same time axis
            as ``query_times``; or None.
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

        Video of one segment per second, and four words that were said from second 0.5 on:

        >>> words = torch.tensor([[0.5, 0.9], [0.9, 1.4], [1.4, 2.1], [2.6, 2.9]])
        >>> relation_mask(3, [4], context_times=[words], window=0, include_query=False).int()
        tensor([[0, 0, 1, 1],
                [1, 0, 0, 1],
                [1, 1, 0, 0]], dtype=torch.int32)

        In a layer:

        >>> from crossmodal_attn import CMRA
        >>> video, audio = torch.randn(2, 100, 256), torch.randn(2, 400, 256)
        >>> CMRA(256, num_heads=4)(video, audio, attn_mask=relation_mask(100, [400], window=(10, 2))).shape
        torch.Size([2, 100, 256])
    """
    query, memories, tolerance = align(
        query_length,
        context_lengths,
        window,
        context_windows,
        context_rates,
        context_offsets,
        query_times,
        context_times,
        include_query,
    )
    masks = []
    for memory in memories:
        starts, ends = memory.starts, memory.ends
        ends_after, ends_by, starts_before = _limits(query, memory.window, causal, tolerance)
        mask = torch.zeros(query_length, len(starts), dtype=torch.bool, device="cpu")
        if ends_after is not None:
            mask = mask | (ends <= ends_after.unsqueeze(1))
        if ends_by is not None:
            mask = mask | (ends > ends_by.unsqueeze(1))
        if starts_before is not None:
            mask = mask | (starts >= starts_before.unsqueeze(1))
        masks.append(mask)
    return torch.cat(masks, 1).to(torch.empty(0, device=device).device)


def relation_window(
    query_length: int,
    context_lengths: Sequence[int] = (),
    *,
    causal: bool = False,
    window: float | Bounds | None = None,
    context_windows: Sequence[float | Bounds | None] | None = None,
    context_rates: Sequence[float | None] | None = None,
    context_offsets: Sequence[float] | None = None,
    query_times: Tensor | None = None,
    context_times: Sequence[Tensor | None] | None = None,
    include_query: bool = True,
) -> "RelationWindow":
    r"""Return a window with the limits of :func:`relation_mask`, without making the mask.

    Give it to a layer in place of the mask, as ``attn_mask``. The layer then computes only what the window covers: its
    time and memory grow with the length of the query times the width of the window, and not with T x M. The output
    is the same, except for rounding. If the window covers most of the memory, the layer computes all scores at
    once, as with a mask.

    A window is made for fixed lengths, and serves any batch size. Make it once, outside compiled code.

    Args:
        query_length: T, the number of query segments. All arguments are those of :func:`relation_mask`.
        context_lengths: S of each context.
        causal: whether to exclude segments that end after the query segment.
        window: the distance before the start and after the end of the query segment.
        context_windows: a window for each context.
        context_rates: for each context its number of segments per unit of time.
        context_offsets: for each context how much later it is.
        query_times: (T,) or (T, 2), when each query segment starts, or starts and ends.
        context_times: for each context (S,) or (S, 2), or None.
        include_query: whether the query is the last memory.

    Returns:
        RelationWindow: for ``attn_mask``. Its method :meth:`~crossmodal_attn.windows.RelationWindow.mask` returns the
        mask of :func:`relation_mask`.

    Examples:
        >>> from crossmodal_attn import CMRA
        >>> layer = CMRA(64, num_heads=4)
        >>> video, audio = torch.randn(1, 2000, 64), torch.randn(1, 8000, 64)
        >>> window = relation_window(2000, [8000], window=8)
        >>> window
        RelationWindow(query_length=2000, memory_lengths=(8000, 2000))
        >>> layer(video, audio, attn_mask=window).shape
        torch.Size([1, 2000, 64])

        The weights are banded: each query segment has only the weights of steps that it may attend to.

        >>> output, weights = layer(video, audio, attn_mask=window, need_weights=True)
        >>> weights.shape, window.columns().shape                     # 4 x 17 steps of audio, 17 of video
        (torch.Size([1, 4, 2000, 85]), torch.Size([2000, 85]))
        >>> window.to_dense(weights).shape
        torch.Size([1, 4, 2000, 10000])
    """
    query, memories, tolerance = align(
        query_length,
        context_lengths,
        window,
        context_windows,
        context_rates,
        context_offsets,
        query_times,
        context_times,
        include_query,
    )
    spans = []
    for memory in memories:
        starts, ends = memory.starts, memory.ends
        ends_after, ends_by, starts_before = _limits(query, memory.window, causal, tolerance)
        first = torch.zeros(query_length, dtype=torch.long, device="cpu")
        last = torch.full_like(first, len(starts))
        if ends_after is not None:
            first = torch.searchsorted(ends, ends_after, right=True)
        if ends_by is not None:
            last = torch.searchsorted(ends, ends_by, right=True)
        if starts_before is not None:
            last = torch.minimum(last, torch.searchsorted(starts, starts_before))
        spans.append((first, torch.maximum(first, last)))
    lengths = tuple(len(memory.starts) for memory in memories)
    return RelationWindow(query_length, lengths, make_blocks(spans, lengths))


class RelationWindow:
    """Hold the steps of each memory that each query segment may attend to. :func:`relation_window` makes it.

    A window cannot be changed. For each query segment and memory it holds one span of steps, on the CPU. The layers
    copy what they need to their device in each call; :meth:`to` does so once.

    Attributes:
        query_length: T, the length of the query.
        memory_lengths: the length of each memory, in the order [contexts..., query]; they sum to M.
    """

    def __init__(
        self, query_length: int, memory_lengths: tuple[int, ...], blocks: Blocks, padding: Tensor | None = None
    ) -> None:
        self.query_length = query_length
        self.memory_lengths = memory_lengths
        self._blocks = blocks
        self._padding = padding

    def mask(self, *, device: torch.device | str | None = None) -> Tensor:
        """Return the mask that :func:`relation_mask` makes from the same arguments.

        Args:
            device: device of the mask. Default: torch's default device.

        Returns:
            Tensor: bool (T, M), True = may not attend.
        """
        step = torch.arange(sum(self.memory_lengths), device=self._blocks.first.device)
        outside = [
            (steps < first.reshape(-1, 1)) | (steps >= last.reshape(-1, 1))
            for steps, first, last in zip(
                step.split(self.memory_lengths), self._blocks.first, self._blocks.last, strict=True
            )
        ]
        mask = torch.cat(outside, 1)[: self.query_length]
        return mask.to(torch.empty(0, device=device).device)

    def columns(self, *, device: torch.device | str | None = None) -> Tensor:
        """Return the step of the memory to which each banded weight belongs.

        Args:
            device: device of the result. Default: torch's default device.

        Returns:
            Tensor: int64 (T, W), the column of the weight in a mask (T, M), from 0 to M - 1, and -1 where there is
            none. The number of entries of a memory is the length of the widest span in it that a query segment has.
        """
        columns = []
        for first, last, width in zip(self._blocks.first, self._blocks.last, self._blocks.band_widths, strict=True):
            steps = first.reshape(-1, 1) + torch.arange(width, device=first.device)
            columns.append(torch.where(steps < last.reshape(-1, 1), steps, -1))
        return torch.cat(columns, 1)[: self.query_length].to(torch.empty(0, device=device).device)

    def to_dense(self, weights: Tensor) -> Tensor:
        """Convert banded weights to weights of all steps. This takes memory for T x M numbers.

        Args:
            weights: (*, T, W), from a layer that was called with this window, with any leading dimensions.

        Returns:
            Tensor: (*, T, M), zero outside the window.
        """
        check_tensor("weights", weights)
        columns = self.columns(device=weights.device)
        if tuple(weights.shape[-2:]) != tuple(columns.shape):
            raise ValueError(
                f"weights must have shape (*, {columns.shape[0]}, {columns.shape[1]}), as a layer returns them for "
                f"this window, got {tuple(weights.shape)}"
            )
        dense = weights.new_zeros(*weights.shape[:-1], sum(self.memory_lengths))
        return dense.scatter_add(-1, columns.clamp(min=0).expand_as(weights), weights)  # others are zero

    def block_mask(
        self, padding_mask: Tensor | None = None, *, device: torch.device | str | None = None
    ) -> "BlockMask":
        """Return the block mask for your own call of :func:`~torch.nn.attention.flex_attention.flex_attention`.

        It is computed from the spans. Unlike :func:`~torch.nn.attention.flex_attention.create_block_mask`, this makes
        no mask of T x M entries. Without compilation, ``flex_attention`` itself computes all scores.

        Args:
            padding_mask: bool (B, M), True = padding, of all memories in the order [contexts..., query].
            device: device of the block mask. Default: that of ``padding_mask``, or torch's default device.

        Returns:
            BlockMask: for B samples, or without ``padding_mask`` for any number of them.

        Examples:
            >>> window = relation_window(2000, [8000], window=8)
            >>> window.block_mask().shape                     # for torch.compile(flex_attention)
            (1, 1, 2000, 10000)
        """
        if padding_mask is not None:
            check_tensor("padding_mask", padding_mask)
            check_mask("padding_mask", padding_mask, (*padding_mask.shape[:1], sum(self.memory_lengths)), padding_mask)
            device = padding_mask.device if device is None else device
            padding_mask = padding_mask.to(device)
        device = torch.empty(0, device=device).device
        first, last = (
            edge.flatten(1)[:, : self.query_length].to(device) for edge in (self._blocks.first, self._blocks.last)
        )
        return make_block_mask(first, last, (self.query_length, sum(self.memory_lengths)), padding_mask)

    def to(self, device: torch.device | str) -> "RelationWindow":
        """Return the window on a device. Then layers do not copy it in each call, which would make a GPU wait.

        Args:
            device: the device of the layers.

        Returns:
            RelationWindow: the same window.
        """
        return RelationWindow(self.query_length, self.memory_lengths, self._blocks.to(device), self._padding)

    def __repr__(self) -> str:
        """Return the lengths."""
        return f"RelationWindow(query_length={self.query_length}, memory_lengths={self.memory_lengths})"


def add_padding(window: RelationWindow, padding: Tensor | None) -> RelationWindow:
    """Return a window that also excludes padding, bool (B, M), True = padding."""
    return RelationWindow(window.query_length, window.memory_lengths, window._blocks, padding)


def _limits(
    query: tuple[Tensor, Tensor], window: Bounds, causal: bool, tolerance: float | Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the limits on the start and the end of a segment to which each query segment may attend.

    Returns:
        tuple[Tensor | None, Tensor | None, Tensor | None]: float64 (T,) each, or None for no limit: the segment must
        end after the first, not later than the second, and start before the third.
    """
    starts, ends = query
    back, ahead = window
    return (
        None if back is None else starts - back + tolerance,
        ends + tolerance if causal else None,
        None if ahead is None else ends + ahead - tolerance,
    )
