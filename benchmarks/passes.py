"""Build the passes that are timed: forward as in inference, or forward and backward as in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["TASKS", "make_pass"]

TASKS = ("forward", "forward and backward")


def make_pass(
    task: str, module: nn.Module, call: Callable[[], Tensor], inputs: Sequence[Tensor]
) -> Callable[[], object]:
    """Return the function to time, and set the module to evaluation or training mode.

    Args:
        task: one of ``TASKS``. The backward pass computes the gradients of all weights and of ``inputs``, as for a
            layer in the middle of a network. They are returned, not accumulated.
        module: the layer.
        call: runs the forward pass and returns its output.
        inputs: the floating-point inputs of the layer.
    """
    training = task == TASKS[1]
    module.train(training)
    for tensor in inputs:
        tensor.requires_grad_(training)
    if not training:
        return torch.no_grad()(call)
    leaves = [*inputs, *module.parameters()]

    def forward_and_backward() -> object:
        output = call()
        return torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)

    return forward_and_backward
