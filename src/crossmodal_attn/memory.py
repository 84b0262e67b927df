"""Memories: the keys and values of contexts, or of a query's own past, which are projected once and kept.

Axes: B batch, H heads, M memory length, D width of a head.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossmodal_attn._checks import check_dtype, check_mask, check_match, check_size, check_tensor
from crossmodal_attn._eager import runs_eagerly
from crossmodal_attn._room import grow

__all__ = ["Memory"]


class Memory(NamedTuple):
    """Hold projected keys and values, so that a layer does not project them again.

    :meth:`CMRA.remember` and :meth:`CrossModalRelation.remember` make it, and the same layer takes it in the place of a
    context. It is immutable. :func:`torch.compile`, :func:`torch.export.export` and :func:`torch.func.vmap` treat it
    as a named tuple of tensors. Gradients flow through it to what was remembered.

    Attributes:
        keys: (B, H, M, D).
        values: (B, H, M, D).
        padding_mask: bool (B, M), True = padding, or None.

    Examples:
        A stream of segments, one at a time. Each attends to itself and to at most 100 segments before it:

        >>> from crossmodal_attn import CMRA
        >>> layer, past = CMRA(64, num_heads=4), None
        >>> for segment in torch.randn(3, 2, 1, 64):
        ...     output = layer(segment, past)
        ...     own = layer.remember(segment, own=True)
        ...     past = own if past is None else past.append(own, max_length=100, detach=True)
        >>> output.shape, past.length
        (torch.Size([2, 1, 64]), 3)
    """

    keys: Tensor
    values: Tensor
    padding_mask: Tensor | None = None

    @property
    def length(self) -> int:
        """Return M, the number of steps, padding included."""
        return self.keys.shape[2]

    def append(self, more: "Memory", *, max_length: int | None = None, detach: bool = False) -> "Memory":
        """Return a longer memory: the steps of this one, then those of ``more``.

        No memory ever changes. On a CPU and without gradients, the steps of this memory are copied only now and then: a
        memory that has grown is a view of storage with room for a quarter more, and ``more`` is copied into this room.
        A second ``append`` to the same memory, and each with gradients or on a GPU, copies both. :func:`torch.save`
        writes the whole storage of a memory that has grown. As the example of :func:`torch.export.export`, take a
        memory that ``remember`` returned: the steps of one that has grown are not contiguous.

        Args:
            more: a memory of the same layer and batch.
            max_length: the largest length of the result, at least 0. The oldest steps beyond it are dropped. Padding
                counts as a step, so each sequence loses the same number. Default: no limit.
            detach: whether to cut the result from the graph, so that a later backward pass ends here, and the graph
                does not grow with the stream.

        Returns:
            Memory: its length is the sum of both lengths, or ``max_length`` if that is less.

        Raises:
            ValueError: if ``more`` has another batch size, number or width of heads, or device.
            TypeError: if ``more`` is not a Memory, or has another dtype.

        Examples:
            >>> from crossmodal_attn import CMRA
            >>> layer = CMRA(64, num_heads=4)
            >>> memory, more = layer.remember(torch.randn(2, 7, 64)), layer.remember(torch.randn(2, 5, 64))
            >>> memory.append(more).length, memory.append(more, max_length=10).length
            (12, 10)
        """
        if not isinstance(more, Memory):
            raise TypeError(f"more must be a Memory, as layer.remember returns it, got {type(more).__name__}")
        if max_length is not None:
            check_size("max_length", max_length, minimum=0)
        dims = {0: "batch size", 1: "number of heads", 3: "width of heads"}
        for field, own, new in (("keys", self.keys, more.keys), ("values", self.values, more.values)):
            check_match(f"more.{field}", new, dims, f"the {field} of this memory", own)
            check_dtype(f"more.{field}", new, f"the {field} of this memory have", own.dtype)
        check_match("more.values", more.values, {2: "length"}, "more.keys", more.keys)
        length = self.keys.shape[2]  # torch 2.6 cannot compile the property
        first = 0 if max_length is None else max(length + more.keys.shape[2] - max_length, 0)
        parts = (self, more) if max_length is None else (self._drop(first), more._drop(max(first - length, 0)))
        grown = None
        if (detach or not torch.is_grad_enabled()) and runs_eagerly() and first <= length:
            grown = grow(self.keys, self.values, (more.keys, more.values), first)
        if grown is None:
            keys, values = torch.cat([part.keys for part in parts], 2), torch.cat([part.values for part in parts], 2)
            grown = (keys.detach(), values.detach()) if detach else (keys, values)
        padding: Tensor | None = None
        if self.padding_mask is not None or more.padding_mask is not None:
            padding = torch.cat([part._fill_padding() for part in parts], 1)
        return Memory(*grown, padding)

    def to(self, *args: Any, **kwargs: Any) -> "Memory":
        """Return the memory on another device or in another dtype.

        Args:
            *args: a device, a dtype or both, as for :meth:`torch.Tensor.to`. The mask stays bool.
            **kwargs: further arguments of :meth:`torch.Tensor.to`.

        Examples:
            >>> from crossmodal_attn import CMRA
            >>> CMRA(64, num_heads=4).remember(torch.randn(2, 7, 64)).to(torch.float64).keys.dtype
            torch.float64
        """
        keys, values = self.keys.to(*args, **kwargs), self.values.to(*args, **kwargs)
        return Memory(keys, values, None if self.padding_mask is None else self.padding_mask.to(keys.device))

    def _drop(self, count: int) -> "Memory":
        """Return the memory without its first ``count`` steps, or an empty memory if it has no more than that."""
        padding = None if self.padding_mask is None else self.padding_mask[:, count:]
        return Memory(self.keys[:, :, count:], self.values[:, :, count:], padding)

    def _fill_padding(self) -> Tensor:
        """Return the padding mask, all False if there is none."""
        if self.padding_mask is not None:
            return self.padding_mask
        return self.keys.new_zeros(self.keys.shape[0], self.keys.shape[2], dtype=torch.bool)


# A registered name lets torch.export.save and AOTInductor write programs that take or return this type.
if _register := getattr(torch.utils._pytree, "_register_namedtuple", None):
    _register(Memory, serialized_type_name="crossmodal_attn.Memory")
torch.serialization.add_safe_globals([Memory])  # so that torch.load reads a saved memory, or program with one


def check_memory(name: str, memory: Memory, query: Tensor, layer: nn.Module, heads: tuple[int, int]) -> None:
    """Check that a memory fits a layer and the query that attends to it.

    Args:
        name: the argument's name.
        memory: the memory.
        query: the features (B, T, embed_dim) of the query.
        layer: the layer that the error message names.
        heads: the number of heads of the layer, and the width of a head.
    """
    layer_name = type(layer).__name__
    for field, tensor in (("keys", memory.keys), ("values", memory.values)):
        check_tensor(f"{name}.{field}", tensor)
        if tensor.dim() != 4 or (tensor.shape[1], tensor.shape[3]) != heads:
            raise ValueError(
                f"{name}.{field} must have shape (batch, {heads[0]}, time, {heads[1]}), as this {layer_name} has "
                f"{heads[0]} heads of width {heads[1]}, got {tuple(tensor.shape)}: use remember() of this layer"
            )
        check_match(f"{name}.{field}", tensor, {0: "batch size"}, "query", query)
        check_dtype(f"{name}.{field}", tensor, "query has", query.dtype)
    check_match(f"{name}.values", memory.values, {2: "length"}, f"{name}.keys", memory.keys)
    if memory.padding_mask is not None:
        shape = (memory.keys.shape[0], memory.keys.shape[2])
        check_mask(f"{name}.padding_mask", memory.padding_mask, shape, memory.keys)
