"""Training of CMRAN: Adam, halved learning rates, clipped gradients, the epoch chosen on val."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ave.data import AVEData, training_videos
from ave.evaluation import segment_accuracy, split_loader
from ave.model import CMRAN, Setting, supervised_loss, weak_loss

__all__ = ["RECIPES", "Epoch", "Recipe", "Training", "train"]


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
    loss: float
    val_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class Training:
    """A finished run."""

    history: list[Epoch]
    chosen: Epoch
    """The epoch that is best on val, whose weights the model now has."""
    best_test: Epoch
    """The epoch that is best on test: the convention of published figures, which looks at the answers."""


def train(
    model: CMRAN,
    data: AVEData,
    setting: Setting,
    accelerator: Accelerator,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Training:
    """Train, evaluate on val and test after each epoch, and leave ``model`` with the weights that are best on val.

    Ctrl-C ends the training after the epochs that are finished.

    Raises:
        FloatingPointError: if the loss of an epoch is not finite.
    """
    recipe = RECIPES[setting]
    loader = accelerator.prepare(
        DataLoader(
            training_videos(data, setting), batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)
        )
    )
    val, test = (accelerator.prepare(split_loader(data, split)) for split in ("val", "test"))
    background = len(data.categories)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, fused=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer.optimizer, recipe.halvings, gamma=0.5)
    set_seed(seed)

    history: list[Epoch] = []
    best_weights: dict[str, Tensor] = {}
    with tqdm(total=epochs * len(loader), unit="step", disable=None, dynamic_ncols=True) as progress:
        try:
            for number in range(1, epochs + 1):
                progress.set_description(f"epoch {number}/{epochs}")
                loss = _train_epoch(prepared, loader, recipe, optimizer, accelerator, progress)
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss of epoch {number} is {loss}: try a lower --lr, or --precision fp32"
                    )
                schedule.step()
                val_accuracy, test_accuracy = (segment_accuracy(prepared, split, background) for split in (val, test))
                epoch = Epoch(number, loss, val_accuracy, test_accuracy)
                if not history or epoch.val_accuracy > max(past.val_accuracy for past in history):
                    best_weights = copy.deepcopy(model.state_dict())
                history.append(epoch)
                progress.write(
                    f"epoch {number:3}/{epochs}   loss {epoch.loss:.3f}   "
                    f"val {epoch.val_accuracy:6.1%}   test {epoch.test_accuracy:6.1%}"
                )
        except KeyboardInterrupt:
            if not history:
                raise
            progress.write(f"interrupted: what follows is of the first {len(history)} epochs")
    model.load_state_dict(best_weights)
    return Training(
        history,
        chosen=max(history, key=lambda epoch: epoch.val_accuracy),
        best_test=max(history, key=lambda epoch: epoch.test_accuracy),
    )


def _train_epoch(
    model: CMRAN,
    loader: Iterable[tuple[Tensor, Tensor, Tensor]],
    recipe: Recipe,
    optimizer: Any,
    accelerator: Accelerator,
    progress: tqdm,
) -> float:
    """One pass over the training videos; the mean loss of its steps."""
    model.train()
    losses = []
    for video, audio, target in loader:
        loss = recipe.loss(model(video, audio), target)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        progress.update()
    return torch.stack(losses).mean().item()
