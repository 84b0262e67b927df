"""Audio-visual event localisation with CMRAN: train, evaluate and show it in one command.

Without options it trains on an embedded procedural set in the shape of AVE, in minutes on two CPU cores; with --data on
the AVE release. It prints a table and leaves the config, metrics, weights and two pictures in a directory of the run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch import Tensor

from ave.data import AVEData, read_release
from ave.evaluation import Outcomes, background_accuracy, object_attention, observe, split_loader
from ave.model import CMRAN
from ave.plots import draw_attention, draw_timelines
from ave.procedural import make_procedural_set
from ave.results import format_table, make_output, write_json, writing
from ave.training import Training, train
from crossmodal_attn import __version__

PROCEDURAL_EPOCHS, RELEASE_EPOCHS = 11, 200
SHOWN_VIDEOS = 6
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; an option that cannot be is an error with exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    option = parser.add_argument
    count = _number(int, "a number above 0", lambda value: value > 0)
    rate = _number(float, "a number above 0", lambda value: 0 < value < math.inf)
    seed = _number(int, "an integer from 0 to 4294967295", lambda value: 0 <= value < 2**32)
    option(
        "--setting",
        choices=("supervised", "weak"),
        default="supervised",
        help="train on a label for every second, or on one label for the whole video (default: %(default)s)",
    )
    option(
        "--data",
        type=Path,
        metavar="DIR",
        help="directory of the AVE release's HDF5 files (default: the embedded procedural set, which is not AVE)",
    )
    option(
        "--senses",
        choices=("both", "sight", "hearing"),
        default="both",
        help="what the network is given; the other sense is zeroed in training and testing (default: %(default)s)",
    )
    option(
        "--epochs",
        type=count,
        help=f"passes over the training videos (default: {PROCEDURAL_EPOCHS}, or {RELEASE_EPOCHS} with --data)",
    )
    option("--batch-size", type=count, default=32, help="videos per training step (default: %(default)s)")
    option(
        "--lr",
        type=rate,
        default=5e-4,
        help="Adam's learning rate, halved after epochs 10, 20, 30, or 5, 20, 40 weakly (default: %(default)s)",
    )
    option("--seed", type=seed, default=0, help="of weights, dropout and order; the data stay (default: %(default)s)")
    option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ... (default: the best there is)")
    option(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="mixed precision of the forward pass; fp16 needs a GPU (default: %(default)s)",
    )
    option(
        "--output",
        type=Path,
        metavar="DIR",
        help="new directory for the results (default: runs/<date and time>-<setting>)",
    )
    return parser.parse_args(arguments)


def _number(number: type[int] | type[float], expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """A type of argparse's: a number that ``fits``, or an error that says what was ``expected``."""

    def parse(text: str) -> float:
        value = number(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
        return value

    parse.__name__ = number.__name__  # argparse names it where the text is no number at all
    return parse


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Hugging Face Accelerate on the device that was asked for.

    Raises:
        ValueError: if the device is not there, or can't do the precision.
    """
    if device != "auto":
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, ImportError) as error:
            raise ValueError(f"--device must name a device that works here, got {device}") from error
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    try:
        accelerator = Accelerator(mixed_precision=PRECISIONS[precision], cpu=device == "cpu")
    except ValueError as error:
        raise ValueError(f"--precision {precision} does not work here: {error}") from error
    if accelerator.num_processes > 1:
        raise ValueError(f"one process must train alone, got {accelerator.num_processes}: start it without a launcher")
    return accelerator


def limit_senses(model: CMRAN, senses: str) -> None:
    """Make a network that only sees or only hears, by zeroing what it is given of the other sense."""

    def zero(_: torch.nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        video, audio = inputs
        return (video, torch.zeros_like(audio)) if senses == "sight" else (torch.zeros_like(video), audio)

    if senses != "both":
        model.register_forward_pre_hook(zero)


def describe(options: argparse.Namespace, data: AVEData, training: Training, outcomes: Outcomes) -> dict[str, Any]:
    """The figures of a run, as they are written to metrics.json; accuracies and shares are in [0, 1]."""
    metrics: dict[str, Any] = {
        "data": "procedural, not AVE" if options.data is None else str(options.data),
        "test_videos": len(outcomes.truth),
        "test_segments": outcomes.truth.numel(),
        "test_accuracy": training.chosen.test_accuracy,
        "chosen_epoch": training.chosen.epoch,
        "best_test_accuracy": training.best_test.test_accuracy,
        "best_test_epoch": training.best_test.epoch,
        "background_accuracy": background_accuracy(data, "test"),
    }
    if data.object_cells is not None:
        cells = data.object_cells[data.splits["test"]]
        event = outcomes.truth != len(data.categories)
        metrics["object_attention"], metrics["object_attention_if_uniform"] = object_attention(
            outcomes.spatial_map, cells, event
        )
    metrics["history"] = [dataclasses.asdict(epoch) for epoch in training.history]
    return metrics


def table(options: argparse.Namespace, metrics: dict[str, Any]) -> str:
    """What a person wants to know of a run first."""
    rows = [
        (f"accuracy at epoch {metrics['chosen_epoch']}, chosen on val", f"{metrics['test_accuracy']:.1%}"),
        (
            f"accuracy at epoch {metrics['best_test_epoch']}, best on test (as published figures are chosen)",
            f"{metrics['best_test_accuracy']:.1%}",
        ),
        ("accuracy of calling everything background", f"{metrics['background_accuracy']:.1%}"),
    ]
    if "object_attention" in metrics:
        rows += [
            ("AGSCA's attention on the true object in event seconds", f"{metrics['object_attention']:.1%}"),
            ("the same if attention were uniform", f"{metrics['object_attention_if_uniform']:.1%}"),
        ]
    counted = f"{metrics['test_videos']} test videos, {metrics['test_segments']} segments"
    return format_table(f"CMRAN, {options.setting}, data: {metrics['data']}; {counted}", rows)


def draw(options: argparse.Namespace, data: AVEData, outcomes: Outcomes) -> dict[str, Figure]:
    """The pictures of a run by file name: the first test videos whose event begins or ends inside the video."""
    background = len(data.categories)
    event = outcomes.truth != background
    partial = (event.any(1) & ~event.all(1)).nonzero().flatten().tolist() or list(range(len(event)))
    kind = "procedural test videos (not AVE)" if options.data is None else "test videos"
    cells = None if data.object_cells is None else data.object_cells[data.splits["test"]][partial[0]]
    return {
        "timelines.png": draw_timelines(
            outcomes, partial[:SHOWN_VIDEOS], data.categories, f"CMRAN, {options.setting}, on {kind}"
        ),
        "attention.png": draw_attention(
            outcomes,
            partial[0],
            data.categories,
            f"What CMRAN, {options.setting}, attends to: one of the {kind}",
            cells,
        ),
    }


def run(options: argparse.Namespace, accelerator: Accelerator, data: AVEData, output: Path) -> None:
    """Train, evaluate, write what is left behind, print the table."""
    start = time.perf_counter()
    dimensions = {
        "video_dim": data.visual.shape[-1],
        "audio_dim": data.audio.shape[-1],
        "num_categories": len(data.categories),
    }
    set_seed(options.seed)
    model = CMRAN(options.setting, **dimensions)
    limit_senses(model, options.senses)
    source = f"the AVE release in {options.data}" if options.data else "the procedural set (not AVE)"
    sizes = ", ".join(f"{len(rows)} {split}" for split, rows in data.splits.items())
    print(f"CMRAN, {options.setting}, on {source}: {sizes} videos; {accelerator.device}, {options.precision}")
    training = train(
        model,
        data,
        options.setting,
        accelerator,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.lr,
        seed=options.seed,
    )
    outcomes = observe(model, accelerator.prepare(split_loader(data, "test")), len(data.categories))
    metrics = describe(options, data, training, outcomes)
    metrics["seconds"] = round(time.perf_counter() - start, 1)
    config = {
        **{name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "output": str(output),
        "device": str(accelerator.device),
        "model": {"setting": options.setting, **dimensions},
        "versions": {"crossmodal_attn": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }

    write_json(output / "config.json", config)
    write_json(output / "metrics.json", metrics)
    with writing(output / "weights.safetensors") as path:
        save_file({name: value.cpu() for name, value in model.state_dict().items()}, path)
    for name, figure in draw(options, data, outcomes).items():
        with writing(output / name) as path:
            figure.savefig(path, dpi=120)
    print(table(options, metrics))
    print(f"{metrics['seconds']:.0f} s; written to {output}: {', '.join(sorted(os.listdir(output)))}")


def main(arguments: list[str] | None = None) -> None:
    """Check what was asked for before any work, then run it; what fails leaves no file half-written."""
    options = parse_arguments(arguments)
    options.epochs = options.epochs or (RELEASE_EPOCHS if options.data else PROCEDURAL_EPOCHS)
    try:
        accelerator = make_accelerator(options.device, options.precision)
        data = read_release(options.data, options.setting) if options.data else make_procedural_set()
        output = options.output or Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{options.setting}"
        make_output(output)
    except (ValueError, OSError) as error:
        sys.exit(_say(error, 2))
    try:
        run(options, accelerator, data, output)
    except BaseException as error:
        with contextlib.suppress(OSError):  # it stays where it holds files
            output.rmdir()
        if isinstance(error, (FloatingPointError, OSError)):
            sys.exit(_say(error, 1))
        if isinstance(error, KeyboardInterrupt):
            sys.exit(_say("interrupted before the end of the first epoch, or while results were written", 130))
        raise


def _say(error: object, code: int) -> int:
    print(f"ave_cmran.py: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
