"""Compute attention within a window: blocks of queries, each with the span of the memory that its queries may see.

Blocks are the samples of a batch, so that one call of attention computes many of them.
Axes: B batch, H heads, T query length, M memory length, D width of a head, N memories, C blocks, Q queries of a block,
K steps of a block, W width of the band.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from crossmodal_attn.windows import RelationWindow

__all__ = ["Blocks", "Group", "band_weights", "gather_blocks", "join_blocks", "make_blocks"]

BLOCK_SIZES = (32, 64, 128, 256, 512)
"""Numbers of queries that may share one span of the memory. See :func:`make_blocks`."""

COPY_COST = 192
"""The time to copy one step of the memory for a block, in units of the time to compute one score."""

GROUPING_COST = 1.25
"""How many times longer the same number of scores takes if blocks are grouped by the length of their spans."""


class Group(NamedTuple):
    """Describe a group of blocks, which one call of attention computes."""

    number: int
    """The number of blocks, c."""
    widths: tuple[int, ...]
    """For each memory the length of the spans. They sum to K."""
    alike: bool
    """Whether all blocks have the same mask."""


class Blocks(NamedTuple):
    """Hold the spans of a window, and how its queries are divided into blocks.

    The T queries are divided into C blocks of Q queries. The queries of a block share a span of each of the N memories.
    The last block may have fewer queries; its other rows may attend to nothing.
    """

    groups: tuple[Group, ...]
    """The blocks in groups."""
    band_widths: tuple[int, ...]
    """For each memory the length of the widest span of one query. They sum to W."""
    starts: Tensor
    """int64 (N, C): for each memory and block the column where the shared span starts."""
    first: Tensor
    """int64 (N, C, Q): the first column that a query may attend to."""
    last: Tensor
    """int64 (N, C, Q): the column after the last. It equals the first if the query may not attend to this memory."""
    order: Tensor | None
    """int64 (C,): the blocks in the order of the groups. None if that is the order of time."""

    def to(self, device: torch.device | str) -> "Blocks":
        """Return the blocks with their tensors on a device."""
        order = None if self.order is None else self.order.to(device)
        starts, first, last = (table.to(device) for table in (self.starts, self.first, self.last))
        return Blocks(self.groups, self.band_widths, starts, first, last, order)


def make_blocks(spans: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int]) -> Blocks:
    """Divide the queries into blocks, from their spans (first, last) in each memory, (T,) each.

    Small blocks copy more steps of the memory, large blocks compute more scores outside the window. A block of all
    queries copies little and costs as much as a mask. A window that covers most of the memory gets such a block.

    At constant rates all blocks have spans of the same length, and form one group. With uneven time stamps, a few
    blocks may have much longer spans. Then blocks are grouped by the length of their spans, so that long spans do not
    widen others.
    """
    first, last = (torch.stack(edges) for edges in zip(*spans, strict=True))
    length, bounds = first.shape[1], torch.tensor(lengths, device="cpu").unsqueeze(1)
    empty = first == last  # these rows do not widen the span of their block
    low, high = torch.where(empty, bounds, first), last.masked_fill(empty, 0)

    plans = []
    for size in (length, *(size for size in BLOCK_SIZES if size < length)):
        lower = _to_blocks(low, size, fill=max(lengths)).amin(2)
        widths = (_to_blocks(high, size).amax(2) - lower).clamp(min=0)
        count = widths.shape[1]
        step = size + (COPY_COST if count > 1 else 0)
        total = widths.sum(0).clamp(min=1)
        levels = (total.amax() / total).log2().floor()  # the longest spans, those of less than half that length, ...
        for level, factor in ((torch.zeros_like(levels), 1.0), (levels, GROUPING_COST)):
            members = [(level == each).nonzero().flatten() for each in level.unique()]
            shared = [(blocks, widths[:, blocks].amax(1)) for blocks in members]
            cost = factor * step * sum(len(blocks) * int(width.sum()) for blocks, width in shared)
            plans.append((cost, size, lower, shared))
    _, size, lower, shared = min(plans, key=lambda plan: plan[0])

    order = torch.cat([blocks for blocks, _ in shared])
    width = torch.cat([width.unsqueeze(1).expand(-1, len(blocks)) for blocks, width in shared], 1)[:, order.argsort()]
    starts = torch.minimum(lower, bounds - width)
    edges = [_to_blocks(edge, size) for edge in (first, last)]
    if len(shared) == 1:
        relative = torch.stack([edge - starts.unsqueeze(2) for edge in edges])  # (2, N, C, Q)
        alike = (relative[:, :, 1:] == relative[:, :, :-1]).all(3).all(1).all(0).tolist()
        widths_of_all = tuple(shared[0][1].tolist())
        groups = tuple(Group(number, widths_of_all, same) for number, same in _find_alike(alike))
    else:
        groups = tuple(Group(len(blocks), tuple(width.tolist()), False) for blocks, width in shared)
    offsets = torch.tensor(lengths, device="cpu").cumsum(0).unsqueeze(1) - bounds
    return Blocks(
        groups,
        band_widths=tuple((last - first).amax(1).tolist()),
        starts=starts + offsets,
        first=edges[0] + offsets.unsqueeze(2),
        last=edges[1] + offsets.unsqueeze(2),
        order=None if len(shared) == 1 else order,
    )


def _find_alike(alike: Sequence[bool]) -> list[tuple[int, bool]]:
    """Divide the blocks into consecutive groups: the number of blocks, and whether all have the same mask.

    At constant rates, all blocks have the same mask except for those near the ends. One mask for many blocks saves much
    time and memory. So there are at most three groups: the longest run of blocks with one mask, the blocks before it,
    and those after it. More groups would cost more than they save.

    Args:
        alike: whether each block, from the second on, has the same mask as the one before it.
    """
    count, begin, longest = len(alike) + 1, 0, (0, 1)
    for block in range(1, count + 1):
        if block == count or not alike[block - 1]:
            longest = max(longest, (begin, block), key=lambda run: run[1] - run[0])
            begin = block
    begin, end = longest
    if end - begin < count / 2:
        return [(count, False)]
    groups = ((begin, False), (end - begin, True), (count - end, False))
    return [(size, same) for size, same in groups if size]


def _to_blocks(values: Tensor, size: int, fill: int = 0) -> Tensor:
    """Divide (N, T) into blocks (N, C, size). The rows that are added to the last block hold ``fill``."""
    added = -values.shape[1] % size
    blocks: Tensor = F.pad(values, (0, added), value=fill).unflatten(1, (-1, size))
    return blocks


class _Spans(NamedTuple):
    """Hold the spans of the c blocks of a group, on the device of the features."""

    group: Group
    starts: Tensor
    """int64 (N, c)"""
    first: Tensor
    """int64 (N, c, Q)"""
    last: Tensor
    """int64 (N, c, Q)"""


def _list_spans(blocks: Blocks, device: torch.device) -> list[_Spans]:
    tables = [table.to(device) for table in (blocks.starts, blocks.first, blocks.last)]
    if blocks.order is not None:
        order = blocks.order.to(device)
        tables = [table.index_select(1, order) for table in tables]
    ends = list(accumulate(group.number for group in blocks.groups))
    return [
        _Spans(group, *(table[:, end - group.number : end] for table in tables))
        for group, end in zip(blocks.groups, ends, strict=True)
    ]


def gather_blocks(
    window: "RelationWindow", query: Tensor, key: Tensor, value: Tensor | None = None
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return the queries, keys, values and mask of the attention of each group of c blocks.

    In the results, the batch dimension has the blocks of all samples.

    Args:
        window: the window.
        query: (B, H, T, D).
        key: (B, H, M, D).
        value: (B, H, M, D), or None for the keys.

    Returns:
        list[tuple[Tensor, Tensor, Tensor, Tensor]]: (c * B, H, Q, D), twice (c * B, H, K, D) and bool (c * B, 1, Q, K)
        or, for all samples, (1, 1, Q, K). K is the number of steps that a block shares, from all memories.
    """
    blocks, padding, batch, device = window._blocks, window._padding, query.shape[0], query.device
    groups = _list_spans(blocks, device)
    counts = [spans.group.number for spans in groups]
    _, count, size = blocks.first.shape
    columns = [
        [
            start.unsqueeze(1) + torch.arange(width, device=device)
            for start, width in zip(spans.starts, spans.group.widths, strict=True)
        ]
        for spans in groups
    ]
    # Indices (c, B, K) of rows of the features (B * M, H, D). A row, with all heads, is contiguous in the projections.
    samples = key.shape[2] * torch.arange(batch, device=device).unsqueeze(1)
    rows = [torch.cat(each, 1).unsqueeze(1) + samples for each in columns]

    masks = []
    for spans, steps, row in zip(groups, columns, rows, strict=True):
        alike = spans.group.alike and padding is None
        mask = _exclude(spans, steps, slice(0, 1 if alike else None))
        if padding is not None:
            mask = mask | padding.flatten()[row][:, :, None, None]
        elif not alike:
            mask = mask.expand(-1, batch, -1, -1, -1)
        masks.append(mask.flatten(0, 1))
    added = count * size - query.shape[2]
    queries = F.pad(query, (0, 0, 0, added)) if added else query
    queries = queries.unflatten(2, (count, size)).permute(2, 0, 1, 3, 4)
    if blocks.order is not None:
        queries = queries.index_select(0, blocks.order.to(device))
    divided = queries.split(counts) if len(counts) > 1 else [queries]
    keys = _gather_steps(key, rows)
    values = keys if value is None else _gather_steps(value, rows)
    return [
        (own.flatten(0, 1), their.flatten(0, 1), carried.flatten(0, 1), mask)
        for own, their, carried, mask in zip(divided, keys, values, masks, strict=True)
    ]


def _gather_steps(features: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    """Return the steps (c, B, H, K, D) of the blocks of each group, by their rows (c, B, K) in the features."""
    if len(rows) == len(rows[0]) == 1 and rows[0].shape[2] == features.shape[2]:
        return [features.unsqueeze(0)]  # all steps
    flat = features.transpose(1, 2).flatten(0, 1)
    parts = flat.index_select(0, torch.cat([row.flatten() for row in rows])).split([row.numel() for row in rows])
    return [part.reshape(*row.shape, *flat.shape[1:]).transpose(2, 3) for part, row in zip(parts, rows, strict=True)]


def _exclude(spans: _Spans, columns: Sequence[Tensor], part: slice) -> Tensor:
    """Return the mask of some blocks, bool (c, 1, 1, Q, K), from the columns of their steps, (c, K) in all."""
    masks = [
        (steps[part].unsqueeze(1) < begin[part].unsqueeze(2)) | (steps[part].unsqueeze(1) >= end[part].unsqueeze(2))
        for steps, begin, end in zip(columns, spans.first, spans.last, strict=True)
    ]
    return torch.cat(masks, 2)[:, None, None]


def join_blocks(window: "RelationWindow", parts: Sequence[Tensor]) -> Tensor:
    """Return the rows (B, H, T, *) of the attention of all groups of blocks, (c * B, H, Q, *) each."""
    blocks = window._blocks
    count = blocks.starts.shape[1]
    output = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    output = output.reshape(count, output.shape[0] // count, *output.shape[1:])
    if blocks.order is not None:
        output = output.index_select(0, blocks.order.argsort().to(output.device))
    joined: Tensor = output.permute(1, 2, 0, 3, 4).flatten(2, 3)
    return joined[:, :, : window.query_length]


def band_weights(window: "RelationWindow", parts: Sequence[Tensor]) -> Tensor:
    """Return the banded weights (B, H, T, W) from the weights of all groups of blocks, (c * B, H, Q, K) each."""
    blocks = window._blocks
    banded = []
    for spans, weights in zip(_list_spans(blocks, parts[0].device), parts, strict=True):
        count = spans.group.number
        weights = weights.reshape(count, weights.shape[0] // count, *weights.shape[1:])
        bands = []
        for memory, part in enumerate(weights.split(spans.group.widths, -1)):
            width = blocks.band_widths[memory]
            if not part.shape[-1]:
                bands.append(part.new_zeros(*part.shape[:-1], width))
                continue
            steps = spans.first[memory].unsqueeze(2) + torch.arange(width, device=weights.device)
            outside = (steps >= spans.last[memory].unsqueeze(2))[:, None, None]  # (c, 1, 1, Q, W), as are the places
            places = (steps - spans.starts[memory, :, None, None])[:, None, None].masked_fill(outside, 0)
            bands.append(part.gather(-1, places.expand(*part.shape[:-1], -1)).masked_fill(outside, 0))
        banded.append(torch.cat(bands, -1).flatten(0, 1))
    return join_blocks(window, banded)
