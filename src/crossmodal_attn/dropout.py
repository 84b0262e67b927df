"""Dropout whose mask is cheap to draw on a CPU."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Dropout"]

LEVELS = 2**16
"""Probabilities are multiples of 1 / LEVELS: the values of 16 random bits."""


class Dropout(nn.Dropout):
    """:class:`torch.nn.Dropout`, which on a CPU draws the bits of four elements at once.

    There torch draws a number for each element, one after another, and the mask takes longer than what is masked. Here
    the probability is a multiple of 2 ** -16, the nearest to ``p``, and what is kept is scaled by the probability that
    it really had, so that the mean stays exact. The masks follow the seed, but they are not those of torch's dropout.
    On other devices, and in compiled or exported code, this is torch's dropout. ``inplace`` is not offered.

    Args:
        p: probability of dropping an element, in [0, 1].

    Raises:
        ValueError: if ``p`` is out of range.

    Examples:
        >>> dropout = Dropout(0.25)
        >>> kept = dropout(torch.ones(1000, 1000))
        >>> round(float((kept == 0).float().mean()), 2), round(float(kept.mean()), 2)
        (0.25, 1.0)
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - named as by torch
        """Drop elements in training; in evaluation give ``input`` back.

        Args:
            input: of any shape, floating point.

        Returns:
            Tensor: of the same shape.
        """
        levels = round((1 - self.p) * LEVELS)
        if not self.training or levels in (0, LEVELS) or input.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(input, self.p, self.training)
        return input * _draw_mask(input.shape, levels).to(input.dtype).mul_(LEVELS / levels)


def _draw_mask(shape: torch.Size, levels: int) -> Tensor:
    """Bool, True with a probability of ``levels`` of LEVELS."""
    size = math.prod(shape)
    bits = torch.randint(-(2**63), 2**63 - 1, (-(-size // 4),)).view(torch.int16)
    return (bits[:size] < levels - LEVELS // 2).view(shape)
