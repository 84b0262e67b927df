"""Row 2: AGSCA against Eq. 1-3 as they are printed, and against its floor.

The floor is the matrix products of the layer over the map, without which none of its forms can do: two forward; in
training six, since each has a product for the gradient of its input and one for that of its weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave.networks.authors_weights import load_official_state_dict
from benchmarks.measuring import SEED, Form, Session, compare
from benchmarks.passes import TASKS, make_pass
from benchmarks.rivals import LiteralAGSCA
from crossmodal_attn import AGSCA

__all__ = ["TITLE", "make_floor", "run"]

TITLE = "AGSCA"
BATCHES, LENGTH, GRID, AUDIO_DIM, HIDDEN_DIM = (32, 256), 10, 7, 128, 256
CHANNELS = (512, 2048)
DTYPES = (torch.float32, torch.bfloat16)
FLOOR = "floor"


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Measure every size in every dtype, forward and in training, eager and compiled.

    In brief, the narrow map alone, large batches in bf16 first, and nothing written out is compiled.
    """
    cases = list(itertools.product(CHANNELS, BATCHES, DTYPES, TASKS))
    if session.brief:
        cases = list(itertools.product(CHANNELS[:1], reversed(BATCHES), reversed(DTYPES), reversed(TASKS)))
    for channels, batch, dtype, task in cases:
        operations = 2.0 * batch * LENGTH * GRID**2 * channels * (channels + HIDDEN_DIM)
        shape = f"{batch} x {LENGTH} x {GRID} x {GRID} x {channels}"
        case = {"map": shape, "dtype": str(dtype).removeprefix("torch."), "task": task}
        # Backward, each product has two more.
        reason = session.late or session.skips(dtype, operations * (1 if task == TASKS[0] else 3))
        if reason is None:
            yield _measure(session, case, batch, channels, dtype, task)
        else:
            yield {"case": case, "skipped": reason}


def _measure(
    session: Session, case: dict[str, Any], batch: int, channels: int, dtype: torch.dtype, task: str
) -> dict[str, Any]:
    torch.manual_seed(SEED)
    torch.compiler.reset()
    literal = LiteralAGSCA(channels, AUDIO_DIM, HIDDEN_DIM)
    layer = load_official_state_dict(AGSCA(channels, AUDIO_DIM, HIDDEN_DIM), literal.state_dict())
    video = torch.randn(batch, LENGTH, GRID, GRID, channels, device=session.device, dtype=dtype)
    audio = torch.randn(batch, LENGTH, AUDIO_DIM, device=session.device, dtype=dtype)

    def timed(module: nn.Module, compiled: bool = False) -> Callable[[], object]:
        module.to(session.device, dtype)
        call: Callable[..., Tensor] = torch.compile(module, dynamic=False, fullgraph=True) if compiled else module
        return make_pass(task, module, lambda: call(video, audio), (video, audio))

    forms = {
        "AGSCA": timed(layer),
        "AGSCA, compiled": timed(layer, compiled=True),
        "literal": timed(literal),
        "literal, compiled": timed(literal, compiled=True),
        FLOOR: make_floor(layer, video, task),
    }
    left_out = {}
    if session.brief:
        left_out["literal, compiled"] = "left out in brief"
    if session.brief and session.quick:
        left_out["AGSCA, compiled"] = "left out in brief"
    measured = [Form(name, call) for name, call in forms.items() if name not in left_out]
    ratios = [("literal", "AGSCA"), ("literal, compiled", "AGSCA, compiled")]
    return compare(session, case, measured, [*ratios, ("AGSCA", FLOOR), ("AGSCA, compiled", FLOOR)], left_out)


def make_floor(layer: AGSCA, video: Tensor, task: str) -> Callable[[], object]:
    """Make a call of the matrix products over the map (*, C) alone."""
    positions = video.detach().flatten(0, -2)
    weights = [projection.weight.detach() for projection in (layer.channel_video_proj, layer.spatial_video_proj)]

    def forward() -> list[Tensor]:
        return [F.linear(positions, weight) for weight in weights]

    def forward_and_backward() -> list[Tensor]:
        # The products stand in for their gradients: the shapes are what counts.
        gradients: list[Tensor] = []
        for product, weight in zip(forward(), weights, strict=True):
            gradients += [product.T @ positions, product @ weight]
        return gradients

    return forward if task == TASKS[0] else forward_and_backward
