"""Run a network on a split, compute metrics, and summarize several runs by mean and standard deviation.

To add a metric, compute it in :func:`measure`, and add its label for the tables to METRICS. A ratio with a zero
denominator is None, such as the precision of a run that predicts no event.

Axes: B videos, T segments of a second, H x W positions, K categories; label K is background.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from torch import Tensor

from ave.data.batches import Batch, Loader
from ave.data.dataset import AVEData, Split
from ave.networks.localizer import Localizer
from crossmodal_attn import AGSCA, CMRA, record_attention

__all__ = ["METRICS", "Epoch", "Outcomes", "background_accuracy", "best_test", "choose_epoch", "measure", "observe"]
__all__ += ["score", "seen_in_training", "segment_accuracy", "summarize"]

METRICS = {
    "chosen_epoch": ("  that epoch", ""),
    "best_test_accuracy": ("best test epoch (optimistic; the convention in papers)", "%"),
    "best_test_epoch": ("  that epoch", ""),
    "accuracy_without_seen": ("accuracy without the {seen_videos} test videos seen in train", "%"),
    "event_precision": ("event vs. background: precision", "%"),
    "event_recall": ("event vs. background: recall", "%"),
    "event_f1": ("event vs. background: F1", "%"),
    "background_accuracy": ("baseline: predict background everywhere", "%"),
    "frequent_category_accuracy": ("baseline: predict the most frequent category everywhere", "%"),
    "linear_probe_accuracy": ("baseline: linear probe on pooled features", "%"),
    "object_attention": ("AGSCA's attention on the true object in event seconds", "%"),
    "object_attention_if_uniform": ("the same if attention were uniform", "%"),
}
"""Label and unit of the metrics that tables show below the accuracy."""


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch. Accuracies are shares of segments, in [0, 1]."""

    epoch: int
    learning_rate: float
    loss: float
    """The mean loss over the training steps."""
    val_accuracy: float | None
    """None without a val split."""
    test_accuracy: float
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    """Seconds of each part: "data", "forward and backward", "optimizer", "evaluation", and "checkpoint", which is the
    checkpoint of the previous epoch."""


def choose_epoch(history: Sequence[Epoch]) -> Epoch:
    """Return the epoch with the best val accuracy, in a tie the earliest. Without a val split: the last epoch."""
    return max(history, key=lambda epoch: epoch.epoch if epoch.val_accuracy is None else epoch.val_accuracy)


def best_test(history: Sequence[Epoch]) -> Epoch:
    """Return the epoch with the best test accuracy. This is optimistic, but the convention in papers."""
    return max(history, key=lambda epoch: epoch.test_accuracy)


@dataclass(frozen=True)
class Outcomes:
    """Logits, decisions and attention of a network for each video of a split, on the CPU."""

    truth: Tensor
    """int64 (B, T): the true labels; -1 for a second without a label, and at padding."""
    prediction: Tensor
    """int64 (B, T): the predicted labels."""
    event_score: Tensor
    """(B, T), in [0, 1]: the probability of an event."""
    lengths: Tensor
    """int64 (B,): the length of each video in seconds; the rest is padding."""
    spatial_map: Tensor | None = None
    """The spatial attention of AGSCA (B, T, H, W), or None for a network without AGSCA."""
    relations: Tensor | None = None
    """(B, T, 2 T): the attention of video segments to [audio, video], averaged over heads, or None."""
    logits: Mapping[str, Tensor] = field(default_factory=dict)
    """The logits by name: ``event_logits`` (B, T) and ``category_logits`` (B, K), or (B, K + 1) if weak; or
    ``segment_logits`` (B, T, K + 1)."""


@torch.no_grad()
def segment_accuracy(model: Localizer, batches: Iterable[Batch]) -> float:
    """Return the metric of the paper: the share of segments with the right label, background included.

    Segments without a label are left out. With several processes, each evaluates its own videos, and the counts are
    added.
    """
    model.eval()
    counts = torch.zeros(2, dtype=torch.int64, device=next(model.parameters()).device)
    for video, audio, labels, _, mask in batches:
        prediction = model.decide(model(video, audio, padding_mask=mask)).labels
        labeled = labels.any(-1)
        counts += torch.stack([((prediction == labels.argmax(-1)) & labeled).sum(), labeled.sum()])
    correct, total = reduce(counts, "sum").tolist()
    return float(correct / total)


@torch.no_grad()
def observe(model: Localizer, batches: Loader, accelerator: Accelerator) -> Outcomes:
    """Run a network on the videos of this process, and return the outcomes for the videos of all processes.

    Raises:
        FloatingPointError: if a score is not finite.
    """
    model.eval()
    parts: list[dict[str, Tensor]] = []
    recordable = any(isinstance(layer, (AGSCA, CMRA)) for layer in model.modules())
    with record_attention(model) if recordable else nullcontext(dict[str, Tensor]()) as maps:
        for video, audio, labels, _, mask in batches:
            logits = model(video, audio, padding_mask=mask)
            padding = torch.zeros_like(labels[..., 0], dtype=torch.bool) if mask is None else mask
            decision = model.decide(logits)
            part = {
                "truth": labels.argmax(-1).masked_fill(~labels.any(-1), -1),
                "prediction": decision.labels,
                "event_score": decision.event_score.float(),
                "lengths": (~padding).sum(1),
                **{name: logit.float() for name, logit in model.name_logits(logits).items()},
            }
            if (spatial_map := maps.get("spatial_channel_attention.spatial_map")) is not None:
                part["spatial_map"] = spatial_map.float()
            relations = maps.get("video_relation.cross_relation.attention")
            if relations is not None and relations.shape[-1] == 2 * relations.shape[-2]:  # not of all variants
                part["relations"] = relations.float().mean(1)
            parts.append(part)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    gathered = {name: _gather(own, len(batches.videos), accelerator) for name, own in joined.items()}
    named = {name: gathered.pop(name) for name in joined if name.endswith("_logits")}
    outcomes = Outcomes(**gathered, logits=named)
    if not all(logits.isfinite().all() for logits in named.values()):
        raise FloatingPointError(
            "the scores are not finite: run `check` to see whether the features are finite, or try --precision fp32"
        )
    return outcomes


def _gather(own: Tensor, videos: int, accelerator: Accelerator) -> Tensor:
    """Gather the rows of all processes, in order. Process p of P has the rows p, p + P, p + 2 P, ..."""
    processes = accelerator.num_processes
    if processes > 1:
        rows = -(-videos // processes)
        padding = own.new_zeros(rows - len(own), *own.shape[1:])
        gathered = accelerator.gather(torch.cat([own, padding]))
        own = gathered.unflatten(0, (processes, rows)).transpose(0, 1).flatten(0, 1)[:videos]
    return own.cpu()


def measure(outcomes: Outcomes, data: AVEData, split: Split) -> dict[str, Any]:
    """Compute all metrics of a network on a split. Accuracies and shares are in [0, 1]."""
    seen = seen_in_training(data, split) if split != "train" else None
    metrics = score(outcomes.truth, outcomes.prediction, data.categories, seen)
    metrics["background_accuracy"] = background_accuracy(data, split)
    event = (outcomes.truth >= 0) & (outcomes.truth < len(data.categories))
    if data.object_cells is not None and outcomes.spatial_map is not None and event.any():
        # The share of the spatial attention on the cells of the true object, in the seconds of events.
        cells = data.object_cells[data.splits[split]]
        metrics["object_attention"] = (outcomes.spatial_map * cells).sum((-2, -1))[event].mean().item()
        metrics["object_attention_if_uniform"] = cells.float().mean((-2, -1))[event].mean().item()
    return metrics


def background_accuracy(data: AVEData, split: Split) -> float:
    """Return the segment accuracy of predicting background everywhere."""
    labels = data.labels[data.splits[split]].double()
    return float(labels[..., -1].sum() / labels.sum())


def score(truth: Tensor, prediction: Tensor, categories: Sequence[str], seen: Tensor | None = None) -> dict[str, Any]:
    """Compare the predicted label of every second with the true one.

    Args:
        truth: int64 (B, T), from 0 to K; -1 for a second without a label, which is left out.
        prediction: int64 (B, T), from 0 to K.
        categories: the K names, without "background".
        seen: bool (B,), True = the YouTube id of the video is also in train. Default: not known.

    Returns:
        dict: the metrics, of types that JSON has. ``accuracy`` is the metric of the paper, the share of seconds with
        the right label, background included. ``event_precision``, ``event_recall`` and ``event_f1`` are for events
        against background, regardless of the category. The rows of ``confusion`` are true labels, its columns predicted
        ones. Shares are in [0, 1], or None if their denominator is zero.

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
    # Importing it takes a second, for which no other command should wait.
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    names = [*categories, "background"]
    counts = multiclass_confusion_matrix(prediction, truth, len(names), ignore_index=-1)
    totals = counts.sum(1)
    both, predicted, true = counts[:-1, :-1].sum(), counts[:, :-1].sum(), totals[:-1].sum()
    unseen = None if seen is None else (truth >= 0) & ~seen.unsqueeze(1)
    return {
        "videos": len(truth),
        "segments": int(totals.sum()),
        "accuracy": _share(counts.trace(), totals.sum()),
        "event_precision": _share(both, predicted),
        "event_recall": _share(both, true),
        "event_f1": _share(2 * both, predicted + true),
        "seen_videos": None if seen is None else int(seen.sum()),
        "accuracy_without_seen": (
            None if unseen is None else _share((unseen & (prediction == truth)).sum(), unseen.sum())
        ),
        "category_accuracy": dict(zip(names, map(_share, counts.diag(), totals), strict=True)),
        "confusion": counts.tolist(),
    }


def _share(part: Tensor, whole: Tensor) -> float | None:
    return int(part) / int(whole) if whole else None


def seen_in_training(data: AVEData, split: Split = "test") -> Tensor | None:
    """Return which videos of a split have a YouTube id that is also in train, bool (B,), or None without ids or train.

    In AVE, a few ids belong to several videos.
    """
    if (names := data.names) is None or "train" not in data.splits:
        return None
    trained = {names[row] for row in data.splits["train"].tolist()}
    return torch.tensor([names[row] in trained for row in data.splits[split].tolist()], dtype=torch.bool)


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute mean and standard deviation over one or more runs with different seeds.

    Each number that all runs have, except ``seed``, and each share in ``category_accuracy`` becomes ``{"mean": ...,
    "std": ...}``. ``std`` is the sample standard deviation (n - 1 in the denominator), or None for a single run. If a
    number is None in any run, both are None. ``confusion`` is the sum over the runs.
    """
    numbers = (int, float, type(None))  # but not bool, which is a subclass of int
    summary: dict[str, Any] = {
        name: _spread([run[name] for run in runs])
        for name in runs[0]
        if name != "seed" and all(type(run.get(name, "absent")) in numbers for run in runs)
    }
    shares = [run["category_accuracy"] for run in runs]
    summary["category_accuracy"] = {name: _spread([share[name] for share in shares]) for name in shares[0]}
    summary["confusion"] = torch.tensor([run["confusion"] for run in runs]).sum(0).tolist()
    return summary


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return {"mean": None, "std": None}
    # statistics.mean is exact: the mean of equal values is that value.
    mean = float(statistics.mean(numbers))
    return {"mean": mean, "std": statistics.stdev(numbers) if len(numbers) > 1 else None}
