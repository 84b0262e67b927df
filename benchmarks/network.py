"""Row 3: the whole CMRAN against the network as its authors built it and against its floor, in training and inference.

A training step is what the example does: forward, loss, backward, clipped gradients, Adam; dropout is on. The published
form steps with Adam as torch makes it by default, ours with the fused one, as the example. "Forward and backward" is
the same without the clipping and without Adam. The floor is the matrix products of ours alone, SDPA's included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave.model import CMRAN, supervised_loss
from ave.official import load_official_state_dict
from benchmarks.measuring import SEED, Form, Session, compare
from benchmarks.products import Product, make_replay, record_products
from benchmarks.published import PublishedCMRAN

__all__ = ["TITLE", "make_call", "pair", "record_floor", "run"]

TITLE = "CMRAN, the whole network"
INFERENCE, GRADIENTS, STEP = TASKS = ("inference", "forward and backward", "training step")
BATCHES, LENGTH, GRID, VIDEO_DIM, AUDIO_DIM, LABELS = (32, 256), 10, 7, 512, 128, 29
PRECISIONS = {"float64": torch.float64, "float32": torch.float32, "bf16 autocast": torch.bfloat16}
FLOORS = ("float32", "bf16 autocast")
"""The precisions whose floor is measured."""
MODES = {"compiled": "default", "CUDA graphs": "reduce-overhead"}
LEARNING_RATE, CLIP_NORM = 5e-4, 0.1


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Measure every task at the paper's batch size and a large one, in every precision."""
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
        floors = [f"floor, {precision}"] if precision in FLOORS else []
        if precision in skipped:
            left_out |= dict.fromkeys([*names, *floors], skipped[precision])
            continue
        for name, mode in names.items():
            model: nn.Module = published if name.startswith("published") else CMRAN()
            if isinstance(model, CMRAN):
                load_official_state_dict(model, published.state_dict())
            forms.append(Form(name, make_call(task, model, precision, mode, video, audio, labels)))
        products = record_floor(task, video, audio, labels)
        forms += [Form(name, make_replay(products, session.device, PRECISIONS[precision])) for name in floors]
    measured = compare(session, case, forms, pair([form.name for form in forms]), left_out)
    for result in measured["forms"].values():
        if "seconds" in result:
            result["videos_per_second"] = round(batch / result["seconds"]["median"], 1)
    return measured


def pair(names: list[str]) -> list[tuple[str, str]]:
    """Published against ours, in no narrower precision than it, and then each of them against its floor."""
    order = list(PRECISIONS)
    ranks = {name: order.index(name.split(", ")[1]) for name in names}
    published, ours, floors = (
        [name for name in names if name.startswith(kind)] for kind in ("published", "ours", "floor")
    )
    return [(theirs, name) for theirs in published for name in ours if ranks[theirs] <= ranks[name]] + [
        (name, floor) for floor in floors for name in (*published, *ours) if ranks[name] == ranks[floor]
    ]


def record_floor(task: str, video: Tensor, audio: Tensor, labels: Tensor) -> list[Product]:
    """Return the matrix products of a task of CMRAN; the published network has as many, of the same sizes.

    Arguments are those of :func:`make_call`.
    """
    model = CMRAN(video_dim=video.shape[-1], audio_dim=audio.shape[-1], num_categories=labels.shape[-1] - 1)
    inputs = (tensor.to("meta") for tensor in (video, audio, labels))
    return record_products(make_call(GRADIENTS if task == STEP else task, model, "float32", None, *inputs))


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
    model.to(device, dtype).train(task != INFERENCE)
    video, audio = video.to(dtype), audio.to(dtype)
    if mode is not None:
        model.compile(mode=mode, dynamic=False, fullgraph=True)
    narrow = precision == "bf16 autocast"
    autocast = torch.autocast(device.type, torch.bfloat16) if narrow else nullcontext()

    @torch.no_grad()
    def infer() -> object:
        with autocast:
            return model(video, audio)

    def differentiate() -> Tensor:
        with autocast:
            loss = supervised_loss(model(video, audio), labels)
        loss.backward()
        return loss.detach()

    def drop_gradients() -> object:
        loss = differentiate()
        for parameter in model.parameters():
            parameter.grad = None
        return loss

    if task != STEP:
        return infer if task == INFERENCE else drop_gradients
    options: dict[str, Any] = {"fused": True} if isinstance(model, CMRAN) else {}
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, **options)

    def step() -> object:
        loss = differentiate()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step
