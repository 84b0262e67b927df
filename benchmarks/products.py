"""The floor of a computation: its matrix products alone, recorded from one run of it and replayed without the rest.

The run is on the meta device, which computes nothing: what is recorded are the shapes and the strides of the operands,
and which of them share memory.
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
"""Which arguments of torch's matrix products are multiplied; what is added to them is not part of the floor."""


@dataclass(frozen=True)
class Operand:
    """A matrix, or a batch of them, and how it lies in memory."""

    storage: int
    """Equal for operands that share memory."""
    elements: int
    """Of the storage."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Product:
    """One matrix product, or a batch of them."""

    left: Operand
    right: Operand

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        *batch, rows, inner = self.left.shape
        return 2 * (batch[0] if batch else 1) * rows * inner * self.right.shape[-1]


class _Recorder(TorchDispatchMode):
    """Record the operands of every matrix product that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        self._tensors: list[Tensor] = []  # held, so that no storage gets the address of one that is gone

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
    """Return the matrix products of a call, in order; those inside ``scaled_dot_product_attention`` included.

    Outer products, which sum nothing, are left out: a fused pass has them for free.

    Args:
        call: computes on the meta device, in one dtype; with its backward pass, if that is to be recorded.

    Raises:
        NotImplementedError: if it multiplies by other operations than ``mm``, ``bmm`` and the like.

    Examples:
        >>> layer = torch.nn.Linear(3, 5, device="meta")
        >>> products = record_products(lambda: layer(torch.empty(7, 3, device="meta")))
        >>> [(product.left.shape, product.right.shape, product.operations) for product in products]
        [((7, 3), (3, 5), 210)]
    """
    # Backward runs on this thread, as it does for everything that is not on an accelerator, and so is recorded.
    recorder = _Recorder()
    with sdpa_kernel(SDPBackend.MATH), recorder:
        call()
    return recorder.products


def count_operations(products: Sequence[Product]) -> int:
    """Return the multiplications and additions of all products."""
    return sum(product.operations for product in products)


def make_replay(products: Sequence[Product], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Make a call that computes the products anew from random operands, and nothing else.

    Operands lie in memory as they were recorded, in storages of their own, and results are allocated and dropped.

    Args:
        products: of one recording.
        device: where to multiply.
        dtype: of operands and results.
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
