"""Read the weights of backbones from files of several formats, which are recognized by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor, nn

from ave.reading import check_regular, expecting
from ave.tensor_files import check_state_dict, check_stored, load_tensors

__all__ = ["fill", "find_packaged", "is_hdf5", "read_keras", "read_state_dict", "sha256"]

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
"""The last bytes of a checkpoint of TensorFlow 1."""
PICKLES = (b"PK", b"\x80\x02")
"""The first bytes of files of PyTorch: a ZIP archive, or, of old versions, a pickle."""
MOST_CHUNK_BYTES = 64 << 20
"""Size limit of a chunk, which HDF5 always unpacks as a whole."""


def sha256(path: Path) -> str:
    """Compute the SHA-256 digest of a file, in hexadecimal."""
    check_regular(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_hdf5(path: Path) -> bool:
    """Return whether a file begins as HDF5 files do."""
    check_regular(path)
    with path.open("rb") as file:
        return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE


def read_state_dict(path: Path, allowed: Sequence[Any] = ()) -> dict[str, Tensor]:
    """Read a state dict saved by ``torch.save``: alone, under the key "state_dict", or as the first of a tuple.

    Args:
        path: the file.
        allowed: as for :func:`ave.tensor_files.load_tensors`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged, or not a file of tensors.
    """
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(max(0, path.stat().st_size - len(TABLE_MAGIC)))
        end = file.read()
    if end == TABLE_MAGIC or (".ckpt" in path.name and start not in PICKLES):
        raise ValueError(f"{path} must be a .pth file of PyTorch, got a checkpoint of TensorFlow")
    content = load_tensors(path, allowed)
    if isinstance(content, tuple) and content:
        content = content[0]
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    try:
        state_dict = check_state_dict(content)
        check_stored(state_dict)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold the weights of a network, got: {error}") from error
    return state_dict


def read_keras(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read the convolutions of a network from an HDF5 file of Keras.

    Args:
        path: a file of weights, or of a whole model.
        shapes: the shape of the kernel of each layer as Keras stores it, (height, width, in, out), by layer.

    Returns:
        dict: "LAYER.weight" (out, in, height, width) and "LAYER.bias" (out), for each layer.

    Raises:
        ValueError: if the file is damaged, or does not have these layers in these shapes.
    """
    check_regular(path)
    arrays: dict[str, Tensor] = {}
    with expecting(f"{path} must be an HDF5 file with the weights of a network by Keras"), h5py.File(path, "r") as file:
        found: dict[str, h5py.Dataset] = {}
        # Symbolic and external links, which could read other files, are not visited.
        file.visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        for layer, shape in shapes.items():
            parts = {array.ndim: array for name, array in found.items() if layer in name.split("/")}
            for key, expected in ("weight", shape), ("bias", shape[-1:]):
                array = parts.get(len(expected))
                if array is None or array.shape != expected:
                    came = "none" if array is None else f"one of shape {array.shape}"
                    raise ValueError(f"in {layer}, {came} where the {key} of shape {expected} is needed")
                chunk = prod(array.chunks or ()) * array.dtype.itemsize
                if array.dtype.kind != "f" or array.is_virtual or array.external or chunk > MOST_CHUNK_BYTES:
                    raise ValueError(f"in {layer}, a {key} that is not plain numbers")
                arrays[f"{layer}.{key}"] = torch.from_numpy(array.astype("float32")[...])
            arrays[f"{layer}.weight"] = arrays[f"{layer}.weight"].permute(3, 2, 0, 1).contiguous()
    return arrays


def fill(
    network: nn.Module, state_dict: Mapping[str, Tensor], path: Path, kind: str, ignored: tuple[str, ...] = ()
) -> None:
    """Fill a network that is on the meta device with weights, in float32, and set it to evaluation mode.

    Args:
        network: the network.
        state_dict: its weights.
        path: the file of the weights, for error messages.
        kind: the name of the network, for error messages.
        ignored: prefixes of names that may be in ``state_dict`` besides those of the network, such as a classifier.

    Raises:
        ValueError: if weights are missing, unexpected, of another shape, or not finite.
    """
    expected, kept = network.state_dict(), {}
    faults = [f"no {name}" for name in expected if name not in state_dict]
    faults += [f"an unknown {name:.60}" for name in state_dict if name not in expected and not name.startswith(ignored)]
    for name in expected.keys() & state_dict.keys():
        value, wanted = state_dict[name], expected[name]
        if value.shape != wanted.shape or value.is_floating_point() != wanted.is_floating_point():
            came, needed = (f"{part.dtype} of shape {tuple(part.shape)}" for part in (value, wanted))
            faults.append(f"{name} in {came}, not {needed}")
            continue
        kept[name] = value.to(wanted.dtype)
        if not kept[name].isfinite().all():
            faults.append(f"{name} with NaN or infinite values")
    if faults:
        more = f", and {len(faults) - 2} more differences" if len(faults) > 2 else ""
        raise ValueError(f"{path} must hold the weights of {kind}, got {'; '.join(sorted(faults)[:2])}{more}")
    network.load_state_dict(kept, assign=True)
    network.eval().requires_grad_(False)


def find_packaged(distribution: str, name: str) -> Path | None:
    """Return the file with this name in an installed package, which is not imported; None if there is no such file."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(file.locate()) for file in files if file.name == name]
    return next((path for path in paths if path.is_file()), None)
