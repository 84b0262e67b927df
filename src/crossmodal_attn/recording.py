"""Recording of attention maps: hooks ask every layer for its maps, and the callers see none of it."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crossmodal_attn.guided import AGSCA
from crossmodal_attn.relation import CMRA

__all__ = ["record_attention"]


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the attention maps of every layer of this library inside ``model``, whoever calls it.

    The outputs are unchanged. Compiled code runs eagerly inside the context, so that the maps can be seen. With
    activation checkpointing the backward pass, which repeats the forward pass, belongs inside the context too.

    Args:
        model: any module that holds layers of this library, or is one.

    Yields:
        dict[str, Tensor]: the maps of the latest forward pass, detached, by module path: ``path`` for the weights
        (B, H, T, M) of a :class:`CMRA`, ``path.channel_map`` (*, C) and ``path.spatial_map`` (*, *spatial) for an
        :class:`AGSCA`. Where ``model`` itself is the layer, the path is ``""`` and the keys are ``""``,
        ``"channel_map"`` and ``"spatial_map"``.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if it holds no layer that attends.

    Examples:
        >>> from crossmodal_attn import AVInteraction
        >>> model = torch.nn.ModuleDict({"fusion": AVInteraction(256, num_heads=4)})
        >>> with record_attention(model) as maps:
        ...     output = model["fusion"](torch.randn(2, 10, 256), torch.randn(2, 10, 256))
        >>> {path: tuple(weights.shape) for path, weights in maps.items()}
        {'fusion.attention': (2, 4, 10, 20)}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = {_clean(path): module for path, module in model.named_modules() if isinstance(module, (CMRA, AGSCA))}
    if not layers:
        raise ValueError(
            f"model must hold a layer of crossmodal_attn (CMRA, AGSCA or one built of them), got {type(model).__name__}"
        )
    maps: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path, module in layers.items():
            for handle in _hook(module, path, maps):
                stack.callback(handle.remove)
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it would take seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield maps


def _clean(path: str) -> str:
    """Drop the step that torch.compile puts before the module that it wraps."""
    return ".".join(name for name in path.split(".") if name != "_orig_mod")


def _hook(module: nn.Module, path: str, maps: dict[str, Tensor]) -> list[RemovableHandle]:
    """Make ``module`` return its weights, keep them in ``maps``, and hand on what its caller asked for."""
    asked = False

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal asked
        asked = kwargs.get("need_weights", False)
        return args, {**kwargs, "need_weights": True}

    def keep(module: nn.Module, args: tuple[Any, ...], result: tuple[Tensor, ...]) -> tuple[Tensor, ...] | Tensor:
        names = ("channel_map", "spatial_map") if isinstance(module, AGSCA) else ("",)
        for name, weights in zip(names, result[1:], strict=True):
            maps[".".join(filter(None, (path, name)))] = weights.detach()
        return result if asked else result[0]

    # First in, last out: of nested recordings the inner one asks last, so it must be the first to take the answer.
    return [module.register_forward_pre_hook(ask, with_kwargs=True), module.register_forward_hook(keep, prepend=True)]
