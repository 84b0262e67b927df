"""Row group "cmra": CMRA against other attention layers, and its block against ``nn.TransformerDecoderLayer``.

Query and context have T steps each, so the memory has 2 T. In cases with padding, a quarter of each is padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import SEED, Form, Session, compare
from benchmarks.passes import TASKS, make_pass
from benchmarks.rivals import ATTENTION_RIVALS, FLEX_ATTENTION, X_TRANSFORMERS, DecoderLayer
from crossmodal_attn import CMRA, CrossModalRelation

__all__ = ["TITLE", "run"]

TITLE = "CMRA, and the block around it"
SIZES = ((32, 10, 256, 4), (8, 128, 256, 4), (2, 1024, 256, 8), (1, 4096, 512, 8), (1, 16384, 512, 8))
"""Batch, length T, width D, heads."""
GPU_LENGTH = 16384
"""From this length on, only a GPU is measured: forms that build the attention weights need tens of gigabytes."""
DTYPES = (torch.float32, torch.bfloat16)
DECODER = "nn.TransformerDecoderLayer"


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Measure every size, with and without padding, in every dtype, forward and in training.

    A brief session measures bf16, training without padding first.
    """
    sizes = list(itertools.product(SIZES, DTYPES, (False, True), TASKS))
    if session.brief:  # by padding, then by task, then by size
        narrow = [case for case in sizes if case[1] == torch.bfloat16 and case[0][1] < GPU_LENGTH]
        sizes = sorted(narrow, key=lambda case: (case[2], -TASKS.index(case[3])))
    told: list[dict[str, Any]] = []
    for (batch, length, width, heads), dtype, padded, task in sizes:
        operations = batch * length * width * (12.0 * width + 8.0 * length)
        size = {"batch": batch, "length": length, "width": width, "heads": heads}
        of_size = {**size, "dtype": str(dtype).removeprefix("torch.")}
        case = {**of_size, "padding": "a quarter" if padded else "none", "task": task}
        reason = session.skips(dtype, operations)
        if length >= GPU_LENGTH and session.device.type != "cuda":
            reason = "left to a GPU: forms that build the attention weights need tens of gigabytes"
        if reason is None and session.late is None:
            yield _measure(session, case, size, dtype, padded, task)
        elif reason is None:
            yield {"case": case, "skipped": session.late}
        elif of_size not in told:  # one entry for all passes of this size
            told.append(of_size)
            yield {"case": of_size, "skipped": reason}


def _measure(
    session: Session, case: dict[str, Any], size: dict[str, int], dtype: torch.dtype, padded: bool, task: str
) -> dict[str, Any]:
    torch.manual_seed(SEED)
    factory: dict[str, Any] = {"device": session.device, "dtype": dtype}
    layer = CMRA(size["width"], size["heads"], **factory)
    block = CrossModalRelation(size["width"], size["heads"], dropout=0.0, **factory)
    query, context = (torch.randn(size["batch"], size["length"], size["width"], **factory) for _ in range(2))
    padding = None
    if padded:
        padding = torch.zeros(size["batch"], size["length"], dtype=torch.bool, device=session.device)
        padding[:, -size["length"] // 4 :] = True
    skipped = {} if find_spec("x_transformers") else {X_TRANSFORMERS: "x-transformers is not installed"}
    if session.device.type != "cuda":
        skipped[FLEX_ATTENTION] = "left to a GPU: on a CPU it is not compiled"
    else:
        torch.compiler.reset()
    modules = {name: build(layer) for name, build in ATTENTION_RIVALS.items() if name not in skipped}
    modules[DECODER] = DecoderLayer(block)

    def timed(module: nn.Module, call: Callable[[], Tensor]) -> Callable[[], object]:
        return make_pass(task, module, call, (query, context))

    def ours(module: nn.Module) -> Callable[[], Tensor]:
        return lambda: module(query, context, query_padding_mask=padding, context_padding_mask=padding)

    def theirs(module: nn.Module) -> Callable[[], Tensor]:
        return lambda: module(query, context, padding, padding)

    forms = [Form(type(module).__name__, timed(module, ours(module))) for module in (layer, block)]
    forms += [Form(name, timed(module, theirs(module))) for name, module in modules.items()]
    ratios = [(name, "CMRA") for name in ATTENTION_RIVALS]
    return compare(session, case, forms, [*ratios, (DECODER, "CrossModalRelation")], skipped)
