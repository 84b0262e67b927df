"""Row group "windows": CMRA within a time window, by ``relation_window``, by a mask, and by FlexAttention.

The query has T steps and the context four times as many, so the memory has 5 T. The window is 32 steps of the query in
both directions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.growth import fit_growth
from benchmarks.measuring import SEED, Form, Session, compare
from benchmarks.passes import TASKS, make_pass
from benchmarks.rivals import FLEX_ATTENTION, PlainAttention, join_memory
from crossmodal_attn import CMRA, relation_mask, relation_window
from crossmodal_attn.windows import RelationWindow

__all__ = ["TITLE", "FlexWindow", "run"]

TITLE = "CMRA within a time window"
LENGTH, QUICK_LENGTH = 8192, 512
LENGTHS = tuple(2**power for power in range(10, 17))
"""The lengths over which the exponents are fitted."""
WIDTH, GROWTH_WIDTH, HEADS = 256, 64, 4
WINDOW, RATE = 32, 4
WINDOWED, MASKED = "relation_window", "relation_mask"
FLEX_WINDOW = f"{FLEX_ATTENTION} with the block mask of the window"
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float32)}
"""The dtypes to measure, the most important one first."""


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Compare the forms at one length, then measure how the cost of a window grows with the length.

    A brief session measures training first.
    """
    length = QUICK_LENGTH if session.quick else LENGTH
    tasks = TASKS[::-1] if session.brief else TASKS
    for dtype, task in itertools.product(DTYPES[session.device.type][: 1 if session.brief else None], tasks):
        case: dict[str, Any] = {"length": length, "memory": (RATE + 1) * length, "width": WIDTH, "window": WINDOW}
        case |= {"dtype": str(dtype).removeprefix("torch."), "task": task}
        reason = session.skips(dtype) or session.late
        yield {"case": case, "skipped": reason} if reason else _compare(session, case, length, dtype, task)
    lengths = [length for length in LENGTHS if not session.quick or length <= 4 * QUICK_LENGTH]
    for task in tasks:
        case = {"against": "length T", "task": task}
        if session.late:
            yield {"case": case, "skipped": session.late}
            continue
        forms = [Form(f"T = {length}", _make_call(session, length, GROWTH_WIDTH, task).call) for length in lengths]
        case = compare(session, case, forms, [])
        case["points"] = dict(zip(case["forms"], lengths, strict=True))
        case["fits"] = fit_growth(case, lengths[0])
        yield case


def _compare(session: Session, case: dict[str, Any], length: int, dtype: torch.dtype, task: str) -> dict[str, Any]:
    call, window, layer, inputs = _make_call(session, length, WIDTH, task, dtype)
    mask = relation_mask(length, [RATE * length], window=WINDOW, device=session.device)
    forms = [Form(WINDOWED, call), Form(MASKED, make_pass(task, layer, lambda: layer(*inputs, attn_mask=mask), inputs))]
    rivals: dict[str, RelationWindow | None] = {FLEX_ATTENTION: None, FLEX_WINDOW: window}
    skipped: dict[str, str] = {}
    if session.device.type == "cpu" and task != TASKS[0]:
        skipped = dict.fromkeys(rivals, "it has no backward pass on a CPU")
    elif session.brief:
        skipped = {FLEX_ATTENTION: "not measured in a brief session"}
    for name, given in rivals.items():
        if name not in skipped:
            rival = FlexWindow(layer, length, given)
            forms.append(Form(name, make_pass(task, rival, partial(rival, *inputs), inputs)))
    return compare(session, case, forms, [(name, WINDOWED) for name in (MASKED, *rivals)], skipped)


class _Call(NamedTuple):
    """Hold a pass of a layer with a window, and the window, layer and inputs that it uses."""

    call: Callable[[], object]
    window: RelationWindow
    layer: CMRA
    inputs: tuple[Tensor, Tensor]


def _make_call(session: Session, length: int, width: int, task: str, dtype: torch.dtype = torch.float32) -> _Call:
    torch.manual_seed(SEED)
    factory: dict[str, Any] = {"device": session.device, "dtype": dtype}
    layer = CMRA(width, HEADS, **factory)
    inputs = torch.randn(1, length, width, **factory), torch.randn(1, RATE * length, width, **factory)
    window = relation_window(length, [RATE * length], window=WINDOW).to(session.device)
    call = make_pass(task, layer, lambda: layer(*inputs, attn_mask=window), inputs)
    return _Call(call, window, layer, inputs)


class FlexWindow(nn.Module):
    """Four projections and torch's ``flex_attention``, compiled, with a block mask that is made once.

    Args:
        layer: the layer whose weights are copied.
        length: T.
        window: the window that makes the block mask. Default: ``create_block_mask`` makes it from a function.
    """

    def __init__(self, layer: CMRA, length: int, window: RelationWindow | None = None) -> None:
        super().__init__()
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        steps, device = RATE * length, layer.q_proj.weight.device

        def is_near(_: Tensor, __: Tensor, query: Tensor, memory: Tensor) -> Tensor:
            at = torch.where(memory < steps, memory // RATE, memory - steps)
            return (at - query).abs() <= WINDOW

        self.plain = PlainAttention(layer)
        self.attend = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        if window is None:
            self.block_mask = create_block_mask(is_near, None, None, length, steps + length, device=device)
        else:
            self.block_mask = window.block_mask(device=device)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Attend from (B, T, D) to the memory of the context (B, RATE * T, D) and the query."""
        queries, keys, values = self.plain.project(query, join_memory(query, context, None, None)[0])
        attended = self.attend(queries, keys, values, block_mask=self.block_mask)
        output: Tensor = self.plain.out(attended.transpose(1, 2).flatten(2))
        return output
