"""Detect whether torch runs eagerly: neither compiled, exported, traced nor under a dispatch mode."""

import torch

__all__ = ["runs_eagerly"]


def runs_eagerly() -> bool:
    """Return whether each operation runs when it is called, without compiler, tracer or dispatch mode.

    A dispatch mode may keep the results of operations, as selective checkpointing does. They must not be overwritten.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and torch._C._len_torch_dispatch_stack() == 0
    )
