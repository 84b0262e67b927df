"""Row group "agsca": AGSCA against Eq. 1-3 written out, and against its floor.

The floor is the layer's matrix products over the map, which every form has to compute. There are two in the forward
pass. In training there are six, since each needs one more for the gradient of its input and one for that of its weight.
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
WRITTEN_OUT, FLOOR = "Eq. 1-3 written out", "matrix products alone"


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Measure every size in every dtype, forward and in training, eager and compiled.

    A brief session measures only the narrow map, large batches in bf16 first. It does not compile Eq. 1-3 written out.
    """
    cases = list(itertools.product(CHANNELS, BATCHES, DTYPES, TASKS))
    if session.brief:
        cases = list(itertools.product(CHANNELS[:1], reversed(BATCHES), reversed(DTYPES), reversed(TASKS)))
    for channels, batch, dtype, task in cases:
        operations = 2.0 * batch * LENGTH * GRID**2 * channels * (channels + HIDDEN_DIM)
        shape = f"{batch} x {LENGTH} x {GRID} x {GRID} x {channels}"
        case = {"map": shape, "dtype": str(dtype).removeprefix("torch."), "task": task}
        # In the backward pass, each product needs two more.
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
        WRITTEN_OUT: timed(literal),
        f"{WRITTEN_OUT}, compiled": timed(literal, compiled=True),
        FLOOR: make_floor(layer, video, task),
    }
    left_out = {}
    if session.brief:
        left_out[f"{WRITTEN_OUT}, compiled"] = "not measured in a brief session"
    if session.brief and session.quick:
        left_out["AGSCA, compiled"] = "not measured in a brief session"
    measured = [Form(name, call) for name, call in forms.items() if name not in left_out]
    ratios = [(WRITTEN_OUT, "AGSCA"), (f"{WRITTEN_OUT}, compiled", "AGSCA, compiled")]
    return compare(session, case, measured, [*ratios, ("AGSCA", FLOOR), ("AGSCA, compiled", FLOOR)], left_out)


def make_floor(layer: AGSCA, video: Tensor, task: str) -> Callable[[], object]:
    """Return a function that computes only the matrix products over the map (*, C)."""
    positions = video.detach().flatten(0, -2)
    weights = [projection.weight.detach() for projection in (layer.channel_video_proj, layer.spatial_video_proj)]

    def forward() -> list[Tensor]:
        return [F.linear(positions, weight) for weight in weights]

    def forward_and_backward() -> list[Tensor]:
        # The products take the place of their gradients, which have the same shapes.
        gradients: list[Tensor] = []
        for product, weight in zip(forward(), weights, strict=True):
            gradients += [product.T @ positions, product @ weight]
        return gradients

    return forward if task == TASKS[0] else forward_and_backward
