"""The interface of all networks, and the loss and decision of networks that classify each segment.

Axes: B videos, T segments, H x W positions, C visual channels, A audio channels, K categories; label K is background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from ave import Setting
from ave.networks.padded import max_over_time
from ave.networks.pretrained import Pretrained
from ave.reading import convert
from ave.videos.extraction import Extraction

__all__ = ["Decision", "Localizer", "Recipe", "SegmentClassifier", "full_precision"]


class Decision(NamedTuple):
    """The decision for each segment of a batch of videos, meaningless at padding."""

    labels: Tensor
    """int64 (B, T), in 0 ... K."""
    event_score: Tensor
    """(B, T), in [0, 1]: the probability of an event."""
    category_score: Tensor
    """(B, T), in [0, 1]: the probability of the best category, given that there is an event."""


class Recipe(NamedTuple):
    """The published hyperparameters of a training."""

    epochs: int
    batch_size: int = 64
    lr: float = 1e-3
    milestones: tuple[int, ...] = ()
    """The epochs after which the learning rate decays."""
    lr_decay: float = 0.5
    clip_norm: float | None = None
    """The maximum norm of the gradient of all parameters; None: no clipping."""
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, fused=True)


class Localizer(Pretrained):
    """The base class of all networks: common arguments, a loss and a decision.

    A network is called as ``network(video, audio, padding_mask=mask)``. It returns logits in a format of its own, which
    its ``loss`` and ``decide`` accept. The constructor takes ``setting`` first, and all other arguments by keyword.

    Args:
        setting: "supervised" trains on labels of segments, "weak" on labels of videos.
        video_dim: C, channels of the visual features.
        audio_dim: A, width of the audio features.
        num_categories: K, without background. Default: the number of ``categories``, or 28.
        categories: the K names of the categories. They are saved with the network.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, the network does not have the setting, or the number of names is not
            ``num_categories``.
    """

    recipes: ClassVar[Mapping[Setting, Recipe]]
    """The published hyperparameters for each setting that the network has."""
    video_mean: Tensor
    video_deviation: Tensor
    audio_mean: Tensor
    audio_deviation: Tensor

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
        self.arguments: Mapping[str, Any] = arguments
        self._hub_mixin_config = {"network": type(self).__name__, **arguments}  # for config.json
        self.setting = setting
        self.video_dim, self.audio_dim, self.num_categories = video_dim, audio_dim, num_categories
        self.categories = None if categories is None else tuple(categories)
        self.standardized: tuple[str, ...] = ()
        self._features: Extraction | None = None
        self._longest: int | None = None

    @property
    def features(self) -> Extraction | None:
        """How the features of the training were extracted, if that is known. It is saved with the network."""
        return self._features

    @features.setter
    def features(self, extraction: Extraction | None) -> None:
        self._features = extraction
        self._configure("features", None if extraction is None else asdict(extraction))

    @property
    def longest(self) -> int | None:
        """The length in seconds of the longest video of the training, if that is known. Saved with the network."""
        return self._longest

    @longest.setter
    def longest(self, seconds: int | None) -> None:
        self._longest = seconds
        self._configure("longest", seconds)

    def _configure(self, name: str, value: object) -> None:
        """Set a value in config.json, or remove it if it is empty."""
        configuration: Any = self._hub_mixin_config
        self._hub_mixin_config = {key: old for key, old in configuration.items() if key != name}
        if value:
            self._hub_mixin_config[name] = value

    @classmethod
    def _build(cls, arguments: Mapping[str, Any]) -> Self:
        """Build a network from its config.json: the arguments, and what was set later."""
        arguments = dict(arguments)
        standardized, features = arguments.pop("standardized", ()), arguments.pop("features", None)
        longest = arguments.pop("longest", None)
        model = cls(**arguments)
        if longest is not None:
            if type(longest) is not int or longest < 1:
                raise ValueError(f"longest must be an int of at least 1, got {longest!r:.60}")
            model.longest = longest
        if features is not None:
            model.features = convert(Extraction, features)
        if not isinstance(standardized, list) and standardized != ():
            raise ValueError(f"standardized must be a list, got {standardized!r:.60}")
        widths = {"video": model.video_dim, "audio": model.audio_dim}
        model.standardize(
            {name: (torch.zeros(widths.get(name, 0)), torch.ones(widths.get(name, 0))) for name in standardized}
        )
        return model

    def loss(
        self, logits: Any, target: Tensor, *, padding_mask: Tensor | None = None, eventless_category: int | None = 0
    ) -> Tensor:
        """Return the loss for the setting of the network.

        Args:
            logits: the output of the network.
            target: one-hot labels, background last. Supervised: (B, T, K + 1), all zero for a segment without a label.
                Weak: (B, K + 1).
            padding_mask: bool (B, T), True = padding. Labels at padding are ignored.
            eventless_category: the category of a video that is all background, if the network classifies whole videos.
                None leaves such a video out of that part of the loss.
        """
        raise NotImplementedError

    def decide(self, logits: Any) -> Decision:
        """Return the label of each segment, and its scores.

        Args:
            logits: the output of the network.
        """
        raise NotImplementedError

    def name_logits(self, logits: Any) -> dict[str, Tensor]:
        """Return the logits as a dict, by their names in ``predictions.npz``."""
        raise NotImplementedError

    def standardize(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Standardize the input from now on: subtract a mean, and divide by a standard deviation.

        Both are buffers of the network, so they are saved and loaded with it.

        Args:
            statistics: mean and standard deviation of each channel, for "video", "audio", both or neither of them.

        Raises:
            ValueError: if a name or a shape is wrong.
        """
        widths = {"video": self.video_dim, "audio": self.audio_dim}
        weight = next(self.parameters())
        for name, (mean, deviation) in statistics.items():
            if name not in widths or not mean.shape == deviation.shape == (widths[name],):
                raise ValueError(
                    f"statistics must have the keys video or audio, and shapes {tuple(widths.values())}, got {name} "
                    f"with {tuple(mean.shape)} and {tuple(deviation.shape)}"
                )
            for part, value in (("mean", mean), ("deviation", deviation)):
                self.register_buffer(f"{name}_{part}", value.to(weight.device, weight.dtype, copy=True))
        self.standardized = tuple(name for name in widths if name in {*self.standardized, *statistics})
        self._configure("standardized", list(self.standardized))

    def _read(self, video: Tensor, audio: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Check the input of the network, and standardize it if the network has statistics. NaN in padding stays."""
        self._check(video, audio, padding_mask)
        if "video" in self.standardized:
            video = (video - self.video_mean) / self.video_deviation
        if "audio" in self.standardized:
            audio = (audio - self.audio_mean) / self.audio_deviation
        return video, audio

    def _check(self, video: Tensor, audio: Tensor, padding_mask: Tensor | None) -> None:
        """Check the input of the network: types, dtypes and shapes."""
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
                    f"{name} must have shape ({axes}, {width}), where only the batch may be empty, "
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
    """A network with logits (B, T, K + 1): a class for each segment, background last.

    The supervised loss is the cross-entropy, averaged over the segments that have a label. The weak loss is the
    cross-entropy of the logits of the video, the maximum over time. The decision is the class with the largest logit.
    """

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        padding_mask: Tensor | None = None,
        eventless_category: int | None = 0,  # noqa: ARG002  whole videos are not classified
    ) -> Tensor:
        """Return the loss, as in :meth:`Localizer.loss`."""
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
        """Pool logits of segments (B, T, K + 1) to logits of videos (B, K + 1), which are 0 if all is padding."""
        return max_over_time(logits, padding_mask)

    def _sum_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the sum of the losses of logits (N, K + 1) against target distributions; zero rows add nothing."""
        return F.cross_entropy(logits, target, reduction="sum")

    def decide(self, logits: Tensor) -> Decision:
        """Return the best class of each segment. The event score is the probability of all classes but background."""
        logits = full_precision(logits)
        return Decision(logits.argmax(-1), 1 - logits.softmax(-1)[..., -1], logits[..., :-1].softmax(-1).amax(-1))

    def name_logits(self, logits: Tensor) -> dict[str, Tensor]:
        """Return the logits as a dict, by their name in ``predictions.npz``."""
        return {"segment_logits": logits}


def full_precision(logits: Tensor) -> Tensor:
    """Convert logits to float32; float64 stays float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
