"""ED-TCN: Lea et al., "Temporal Convolutional Networks for Action Segmentation and Detection", CVPR 2017.

Axes: B videos, T segments, H x W positions, C visual channels, A audio channels, K categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ave import Setting
from ave.networks.localizer import Recipe, SegmentClassifier
from ave.networks.padded import lengths_of, order_valid_first, reorder
from crossmodal_attn import zero_padding

__all__ = ["EDTCN"]


class EDTCN(SegmentClassifier):
    """The encoder-decoder temporal convolutional network of Lea et al., CVPR 2017, on visual features only.

    An encoder layer convolves, normalizes and halves the length; a decoder layer doubles the length and convolves. As
    in the authors' code, each video is padded with -1 to a multiple of 2 ** L segments, with L encoder layers.

    Our interpretations, since nobody published how it was run on AVE: the input is the mean of the visual features over
    space; there are two encoder and two decoder layers, with kernels of size 5.

    Args:
        setting: "supervised", the only one that was published.
        video_dim: C, channels of the visual features.
        audio_dim: A, width of the audio features, which are ignored.
        num_categories: K, without background. Default: the number of ``categories``, or 28.
        channels: output channels of the encoder layers; the decoder layers have the same in reverse.
        kernel_size: size of the kernels, in segments.
        dropout: probability of dropping a whole channel after each convolution.
        categories: the K names of the categories. They are saved with the network.

    Examples:
        >>> EDTCN()(torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128)).shape
        torch.Size([2, 10, 29])
    """

    recipes: ClassVar[Mapping[Setting, Recipe]] = {
        "supervised": Recipe(epochs=200, batch_size=8, optimizer=partial(torch.optim.RMSprop, alpha=0.9, eps=1e-8))
    }

    def __init__(
        self,
        setting: Setting = "supervised",
        *,
        video_dim: int = 512,
        audio_dim: int = 128,
        num_categories: int | None = None,
        channels: Sequence[int] = (64, 96),
        kernel_size: int = 5,
        dropout: float = 0.3,
        categories: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            setting, video_dim=video_dim, audio_dim=audio_dim, num_categories=num_categories, categories=categories
        )
        self.dropout = dropout
        widths = [video_dim, *channels]
        self.encoder = _convolutions(widths, kernel_size)
        self.decoder = _convolutions([channels[-1], *reversed(channels)], kernel_size)
        self.head = nn.Linear(channels[0], self.num_categories + 1)
        for layer in (*self.encoder, *self.decoder, self.head):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, video: Tensor, audio: Tensor, *, padding_mask: Tensor | None = None) -> Tensor:
        """Classify every segment.

        Args:
            video: visual features (B, T, H, W, C).
            audio: (B, T, A), ignored.
            padding_mask: bool (B, T), True = padding.

        Returns:
            Tensor: logits (B, T, K + 1), background last; finite but meaningless at padding.
        """
        video, audio = self._read(video, audio, padding_mask)
        sequence = zero_padding(video.mean((2, 3)), padding_mask)
        time, factor = sequence.shape[1], 2 ** len(self.encoder)
        added = (time + factor - 1) // factor * factor - time
        if padding_mask is None:
            sequence, keep = F.pad(sequence.transpose(1, 2), (0, added), value=-1), None
        else:
            order = order_valid_first(padding_mask)
            sequence = F.pad(reorder(sequence, order).transpose(1, 2), (0, added))
            lengths = lengths_of(padding_mask)[:, None, None]
            lengthened = (lengths + factor - 1) // factor * factor
            steps = torch.arange(time + added, device=video.device)
            sequence = sequence.masked_fill((steps >= lengths) & (steps < lengthened), -1)
            keep = steps < lengthened  # later steps stay zero, like the zero padding of a convolution
        for layer in self.encoder:
            sequence = F.max_pool2d(self._convolve(layer, sequence, keep), (1, 2))  # max_pool1d cannot be exported
            keep = None if keep is None else keep[..., ::2]
        for layer in self.decoder:
            keep = None if keep is None else keep.repeat_interleave(2, -1)
            sequence = self._convolve(layer, sequence.repeat_interleave(2, -1), keep)
        sequence = sequence.transpose(1, 2)[:, :time]
        logits: Tensor = self.head(sequence if padding_mask is None else reorder(sequence, order.argsort(1)))
        return logits

    def _convolve(self, layer: nn.Module, sequence: Tensor, keep: Tensor | None) -> Tensor:
        """Convolve (B, channels, time), divide each step by its largest channel, and zero the steps not in ``keep``."""
        sequence = F.relu(F.dropout1d(layer(sequence), self.dropout, self.training))
        sequence = sequence / (sequence.amax(1, keepdim=True) + 1e-5)
        return sequence if keep is None else sequence * keep


def _convolutions(widths: Sequence[int], kernel_size: int) -> nn.ModuleList:
    """Make convolutions over time that keep the length, each from one width to the next."""
    return nn.ModuleList(nn.Conv1d(before, after, kernel_size, padding="same") for before, after in pairwise(widths))
