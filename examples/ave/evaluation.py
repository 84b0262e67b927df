"""What is said of a trained CMRAN: segment accuracy, its decisions, and where its attention lies.

Axes: B videos, T segments, H x W positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from ave.data import AVEData
from ave.loading import Batch, evaluation_loader
from ave.model import CMRAN, localize
from crossmodal_attn import record_attention

__all__ = ["Outcomes", "background_accuracy", "object_attention", "observe", "segment_accuracy"]


@torch.no_grad()
def segment_accuracy(model: CMRAN, batches: Iterable[Batch]) -> float:
    """The paper's metric: the share of segments, over all videos, whose label is right, background included.

    Under several processes each brings its own videos, and the segments of all are counted once.
    """
    model.eval()
    background = model.num_categories
    confusion = MulticlassConfusionMatrix(background + 1, validate_args=False).to(next(model.parameters()).device)
    for video, audio, labels, _ in batches:
        confusion.update(localize(model(video, audio), background=background), labels.argmax(-1))
    counts = confusion.compute()
    return int(counts.trace()) / int(counts.sum())


def background_accuracy(data: AVEData, split: str) -> float:
    """The segment accuracy of calling everything background."""
    return float(data.labels[data.splits[split], :, -1].double().mean())


@dataclass(frozen=True)
class Outcomes:
    """What a model says of a split, video by video, on the CPU."""

    truth: Tensor
    """int64 (B, T)"""
    prediction: Tensor
    """int64 (B, T)"""
    event_score: Tensor
    """(B, T), in [0, 1]"""
    spatial_map: Tensor
    """AGSCA's attention over space (B, T, H, W)."""
    relations: Tensor
    """Attention of the video segments over [audio, video], mean over heads (B, T, 2 T)."""


@torch.no_grad()
def observe(model: CMRAN, data: AVEData, split: str, accelerator: Accelerator, workers: int = 0) -> Outcomes:
    """Run a model over a split and keep decisions and attention; every process gets those of all videos.

    Raises:
        FloatingPointError: if what it says is not finite.
    """
    model.eval()
    background = model.num_categories
    parts: list[tuple[Tensor, ...]] = []
    for video, audio, labels, _ in evaluation_loader(data, split, accelerator, workers):
        localization = model(video, audio)  # as segment_accuracy runs it: a compiled model is not, where it is recorded
        with record_attention(model) as maps:
            model(video, audio)
        parts.append(
            (
                labels.argmax(-1),
                localize(localization, background=background),
                localization.event_logits.sigmoid().float(),
                maps["spatial_channel_attention.spatial_map"].float(),
                maps["video_relation.cross_relation.attention"].float().mean(1),
                localization.category_logits.isfinite().all(-1),
            )
        )
    videos = len(data.splits[split])
    *joined, finite = (_gather(torch.cat(tensors), videos, accelerator) for tensors in zip(*parts, strict=True))
    outcomes = Outcomes(*joined)
    if not finite.all() or not outcomes.event_score.isfinite().all():
        raise FloatingPointError(
            f"the scores of {split} are not finite: see whether its features are, with `check`, or try --precision fp32"
        )
    return outcomes


def _gather(own: Tensor, videos: int, accelerator: Accelerator) -> Tensor:
    """All rows, in order, of which process p of P holds p, p + P, p + 2 P, ..."""
    processes = accelerator.num_processes
    if processes > 1:
        rows = -(-videos // processes)
        padding = own.new_zeros(rows - len(own), *own.shape[1:])
        gathered = accelerator.gather(torch.cat([own, padding]))
        own = gathered.unflatten(0, (processes, rows)).transpose(0, 1).flatten(0, 1)[:videos]
    return own.cpu()


def object_attention(spatial_map: Tensor, object_cells: Tensor, event: Tensor) -> tuple[float, float]:
    """The share of spatial attention on the cells of the true object, beside the share that uniform attention has.

    Args:
        spatial_map: (B, T, H, W), sums to one over space.
        object_cells: bool (B, T, H, W).
        event: bool (B, T): the seconds to look at, in which the object is seen and heard.
    """
    share = (spatial_map * object_cells).sum((-2, -1))[event].mean()
    uniform = object_cells.float().mean((-2, -1))[event].mean()
    return share.item(), uniform.item()
