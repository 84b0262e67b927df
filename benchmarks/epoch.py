"""Row 5: an epoch of the example's training from end to end, on random features in the release's shapes and in float16.

Where its time goes is what the training itself has measured: data, forward and backward, optimizer, evaluation.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from ave.accelerating import make_accelerator
from ave.caching import cache_features
from ave.data import AVE_CATEGORIES, AVEData
from ave.model import CMRAN
from ave.training import Epoch, train
from benchmarks.measuring import SEED, Session, summarise

__all__ = ["TITLE", "make_set", "run"]

TITLE = "An epoch of the example"
SPLITS = {"cpu": (256, 32, 32), "cuda": (3339, 402, 402)}
"""Videos of train, val and test; on a GPU as many as AVE has."""
EPOCHS = {"cpu": 5, "cuda": 200}
QUICK_SPLITS, QUICK_EPOCHS, BRIEF_EPOCHS = (64, 16, 16), 3, 5
LEAST_EPOCHS = 3
"""Of a training that is not finished: the first warms up, and two are a spread."""
BATCH, LEARNING_RATE = 32, 5e-4
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Train in every precision, eager and, on a GPU, compiled; the first epoch, which warms up, is told apart.

    In brief, all epochs are trained once, in the way that should be fastest, and the other ways a few epochs.
    """
    on_gpu = session.device.type == "cuda"
    sizes = QUICK_SPLITS if session.quick else SPLITS[session.device.type]
    epochs = QUICK_EPOCHS if session.quick else EPOCHS[session.device.type]
    data = make_set(sizes, device=session.device)
    ways = list(product(PRECISIONS, (False, True) if on_gpu else (False,)))
    if session.brief:
        ways.reverse()
    for index, (precision, compiled) in enumerate(ways):
        wanted = min(epochs, BRIEF_EPOCHS) if session.brief and index > 0 else epochs
        case = {"videos": " + ".join(map(str, sizes)), "epochs": wanted, "precision": precision}
        case["network"] = "compiled" if compiled else "eager"
        reason = session.late or session.skips(PRECISIONS[precision])
        if reason is None:
            yield {"case": case, **_train(session, data, wanted, precision, compiled)}
        else:
            yield {"case": case, "skipped": reason}


class _OutOfTimeError(Exception):
    """Ends a training."""


class _Clock:
    """The log of a training: notes when each epoch ended, and ends the training when there is no time left.

    It makes the host wait for the device every 10 steps, as any log does, to be told a loss.
    """

    def __init__(self, until: float) -> None:
        self.until = until
        self.ends: list[float] = []

    def __call__(self, figures: dict[str, float], _: int) -> None:
        now = time.perf_counter()
        if "val accuracy" in figures:
            self.ends.append(now)
        if now > self.until:
            raise _OutOfTimeError


def _train(session: Session, data: AVEData, epochs: int, precision: str, compiled: bool) -> dict[str, Any]:
    gc.collect()
    torch.compiler.reset()
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the training before
    accelerator = make_accelerator(session.device.type, precision)
    cached, place = cache_features(data, "auto", accelerator, "supervised")
    set_seed(SEED)
    model = CMRAN()
    if compiled:
        model.compile(mode="reduce-overhead", dynamic=False)
    clock = None if session.until is None else _Clock(session.until)
    options: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
        "log": clock,
    }
    parts: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        history = train(model, cached, accelerator, **options).history
        seconds = [_total(epoch) for epoch in history]
        parts = {name: summarise([epoch.seconds[name] for epoch in history[1:]]) for name in history[0].seconds}
    except _OutOfTimeError:
        # What the device does is told to the host by the accuracies, so these are the epochs' own times.
        seconds = [end - before for before, end in pairwise([start, *(clock.ends if clock else ())])]
    except RuntimeError as error:  # as of the compiler; the other ways are still measured
        traceback.print_exc()
        return {"skipped": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    total = time.perf_counter() - start
    accelerator.free_memory()
    if len(seconds) < LEAST_EPOCHS:
        return {"skipped": f"no time was left for it: {len(seconds)} epochs took {total:.0f} s"}
    return {
        "features": place,
        "epochs_done": len(seconds),
        "seconds_in_all": round(total, 2),
        "first_epoch_seconds": round(seconds[0], 3),
        "epoch_seconds": summarise(seconds[1:]),
        "parts": parts,
    }


def _total(epoch: Epoch) -> float:
    return sum(epoch.seconds.values())


def make_set(
    sizes: tuple[int, int, int],
    *,
    grid: int = 7,
    video_dim: int = 512,
    audio_dim: int = 128,
    device: torch.device | str = "cpu",
) -> AVEData:
    """Make a random set in the release's shapes, its features in float16 and after a ReLU.

    Args:
        sizes: how many videos train, val and test have.
        grid: H and W.
        video_dim: C.
        audio_dim: A.
        device: what draws the visual features, which a CPU takes long for; they are kept in its memory.
    """
    drawing = torch.Generator(device).manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    videos, segments, labels = sum(sizes), 10, len(AVE_CATEGORIES) + 1
    visual = torch.empty(videos, segments, grid, grid, video_dim, dtype=torch.float16, device=device)
    for video in visual:  # one at a time, since random float32 numbers take twice the memory
        video.copy_(torch.randn(video.shape, generator=drawing, device=device).relu_())
    audio = torch.randn(videos, segments, audio_dim, generator=generator).relu_().half()
    truth = torch.randint(labels, (videos, segments), generator=generator)
    rows = torch.randperm(videos, generator=generator).split(list(sizes))
    return AVEData(
        visual,
        audio,
        F.one_hot(truth, labels).float(),
        dict(zip(("train", "val", "test"), rows, strict=True)),
        AVE_CATEGORIES,
    )
