"""Training of CMRAN: Adam, halved learning rates, clipped gradients, a checkpoint each epoch, of which val chooses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from ave.checkpoints import Checkpoints, pack_optimizer, unpack_optimizer
from ave.data import AVEData
from ave.evaluation import segment_accuracy
from ave.loading import Loader, derive_seed, evaluation_loader, training_loader
from ave.model import CMRAN, Setting, supervised_loss, weak_loss
from ave.stopwatch import Stopwatch

__all__ = ["RECIPES", "Epoch", "Recipe", "Training", "train"]

LOG_EVERY = 10
"""Steps between two logged losses; to read one, the host waits for the device."""


@dataclass(frozen=True)
class Recipe:
    """What the authors' code does differently in the two settings."""

    loss: Callable[..., Tensor]
    clip_norm: float
    halvings: tuple[int, ...]
    """The epochs after which the learning rate is halved."""


RECIPES: dict[Setting, Recipe] = {
    "supervised": Recipe(supervised_loss, clip_norm=0.1, halvings=(10, 20, 30)),
    "weak": Recipe(weak_loss, clip_norm=0.5, halvings=(5, 20, 40)),
}


@dataclass(frozen=True)
class Epoch:
    """One line of a run's history; accuracies are shares of segments, in [0, 1]."""

    epoch: int
    learning_rate: float
    loss: float
    """Mean over the training steps."""
    val_accuracy: float
    test_accuracy: float
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    """Where the time went: "data", "forward and backward", "optimizer", "evaluation", "checkpoint" (of the last)."""


@dataclass(frozen=True)
class Training:
    """A finished run."""

    history: list[Epoch]

    @property
    def chosen(self) -> Epoch:
        """The epoch that is best on val, the first of equals."""
        return max(self.history, key=lambda epoch: epoch.val_accuracy)

    @property
    def best_test(self) -> Epoch:
        """The epoch that is best on test: the convention of published figures, which looks at the answers."""
        return max(self.history, key=lambda epoch: epoch.test_accuracy)


def train(
    model: CMRAN,
    data: AVEData,
    accelerator: Accelerator,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    workers: int = 0,
    checkpoints: Checkpoints | None = None,
    log: Callable[[dict[str, float], int], None] | None = None,
) -> Training:
    """Train, evaluate on val and test after each epoch, and leave ``model`` with the weights that are best on val.

    A run that has ``checkpoints`` goes on after the newest of them. On a CPU it ends bit for bit where it would have
    ended without the interruption.

    Args:
        model: the network, which is moved to the accelerator's device.
        data: the set.
        accelerator: device, precision and processes.
        epochs: passes over the training videos, those of the checkpoint included.
        batch_size: videos a step, over all processes.
        learning_rate: Adam's, in the first epoch.
        seed: of dropout and order.
        workers: processes that read, where features stay on disk.
        checkpoints: where the run is kept.
        log: called with figures by name and the number of the step: every 10 steps the loss, of this process's share;
            every epoch the accuracies.

    Raises:
        FloatingPointError: if the loss or the weights after an epoch are not finite; such an epoch is not kept.
        OSError: if a checkpoint cannot be written, or is not seen by all processes.
        ValueError: if the checkpoint is not of such a run.
    """
    recipe = RECIPES[model.setting]
    loader = training_loader(data, model.setting, accelerator, batch_size=batch_size, seed=seed, workers=workers)
    val, test = (evaluation_loader(data, split, accelerator, workers) for split in ("val", "test"))
    prepared, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), learning_rate, fused=True))
    training = Training([])
    best: dict[str, Tensor] = {}
    found = None if checkpoints is None else checkpoints.load(accelerator.print)
    finished = torch.tensor([0 if found is None else found[1]["epoch"]], device=accelerator.device)
    if len(epochs_found := set(accelerator.gather(finished).tolist())) > 1:
        raise OSError(f"every process must find the same checkpoint, got those of epochs {sorted(epochs_found)}")
    if found is not None:
        training, best = _restore(*found, model, optimizer.optimizer, accelerator)
        accelerator.print(f"goes on after epoch {len(training.history)}")

    watch = Stopwatch(accelerator.device)
    with tqdm(
        total=epochs * len(loader),
        initial=min(epochs, len(training.history)) * len(loader),
        unit="step",
        disable=None if accelerator.is_main_process else True,
        dynamic_ncols=True,
    ) as progress:
        for number in range(len(training.history) + 1, epochs + 1):
            progress.set_description(f"epoch {number}/{epochs}")
            rate = learning_rate * 0.5 ** sum(number > last for last in recipe.halvings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            set_seed(derive_seed(seed, number, accelerator.process_index))
            loader.shares.epoch = number
            loss = _train_epoch(prepared, loader, recipe, optimizer, accelerator, watch, progress, log)
            if not math.isfinite(loss) or not all(weight.isfinite().all() for weight in model.parameters()):
                raise FloatingPointError(
                    f"epoch {number} ended with weights or a loss that are not finite, loss {loss}: try a lower --lr, "
                    f"or --precision fp32"
                )
            with watch.part("evaluation"):
                on_val, on_test = segment_accuracy(model, val), segment_accuracy(model, test)
            epoch = Epoch(number, rate, loss, on_val, on_test, watch.read())
            training.history.append(epoch)
            if training.chosen is epoch:
                best = {name: value.clone() for name, value in model.state_dict().items()}
            if log is not None:  # before the checkpoint, after which no epoch is done again
                log({"val accuracy": on_val, "test accuracy": on_test, "learning rate": rate}, number * len(loader))
            if checkpoints is not None and accelerator.is_main_process:
                with watch.part("checkpoint"):
                    checkpoints.save(number, *_pack(training, model, best, optimizer.optimizer, accelerator))
            if accelerator.is_main_process:
                progress.write(f"epoch {number:3}/{epochs}   loss {loss:.3f}   val {on_val:6.1%}   test {on_test:6.1%}")
    model.load_state_dict(best)
    return training


def _train_epoch(
    model: torch.nn.Module,
    loader: Loader,
    recipe: Recipe,
    optimizer: Any,
    accelerator: Accelerator,
    watch: Stopwatch,
    progress: tqdm,
    log: Callable[[dict[str, float], int], None] | None,
) -> float:
    """One pass over the training videos; the mean loss of its steps, over all processes."""
    model.train()
    total = torch.zeros((), device=accelerator.device)
    batches = iter(loader)
    steps = len(loader)
    for step in range((loader.shares.epoch - 1) * steps + 1, loader.shares.epoch * steps + 1):
        with watch.part("data"):
            video, audio, target, weight = next(batches)
        with watch.part("forward and backward"):
            loss = recipe.loss(model(video, audio), target) * weight
            accelerator.backward(loss)
        with watch.part("optimizer"):
            accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        loss = loss.detach()
        total += loss
        progress.update()
        if log is not None and step % LOG_EVERY == 0:
            log({"loss": float(loss)}, step)
    return float(accelerator.reduce(total, "mean")) / steps


def _pack(
    training: Training,
    model: CMRAN,
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that the next epoch follows from, as tensors and facts; the best weights only where they are not the last."""
    tensors = {"model": model.state_dict(), "optimizer": pack_optimizer(optimizer)}
    if training.chosen is not training.history[-1]:
        tensors["best"] = dict(best)
    facts = {
        "history": [dataclasses.asdict(epoch) for epoch in training.history],
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
    }
    return {f"{part}.{name}": value for part, named in tensors.items() for name, value in named.items()}, facts


def _restore(
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    model: CMRAN,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> tuple[Training, dict[str, Tensor]]:
    """What :func:`_pack` took, with the best weights."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    try:
        model.load_state_dict(parts["model"])
    except RuntimeError as error:
        raise ValueError("checkpoints must be of this network, got other weights") from error
    unpack_optimizer(optimizer, parts["optimizer"])
    if accelerator.scaler is not None and facts["scaler"] is not None:
        accelerator.scaler.load_state_dict(facts["scaler"])
    return Training([Epoch(**line) for line in facts["history"]]), parts["best"] or parts["model"]
