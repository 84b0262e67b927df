"""Measure the floor of a computation: record its matrix products in one run, and compute only these.

The run is on the meta device, which computes nothing. The shapes and strides of the operands are recorded, and which
operands share memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["Operand", "Product", "count_operations", "make_replay", "record_products"]

aten = torch.ops.aten
OPERANDS = {aten.mm: (0, 1), aten.addmm: (1, 2), aten.bmm: (0, 1), aten.baddbmm: (1, 2)}
"""The arguments of torch's matrix products that are multiplied. A term that is added is not part of the floor."""


@dataclass(frozen=True)
class Operand:
    """A matrix or a batch of matrices, and its layout in memory."""

    storage: int
    """The id of the storage. Operands that share memory have the same."""
    elements: int
    """The number of elements in the storage."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Product:
    """A matrix product, or a batch of matrix products."""

    left: Operand
    right: Operand

    @property
    def operations(self) -> int:
        """Return the number of multiplications and additions."""
        *batch, rows, inner = self.left.shape
        return 2 * (batch[0] if batch else 1) * rows * inner * self.right.shape[-1]


class _Recorder(TorchDispatchMode):
    """Record the operands of every matrix product that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        self._tensors: list[Tensor] = []  # kept alive, so that no storage reuses an address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        places = OPERANDS.get(func.overloadpacket)
        if places is not None:
            left, right = (self._describe(args[place]) for place in places)
            if left.shape[-1] > 1:
                self.products.append(Product(left, right))
        elif func.overloadpacket in flop_registry:
            raise NotImplementedError(f"the products inside {func} are not recorded")
        return func(*args, **(kwargs or {}))

    def _describe(self, tensor: Tensor) -> Operand:
        self._tensors.append(tensor)
        storage = tensor.untyped_storage()
        elements = storage.nbytes() // tensor.itemsize
        return Operand(
            storage._cdata, elements, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
        )


def record_products(call: Callable[[], object]) -> list[Product]:
    """Return the matrix products of a call in order, including those inside ``scaled_dot_product_attention``.

    Outer products are left out, since they sum nothing.

    Args:
        call: computes on the meta device in one dtype, with or without a backward pass.

    Raises:
        NotImplementedError: if the call multiplies matrices by an operator that is not in ``OPERANDS``.

    Examples:
        >>> layer = torch.nn.Linear(3, 5, device="meta")
        >>> products = record_products(lambda: layer(torch.empty(7, 3, device="meta")))
        >>> [(product.left.shape, product.right.shape, product.operations) for product in products]
        [((7, 3), (3, 5), 210)]
    """
    # Without an accelerator, the backward pass runs on this thread, so it is recorded too.
    recorder = _Recorder()
    with sdpa_kernel(SDPBackend.MATH), recorder:
        call()
    return recorder.products


def count_operations(products: Sequence[Product]) -> int:
    """Return the number of multiplications and additions of all products."""
    return sum(product.operations for product in products)


def make_replay(products: Sequence[Product], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that computes the recorded products from random operands, and nothing else.

    Operands have the recorded layout in memory. Results are allocated and dropped.

    Args:
        products: the products of one recording.
        device: the device to compute on.
        dtype: dtype of operands and results.
    """
    operands = [operand for product in products for operand in (product.left, product.right)]
    elements = {operand.storage: operand.elements for operand in operands}
    storages = {storage: torch.randn(count, device=device, dtype=dtype) for storage, count in elements.items()}
    tensors = [
        storages[operand.storage].as_strided(operand.shape, operand.strides, operand.offset) for operand in operands
    ]
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))

    @torch.no_grad()
    def replay() -> None:
        for left, right in pairs:
            (torch.bmm if left.dim() == 3 else torch.mm)(left, right)

    return replay
