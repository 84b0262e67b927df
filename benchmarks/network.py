"""Row group "network": the whole CMRAN against the network as published and against its floor.

A training step is that of the example: forward, loss, backward, gradient clipping, Adam, with dropout. The published
network uses torch's default Adam, ours the fused one, as the example does. "Forward and backward" has neither clipping
nor Adam. The floor is only the matrix products of our network, including those of attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave.networks.authors_weights import load_official_state_dict
from ave.networks.cmran import CMRAN
from ave.networks.two_scores import supervised_loss
from benchmarks.graphs import in_graph
from benchmarks.measuring import SEED, Form, Session, compare
from benchmarks.products import Product, make_replay, record_products
from benchmarks.published import PublishedCMRAN

__all__ = ["TITLE", "make_call", "pair", "record_floor", "run"]

TITLE = "CMRAN, the whole network"
INFERENCE, GRADIENTS, STEP = TASKS = ("inference", "forward and backward", "training step")
BATCHES, QUICK_BATCHES = (32, 256), (2,)
LENGTH, GRID, VIDEO_DIM, AUDIO_DIM, LABELS = 10, 7, 512, 128, 29
PRECISIONS = {"float64": torch.float64, "float32": torch.float32, "bf16 autocast": torch.bfloat16}
FLOORS = ("float32", "bf16 autocast")
"""The precisions for which the floor is measured."""
COMPILED = ("bf16 autocast", "float32")
"""The precisions that a brief session compiles, in this order."""
QUICK_COMPILED = ("float32",)
LEARNING_RATE, CLIP_NORM = 5e-4, 0.1


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Measure every task at the paper's batch size and a large one, in every precision.

    A brief session first measures what is not compiled, then compiles one precision at a time.
    """
    batches = QUICK_BATCHES if session.quick else BATCHES
    if session.brief:
        yield from _run_briefly(session, batches)
        return
    compiled = QUICK_COMPILED if session.quick else tuple(PRECISIONS)
    for batch, task in itertools.product(batches, TASKS):
        yield _measure(session, {"videos": batch, "task": task}, tuple(PRECISIONS), compiled)


def _run_briefly(session: Session, batches: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    for batch, task in itertools.product(batches, (STEP, INFERENCE)):
        case = {"videos": batch, "task": task, "compiled": "nothing"}
        yield _measure(session, case, tuple(PRECISIONS), ())
    tasks, precisions = ((INFERENCE,), QUICK_COMPILED) if session.quick else ((STEP, INFERENCE), COMPILED)
    for batch, task, precision in itertools.product(batches, tasks, precisions):
        case = {"videos": batch, "task": task, "compiled": precision}
        yield _measure(session, case, (precision,), (precision,))


def _measure(
    session: Session, case: dict[str, Any], shown: tuple[str, ...], compiled: tuple[str, ...]
) -> dict[str, Any]:
    """Measure the published network in every precision, and ours and the floor in the ``shown`` precisions."""
    batch, task = case["videos"], case["task"]
    maps = 2.0 * batch * LENGTH * GRID**2 * VIDEO_DIM * (2 * VIDEO_DIM + 256)
    if reason := session.late or session.skips(torch.float32, maps):
        return {"case": case, "skipped": reason}
    torch.manual_seed(SEED)
    torch.compiler.reset()
    video = torch.rand(batch, LENGTH, GRID, GRID, VIDEO_DIM, device=session.device)
    audio = torch.rand(batch, LENGTH, AUDIO_DIM, device=session.device)
    labels = F.one_hot(torch.randint(LABELS, (batch, LENGTH), device=session.device), LABELS).float()
    on_gpu = session.device.type == "cuda"
    forms: list[Form] = []
    left_out: dict[str, str] = {}
    for precision, dtype in PRECISIONS.items():
        modes = [mode for mode, kept in (("eager", shown), ("compiled", compiled)) if precision in kept]
        ours = [f"CMRAN, {precision}, {mode}" for mode in modes]
        floors = [f"matrix products alone, {precision}"] if precision in FLOORS and precision in shown else []
        reason = session.skips(dtype)
        if reason is not None:
            left_out |= dict.fromkeys([f"as published, {precision}", *ours, *floors], reason)
            continue
        published = PublishedCMRAN()
        call = make_call(task, published, precision, False, video, audio, labels)
        forms.append(Form(f"as published, {precision}", call))
        for name, mode in zip(ours, modes, strict=True):
            model = CMRAN()
            load_official_state_dict(model, published.state_dict())
            call = make_call(task, model, precision, mode == "compiled", video, audio, labels)
            forms.append(Form(name, call))
            if on_gpu:
                forms.append(Form(f"{name}, CUDA graph", in_graph(call), call))
        for name in floors:
            floor = make_replay(record_floor(task, video, audio, labels), session.device, dtype)
            forms.append(Form(name, in_graph(floor) if on_gpu else floor, floor))
    measured = compare(session, case, forms, pair([form.name for form in forms]), left_out)
    for result in measured["forms"].values():
        if "seconds" in result:
            result["videos_per_second"] = round(batch / result["seconds"]["median"], 1)
    return measured


def pair(names: list[str]) -> list[tuple[str, str]]:
    """Return the pairs of forms to compare.

    First come the published network and ours in equal or lower precision, then each of the two and its floor.
    """
    order = list(PRECISIONS)
    ranks = {name: order.index(name.split(", ")[1]) for name in names}
    published, ours, floors = (
        [name for name in names if name.startswith(kind)] for kind in ("as published", "CMRAN", "matrix products alone")
    )
    return [(theirs, name) for theirs in published for name in ours if ranks[theirs] <= ranks[name]] + [
        (name, floor) for floor in floors for name in (*published, *ours) if ranks[name] == ranks[floor]
    ]


def record_floor(task: str, video: Tensor, audio: Tensor, labels: Tensor) -> list[Product]:
    """Return the matrix products of a task of CMRAN. The published network has the same number, of the same sizes.

    The arguments are those of :func:`make_call`.
    """
    model = CMRAN(video_dim=video.shape[-1], audio_dim=audio.shape[-1], num_categories=labels.shape[-1] - 1)
    inputs = (tensor.to("meta") for tensor in (video, audio, labels))
    return record_products(make_call(GRADIENTS if task == STEP else task, model, "float32", False, *inputs))


def make_call(
    task: str, model: nn.Module, precision: str, compiled: bool, video: Tensor, audio: Tensor, labels: Tensor
) -> Callable[[], object]:
    """Return a function that runs one task of a network in a precision, compiled or eager.

    Args:
        task: one of ``TASKS``.
        model: our network or the published one.
        precision: one of ``PRECISIONS``.
        compiled: whether to use ``torch.compile``.
        video: float32 (B, T, H, W, C).
        audio: float32 (B, T, A).
        labels: one-hot (B, T, K + 1).
    """
    device = video.device
    dtype = torch.float64 if precision == "float64" else torch.float32
    model.to(device, dtype).train(task != INFERENCE)
    video, audio = video.to(dtype), audio.to(dtype)
    if compiled:
        model.compile(dynamic=False, fullgraph=True)
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
    # In a CUDA graph, Adam must be capturable, which costs nothing for the fused one.
    options: dict[str, Any] = {"fused": True, "capturable": device.type == "cuda"} if isinstance(model, CMRAN) else {}
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, **options)

    def step() -> object:
        loss = differentiate()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step
