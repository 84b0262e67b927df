"""Train CMRAN: read the settings and the dataset, train one network for each seed, and report the results."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from ave import checking_input
from ave.checkpoints import Checkpoints, pack_optimizer, unpack_optimizer
from ave.data.batches import Cache, cache_features, derive_seed, evaluation_loader, training_loader
from ave.data.dataset import AVEData, Setting
from ave.data.opening import inspect_set, label_set, read_set
from ave.data.own_labels import OwnLabels
from ave.data.procedural import make_procedural_set
from ave.data.standardization import find_statistics
from ave.devices import Pace, Precision, Stopwatch, describe_device, make_accelerator, peak_memory
from ave.networks.cmran import Senses
from ave.networks.localizer import Localizer, Recipe
from ave.networks.registry import NETWORKS, PUBLISHED, PUBLISHED_CELLS, VARIANT, Network, find_recipe, network_title
from ave.networks.variants import Guidance, Interaction, Relation
from ave.reading import convert, expecting, read_json
from ave.results.baselines import find_baselines
from ave.results.figures import draw_learning_curves
from ave.results.files import (
    check_output,
    clearing,
    new_output,
    write_csv,
    write_json,
    writing_directory,
)
from ave.results.metrics import Epoch, Outcomes, best_test, choose_epoch, measure, observe, segment_accuracy, summarize
from ave.results.report import report, write_predictions
from ave.results.tables import files_table
from ave.stopping import pointing_to_resume
from crossmodal_attn import __version__

__all__ = ["SavedRun", "TrainConfig", "main"]

VERSIONS = {
    "crossmodal_attn": __version__,
    "torch": str(torch.__version__),
    "python": platform.python_version(),
}
PROCEDURAL_EPOCHS = 11
MAY_CHANGE = {
    "data",
    "labels",
    "epochs",
    "seeds",
    "device",
    "compile",
    "cache",
    "workers",
    "keep",
    "log",
    "output",
    "resume",
}
"""The settings that a resumed run may change: it may get more epochs and seeds, and find the same data elsewhere."""
LOG_EVERY = 10
"""Number of steps between two logged losses. To read a loss, the host must wait for the device."""
IN_RECIPE = ("epochs", "batch_size", "lr", "milestones", "lr_decay")
"""The settings that are published for each network."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a network for one or several seeds, and report its accuracy on the test split.

    Without --data, it trains on an embedded procedural set in the shape of AVE (never AVE itself), which takes
    minutes on two CPU cores. A checkpoint is saved after every epoch, and --resume continues from the last one. The
    command also runs under `accelerate launch` and `torchrun`; all processes must see the same files.
    """

    setting: Setting = "supervised"
    """supervised: train on a label for every second; weak: train on one label for the whole video"""
    network: Network = "cmran"
    """CMRAN, or a rival from Tables 1 and 2 of the CMRAN paper"""
    as_published: bool = False
    """train a rival as its public code does, including its faults; only for rivals with public code"""
    data: Path | None = None
    """directory of AVE, of your own dataset, or written by `prepare`; if omitted: the procedural set"""
    labels: Path | None = None
    """labels of --data as text: a CSV file with the columns video, start, end, category and, if you like, split"""
    split: str | None = None
    """percentages of train, val and test, by video, if --labels has no column split; if omitted: 70/15/15"""
    split_seed: int | None = None
    """seed of this division of the videos; if omitted: 0"""
    background_videos: bool = True
    """weak setting: also train on the extra background videos; required for AVE, optional for other datasets"""
    senses: Senses = "both"
    """the features that CMRAN gets; the other modality is set to zero in training and testing"""
    relation: Relation = "cmra"
    """CMRAN's cross-modal relation, as in Table 3; self-stacked and none-feedforward are variants of self and none"""
    guidance: Guidance = "agsca"
    """CMRAN's audio-guided spatial attention, as in the first part of Table 4"""
    interaction: Interaction = "av"
    """CMRAN's audio-video interaction, as in the second part of Table 4"""
    num_layers: int = 2
    """number of blocks in each internal temporal relation of CMRAN, as in Table 5; at least 0"""
    own_projections: bool = False
    """give each modality in the memory of CMRAN's relation its own key and value projection"""
    epochs: int | None = None
    """number of epochs; if omitted: as published, or 11 for the procedural set; a resumed run may have more"""
    batch_size: int | None = None
    """batch size in videos, over all processes; if omitted: as published, 32 for CMRAN"""
    lr: float | None = None
    """initial learning rate; if omitted: as published, 5e-4 for CMRAN"""
    milestones: tuple[int, ...] | None = None
    """epochs after which the learning rate decays; if omitted: as published, for CMRAN 10 20 30, weak 5 20 40"""
    lr_decay: float | None = None
    """factor of the learning rate at each milestone, in (0, 1]; if omitted: as published, 0.5 for CMRAN"""
    weight_decay: float = 0.0
    """weight decay of the optimizer: this number times a weight is added to the gradient of the weight"""
    seeds: tuple[int, ...] = (0,)
    """train once for each seed, and report mean and standard deviation; a resumed run may have more"""
    device: str = "auto"
    """device: auto (the best available), cpu, cuda, cuda:1, mps or another device of torch"""
    precision: Precision = "fp32"
    """mixed precision of the forward pass; fp16 needs a GPU"""
    compile: bool = False
    """compile the network with torch.compile"""
    cache: Cache = "auto"
    """where the features are kept during training; auto: the first of device, memory, disk with enough space"""
    workers: int = 2
    """data-loading threads (only with --cache disk)"""
    keep: int = 2
    """number of checkpoints to keep, the newest ones"""
    log: Literal["tensorboard"] | None = None
    """write logs for TensorBoard to OUTPUT/tensorboard"""
    output: Path | None = None
    """new directory for the results; if omitted: runs/<date and time>-<setting>"""
    resume: Path | None = None
    """continue the run in this directory from its last checkpoint, with the same options"""

    def check(self) -> None:
        """Check that each value is in its range, and that the options are compatible."""
        milestones, seeds, own = self.milestones or (), self.seeds, self.own_projections
        split_seed = self.split_seed
        published, publishable = " or ".join(PUBLISHED), self.network in PUBLISHED
        cmran, only = self.network == "cmran", sorted(self.variant().keys() - {"as_published"})
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in only)
        for option, value, valid, expected in (
            ("--epochs", self.epochs, self.epochs is None or self.epochs >= 1, "at least 1"),
            ("--network", self.network, cmran or not only, f"cmran with {shown}"),
            ("--network", self.network, publishable or not self.as_published, f"{published} with --as-published"),
            ("--relation", self.relation, self.relation == "cmra" or not own, "cmra with --own-projections"),
            ("--num-layers", self.num_layers, self.num_layers >= 0, "at least 0"),
            ("--batch-size", self.batch_size, self.batch_size is None or self.batch_size >= 1, "at least 1"),
            ("--keep", self.keep, self.keep >= 1, "at least 1"),
            ("--workers", self.workers, self.workers >= 0, "at least 0"),
            ("--lr", self.lr, self.lr is None or 0 < self.lr < math.inf, "a number above 0"),
            ("--lr-decay", self.lr_decay, self.lr_decay is None or 0 < self.lr_decay <= 1, "above 0, at most 1"),
            ("--weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "a number of at least 0"),
            ("--milestones", milestones, all(epoch > 0 for epoch in milestones), "epochs of at least 1"),
            ("--milestones", milestones, len(set(milestones)) == len(milestones), "all different"),
            ("--seeds", seeds, all(0 <= seed < 2**32 for seed in seeds), f"from 0 to {2**32 - 1}"),
            ("--seeds", seeds, len(seeds) > 0, "at least one"),
            ("--seeds", seeds, len(set(seeds)) == len(seeds), "all different"),
            ("--output", self.output, self.output is None or self.resume is None, "left out with --resume"),
            ("--labels", self.labels, self.labels is None or self.data is not None, "given with --data"),
            ("--split", self.split, self.split is None or self.labels is not None, "given with --labels"),
            ("--split-seed", split_seed, split_seed is None or self.labels is not None, "given with --labels"),
            ("--split-seed", split_seed, split_seed is None or split_seed >= 0, "at least 0"),
        ):
            if not valid:
                raise ValueError(f"{option} must be {expected}, got {_show(value)}")

    def variant(self) -> dict[str, Any]:
        """Return the arguments of the network that differ from its defaults."""
        values = {name: getattr(self, name) for name in VARIANT}
        return {name: value for name, value in values.items() if value != getattr(TrainConfig, name)}

    def check_resumes(self, saved: TrainConfig) -> None:
        """Check that no setting that affects the weights differs from the saved run."""
        for name in [field.name for field in dataclasses.fields(self) if field.name not in MAY_CHANGE]:
            if (value := getattr(self, name)) != (expected := getattr(saved, name)):
                option = f"--{name.replace('_', '-')}"
                came = f"as in {self.resume}, got {_show(value)}: leave it out"
                raise ValueError(f"{option} must be {_show(expected)}, {came}")
        if self.epochs is not None and saved.epochs is not None and self.epochs < saved.epochs:
            raise ValueError(f"--epochs must be at least {saved.epochs}, as in {self.resume}, got {self.epochs}")
        if self.seeds[: len(saved.seeds)] != saved.seeds:
            expected = f"--seeds must begin with {_show(saved.seeds)}, as in {self.resume}"
            raise ValueError(f"{expected}, got {_show(self.seeds)}")


def _show(value: object) -> object:
    """Format a value as on the command line."""
    return (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else value


@dataclass(frozen=True)
class SavedEpochs:
    """The content of the JSON file of a checkpoint."""

    epoch: int
    history: tuple[Epoch, ...]
    scaler: dict[str, Any] | None


@dataclass(frozen=True)
class SavedRun:
    """The content of ``config.json``, which describes a run."""

    settings: TrainConfig
    data_digest: str
    processes: int
    versions: dict[str, str]
    """The versions of this library, torch and Python, for people who want to repeat the run."""

    @classmethod
    def read(cls, directory: Path) -> SavedRun:
        """Read ``config.json`` from the directory of a run."""
        path = directory / "config.json"
        if not path.is_file():
            raise ValueError(f"--resume must name the directory of a run, with its config.json, got {directory}")
        return read_json(path, cls)

    def write(self, directory: Path) -> None:
        """Write ``config.json`` to the directory of a run."""
        write_json(directory / "config.json", dataclasses.asdict(self))


def main(
    config: TrainConfig,
    *,
    data: AVEData | None = None,
    network: Callable[..., Localizer] | None = None,
    draw: bool = True,
) -> list[dict[str, Any]]:
    """Train, report, and return the metrics of each seed, as in ``metrics.json``.

    Args:
        config: the settings.
        data: a dataset to use instead of ``config.data``.
        network: a function that builds the network, to use instead of ``config.network``.
        draw: whether to draw figures.

    Raises:
        InputError: if a setting or a file is wrong. This is checked before any work.
        FloatingPointError: if the loss or a weight is not finite. Earlier checkpoints are kept.
        OSError: if a file cannot be read or written. Earlier checkpoints are kept.
    """
    start = time.perf_counter()
    with checking_input():
        # ---- Settings: options that are left out are as published ----
        config.check()
        recipe = find_recipe(config.network, config.setting)
        if config.data is None:
            recipe = recipe._replace(epochs=PROCEDURAL_EPOCHS)
        recipe = recipe._replace(**{name: value for name in IN_RECIPE if (value := getattr(config, name)) is not None})
        # Now the recipe is complete. The settings get the same values, since they are saved with the run.
        directory = None if config.data is None else config.data.absolute()  # for --resume from anywhere
        labels = None if config.labels is None else config.labels.absolute()
        config = dataclasses.replace(
            config, data=directory, labels=labels, **{name: getattr(recipe, name) for name in IN_RECIPE}
        )
        output = config.resume or new_output(config.output, config.setting)
        saved: SavedRun | None = None
        if config.resume is None:
            check_output(output)
        else:
            saved = SavedRun.read(config.resume)
            config.check_resumes(saved.settings)
        accelerator = make_accelerator(config.device, config.precision, output / "tensorboard" if config.log else None)

    with clearing(output, new=saved is None, main=accelerator.is_main_process), pointing_to_resume(output):
        # ---- Dataset ----
        with checking_input():
            if data is None:
                data = make_procedural_set() if directory is None else _read_data(directory, config, accelerator)
            if not config.background_videos:
                data = dataclasses.replace(data, background_visual=None, background_audio=None, background_labels=None)
            if config.as_published and math.prod(data.visual.shape[2:4]) != PUBLISHED_CELLS:
                came = tuple(data.visual.shape[2:4])
                raise ValueError(f"--as-published needs {PUBLISHED_CELLS} positions, got {came}")
            digest = data.digest(config.setting)
            if saved is not None and saved.data_digest != digest:
                raise ValueError(f"--data must be the dataset that {output} was trained on, got another")
            data, cached = cache_features(data, config.cache, accelerator, config.setting)
            baselines = find_baselines(data, config.setting)
            statistics = {} if data.is_ave or config.as_published else find_statistics(data)
            batches = training_loader(
                data,
                config.setting,
                accelerator,
                batch_size=recipe.batch_size,
                seed=None if config.as_published else config.seeds[0],  # None: not shuffled, no incomplete batch
                workers=config.workers,
            )
            test = evaluation_loader(data, "test", accelerator, config.workers)
            val = evaluation_loader(data, "val", accelerator, config.workers) if "val" in data.splits else None

        title = _title(config, data)
        sizes = ", ".join(f"{len(rows)} {split}" for split, rows in data.splits.items())
        accelerator.print(f"{title}: {sizes} videos; {cached}")
        if statistics:
            accelerator.print(f"{' and '.join(statistics)} features may be negative, so the network standardizes them")
        if saved is not None and saved.processes != accelerator.num_processes:
            started = f"this run was started with {saved.processes} processes"
            accelerator.print(f"note: {started}, so dropout, and with it the results, differ")
        accelerator.print(
            f"on {describe_device(accelerator)}, {config.precision}; results in {output}; "
            f"if this is stopped, --resume {output} continues it"
        )
        if accelerator.is_main_process:
            settings = dataclasses.replace(config, output=None, resume=None)
            SavedRun(settings, digest, accelerator.num_processes, VERSIONS).write(output)
            if config.labels is not None:
                write_csv(output / "labels.csv", OwnLabels.read(config.labels).with_splits(data))

        steps = len(batches)
        to_evaluate = len(test.videos) + (0 if val is None else len(val.videos))
        pace = Pace(accelerator, evaluated=to_evaluate / len(batches.videos))
        initial_scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
        runs: list[dict[str, Any]] = []
        histories: dict[int, list[Epoch]] = {}
        first_outcomes: Outcomes | None = None
        for number, seed in enumerate(config.seeds):
            if len(config.seeds) > 1:
                accelerator.print(f"seed {seed}")

            # ---- Network and optimizer ----
            set_seed(seed)
            model: Localizer = (network or NETWORKS[config.network])(
                config.setting,
                video_dim=data.visual.shape[-1],
                audio_dim=data.audio.shape[-1],
                categories=data.categories,
                **config.variant(),
            )
            model.standardize(statistics)
            model.features, model.longest = data.extraction, data.longest
            if config.compile:
                on_cuda = accelerator.device.type == "cuda"  # a CUDA graph needs a fixed shape
                model.compile(mode="reduce-overhead" if on_cuda else None, dynamic=False if on_cuda else None)
            # `model` is the network itself, with its loss, decision and weights. `wrapped` is only for the forward pass
            # of a training step: the same network, in DistributedDataParallel if there are several processes.
            optimizer = recipe.optimizer(model.parameters(), lr=recipe.lr, weight_decay=config.weight_decay)
            wrapped, optimizer = accelerator.prepare(model, optimizer)
            if accelerator.scaler is not None and initial_scaler is not None:
                accelerator.scaler.load_state_dict(initial_scaler)  # the previous seed has changed it

            # ---- Continue from the newest checkpoint, if there is one ----
            seed_directory = output / f"seed-{seed}"
            checkpoints = Checkpoints(seed_directory / "checkpoints", config.keep)
            history, best = _restore(checkpoints, model, optimizer, accelerator)
            if accelerator.is_main_process:
                checkpoints.start(len(history))
            done, total = len(history) * steps, recipe.epochs * steps
            tensorboard = {"purge_step": done + 1}  # hides entries after the checkpoint
            accelerator.init_trackers(seed_directory.name, init_kwargs={"tensorboard": tensorboard})

            pace.start((len(config.seeds) - number) * total - done, _describe_size(config, recipe, model, output))
            quiet = None if accelerator.is_main_process else True  # None: only on a terminal
            progress = tqdm(total=total, initial=done, unit="step", disable=quiet, dynamic_ncols=True)
            watch = Stopwatch(accelerator.device)
            for epoch in range(len(history) + 1, recipe.epochs + 1):
                progress.set_description(f"epoch {epoch}/{recipe.epochs}")

                # ---- Learning rate, order and dropout of this epoch ----
                rate = recipe.lr * recipe.lr_decay ** sum(epoch > last for last in recipe.milestones)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                batches.shares.seed, batches.shares.epoch = seed, epoch
                set_seed(derive_seed(seed, epoch, accelerator.process_index))

                # ---- Steps ----
                wrapped.train()
                sum_of_losses = torch.zeros((), device=accelerator.device)
                watch.start()
                for step, (video, audio, target, share_weight, mask) in enumerate(batches, (epoch - 1) * steps + 1):
                    watch.lap("data")
                    logits = wrapped(video, audio, padding_mask=mask)
                    loss = model.loss(logits, target, padding_mask=mask, eventless_category=data.eventless_category)
                    loss = loss * share_weight  # 1, unless several processes have shares of different sizes
                    accelerator.backward(loss)  # loss.backward(), scaled for fp16
                    watch.lap("forward and backward")
                    if recipe.clip_norm is not None:
                        accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                    watch.lap("optimizer")
                    sum_of_losses += loss.detach()
                    progress.update()
                    pace.step()
                    if config.log and step % LOG_EVERY == 0:
                        accelerator.log({"loss": loss.item()}, step)
                mean_loss = float(accelerator.reduce(sum_of_losses, "mean")) / steps
                if not math.isfinite(mean_loss) or not all(weight.isfinite().all() for weight in model.parameters()):
                    raise FloatingPointError(
                        f"the loss ({mean_loss}) or a weight is not finite after epoch {epoch}: try a lower --lr, or "
                        f"--precision fp32"
                    )

                # ---- Evaluation ----
                on_val = None if val is None else segment_accuracy(model, val)
                on_test = segment_accuracy(model, test)
                watch.lap("evaluation")
                history.append(Epoch(epoch, rate, mean_loss, on_val, on_test, watch.read()))
                logged = {"val accuracy": on_val, "test accuracy": on_test, "learning rate": rate}
                accelerator.log({name: value for name, value in logged.items() if value is not None}, epoch * steps)

                # ---- Keep the weights that are best on val, or the last ones without a val split ----
                is_best = choose_epoch(history).epoch == epoch
                if is_best:
                    best = {name: value.clone() for name, value in model.state_dict().items()}

                # ---- Checkpoint ----
                if accelerator.is_main_process:
                    _save_checkpoint(checkpoints, history, model, None if is_best else best, optimizer, accelerator)
                    watch.lap("checkpoint")
                    shown = "" if on_val is None else f"   val {on_val:6.1%}"
                    progress.write(
                        f"epoch {epoch:3}/{recipe.epochs}   loss {mean_loss:.3f}{shown}   test {on_test:6.1%}"
                    )
            progress.close()

            # ---- Test the best weights, and save the network ----
            model.load_state_dict(best)
            outcomes = observe(model, test, accelerator)
            first_outcomes = first_outcomes or outcomes
            metrics = {
                "seed": seed,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "chosen_epoch": choose_epoch(history).epoch,
                "chosen_by": "best on val" if val is not None else "last, as there is no val split",
                "best_test_accuracy": best_test(history).test_accuracy,
                "best_test_epoch": best_test(history).epoch,
                **measure(outcomes, data, "test"),
                **baselines,
                "history": [dataclasses.asdict(epoch) for epoch in history],
            }
            if accelerator.is_main_process:
                card = {"data": data.describe(config.data), "metrics": metrics}
                with writing_directory(seed_directory / "model") as temporary:
                    model.save_pretrained(temporary, model_card_kwargs=card)
                write_predictions(seed_directory, outcomes, data, "test")
            runs.append(metrics)
            histories[seed] = history
            for tracker in accelerator.trackers:
                tracker.finish()
            # Torch may hang if the group of processes ends before the wrapped model.
            wrapped, optimizer = accelerator.free_memory(wrapped, optimizer)

        # ---- Report ----
        if accelerator.is_main_process and first_outcomes is not None:
            seconds, memory = round(time.perf_counter() - start, 1), peak_memory(accelerator.device)
            summary = {**summarize(runs), "seconds": seconds, "peak_memory": memory}
            lines = [{"seed": seed, **dataclasses.asdict(line)} for seed in histories for line in histories[seed]]
            write_csv(output / "history.csv", [{k: v for k, v in line.items() if k != "seconds"} for line in lines])
            curves = {"learning_curves.png": draw_learning_curves(histories, title)} if draw else None
            report(output, title, runs, summary, first_outcomes, data, "test", figures=curves)
            print(_describe_cost(lines, summary))
            print(f"written to {output}")
    accelerator.end_training()
    return runs


def _read_data(directory: Path, config: TrainConfig, accelerator: Accelerator) -> AVEData:
    """Open a dataset. First, the main process alone checks all files and prints a report."""
    if accelerator.is_main_process:
        background_videos, labels = config.background_videos, config.labels is None
        found = inspect_set(directory, config.setting, background_videos=background_videos, labels=labels)
        print(files_table(found))
        found.raise_problems()
    if config.labels is not None:
        return label_set(directory, config.labels, config.split, say=accelerator.print, split_seed=config.split_seed)
    return read_set(directory, config.setting, background_videos=config.background_videos)


def _title(config: TrainConfig, data: AVEData) -> str:
    """Return the title of tables and figures: the network, the setting, the variant and the dataset."""
    title = network_title(config.network, config.setting, config.variant())
    if config.setting == "weak" and data.background_labels is None:
        title += ", no background videos"
    return f"{title}, on {data.describe(config.data)}"


def _describe_size(config: TrainConfig, recipe: Recipe, model: Localizer, output: Path) -> str:
    """Describe how much disk space a run will use."""
    # A checkpoint holds the weights, two moments for each weight, and the best weights unless the last are the best.
    # The oldest checkpoint is removed after the newest is written.
    copies = len(config.seeds) * (4 * min(config.keep, recipe.epochs) + 1) + 4
    size = copies * sum(weight.nbytes for weight in model.state_dict().values())
    return f"the run will use up to {tqdm.format_sizeof(size, 'B')} in {output}"


def _save_checkpoint(
    checkpoints: Checkpoints,
    history: list[Epoch],
    model: Localizer,
    best: Mapping[str, Tensor] | None,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> None:
    """Save everything that the next epoch depends on. ``best`` is None if the weights of ``model`` are the best."""
    tensors: dict[str, Mapping[str, Tensor]] = {"model": model.state_dict(), "optimizer": pack_optimizer(optimizer)}
    if best is not None:
        tensors["best"] = best
    scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    facts = {"history": [dataclasses.asdict(epoch) for epoch in history], "scaler": scaler}
    checkpoints.save(len(history), tensors, facts)


def _restore(
    checkpoints: Checkpoints, model: Localizer, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[list[Epoch], dict[str, Tensor]]:
    """Restore the newest checkpoint, and return the history and the best weights. Without one, both are empty."""
    found = checkpoints.load(accelerator.print)
    finished = torch.tensor([0 if found is None else found[1]["epoch"]], device=accelerator.device)
    if len(epochs := set(accelerator.gather(finished).tolist())) > 1:
        raise OSError(f"every process must find the same checkpoint, got those of epochs {sorted(epochs)}")
    if found is None:
        return [], {}
    with checking_input(), expecting(f"checkpoints in {checkpoints.directory} must be of this network"):
        tensors, facts = found[0], convert(SavedEpochs, found[1])
        best = tensors.get("best", tensors["model"])
        model.load_state_dict(best)  # an error now if they do not fit
        model.load_state_dict(tensors["model"])
        unpack_optimizer(optimizer, tensors["optimizer"])
        if accelerator.scaler is not None and facts.scaler is not None:
            accelerator.scaler.load_state_dict(facts.scaler)
        if [line.epoch for line in facts.history] != list(range(1, facts.epoch + 1)):
            raise ValueError(f"a history that is not of epochs 1 to {facts.epoch}")
    accelerator.print(f"continuing after epoch {facts.epoch}")
    return list(facts.history), best


def _describe_cost(lines: list[dict[str, Any]], summary: Mapping[str, Any]) -> str:
    """Describe the time of each part of an epoch, and the total time and peak memory of the run."""
    parts = defaultdict(list)
    for line in lines:
        for name, seconds in line["seconds"].items():
            parts[name].append(seconds)
    shown = ", ".join(f"{name} {mean(seconds):.2f}" for name, seconds in sorted(parts.items()))
    memory = ", ".join(f"{name.removesuffix('_gb')} {size:.1f} GB" for name, size in summary["peak_memory"].items())
    return f"seconds per epoch: {shown}\ntotal time: {summary['seconds']:.0f} s; peak memory: {memory}"
