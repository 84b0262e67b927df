"""Figures of a run from what it says of every second, and their mean and spread over several runs.

A share of nothing, such as the precision of a run that predicts no event, has no value and is None.

Axes: B videos, T segments of a second, K categories; label K is background.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_stat_scores, multiclass_confusion_matrix

from ave.data import AVEData

__all__ = ["score", "seen_in_training", "summarise"]


def score(truth: Tensor, prediction: Tensor, categories: Sequence[str], seen: Tensor | None = None) -> dict[str, Any]:
    """Compare the predicted label of every second with the true one.

    Args:
        truth: int64 (B, T), from 0 to K.
        prediction: int64 (B, T), from 0 to K.
        categories: the K names; "background" follows them.
        seen: bool (B,), the videos whose YouTube id also stands in train, where that is known.

    Returns:
        What JSON can hold. All shares are in [0, 1], or None where there is nothing to take a share of:

        - ``videos``, ``segments``: B, and B T.
        - ``accuracy``: the paper's metric, the share of seconds whose label is right, background included.
        - ``event_precision``, ``event_recall``, ``event_f1``: of the question whether a second has an event, whatever
          its category. With n seconds that have an event in truth and prediction, p that have one in the prediction
          and t that have one in truth: n / p, n / t and 2 n / (p + t).
        - ``seen_videos``, ``accuracy_without_seen``: how many videos ``seen`` names, and the accuracy on the others;
          None without ``seen``.
        - ``category_accuracy``: by name, the share of a category's true seconds that are called by its name.
          Background is the last.
        - ``confusion``: K + 1 lists of K + 1 counts of seconds; rows are true, columns are predicted.

    Raises:
        ValueError: if a shape, dtype or label does not fit, there is no second, or two categories have one name.

    Examples:
        >>> truth = torch.tensor([[0, 0, 2], [2, 1, 1]])
        >>> prediction = torch.tensor([[0, 2, 2], [2, 1, 0]])
        >>> result = score(truth, prediction, ("Bark", "Clock"))
        >>> result["confusion"]
        [[1, 0, 1], [1, 1, 0], [0, 0, 2]]
        >>> result["category_accuracy"]
        {'Bark': 0.5, 'Clock': 0.5, 'background': 1.0}
        >>> result["event_precision"], result["event_recall"]
        (1.0, 0.75)
    """
    background = len(categories)
    names = [*categories, "background"]
    _check(truth, prediction, names, seen)
    confusion = multiclass_confusion_matrix(prediction, truth, background + 1, validate_args=False).tolist()
    both, only_predicted, _, only_true, _ = binary_stat_scores(
        (prediction != background).long(), (truth != background).long(), validate_args=False
    ).tolist()
    right = truth == prediction
    return {
        "videos": len(truth),
        "segments": truth.numel(),
        "accuracy": _share(right),
        "event_precision": _ratio(both, both + only_predicted),
        "event_recall": _ratio(both, both + only_true),
        "event_f1": _ratio(2 * both, 2 * both + only_predicted + only_true),
        "seen_videos": None if seen is None else int(seen.sum()),
        "accuracy_without_seen": None if seen is None else _share(right[~seen]),
        "category_accuracy": {
            name: _ratio(row[label], sum(row)) for label, (name, row) in enumerate(zip(names, confusion, strict=True))
        },
        "confusion": confusion,
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _share(right: Tensor) -> float | None:
    return _ratio(int(right.sum()), right.numel())


def _check(truth: Tensor, prediction: Tensor, names: list[str], seen: Tensor | None) -> None:
    background = len(names) - 1
    if len(set(names)) < len(names):
        raise ValueError(f'categories must be distinct names other than "background", got {names[:-1]}')
    if truth.ndim != 2 or not truth.numel():
        raise ValueError(f"truth must have shape (videos, segments), none of them 0, got {tuple(truth.shape)}")
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction must have the shape of truth, {tuple(truth.shape)}, got {tuple(prediction.shape)}"
        )
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if labels.dtype != torch.int64:
            raise ValueError(f"{name} must hold labels as torch.int64, got {labels.dtype}")
        low, high = (int(extreme) for extreme in labels.aminmax())
        if low < 0 or high > background:
            raise ValueError(
                f"{name} must hold labels from 0 to {background}, which is background, got {low if low < 0 else high}"
            )
    if seen is not None and (seen.dtype, seen.shape) != (torch.bool, truth.shape[:1]):
        raise ValueError(
            f"seen must be torch.bool of shape ({len(truth)},), one a video, got {seen.dtype} {tuple(seen.shape)}"
        )


def seen_in_training(data: AVEData, split: str = "test") -> Tensor | None:
    """Which videos of a split have a YouTube id that also stands in train.

    In AVE an id may stand for several videos, under different categories, and a few of these are on both sides.

    Returns:
        bool (B,), in the order of the split, or None where the set has no names.
    """
    if data.names is None:
        return None
    names = data.names
    trained = {names[row] for row in data.splits["train"].tolist()}
    return torch.tensor([names[row] in trained for row in data.splits[split].tolist()], dtype=torch.bool)


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over runs that differ in their seed.

    Args:
        runs: each has what ``score`` gives, and more, such as ``seed`` and ``chosen_epoch``.

    Returns:
        What JSON can hold:

        - for every number that all runs have but ``seed``, ``{"mean": ..., "std": ...}``; ``std`` is that of a sample
          (n - 1 in the denominator), None for a single run. Where the number is None in any run, both are None.
        - ``category_accuracy``: the same for every category.
        - ``confusion``: the sum.

    Raises:
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    summary: dict[str, Any] = {}
    for name in runs[0]:
        values = [run.get(name, "absent") for run in runs]
        if name != "seed" and all(_is_number(value) for value in values):
            summary[name] = _spread(values)
    summary["category_accuracy"] = {
        name: _spread([run["category_accuracy"][name] for run in runs]) for name in runs[0]["category_accuracy"]
    }
    summary["confusion"] = torch.tensor([run["confusion"] for run in runs]).sum(0).tolist()
    return summary


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return {"mean": None, "std": None}
    # Of the sums in the standard library this one is exact, so that the mean of equal values is that value.
    mean = float(statistics.mean(numbers))
    return {"mean": mean, "std": statistics.stdev(numbers) if len(numbers) > 1 else None}
