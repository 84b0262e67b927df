"""Row group "windows": CMRA within a time window, by ``relation_window``, by a mask, and by FlexAttention.

The query has T steps and the context four times as many, so the memory has 5 T. The window is 32 steps of the query in
both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.growth import fit_growth
from benchmarks.measuring import SEED, Form, Session, compare
from benchmarks.passes import TASKS, make_pass
from benchmarks.rivals import FLEX_ATTENTION, PlainAttention, join_memory
from crossmodal_attn import CMRA, relation_mask, relation_window

__all__ = ["TITLE", "FlexWindow", "run"]

TITLE = "CMRA within a time window"
LENGTH, QUICK_LENGTH = 8192, 512
LENGTHS = tuple(2**power for power in range(10, 17))
"""The lengths over which the exponents are fitted."""
WIDTH, GROWTH_WIDTH, HEADS = 256, 64, 4
WINDOW, RATE = 32, 4
WINDOWED, MASKED = "relation_window", "relation_mask"


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Compare the three forms at one length, then measure how the cost of a window grows with the length."""
    length = QUICK_LENGTH if session.quick else LENGTH
    for task in TASKS:
        yield _compare(session, length, task)
    lengths = [length for length in LENGTHS if not session.quick or length <= 4 * QUICK_LENGTH]
    for task in TASKS:
        forms = [Form(f"T = {length}", _make_call(session, length, GROWTH_WIDTH, task)[0]) for length in lengths]
        case = compare(session, {"against": "length T", "task": task}, forms, [])
        case["points"] = dict(zip(case["forms"], lengths, strict=True))
        case["fits"] = fit_growth(case, lengths[0])
        yield case


def _compare(session: Session, length: int, task: str) -> dict[str, Any]:
    call, layer, inputs = _make_call(session, length, WIDTH, task)
    mask = relation_mask(length, [RATE * length], window=WINDOW, device=session.device)
    forms = [Form(WINDOWED, call), Form(MASKED, make_pass(task, layer, lambda: layer(*inputs, attn_mask=mask), inputs))]
    skipped = {}
    if session.device.type == "cpu" and task != TASKS[0]:
        skipped[FLEX_ATTENTION] = "it has no backward pass on a CPU"
    else:
        rival = FlexWindow(layer, length)
        forms.append(Form(FLEX_ATTENTION, make_pass(task, rival, lambda: rival(*inputs), inputs)))
    case = {"length": length, "memory": (RATE + 1) * length, "width": WIDTH, "window": WINDOW, "task": task}
    return compare(session, case, forms, [(MASKED, WINDOWED), (FLEX_ATTENTION, WINDOWED)], skipped)


def _make_call(session: Session, length: int, width: int, task: str) -> tuple[Any, CMRA, tuple[Tensor, Tensor]]:
    """Return the pass of a layer with a window, the layer, and its inputs."""
    torch.manual_seed(SEED)
    layer = CMRA(width, HEADS, device=session.device)
    inputs = (
        torch.randn(1, length, width, device=session.device),
        torch.randn(1, RATE * length, width, device=session.device),
    )
    window = relation_window(length, [RATE * length], window=WINDOW)
    return make_pass(task, layer, lambda: layer(*inputs, attn_mask=window), inputs), layer, inputs


class FlexWindow(nn.Module):
    """Four projections and torch's ``flex_attention``, compiled, with a block mask that is made once."""

    def __init__(self, layer: CMRA, length: int) -> None:
        super().__init__()
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        steps = RATE * length

        def is_near(_: Tensor, __: Tensor, query: Tensor, memory: Tensor) -> Tensor:
            at = torch.where(memory < steps, memory // RATE, memory - steps)
            return (at - query).abs() <= WINDOW

        self.plain = PlainAttention(layer)
        self.attend = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        self.block_mask = create_block_mask(
            is_near, None, None, length, steps + length, device=layer.q_proj.weight.device
        )

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Attend from (B, T, D) to the memory of the context (B, RATE * T, D) and the query."""
        queries, keys, values = self.plain.project(query, join_memory(query, context, None, None)[0])
        attended = self.attend(queries, keys, values, block_mask=self.block_mask)
        output: Tensor = self.plain.out(attended.transpose(1, 2).flatten(2))
        return output
