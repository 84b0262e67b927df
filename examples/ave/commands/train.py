"""Train CMRAN for one seed or several, and report what it gets on the test split.

Without --data it trains on an embedded procedural set in the shape of AVE (never AVE itself), in minutes on two CPU
cores; with --data on a directory of the AVE release, or one that `prepare` made of it. After every epoch the run is
kept in its directory, so that --resume goes on with it however it was stopped. It runs plain, under `accelerate launch`
and under `torchrun`; all processes must see the same files.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ave.accelerating import add_device_options, describe_place, make_accelerator
from ave.caching import CACHES, cache_features
from ave.charts import draw_learning_curves
from ave.checkpoints import Checkpoints
from ave.commands import add_output_option, checking_input, new_output, number
from ave.data import AVEData
from ave.evaluation import Outcomes, observe
from ave.loading import evaluation_loader
from ave.metrics import summarise
from ave.model import CMRAN
from ave.procedural import make_procedural_set
from ave.reading import inspect_set, read_set
from ave.reporting import draw_examples, measure, peak_memory, write_figures, write_scores
from ave.results import make_output, write_csv, write_json
from ave.run_config import PROCEDURAL_EPOCHS, RELEASE_EPOCHS, digest_data, read_config, settle
from ave.tables import category_table, results_table
from ave.tensorboard_log import TensorBoardLog
from ave.training import Epoch, Training, train
from crossmodal_attn import __version__


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option is None where it is not given: a resumed run takes it from the run."""
    option = parser.add_argument
    count = number(int, "a number above 0", lambda value: value > 0)
    option(
        "--setting",
        choices=("supervised", "weak"),
        help="train on a label for every second, or on one label for the whole video (default: supervised)",
    )
    option(
        "--data",
        metavar="DIR",
        help="directory of the AVE release's HDF5 files, or one that `prepare` made (default: the procedural set)",
    )
    option(
        "--senses",
        choices=("both", "sight", "hearing"),
        help="what the network is given; the other sense is zeroed in training and testing (default: both)",
    )
    option(
        "--epochs",
        type=count,
        help=f"passes over the training videos (default: {PROCEDURAL_EPOCHS}, or {RELEASE_EPOCHS} with --data); "
        f"a resumed run may be given more",
    )
    option("--batch-size", type=count, help="videos per training step, over all processes (default: 32)")
    option(
        "--lr",
        type=number(float, "a number above 0", lambda value: value > 0),
        help="Adam's learning rate, halved after epochs 10, 20, 30, or 5, 20, 40 weakly (default: 0.0005)",
    )
    option(
        "--seeds",
        type=number(int, "an integer from 0 to 4294967295", lambda value: 0 <= value < 2**32),
        nargs="+",
        metavar="SEED",
        help="of weights, dropout and order; one training for each, and the mean and spread of all (default: 0); a "
        "resumed run may be given more",
    )
    add_device_options(parser)
    option("--compile", action="store_const", const=True, help="compile the network with torch.compile")
    option(
        "--cache",
        choices=CACHES,
        help="where features are taken from in every epoch: the device's memory, the host's, or disk (default: auto, "
        "the first of these that they fit into)",
    )
    option(
        "--workers",
        type=number(int, "a number of at least 0", lambda value: value >= 0),
        help="processes that read, where features stay on disk (default: 2)",
    )
    option("--keep", type=count, help="how many of the last checkpoints stay (default: 2)")
    option("--log", choices=("tensorboard",), help="write logs for TensorBoard into OUTPUT/tensorboard")
    place = parser.add_mutually_exclusive_group()
    add_output_option(place, "<setting>")
    place.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in this directory from its last finished epoch, with the options that it has",
    )


def run(options: argparse.Namespace) -> None:
    """Check everything first; then train each seed, and report."""
    start = time.perf_counter()
    with checking_input():
        saved = None if options.resume is None else read_config(options.resume)
        settings = settle(options, saved)
        accelerator = make_accelerator(settings["device"], settings["precision"])
        data = _read(settings, accelerator)
        config = {
            "settings": settings,
            "data_digest": digest_data(data, settings["setting"]),
            "processes": accelerator.num_processes,
            "versions": {
                "crossmodal_attn": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        if saved is not None and saved["data_digest"] != config["data_digest"]:
            raise ValueError(f"--data must be the set that {options.resume} was trained on, got another")
        for split in ("val", "test"):
            evaluation_loader(data, split, accelerator)  # refuses what is too small
        data, cached = cache_features(data, settings["cache"], accelerator, settings["setting"])
        output = options.resume or new_output(options.output, settings["setting"])
        if accelerator.is_main_process and saved is None:
            make_output(output)
    if saved is not None and saved["processes"] != accelerator.num_processes:
        accelerator.print(f"note: {saved['processes']} processes began this run, so it does not go on bit for bit")
    sizes = ", ".join(f"{len(rows)} {split}" for split, rows in data.splits.items())
    accelerator.print(f"{_name(settings)}: {sizes} videos; {cached}")
    accelerator.print(
        f"on {describe_place(accelerator)}, {settings['precision']}; results in {output}, "
        f"where --resume {output} goes on if this is stopped"
    )
    try:
        if accelerator.is_main_process:
            write_json(output / "config.json", config)
        _train_seeds(settings, data, accelerator, output, start)
    except OSError as error:
        reason = str(error).strip().splitlines()[-1]  # of a worker, it comes with its traceback before it
        raise OSError(f"{reason}; what is finished is kept: go on with --resume {output}") from error
    except KeyboardInterrupt as error:
        raise type(error)(f"stopped; what is finished is kept: go on with --resume {output}") from error
    accelerator.end_training()


def _read(settings: dict[str, Any], accelerator: Accelerator) -> AVEData:
    """The set to train on; of files, after the checker's table."""
    if settings["data"] is None:
        return make_procedural_set()
    directory = Path(settings["data"])
    if accelerator.is_main_process:  # what it reads is much; a fault ends the others too
        report = inspect_set(directory, settings["setting"])
        print(report)
        report.raise_for_faults()
    return read_set(directory, settings["setting"])


def _source(settings: dict[str, Any]) -> str:
    return f"the AVE set {Path(settings['data']).name}" if settings["data"] else "the procedural set (not AVE)"


def _name(settings: dict[str, Any]) -> str:
    senses = "" if settings["senses"] == "both" else f", {settings['senses']} only"
    return f"CMRAN, {settings['setting']}{senses}, on {_source(settings)}"


def _train_seeds(settings: dict[str, Any], data: AVEData, accelerator: Accelerator, output: Path, start: float) -> None:
    """Train every seed, each in a directory of its own, then write and print what they get together."""
    runs: list[dict[str, Any]] = []
    histories: dict[int, list[Epoch]] = {}
    examples: Outcomes | None = None
    scaling = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    for seed in settings["seeds"]:
        if accelerator.scaler is not None and scaling is not None:
            accelerator.scaler.load_state_dict(scaling)  # which the seed before has moved
        if len(settings["seeds"]) > 1:
            accelerator.print(f"seed {seed}")
        set_seed(seed)
        model = CMRAN(
            settings["setting"],
            video_dim=data.visual.shape[-1],
            audio_dim=data.audio.shape[-1],
            categories=data.categories,
            senses=settings["senses"],
        )
        if settings["compile"]:
            model.compile()
        place = output / f"seed-{seed}"
        training, outcomes = _train_seed(model, settings, seed, data, accelerator, place)
        histories[seed] = training.history
        examples = examples or outcomes
        runs.append({"seed": seed, **_describe(training, outcomes, data)})
        if accelerator.is_main_process:
            _save_model(model, place / "model", {"data": _source(settings), "metrics": runs[-1]})
        accelerator.free_memory()
    if accelerator.is_main_process and examples is not None:
        _report(settings, data, runs, histories, examples, accelerator, output, start)


def _train_seed(
    model: CMRAN, settings: dict[str, Any], seed: int, data: AVEData, accelerator: Accelerator, place: Path
) -> tuple[Training, Outcomes]:
    """One training, and what its network then says of the test split."""
    writing_log = settings["log"] is not None and accelerator.is_main_process
    log = TensorBoardLog(place.parent / "tensorboard" / place.name) if writing_log else None
    training = train(
        model,
        data,
        accelerator,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        learning_rate=settings["lr"],
        seed=seed,
        workers=settings["workers"],
        checkpoints=Checkpoints(place / "checkpoints", settings["keep"]),
        log=log,
    )
    if log is not None:
        log.close()
    return training, observe(model, data, "test", accelerator, settings["workers"])


def _describe(training: Training, outcomes: Outcomes, data: AVEData) -> dict[str, Any]:
    """The figures of one training, as they are written to metrics.json."""
    return {
        "chosen_epoch": training.chosen.epoch,
        "best_test_accuracy": training.best_test.test_accuracy,
        "best_test_epoch": training.best_test.epoch,
        **measure(outcomes, data, "test"),
        "history": [dataclasses.asdict(epoch) for epoch in training.history],
    }


def _save_model(model: CMRAN, directory: Path, card: dict[str, Any]) -> None:
    """Write the chosen weights with all that they need, whole or not at all."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, model_card_kwargs=card)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _report(
    settings: dict[str, Any],
    data: AVEData,
    runs: list[dict[str, Any]],
    histories: dict[int, list[Epoch]],
    examples: Outcomes,
    accelerator: Accelerator,
    output: Path,
    start: float,
) -> None:
    """Write the figures and pictures of all seeds, and print what a person wants to know first."""
    title = _name(settings)
    summary = summarise(runs)
    summary["seconds"] = round(time.perf_counter() - start, 1)
    summary["peak_memory"] = peak_memory(accelerator)
    write_scores(output, runs, summary, data.categories, title)
    write_csv(
        output / "history.csv",
        [
            {"seed": seed, **{name: value for name, value in dataclasses.asdict(epoch).items() if name != "seconds"}}
            for seed, history in histories.items()
            for epoch in history
        ],
    )
    first = f"{title}, seed {settings['seeds'][0]}"
    write_figures(
        output,
        {
            "learning_curves.png": draw_learning_curves(histories, title),
            **draw_examples(examples, data, "test", first),
        },
    )
    print(category_table(summary))
    print(results_table(title, runs, summary))
    epochs = [epoch for history in histories.values() for epoch in history]
    parts = {
        name: sum(epoch.seconds.get(name, 0) for epoch in epochs) / len(epochs)
        for name in {name: None for epoch in epochs for name in epoch.seconds}
    }
    print("seconds an epoch: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()))
    memory = ", ".join(f"{name.removesuffix('_gb')} {size:.1f} GB" for name, size in summary["peak_memory"].items())
    print(f"{summary['seconds']:.0f} s since it was started; peak memory: {memory}; written to {output}")
