"""Row 5: an epoch of the example's training from end to end, on random features in the release's shapes and in float16.

Where its time goes is what the training itself has measured: data, forward and backward, optimizer, evaluation.
"""

from __future__ import annotations

import gc
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from ave.data.dataset import AVE_CATEGORIES, AVEData
from ave.networks.cmran import CMRAN
from ave.train import TrainConfig, main
from benchmarks.measuring import SEED, Session, summarise

__all__ = ["TITLE", "make_set", "run"]

TITLE = "An epoch of the example"
SPLITS = {"cpu": (256, 32, 32), "cuda": (3339, 402, 402)}
"""Videos of train, val and test; on a GPU as many as AVE has."""
EPOCHS = {"cpu": 5, "cuda": 200}
QUICK_SPLITS, QUICK_EPOCHS = (64, 16, 16), 3
BATCH, LEARNING_RATE = 32, 5e-4
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Train in every precision, eager and, on a GPU, compiled; the first epoch, which warms up, is told apart."""
    sizes = QUICK_SPLITS if session.quick else SPLITS[session.device.type]
    epochs = QUICK_EPOCHS if session.quick else EPOCHS[session.device.type]
    data = make_set(sizes)
    for precision, dtype in PRECISIONS.items():
        for compiled in (False, True) if session.device.type == "cuda" else (False,):
            case = {"videos": " + ".join(map(str, sizes)), "epochs": epochs, "precision": precision}
            case["network"] = "compiled" if compiled else "eager"
            reason = session.skips(dtype)
            if reason is None:
                yield {"case": case, **_train(session, data, epochs, precision, compiled)}
            else:
                yield {"case": case, "skipped": reason}


def _train(session: Session, data: AVEData, epochs: int, precision: str, compiled: bool) -> dict[str, Any]:
    gc.collect()
    torch.compiler.reset()
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the training before
    with tempfile.TemporaryDirectory() as output, redirect_stdout(io.StringIO()) as printed:
        config = TrainConfig(
            epochs=epochs,
            batch_size=BATCH,
            lr=LEARNING_RATE,
            seeds=(SEED,),
            device=session.device.type,
            precision=precision,  # type: ignore[arg-type]
            compile=compiled,
            output=Path(output),
        )
        start = time.perf_counter()
        (metrics,) = main(config, data=data, network=CMRAN, draw=False)
        total = time.perf_counter() - start
    place = next(line for line in printed.getvalue().splitlines() if "features" in line).rpartition("; ")[2]
    first, *others = (line["seconds"] for line in metrics["history"])
    parts = {name: summarise([seconds[name] for seconds in others]) for name in first}
    return {
        "features": place,
        "seconds_in_all": round(total, 2),
        "first_epoch_seconds": round(sum(first.values()), 3),
        "epoch_seconds": summarise([sum(seconds[name] for name in first) for seconds in others]),
        "parts": parts,
    }


def make_set(sizes: tuple[int, int, int], *, grid: int = 7, video_dim: int = 512, audio_dim: int = 128) -> AVEData:
    """Make a random set in the release's shapes, its features in float16 and after a ReLU.

    Args:
        sizes: how many videos train, val and test have.
        grid: H and W.
        video_dim: C.
        audio_dim: A.
    """
    generator = torch.Generator().manual_seed(SEED)
    videos, segments, labels = sum(sizes), 10, len(AVE_CATEGORIES) + 1
    visual = torch.empty(videos, segments, grid, grid, video_dim, dtype=torch.float16)
    for video in visual:  # one at a time, since random float32 numbers take twice the memory
        video.copy_(torch.randn(video.shape, generator=generator).relu_())
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
