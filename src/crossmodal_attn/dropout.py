"""Dropout with a mask that is fast to draw on a CPU: alone, and joined with a ReLU."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from crossmodal_attn._eager import runs_eagerly

__all__ = ["Dropout", "ReLUDropout"]

LEVELS = 2**16
"""The number of values of 16 random bits. Probabilities are multiples of 1 / LEVELS."""

CHUNK = 2**18
"""Number of elements masked at once, so that the mask stays in the cache.

It is a multiple of 4, since 4 elements share a random number.
"""


class Dropout(nn.Dropout):
    """Dropout like :class:`torch.nn.Dropout`, but faster on a CPU: one random number serves four elements.

    On a CPU, torch draws one number for each element, which takes most of the time of the operation. Here ``p`` is
    rounded to a multiple of 2 ** -16, and kept elements are divided by the rounded probability of keeping them, so the
    expected value is exact. The masks depend on the seed, but differ from those of torch's dropout. On other devices,
    and in compiled or exported code, this is torch's dropout. There is no ``inplace``. In training it works under
    :func:`torch.vmap` only if this version of torch supports ``Tensor.view(dtype)`` there; 2.9 does not.

    Args:
        p: probability of dropping an element, in [0, 1].

    Examples:
        >>> dropout = Dropout(0.25)
        >>> kept = dropout(torch.ones(1000, 1000))
        >>> round(float((kept == 0).float().mean()), 2), round(float(kept.mean()), 2)
        (0.25, 1.0)
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - named as by torch
        """Drop elements in training; return ``input`` in evaluation.

        Args:
            input: floating point, of any shape.

        Returns:
            Tensor: of the shape of ``input``.
        """
        if not self._draws_cheaply(input):
            return F.dropout(input, self.p, self.training)
        return input * _draw_mask(input, self.p)

    def _draws_cheaply(self, features: Tensor) -> bool:
        return runs_eagerly() and features.device.type == "cpu" and self.training and 0 < _levels(self.p) < LEVELS


class ReLUDropout(Dropout):
    """ReLU, then :class:`Dropout`. The backward pass needs only the output.

    An output is positive exactly where the input was positive and was kept. So on a CPU neither the input nor the mask
    is saved, and the backward pass is one pass over the output. Random numbers are drawn as in :class:`Dropout`.

    Args:
        p: probability of dropping an element, in [0, 1].

    Examples:
        >>> features = torch.randn(2, 10, 2048)
        >>> torch.equal(ReLUDropout(0.1).eval()(features), features.relu())
        True
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - named as by torch
        """Apply the ReLU, and drop elements in training.

        Args:
            input: floating point, of any shape.

        Returns:
            Tensor: of the shape of ``input``.
        """
        if not self._draws_cheaply(input):
            return F.dropout(F.relu(input), self.p, self.training)
        output: Tensor = _ReLUDropout.apply(input, self.p)  # type: ignore[no-untyped-call]
        return output


class _ReLUDropout(Function):
    @staticmethod
    def forward(features: Tensor, p: float) -> Tensor:
        output = torch.empty_like(features, memory_format=torch.contiguous_format)
        for chunk, part in zip(features.reshape(-1).split(CHUNK), output.view(-1).split(CHUNK), strict=True):
            torch.clamp_min(chunk, 0, out=part).mul_(_draw_mask(part, p))
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)
        ctx.scale = _scale(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return _scale_where_positive(gradient, output, ctx.scale), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (output,) = ctx.saved_tensors
        return _scale_where_positive(tangent, output, ctx.scale)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], features: Tensor, p: float) -> tuple[Tensor, int]:
        def plain(one: Tensor) -> Tensor:
            return F.relu(one) * _draw_mask(one, p)

        return torch.vmap(plain, in_dims[:1], randomness=info.randomness)(features), 0


def _scale_where_positive(gradient: Tensor, output: Tensor, scale: float) -> Tensor:
    """Scale the gradient where the output is positive, and set it to zero elsewhere, in one fused operation.

    The operation is the gradient of an ELU whose value is zero for negative inputs.
    """
    scaled: Tensor = torch.ops.aten.elu_backward(gradient, 0, scale, 0, True, output)
    return scaled


def _levels(p: float) -> int:
    return round((1 - p) * LEVELS)


def _scale(p: float) -> float:
    return LEVELS / _levels(p)


def _draw_mask(features: Tensor, p: float) -> Tensor:
    """Draw the dropout mask, whose elements are zero or the scale of kept elements."""
    size = math.prod(features.shape)
    bits = torch.randint(-(2**63), 2**63 - 1, (-(-size // 4),), device="cpu").view(torch.int16)[:size]
    kept = (bits < _levels(p) - LEVELS // 2).view(torch.int8)  # torch converts int8 many times faster than bool
    return kept.to(features.dtype).mul_(_scale(p)).view(features.shape)
