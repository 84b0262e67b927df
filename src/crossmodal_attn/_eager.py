"""Detect how torch runs: eagerly or not, and under autocast or not."""

import torch
from torch import Tensor

__all__ = ["autocasts", "runs_eagerly"]


def runs_eagerly() -> bool:
    """Return whether each operation runs when it is called, without compiler, tracer or dispatch mode.

    A dispatch mode may keep the results of operations, as selective checkpointing does. They must not be overwritten.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and torch._C._len_torch_dispatch_stack() == 0
    )


def autocasts(tensor: Tensor) -> bool:
    """Return whether autocast converts a tensor. It converts all floating-point dtypes except float64."""
    # The meta device has no autocast. torch.amp.is_autocast_available would tell, but torch 2.6 cannot compile it.
    device = tensor.device.type
    return tensor.dtype != torch.float64 and device != "meta" and torch.is_autocast_enabled(device)
