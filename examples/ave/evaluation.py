"""What is said of a trained CMRAN: segment accuracy, and where its attention lies.

Axes: B videos, T segments, H x W positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from ave.data import AVEData, Videos
from ave.model import CMRAN, localize
from crossmodal_attn import record_attention

__all__ = ["Outcomes", "background_accuracy", "object_attention", "observe", "segment_accuracy", "split_loader"]

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]

TEST_BATCH = 16
"""Videos a batch in evaluation, as in the authors' code; it changes the memory used, not the result."""


def split_loader(data: AVEData, split: str) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
    """The videos of a split in order, with their segment labels."""
    return DataLoader(Videos(data.visual, data.audio, data.labels, data.splits[split]), TEST_BATCH)


@torch.no_grad()
def segment_accuracy(model: CMRAN, loader: Batches, background: int) -> float:
    """The paper's metric: the share of segments, over all videos, whose label is right, background included."""
    model.eval()
    accuracy = MulticlassAccuracy(background + 1, average="micro").to(next(model.parameters()).device)
    for video, audio, labels in loader:
        accuracy.update(localize(model(video, audio), background=background), labels.argmax(-1))
    return float(accuracy.compute())


def background_accuracy(data: AVEData, split: str) -> float:
    """The segment accuracy of calling everything background."""
    return float(data.labels[data.splits[split], :, -1].mean())


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
def observe(model: CMRAN, loader: Batches, background: int) -> Outcomes:
    """Run a model over a split and keep decisions and attention."""
    model.eval()
    parts: list[tuple[Tensor, ...]] = []
    with record_attention(model) as maps:
        for video, audio, labels in loader:
            localization = model(video, audio)
            part = (
                labels.argmax(-1),
                localize(localization, background=background),
                localization.event_logits.sigmoid().float(),
                maps["spatial_channel_attention.spatial_map"].float(),
                maps["video_relation.cross_relation.attention"].float().mean(1),
            )
            parts.append(tuple(tensor.cpu() for tensor in part))
    return Outcomes(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


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
