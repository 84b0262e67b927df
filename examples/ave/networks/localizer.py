"""The interface of every network that localizes events, and the loss and decision of those that label each segment.

Axes: B videos, T segments, H x W positions, C visual channels, A audio channels, K categories; label K is background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ave import Setting
from ave.networks.padded import max_over_time
from ave.networks.pretrained import Pretrained

__all__ = ["Decision", "Localizer", "Recipe", "SegmentClassifier", "full_precision"]


class Decision(NamedTuple):
    """The decision for every segment of a batch of videos; at padding it means nothing."""

    labels: Tensor
    """int64 (B, T), in 0 ... K."""
    event_score: Tensor
    """(B, T), in [0, 1]: the probability of an event."""
    category_score: Tensor
    """(B, T), in [0, 1]: the probability of the best category, given that there is an event."""


class Recipe(NamedTuple):
    """How a network was trained by those who published it."""

    epochs: int
    batch_size: int = 64
    lr: float = 1e-3
    milestones: tuple[int, ...] = ()
    """The epochs after which the learning rate decays."""
    lr_decay: float = 0.5
    clip_norm: float | None = None
    """The largest total norm of the gradient; None does not clip."""
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, fused=True)


class Localizer(Pretrained):
    """The base of every network: its arguments in common, a loss and a decision.

    A network is called as ``network(video, audio, padding_mask=mask)`` and returns logits, of its own form, which its
    own ``loss`` and ``decide`` take. Its constructor takes ``setting`` first and the rest by keyword.

    Args:
        setting: "supervised" trains on segment labels, "weak" on video labels.
        video_dim: C, channels of the visual features.
        audio_dim: A, width of the audio features.
        num_categories: K, without background; by default as many as ``categories``, or 28 without these.
        categories: the K names, which are saved with the network.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if one is out of range, the network has no such setting, or names and categories differ in number.
    """

    recipes: ClassVar[Mapping[Setting, Recipe]]
    """The published training of each setting that the network has."""

    def __init__(
        self,
        setting: Setting,
        *,
        video_dim: int,
        audio_dim: int,
        num_categories: int | None,
        categories: Sequence[str] | None,
    ) -> None:
        super().__init__()
        if setting not in self.recipes:
            known = " or ".join(f'"{name}"' for name in self.recipes)
            raise ValueError(f"setting must be {known}, got {setting!r}, which {type(self).__name__} does not have")
        if categories is not None:
            if not isinstance(categories, (list, tuple)) or not all(isinstance(name, str) for name in categories):
                raise TypeError(f"categories must be a list or tuple of str, got {categories!r}")
            num_categories = len(categories) if num_categories is None else num_categories
            if len(categories) != num_categories or len(set(categories)) != num_categories:
                raise ValueError(
                    f"categories must be {num_categories} different names, as num_categories says, got "
                    f"{len(categories)}, {len(set(categories))} of them different"
                )
        num_categories = 28 if num_categories is None else num_categories
        for name, size in (("video_dim", video_dim), ("audio_dim", audio_dim), ("num_categories", num_categories)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {size!r}")
        arguments: Any = self._hub_mixin_config
        self._hub_mixin_config = {"network": type(self).__name__, **arguments}  # for config.json
        self.setting = setting
        self.video_dim, self.audio_dim, self.num_categories = video_dim, audio_dim, num_categories
        self.categories = None if categories is None else tuple(categories)

    def loss(
        self, logits: Any, target: Tensor, *, padding_mask: Tensor | None = None, eventless_category: int | None = 0
    ) -> Tensor:
        """Return the loss of the network's setting.

        Args:
            logits: what the network returned.
            target: one-hot labels, background last: supervised (B, T, K + 1), all zero where a segment has no label;
                weak (B, K + 1).
            padding_mask: bool (B, T), True = padding, whose labels are ignored.
            eventless_category: the category that a video of nothing but background counts as, if the network judges
                videos; with None it weighs nothing there.

        Raises:
            ValueError: if ``target`` has another shape.
        """
        raise NotImplementedError

    def decide(self, logits: Any) -> Decision:
        """Return the label of every segment, and its scores.

        Args:
            logits: what the network returned.
        """
        raise NotImplementedError

    def name_logits(self, logits: Any) -> dict[str, Tensor]:
        """Return the logits by the names that they have in ``predictions.npz``."""
        raise NotImplementedError

    def _check(self, video: Tensor, audio: Tensor, padding_mask: Tensor | None) -> None:
        """Check the input of the network."""
        weight = next(self.parameters())
        for name, features, axes, width in (
            ("video", video, "batch, time, height, width", self.video_dim),
            ("audio", audio, "batch, time", self.audio_dim),
        ):
            if not isinstance(features, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(features).__name__}")
            differs = features.dtype != weight.dtype and weight.is_floating_point()
            if differs and not torch.is_autocast_enabled(features.device.type):
                raise TypeError(f"{name} must have the dtype of the weights, {weight.dtype}, got {features.dtype}")
            dimensions = axes.count(",") + 2
            if features.dim() != dimensions or features.shape[-1] != width or 0 in features.shape[1:]:
                raise ValueError(
                    f"{name} must have shape ({axes}, {width}), none of them empty but the batch, "
                    f"got {tuple(features.shape)}"
                )
        if audio.shape[:2] != video.shape[:2]:
            raise ValueError(
                f"audio must have the batch and time of video, {tuple(video.shape[:2])}, got {tuple(audio.shape[:2])}"
            )
        if padding_mask is not None and (padding_mask.dtype != torch.bool or padding_mask.shape != audio.shape[:2]):
            raise ValueError(
                f"padding_mask must be bool, of the batch and time of video, {tuple(audio.shape[:2])}, "
                f"got {padding_mask.dtype} {tuple(padding_mask.shape)}"
            )


class SegmentClassifier(Localizer):
    """A network whose logits are (B, T, K + 1): a class for every segment by itself, background last.

    Supervised it learns by cross-entropy, the mean over the segments that have a label; weakly by that of the video's
    logits, the maximum of the segments' over time. The best class is the decision.
    """

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        padding_mask: Tensor | None = None,
        eventless_category: int | None = 0,  # noqa: ARG002  supervised, no video is judged as a whole
    ) -> Tensor:
        """Return the loss of the network's setting, as :meth:`Localizer.loss` says."""
        expected = logits.shape if self.setting == "supervised" else (logits.shape[0], logits.shape[-1])
        if target.shape != expected:
            raise ValueError(f"target must have shape {tuple(expected)}, background last, got {tuple(target.shape)}")
        if self.setting == "weak":
            logits = self.pool(logits, padding_mask=padding_mask)
            return self._sum_losses(logits, target.to(logits.dtype)) / target.shape[0]
        if padding_mask is not None:
            target = target.masked_fill(padding_mask.unsqueeze(-1), 0)
        labeled = target.sum(dtype=torch.float32)  # each of them has a single 1
        total = self._sum_losses(logits.flatten(0, 1), target.flatten(0, 1).to(logits.dtype))
        return total / labeled.clamp(min=1)

    def pool(self, logits: Tensor, *, padding_mask: Tensor | None = None) -> Tensor:
        """Pool logits (B, T, K + 1) over time into those of the video (B, K + 1); zero if it is all padding."""
        return max_over_time(logits, padding_mask)

    def _sum_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the summed loss of logits (N, K + 1) against distributions of that shape; zero rows add nothing."""
        return F.cross_entropy(logits, target, reduction="sum")

    def decide(self, logits: Tensor) -> Decision:
        """Return the best class of every segment; its event score is the probability of all but background."""
        logits = full_precision(logits)
        return Decision(logits.argmax(-1), 1 - logits.softmax(-1)[..., -1], logits[..., :-1].softmax(-1).amax(-1))

    def name_logits(self, logits: Tensor) -> dict[str, Tensor]:
        """Return the logits by their name in ``predictions.npz``."""
        return {"segment_logits": logits}


def full_precision(logits: Tensor) -> Tensor:
    """Return logits in float32 or, if they are, in float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
