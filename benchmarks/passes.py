"""The passes that layers are timed in: forward as in inference, or forward and backward as in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["TASKS", "make_pass"]

TASKS = ("forward", "forward and backward")


def make_pass(
    task: str, module: nn.Module, call: Callable[[], Tensor], inputs: Sequence[Tensor]
) -> Callable[[], object]:
    """Make what is timed, and put the module in evaluation or training mode for it.

    Args:
        task: one of ``TASKS``. Gradients of training are those of all weights and of ``inputs``, given anew each time,
            as of a layer in the midst of a network.
        module: the layer.
        call: its forward pass, which gives its output.
        inputs: its floating-point inputs.
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
