"""Pass the attention maps of each forward pass to the recorders that are open.

Open recorders are listed in this module. Forward hooks are not used, since they would be copied and saved with the
layer.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Recorder", "record_maps"]


class Recorder:
    """Keep the attention maps of some layers between ``open`` and ``close``.

    Args:
        layers: the layers, by module path.
        every_call: whether to keep the maps of every call, in lists. If False, only those of the latest call are kept.
    """

    def __init__(self, layers: Mapping[str, nn.Module], every_call: bool) -> None:
        self.maps: dict[str, Any] = {}
        # Keyed by id, since a module may define __eq__. The modules are kept alive, so that no id is used again.
        self._layers = {id(layer): (path, layer) for path, layer in layers.items()}
        self._every_call = every_call
        self._lock = Lock()

    def open(self) -> None:
        """Start recording, in all threads, and make compiled code run eagerly."""
        global _opened, _eager
        with _registry_lock:
            if not _eager:
                # This imports torch._dynamo, even if nothing is compiled yet: code that is compiled later must run
                # eagerly, too.
                _eager = torch.compiler.set_stance("force_eager")
            _opened = (*_opened, self)

    def close(self) -> None:
        """Stop recording. After this, the recorded maps never change."""
        global _opened, _eager
        with _registry_lock:
            _opened = tuple(other for other in _opened if other is not self)
            if _eager and not _opened:
                _eager.__exit__(None, None, None)
                _eager = None
        with self._lock:
            self._layers = {}

    def records(self, layer: nn.Module) -> bool:
        """Return whether this recorder records the layer."""
        return id(layer) in self._layers

    def keep(self, layer: nn.Module, maps: Mapping[str, Tensor]) -> None:
        """Keep the maps of one call, by name. A lock makes this safe when several threads call it."""
        with self._lock:
            if not self.records(layer):  # the recorder was closed during this forward pass
                return
            path, _ = self._layers[id(layer)]
            for name, kept in maps.items():
                key = ".".join(filter(None, (path, name)))
                if self._every_call:
                    self.maps.setdefault(key, []).append(kept)
                else:
                    self.maps[key] = kept


_opened: tuple[Recorder, ...] = ()
"""The open recorders. The tuple is replaced, never changed, so that other threads can iterate over it."""
_eager: Any = None
"""The compiler's stance, while any recorder is open. There is one stance for all threads."""
_registry_lock = Lock()


def record_maps(layer: nn.Module, make: Callable[[], dict[str, Tensor]]) -> None:
    """Give the maps of a forward pass to the open recorders of ``layer``.

    Args:
        layer: the layer that runs its forward pass.
        make: returns the maps, by name, in memory of their own. It is called only if a recorder is open for the layer.
            It runs without gradients, so that recording does not change what the backward pass saves.
    """
    # is_compiling comes first: then compiled and exported code has no trace of recording, not even a guard.
    if not torch.compiler.is_compiling() and _opened:
        recorders = [recorder for recorder in _opened if recorder.records(layer)]
        if recorders and not _repeats_or_traces():
            _record(layer, make, recorders)


def _repeats_or_traces() -> bool:
    """Return whether this pass must not be recorded: a repeated one of activation checkpointing, or a traced one.

    Activation checkpointing repeats forward passes during the backward pass. A trace would contain the operations that
    make the maps.
    """
    in_backward = getattr(torch._C, "_current_graph_task_id", lambda: -1)() != -1
    return in_backward or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _record(layer: nn.Module, make: Callable[[], dict[str, Tensor]], recorders: list[Recorder]) -> None:
    kept: dict[str, Tensor] = {}
    # Dispatch modes must not see the maps: counters would count them, selective checkpointing would save them.
    without_modes = getattr(torch.utils._python_dispatch, "_disable_current_modes", nullcontext)
    with torch.no_grad(), without_modes():
        for name, weights in make().items():
            _Bare.apply(weights, partial(kept.__setitem__, name))  # type: ignore[no-untyped-call]
    for recorder in recorders:
        recorder.keep(layer, kept)


class _Bare(torch.autograd.Function):
    """Unwrap a tensor inside function transforms (vmap, grad), and give the plain tensor to ``receive``.

    Wrapped tensors are invalid after the transform. Mapped dimensions come first, the outermost at the very front.
    """

    @staticmethod
    def forward(weights: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        receive(weights.detach())
        return weights.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save nothing, as there is no backward pass."""

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int | None, None], weights: Tensor, receive: Any) -> tuple[Tensor, None]:
        whole = weights if in_dims[0] is None else weights.movedim(in_dims[0], 0)
        return _Bare.apply(whole, receive), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(_ctx: Any, tangent: Tensor, _receive: None) -> Tensor:
        return tangent.new_zeros(0)
