"""Simple baselines for a network on your own dataset: constant answers, and a linear probe on pooled features.

Axes: N videos, T segments, K categories; label K is background.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ave.data.dataset import AVEData, Setting, Split
from ave.data.standardization import read_valid

__all__ = ["find_baselines", "warn"]

MOST_SECONDS = 20_000
"""The largest number of labeled seconds in train for which the linear probe is trained."""
PENALTY = 1e-3
"""Weight of the squared norm of the weights in the loss of the probe."""


def find_baselines(data: AVEData, setting: Setting) -> dict[str, Any]:
    """Return the accuracy of simple baselines on test of your own dataset, as metrics of :mod:`ave.results.metrics`.

    On AVE, whose literature has better baselines, and on the procedural set, there are none.

    Args:
        data: the dataset.
        setting: "weak" trains the probe on the label of the video in every second.

    Returns:
        dict: "frequent_category_accuracy" of predicting the most frequent category of train in every second, and
        "linear_probe_accuracy", if train is not too large.
    """
    if data.is_ave or data.object_cells is not None:
        return {}
    train = data.labels[data.splits["train"]]
    truth = data.labels[data.splits["test"]]
    frequent = int(train[..., :-1].sum((0, 1)).argmax())
    baselines = {"frequent_category_accuracy": float(truth[..., frequent].sum() / truth.sum())}
    if train.sum() <= MOST_SECONDS:
        baselines["linear_probe_accuracy"] = _probe(data, setting)
    return baselines


def warn(summary: Mapping[str, Any]) -> str | None:
    """Return a warning if a network is not more accurate than each baseline on your own dataset, else None.

    Examples:
        >>> means = {"accuracy": 0.5, "frequent_category_accuracy": 0.25, "linear_probe_accuracy": 0.625}
        >>> warn({name: {"mean": value} for name, value in means.items()})
        'warning: the network (50.0%) is not better than a linear probe on pooled features (62.5%)'
    """
    rivals = {
        "background_accuracy": "background everywhere",
        "frequent_category_accuracy": "the most frequent category everywhere",
        "linear_probe_accuracy": "a linear probe on pooled features",
    }
    reached = summary["accuracy"]["mean"]
    if "frequent_category_accuracy" not in summary or reached is None:
        return None
    better = [
        f"{label} ({summary[name]['mean']:.1%})"
        for name, label in rivals.items()
        if name in summary and summary[name]["mean"] >= reached
    ]
    return f"warning: the network ({reached:.1%}) is not better than {' or '.join(better)}" if better else None


def _probe(data: AVEData, setting: Setting) -> float:
    """Train logistic regression on the pooled features of each second, and return its accuracy on test."""
    labels = data.labels
    if setting == "weak" and data.video_labels is not None:
        labels = data.video_labels[:, None].expand_as(labels) * labels.any(-1, keepdim=True)
    (inputs, targets), (tested, truth) = _pool(data, "train", labels), _pool(data, "test", data.labels)
    mean, deviation = inputs.mean(0), inputs.std(0, correction=0).clamp(min=1e-6)
    inputs, tested = (inputs - mean) / deviation, (tested - mean) / deviation
    weight = torch.zeros(data.labels.shape[-1], inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(_apply(weight, inputs), targets) + PENALTY * weight[:, :-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(step)
    return (_apply(weight.detach(), tested).argmax(1) == truth).double().mean().item()


def _apply(weight: Tensor, inputs: Tensor) -> Tensor:
    return inputs @ weight[:, :-1].T + weight[:, -1]


def _pool(data: AVEData, split: Split, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the visual and audio features of each labeled second, averaged over positions, and its label."""
    rows = data.splits[split]
    seconds = torch.arange(labels.shape[1])
    valid = seconds < (torch.full((len(rows),), len(seconds)) if data.lengths is None else data.lengths[rows])[:, None]
    pooled = [
        torch.cat(
            [block.reshape(len(block), -1, block.shape[-1]).mean(1) for block in read_valid(array, rows, data.lengths)]
        )
        for array in (data.visual, data.audio)
    ]
    own = labels[rows][valid]
    labeled = own.any(-1)
    return torch.cat(pooled, 1)[labeled], own.argmax(-1)[labeled]
