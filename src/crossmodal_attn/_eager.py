"""Tell eager computation from code that is being compiled, exported or traced."""

import torch

__all__ = ["runs_eagerly"]


def runs_eagerly() -> bool:
    """Return whether operations are computed as they are called, and not recorded by a compiler or a tracer."""
    return not torch.compiler.is_compiling() and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
