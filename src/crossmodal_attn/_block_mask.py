"""Make the block mask of FlexAttention from spans of the memory, without a dense mask.

Axes: B batch, T query length, M memory length, N memories, R blocks of queries, S blocks of steps of the memory.
"""

from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["make_block_mask"]

SIZE = 128
"""The size of a block of FlexAttention, in queries and in steps of the memory."""


def make_block_mask(first: Tensor, last: Tensor, lengths: tuple[int, int], padding: Tensor | None) -> "BlockMask":
    """Return the block mask that lets each query attend to one span of each memory.

    A block is skipped if no query may attend to any of its steps, and computed without a mask if all queries may attend
    to all of them. This follows from the spans of the queries of a block alone. So time and memory grow with T and with
    R x S, and not with T x M.

    Args:
        first: int64 (N, T), for each memory the first column to which a query may attend.
        last: int64 (N, T), the column after the last. It equals the first if the query may not attend to this memory.
        lengths: T and M.
        padding: bool (B, M), True = padding, or None.

    Returns:
        BlockMask: with a batch of B, or of 1 without padding. Its tensors are on the device of ``first``.
    """
    from torch.nn.attention.flex_attention import BlockMask  # here, as it takes time to import

    length, memory = lengths
    empty = first == last
    lowest, highest = first.masked_fill(empty, memory), last.masked_fill(empty, 0)
    seen = _overlap(_to_blocks(lowest, memory).amin(2), _to_blocks(highest, 0).amax(2), memory) > 0
    full = _overlap(_to_blocks(first, memory).amax(2), _to_blocks(last, 0).amin(2), memory) == SIZE
    seen, full = seen.unsqueeze(0), full.unsqueeze(0)
    if padding is not None:
        steps = _to_blocks(~padding, False).unsqueeze(1)  # (B, 1, S, SIZE)
        seen, full = seen & steps.any(3), full & steps.all(3)
    spans = list(zip(first.to(torch.int32), last.to(torch.int32), strict=True))

    def may_attend(batch: Tensor, _: Tensor, query: Tensor, step: Tensor) -> Tensor:
        inside = [(step >= begin[query]) & (step < end[query]) for begin, end in spans]
        allowed: Tensor = reduce(torch.logical_or, inside)
        return allowed if padding is None else allowed & ~padding[batch, step]

    return BlockMask.from_kv_blocks(
        *_list_blocks(seen & ~full), *_list_blocks(full), SIZE, may_attend, seq_lengths=(length, memory)
    )


def _to_blocks(values: Tensor, fill: int | bool) -> Tensor:
    """Divide (N, T) into blocks (N, R, SIZE). The padding of the last block is ``fill``."""
    blocks: Tensor = torch.nn.functional.pad(values, (0, -values.shape[1] % SIZE), value=fill).unflatten(1, (-1, SIZE))
    return blocks


def _overlap(begin: Tensor, end: Tensor, memory: int) -> Tensor:
    """Return how many steps of each block of the memory lie in any of N spans (N, R), as (R, S)."""
    low = torch.arange(0, memory, SIZE, device=begin.device)
    high = (low + SIZE).clamp(max=memory)
    covered = torch.minimum(end.unsqueeze(2), high) - torch.maximum(begin.unsqueeze(2), low)
    return covered.clamp(min=0).sum(0)


def _list_blocks(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each block of queries, the number of chosen blocks, and all indices with the chosen ones first."""
    chosen = chosen.to(torch.int32).unsqueeze(1)  # (B, 1, R, S)
    indices = chosen.argsort(dim=3, descending=True, stable=True)
    return chosen.sum(3, dtype=torch.int32), indices.to(torch.int32)
