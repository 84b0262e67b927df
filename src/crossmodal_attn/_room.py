"""Room after the keys and values of a memory, so that it can grow without a copy of what it holds.

A memory that has grown is a view of a storage with room for more steps. The next memory is a longer view of the same
storage: no step that a memory holds is ever written again. This is done on a CPU, where copies take long, in code that
runs eagerly and without gradients.
"""

from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.weak import WeakIdKeyDictionary

from crossmodal_attn._eager import runs_eagerly

__all__ = ["grow"]

LEAST = 64
"""The smallest number of steps that a new storage has room for."""
SHARE = 4
"""A new storage has room for the steps that it holds, divided by this number."""


class _Room:
    """A storage of keys and values (B, H, C, D), whose first ``filled`` steps belong to memories."""

    def __init__(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        batch, heads, length, _ = keys.shape
        self.filled = 0
        self.lock = Lock()
        self._keys = keys.new_zeros(batch, heads, capacity, keys.shape[3])
        self._values = values.new_zeros(batch, heads, capacity, values.shape[3])
        # Written by ``data``: for autograd, what it saved of the steps before has not changed.
        self._written = self._keys.data, self._values.data
        self.write(keys, values)
        self.filled = length

    def fits(self, count: int) -> bool:
        """Return whether ``count`` new steps can be written."""
        writable = torch.is_inference_mode_enabled() or not self._keys.is_inference()
        return writable and self.filled + count <= self._keys.shape[2]

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Write steps after the filled ones."""
        count = keys.shape[2]
        self._written[0].narrow(2, self.filled, count).copy_(keys.detach())
        self._written[1].narrow(2, self.filled, count).copy_(values.detach())

    def view(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return the keys and the values of some steps."""
        return self._keys.narrow(2, first, last - first), self._values.narrow(2, first, last - first)


class _Place(NamedTuple):
    """The steps of a room that a memory holds, and the memory's values."""

    room: _Room
    first: int
    last: int
    values: Tensor


_places = WeakIdKeyDictionary()
"""The place of each memory that is a view of a room, by its keys."""


def _are_plain(parts: tuple[Tensor, ...]) -> bool:
    """Return whether tensors are on a CPU, and no code is traced, transformed or differentiated in forward mode."""
    return (
        runs_eagerly()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and all(type(part) is Tensor and part.device.type == "cpu" and part.dtype == parts[0].dtype for part in parts)
    )


def _open(place: _Place, values: Tensor) -> bool:
    """Lock the room of a memory if the memory has all steps of the room, so that new ones can follow.

    If another memory has grown in this room, or another thread is writing, the caller does without the room.
    """
    if place.values is not values or not place.room.lock.acquire(blocking=False):
        return False
    if place.last == place.room.filled:
        return True
    place.room.lock.release()
    return False


def grow(keys: Tensor, values: Tensor, new: tuple[Tensor, Tensor], drop: int) -> tuple[Tensor, Tensor] | None:
    """Return the keys and values (B, H, S, D) of a longer memory, without gradients; or None if they must be joined.

    Args:
        keys: the keys of the memory.
        values: the values of the memory.
        new: the keys and the values of new steps.
        drop: how many of the oldest steps are left out, at most all of the memory.
    """
    if not _are_plain((keys, values, *new)):
        return None
    place: _Place | None = _places.get(keys)
    count = new[0].shape[2]
    length = keys.shape[2] - drop + count
    if place is not None and not _open(place, values):
        return None
    try:
        if place is not None and place.room.fits(count):
            room, first = place.room, place.first + drop
        else:
            room, first = _Room(keys[:, :, drop:], values[:, :, drop:], length + max(LEAST, length // SHARE)), 0
        room.write(*new)
        room.filled = first + length
    finally:
        if place is not None:
            place.room.lock.release()
    longer = room.view(first, first + length)
    _places[longer[0]] = _Place(room, first, first + length, longer[1])
    return longer
