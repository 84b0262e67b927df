"""Row 3: the whole CMRAN against the network as its authors built it, in training and inference.

A training step is what the example does: forward, loss, backward, clipped gradients, Adam; dropout is on. The published
form steps with Adam as torch makes it by default, ours with the fused one, as the example.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave.networks.authors_weights import load_official_state_dict
from ave.networks.cmran import CMRAN, supervised_loss
from benchmarks.measuring import SEED, Form, Session, compare
from benchmarks.published import PublishedCMRAN

__all__ = ["TITLE", "run"]

TITLE = "CMRAN, the whole network"
TASKS = ("inference", "training step")
BATCHES, LENGTH, GRID, VIDEO_DIM, AUDIO_DIM, LABELS = (32, 256), 10, 7, 512, 128, 29
PRECISIONS = {"float64": torch.float64, "float32": torch.float32, "bf16 autocast": torch.bfloat16}
MODES = {"compiled": "default", "CUDA graphs": "reduce-overhead"}
LEARNING_RATE, CLIP_NORM = 5e-4, 0.1


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Measure both tasks at the paper's batch size and a large one, in every precision."""
    for batch, task in itertools.product(BATCHES, TASKS):
        case: dict[str, Any] = {"videos": batch, "task": task}
        maps = 2.0 * batch * LENGTH * GRID**2 * VIDEO_DIM * (2 * VIDEO_DIM + 256)
        reason = session.skips(torch.float32, maps)
        yield _measure(session, case, batch, task) if reason is None else {"case": case, "skipped": reason}


def _measure(session: Session, case: dict[str, Any], batch: int, task: str) -> dict[str, Any]:
    torch.manual_seed(SEED)
    torch.compiler.reset()
    video = torch.rand(batch, LENGTH, GRID, GRID, VIDEO_DIM, device=session.device)
    audio = torch.rand(batch, LENGTH, AUDIO_DIM, device=session.device)
    labels = F.one_hot(torch.randint(LABELS, (batch, LENGTH), device=session.device), LABELS).float()
    skipped = {name: reason for name, dtype in PRECISIONS.items() if (reason := session.skips(dtype)) is not None}
    forms: list[Form] = []
    left_out: dict[str, str] = {}
    for precision in PRECISIONS:
        published = PublishedCMRAN()
        modes: dict[str, str | None] = {"eager": None}
        if session.device.type == "cuda":
            modes |= MODES
        elif not session.quick or precision == "float32":
            modes["compiled"] = MODES["compiled"]
        names = {f"published, {precision}": None, **{f"ours, {precision}, {name}": modes[name] for name in modes}}
        if precision in skipped:
            left_out |= dict.fromkeys(names, skipped[precision])
            continue
        for name, mode in names.items():
            model: nn.Module = published if name.startswith("published") else CMRAN()
            if isinstance(model, CMRAN):
                load_official_state_dict(model, published.state_dict())
            forms.append(Form(name, make_call(task, model, precision, mode, video, audio, labels)))
    ours = [form.name for form in forms if form.name.startswith("ours")]
    ratios = [("published, float64", name) for name in ours]
    ratios += [("published, float32", name) for name in ours if "float64" not in name]
    measured = compare(session, case, forms, ratios, left_out)
    for result in measured["forms"].values():
        if "seconds" in result:
            result["videos_per_second"] = round(batch / result["seconds"]["median"], 1)
    return measured


def make_call(
    task: str, model: nn.Module, precision: str, mode: str | None, video: Tensor, audio: Tensor, labels: Tensor
) -> Callable[[], object]:
    """Make one step, or one pass without gradients, of a network in a precision, compiled in a mode or eager.

    Args:
        task: one of ``TASKS``.
        model: ours or the published one.
        precision: one of ``PRECISIONS``.
        mode: of ``torch.compile``, or None.
        video: float32 (B, T, H, W, C).
        audio: float32 (B, T, A).
        labels: one-hot (B, T, K + 1).
    """
    device = video.device
    dtype = torch.float64 if precision == "float64" else torch.float32
    model.to(device, dtype).train(task == TASKS[1])
    video, audio = video.to(dtype), audio.to(dtype)
    if mode is not None:
        model.compile(mode=mode, dynamic=False, fullgraph=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16 autocast")

    @torch.no_grad()
    def infer() -> object:
        with autocast:
            return model(video, audio)

    if task == TASKS[0]:
        return infer
    options: dict[str, Any] = {"fused": True} if isinstance(model, CMRAN) else {}
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, **options)

    def step() -> object:
        with autocast:
            loss = supervised_loss(model(video, audio), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
