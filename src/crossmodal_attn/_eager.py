"""Tell plain eager computation from code that is compiled, exported, traced or watched."""

import torch

__all__ = ["runs_eagerly"]


def runs_eagerly() -> bool:
    """Return whether operations are computed as they are called, and nobody compiles, traces or watches them.

    A dispatch mode watches. That of selective checkpointing keeps results, which must then not be overwritten.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and torch._C._len_torch_dispatch_stack() == 0
    )
