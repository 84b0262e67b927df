"""Checkpoints of a run: written whole or not at all, checked by their digest, never unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ave.reading import check_regular, load_json
from ave.results.files import make_directory, write_json, writing

__all__ = ["Checkpoints", "pack_optimizer", "unpack_optimizer"]


class Checkpoints:
    """The last finished epochs of a run, in a directory.

    An epoch is ``epoch-0007.safetensors`` with its tensors, and ``epoch-0007.json`` with its facts and the digest of
    both. The JSON file is written last and removed first, so if it exists, the tensors were complete.

    Args:
        directory: their directory, in that of a seed.
        keep: how many epochs to keep.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory, self.keep = directory, keep

    def start(self, epoch: int) -> None:
        """Create the directory for a run that goes on after an epoch, and remove what a killed one left in it.

        Args:
            epoch: the last finished one, or 0.

        Raises:
            OSError: if the directory of the run is gone.
        """
        make_directory(self.directory.parent)
        make_directory(self.directory)
        if epoch:  # else all that there are could not be read, and go when the first is saved
            self._prune(epoch)

    def save(self, epoch: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Write an epoch, then remove those that are too old.

        Args:
            epoch: its number.
            tensors: groups of tensors by name, such as "model", on any device.
            facts: everything else, in values that JSON can hold.

        Raises:
            OSError: if it cannot be written, or the directory is gone; earlier checkpoints stay as they are.
        """
        flat = {f"{group}.{name}": tensor for group, named in tensors.items() for name, tensor in named.items()}
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in flat.items()})
        path = self._path(epoch)
        with writing(path) as temporary:
            temporary.write_bytes(data)
        facts = {"epoch": epoch, **facts}
        write_json(path.with_suffix(".json"), {"sha256": _digest(data, facts), **facts})
        self._prune(epoch)

    def load(self, say: Callable[[str], object] = print) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Read the newest epoch that is not damaged.

        Args:
            say: called with a message about each damaged one.

        Returns:
            tuple: its groups of tensors, on the CPU, and its facts; None if there is none.
        """
        for epoch in reversed(self._epochs()):
            path = self._path(epoch)
            try:
                check_regular(path)
                facts = load_json(path.with_suffix(".json"))
                digest, data = facts.pop("sha256"), path.read_bytes()
                if _digest(data, facts) != digest:
                    raise ValueError("its digest differs")
                groups: dict[str, dict[str, Tensor]] = {}
                for key, tensor in load(data).items():
                    group, _, name = key.partition(".")
                    groups.setdefault(group, {})[name] = tensor
                return groups, facts
            except MemoryError:
                raise
            except Exception as error:  # of damaged bytes, safetensors and JSON raise whatever they run into
                say(f"{path} is damaged and skipped: {str(error) or type(error).__name__}")
        return None

    def _prune(self, epoch: int) -> None:
        """Remove all but the last epochs up to this one; a later one is damaged, as the run goes on from this."""
        kept = [number for number in self._epochs() if number <= epoch][-self.keep :]
        for suffix in (".json", ".safetensors"):
            for old in self.directory.glob(f"epoch-*{suffix}"):
                if _number(old) not in kept:
                    old.unlink()

    def _path(self, epoch: int) -> Path:
        return self.directory / f"epoch-{epoch:04}.safetensors"

    def _epochs(self) -> list[int]:
        return sorted(_number(path) for path in self.directory.glob("epoch-*.json"))


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("epoch-"))


def _digest(data: bytes, facts: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of tensors and facts together."""
    digest = hashlib.sha256(data)
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state that an optimizer keeps of every parameter, as ``<index of the parameter>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`pack_optimizer` returned.

    Raises:
        ValueError, IndexError: if it is of other parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, entry in state.items():
        for name, value in entry.items():
            if value.dim() and value.shape != parameters[place].shape:
                raise ValueError(f"{place}.{name} of shape {tuple(value.shape)}, expected {parameters[place].shape}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
