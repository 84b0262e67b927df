"""Open recordings of attention maps: what a layer tells of a forward pass, and who listens.

A registry, not hooks: hooks live in a module's dictionary, and so they would go with every copy and every file of it.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Recorder", "tell_maps"]


class Recorder:
    """Keep the attention maps of some layers, from ``open`` to ``close``.

    Args:
        layers: the layers, by path.
        every_call: whether to keep the maps of every call, in lists, or only the latest.
    """

    def __init__(self, layers: Mapping[str, nn.Module], every_call: bool) -> None:
        self.maps: dict[str, Any] = {}
        # By identity, since a module may define equality; with the modules, lest another one get the identity.
        self._layers = {id(layer): (path, layer) for path, layer in layers.items()}
        self._every_call = every_call
        self._lock = Lock()

    def open(self) -> None:
        """Listen to the layers, in all threads, and let compiled code run eagerly."""
        global _opened, _eager
        with _registry_lock:
            if not _eager and "torch._dynamo" in sys.modules:  # else nothing is compiled; to import it takes seconds
                _eager = torch.compiler.set_stance("force_eager")
            _opened = (*_opened, self)

    def close(self) -> None:
        """Listen no more; what is kept by now stays as it is."""
        global _opened, _eager
        with _registry_lock:
            _opened = tuple(other for other in _opened if other is not self)
            if _eager and not _opened:
                _eager.__exit__(None, None, None)
                _eager = None
        with self._lock:
            self._layers = {}

    def listens_to(self, layer: nn.Module) -> bool:
        """Whether the layer is one of those."""
        return id(layer) in self._layers

    def keep(self, layer: nn.Module, maps: Mapping[str, Tensor]) -> None:
        """Keep the maps of one call, by name; those of one call together, whatever other threads do."""
        with self._lock:
            if not self.listens_to(layer):  # closed since this forward pass began
                return
            path, _ = self._layers[id(layer)]
            for name, kept in maps.items():
                key = ".".join(filter(None, (path, name)))
                if self._every_call:
                    self.maps.setdefault(key, []).append(kept)
                else:
                    self.maps[key] = kept


_opened: tuple[Recorder, ...] = ()
"""Replaced and never changed, so that a layer may go over it while other threads open and close."""
_eager: Any = None
"""The compiler's stance, which is one for all threads, from the first opening to the last closing."""
_registry_lock = Lock()


def tell_maps(layer: nn.Module, make: Callable[[], dict[str, Tensor]]) -> None:
    """Leave the maps of a forward pass with the recorders that listen to ``layer``, if there are any.

    Args:
        layer: whose forward pass it is.
        make: gives the maps, by name, in memory that nobody else has. It is called only if somebody listens, and
            without a graph, so that the pass saves the same for its backward pass with and without a recording.
    """
    # Compilation is asked for first: compiled and exported code then holds nothing of all this, not even a guard.
    if not torch.compiler.is_compiling() and _opened:
        listeners = [recorder for recorder in _opened if recorder.listens_to(layer)]
        if listeners and not _repeats_or_traces():
            _tell(layer, make, listeners)


def _repeats_or_traces() -> bool:
    """Whether this is no pass of its own.

    In a backward pass activation checkpointing repeats one that was told of. A trace would keep the maps' operators.
    """
    in_backward = getattr(torch._C, "_current_graph_task_id", lambda: -1)() != -1
    return in_backward or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _tell(layer: nn.Module, make: Callable[[], dict[str, Tensor]], listeners: list[Recorder]) -> None:
    kept: dict[str, Tensor] = {}
    # Modes would count or, with selective checkpointing, save what is no part of the pass.
    without_modes = getattr(torch.utils._python_dispatch, "_disable_current_modes", nullcontext)
    with torch.no_grad(), without_modes():
        for name, weights in make().items():
            _Bare.apply(weights, partial(kept.__setitem__, name))  # type: ignore[no-untyped-call]
    for recorder in listeners:
        recorder.keep(layer, kept)


class _Bare(torch.autograd.Function):
    """Hand on a tensor as it is below all function transforms, whose own tensors are of no use outside of them.

    The dimensions that are mapped over come first, the outermost first of all.
    """

    @staticmethod
    def forward(weights: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        receive(weights.detach())
        return weights.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing: there is no way back."""

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int | None, None], weights: Tensor, receive: Any) -> tuple[Tensor, None]:
        whole = weights if in_dims[0] is None else weights.movedim(in_dims[0], 0)
        return _Bare.apply(whole, receive), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(_ctx: Any, tangent: Tensor, _receive: None) -> Tensor:
        return tangent.new_zeros(0)
