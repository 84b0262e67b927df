"""Checkpoints of a run. A failed write leaves no file, a digest finds damage, and nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import re
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
    """The checkpoints of the last epochs of one seed, in a directory.

    The checkpoint of epoch 7 has two files: ``epoch-0007.safetensors`` with its tensors, and ``epoch-0007.json`` with
    its other values and a digest of both. The JSON file is written last and removed first, so if it exists, the tensors
    were complete.

    Args:
        directory: the directory of the checkpoints.
        keep: number of checkpoints to keep, the newest ones.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory, self.keep = directory, keep

    def start(self, epoch: int) -> None:
        """Create the directory, and remove files that a killed process left there.

        Args:
            epoch: the last finished epoch, after which the run continues, or 0.

        Raises:
            OSError: if the directory of the run is gone.
        """
        make_directory(self.directory.parent)
        make_directory(self.directory)
        if epoch:  # without a readable checkpoint, the first save removes the damaged ones
            self._prune(epoch)

    def save(self, epoch: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Write the checkpoint of an epoch, then remove the oldest ones.

        Args:
            epoch: the number of the epoch.
            tensors: groups of tensors by name, such as "model", on any device.
            facts: all other values, of types that JSON has.

        Raises:
            OSError: if a file cannot be written, or the directory is gone. Earlier checkpoints are unchanged.
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
        """Read the newest checkpoint that is not damaged.

        Args:
            say: called with a message about each damaged checkpoint.

        Returns:
            tuple: the groups of tensors, on the CPU, and the other values. None if there is no checkpoint.
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
            except Exception as error:  # safetensors and JSON raise many types of error at damaged bytes
                say(f"{path} is damaged and skipped: {str(error) or type(error).__name__}")
        return None

    def _prune(self, epoch: int) -> None:
        """Keep the newest checkpoints up to this epoch, and remove all others. Later ones are damaged."""
        kept = [number for number in self._epochs() if number <= epoch][-self.keep :]
        for suffix in (".json", ".safetensors"):
            for old in self._files(suffix):
                if _number(old) not in kept:
                    old.unlink()

    def _path(self, epoch: int) -> Path:
        return self.directory / f"epoch-{epoch:04}.safetensors"

    def _epochs(self) -> list[int]:
        return sorted(map(_number, self._files(".json")))

    def _files(self, suffix: str) -> list[Path]:
        return [path for path in self.directory.glob(f"epoch-*{suffix}") if re.fullmatch(r"epoch-\d+", path.stem)]


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("epoch-"))


def _digest(data: bytes, facts: Mapping[str, Any]) -> str:
    """Compute one SHA-256 digest of the tensors and the other values."""
    digest = hashlib.sha256(data)
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors in the state of an optimizer, by the names ``<index of the parameter>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state of an optimizer from the tensors of :func:`pack_optimizer`.

    Raises:
        ValueError, IndexError: if the tensors do not fit the parameters.
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
