"""Row group "epoch": an epoch of the example's training, on random features of the release's shapes in float16.

The training itself measures the parts of an epoch: data, forward and backward, optimizer, evaluation. Writing the
checkpoint after an epoch does not count.
"""

from __future__ import annotations

import gc
import io
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from ave.checkpoints import Checkpoints
from ave.data.dataset import AVE_CATEGORIES, AVEData
from ave.networks.cmran import CMRAN
from ave.train import TrainConfig, main
from benchmarks.measuring import SEED, Session, median_and_quartiles

__all__ = ["TITLE", "make_set", "run"]

TITLE = "An epoch of the example"
SPLITS = {"cpu": (256, 32, 32), "cuda": (3339, 402, 402)}
"""The number of videos in train, val and test. On a GPU it is that of AVE."""
EPOCHS = {"cpu": 5, "cuda": 200}
QUICK_SPLITS, QUICK_EPOCHS, BRIEF_EPOCHS = (64, 16, 16), 3, 5
LEAST_EPOCHS = 3
"""The fewest epochs of a training that is reported although it ran out of time: a warm-up and two more."""
BATCH, LEARNING_RATE = 32, 5e-4
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Train in every precision, eager and, on a GPU, compiled. The first epoch, a warm-up, is reported separately.

    A brief session trains all epochs only in the way that should be fastest, and a few epochs in the other ways.
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
    """Raised to stop a training that has no time left."""


def _build(session: Session, *arguments: Any, **options: Any) -> CMRAN:
    """Build a network that stops its training before the next epoch if no time is left."""
    model = CMRAN(*arguments, **options)
    begin = model.train

    def train(mode: bool = True) -> CMRAN:
        if mode and session.late:
            raise _OutOfTimeError
        return begin(mode)

    model.train = train  # type: ignore[method-assign]
    return model


def _train(session: Session, data: AVEData, epochs: int, precision: str, compiled: bool) -> dict[str, Any]:
    gc.collect()
    torch.compiler.reset()
    AcceleratorState._reset_state(reset_partial_state=True)  # it would keep the precision of the previous training
    start = time.perf_counter()
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
        try:
            (metrics,) = main(config, data=data, network=partial(_build, session), draw=False)
            history = metrics["history"]
        except _OutOfTimeError:
            found = Checkpoints(Path(output) / f"seed-{SEED}" / "checkpoints").load()
            history = [] if found is None else found[1]["history"]
        except RuntimeError as error:  # an error of the compiler, for example, must not stop the others
            traceback.print_exc()
            return {"skipped": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    if len(history) < LEAST_EPOCHS:
        total = time.perf_counter() - start
        return {"skipped": f"no time was left: {len(history)} epochs took {total:.0f} s"}
    place = next(line for line in printed.getvalue().splitlines() if "features" in line).rpartition("; ")[2]
    parts = list(history[0]["seconds"])  # the first epoch has no checkpoint yet, so this leaves it out
    seconds = [sum(line["seconds"][part] for part in parts) for line in history]
    return {
        "features": place,
        "epochs_done": len(history),
        "seconds_in_all": round(sum(seconds), 2),
        "first_epoch_seconds": round(seconds[0], 3),
        "epoch_seconds": median_and_quartiles(seconds[1:]),
        "parts": {part: median_and_quartiles([line["seconds"][part] for line in history[1:]]) for part in parts},
    }


def make_set(
    sizes: tuple[int, int, int],
    *,
    grid: int = 7,
    video_dim: int = 512,
    audio_dim: int = 128,
    device: torch.device | str = "cpu",
) -> AVEData:
    """Return a random dataset of the release's shapes, with non-negative features in float16.

    Args:
        sizes: the number of videos in train, val and test.
        grid: H and W.
        video_dim: C.
        audio_dim: A.
        device: the device that draws and keeps the visual features. A CPU takes long for it.
    """
    drawing = torch.Generator(device).manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    videos, segments, labels = sum(sizes), 10, len(AVE_CATEGORIES) + 1
    visual = torch.empty(videos, segments, grid, grid, video_dim, dtype=torch.float16, device=device)
    for video in visual:  # one video at a time, since float32 takes twice the memory
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
