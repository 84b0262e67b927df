"""Recording of attention maps: every layer leaves its maps, and the callers see none of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, overload

from torch import Tensor, nn

from crossmodal_attn._recorders import Recorder
from crossmodal_attn.guided import AGSCA
from crossmodal_attn.relation import CMRA

__all__ = ["record_attention"]


@overload
@contextmanager
def record_attention(model: nn.Module, *, every_call: Literal[False] = False) -> Iterator[dict[str, Tensor]]: ...


@overload
@contextmanager
def record_attention(model: nn.Module, *, every_call: Literal[True]) -> Iterator[dict[str, list[Tensor]]]: ...


@contextmanager
def record_attention(
    model: nn.Module, *, every_call: bool = False
) -> Iterator[dict[str, Tensor]] | Iterator[dict[str, list[Tensor]]]:
    """Collect the attention maps of every layer of this library inside ``model``, whoever calls it.

    The outputs and gradients are unchanged, and ``model`` is not touched: what is copied or saved inside the context is
    an ordinary model, whose copies are not recorded. Calls from all threads are. Once the context is left, nothing
    changes what was recorded.

    - Compiled code runs eagerly inside the context, in all threads, so that the maps can be seen.
    - Under :func:`torch.func.vmap` the dimension that is mapped over comes first, before those named below.
    - The passes that activation checkpointing repeats in the backward pass are not recorded again; the backward pass
      may be inside the context or outside.

    Args:
        model: any module that holds layers of this library, or is one.
        every_call: whether to keep the maps of every call of a layer, as a list in the order of the calls, and not of
            the latest alone.

    Yields:
        dict[str, Tensor] | dict[str, list[Tensor]]: the maps, detached, by module path: ``path`` for the weights
        (B, H, T, M) of a :class:`CMRA`, ``path.channel_map`` (*, C) and ``path.spatial_map`` (*, *spatial) for an
        :class:`AGSCA`. Where ``model`` itself is the layer, the path is ``""`` and the keys are ``""``,
        ``"channel_map"`` and ``"spatial_map"``. A layer that has not been called has no key.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if it holds no layer that attends.

    Examples:
        >>> import torch
        >>> from crossmodal_attn import AVInteraction
        >>> model = torch.nn.ModuleDict({"fusion": AVInteraction(256, num_heads=4)})
        >>> with record_attention(model) as maps:
        ...     output = model["fusion"](torch.randn(2, 10, 256), torch.randn(2, 10, 256))
        >>> {path: tuple(weights.shape) for path, weights in maps.items()}
        {'fusion.attention': (2, 4, 10, 20)}
        >>> with record_attention(model, every_call=True) as maps:
        ...     for length in (3, 5):
        ...         output = model["fusion"](torch.randn(2, length, 256), torch.randn(2, length, 256))
        >>> [tuple(weights.shape) for weights in maps["fusion.attention"]]
        [(2, 4, 3, 6), (2, 4, 5, 10)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = {_clean(path): module for path, module in model.named_modules() if isinstance(module, (CMRA, AGSCA))}
    if not layers:
        raise ValueError(
            f"model must hold a layer of crossmodal_attn (CMRA, AGSCA or one built of them), got {type(model).__name__}"
        )
    recorder = Recorder(layers, every_call)
    recorder.open()
    try:
        yield recorder.maps
    finally:
        recorder.close()


def _clean(path: str) -> str:
    """Drop the step that torch.compile puts before the module that it wraps."""
    return ".".join(name for name in path.split(".") if name != "_orig_mod")
