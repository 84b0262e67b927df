"""Load tensors from files of ``torch.save``, which may be damaged or malicious: no code in them is ever run."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ave.reading import check_regular

__all__ = ["check_state_dict", "check_stored", "load_tensors"]


def load_tensors(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """Load a file of ``torch.save`` onto the CPU without running any code in it.

    Args:
        path: the file.
        allowed: types and functions that the file may name besides those of tensors, as for
            ``torch.serialization.safe_globals``.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged, or holds objects other than tensors, numbers and text.
    """
    if path.exists():
        check_regular(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > path.stat().st_size:  # torch never compresses
                raise zipfile.BadZipFile
        with warnings.catch_warnings(), torch.serialization.safe_globals([*allowed]):
            warnings.simplefilter("ignore")  # torch warns about some formats before it raises the error for them
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from error
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises many types of error at damaged bytes
        came = "something else"
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            came = f"{refused[1]}, refused because loading it could run code: save the network's state_dict() alone"
        raise ValueError(f"{path} must be a complete checkpoint of tensors only, by torch.save, got {came}") from error


def check_state_dict(state_dict: object) -> dict[str, Tensor]:
    """Check that a state dict maps names to tensors, and remove the prefix of ``DataParallel`` if all names have it.

    The usual mistake is to pass a whole checkpoint, which holds more than the state dict.

    Raises:
        TypeError: if it does not map names to tensors.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must map names to tensors, got {type(state_dict).__name__}")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TypeError(f"state_dict must map names to tensors, got {type(value).__name__} at {name!r}")
    prefix = "module." if all(name.startswith("module.") for name in state_dict) else ""
    return {name.removeprefix(prefix): value for name, value in state_dict.items()}


def check_stored(state_dict: Mapping[str, Tensor]) -> None:
    """Check that a file held all values of its tensors. A few bytes can declare a tensor of any size.

    Raises:
        ValueError: if a tensor is not stored in full.
    """
    for name, value in state_dict.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError(f"{name} of shape {tuple(value.shape)}, which is not stored in full")
