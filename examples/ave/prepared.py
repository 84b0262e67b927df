"""The AVE release made compact: .npy files that are mapped into memory, and a manifest with the digest of each.

``prepared.json``, the manifest, is written last: it makes a set complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ave.data import AVEData
from ave.examination import Fault, Found, examine
from ave.layout import FILES, ReleaseFile, needed_files
from ave.model import Setting

__all__ = [
    "FORM",
    "MANIFEST",
    "UNFINISHED",
    "describe",
    "examine_prepared",
    "find_damage",
    "is_prepared",
    "read_manifest",
    "read_prepared",
]

FORM = 1
"""The version of what is written; another one cannot be read."""
MANIFEST, UNFINISHED = "prepared.json", "unfinished.json"


def is_prepared(directory: Path) -> bool:
    """Whether ``prepare`` has written to a directory, to its end or not."""
    return (directory / MANIFEST).exists() or (directory / UNFINISHED).exists()


def read_prepared(directory: Path | str, setting: Setting = "supervised") -> AVEData:
    """Open what ``prepare`` made of a release. Features stay on disk and are mapped into memory.

    Args:
        directory: holds ``prepared.json`` and the files that it lists.
        setting: which of them must be there. Those of the weak setting are read where they are.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the set is unfinished, or a file is not what ``prepare`` wrote: its size and its digest are seen.
    """
    return examine_prepared(Path(directory), needed_files(setting)).to_data()


def examine_prepared(directory: Path, needed: Collection[str], files: Sequence[ReleaseFile] = FILES) -> Found:
    """See which arrays a prepared set holds, and whether they are what was written.

    Args:
        directory: of the set.
        needed: the names of the files that must be there.
        files: those to look at.

    Raises:
        ValueError: if there is no manifest to tell, or it is damaged.
    """
    manifest = read_manifest(directory)
    listed = [file for file in files if file.name in manifest["files"]]
    paths = {file.name: directory / f"{file.name}.npy" for file in files}

    def remedy(file: ReleaseFile) -> str:
        if file.name in manifest["files"]:
            return "run prepare again, which mends what is damaged"
        return f"run prepare again with a release that holds {file.name}.h5"

    damages = {file: find_damage(paths[file.name], manifest["files"][file.name]) for file in listed}
    damaged = [
        Fault((file.name,), "damaged", f"{damage}; {remedy(file)}") for file, damage in damages.items() if damage
    ]
    found = examine(paths, needed, remedy, files)
    names = {name for fault in damaged for name in fault.files}
    found.faults = damaged + [fault for fault in found.faults if names.isdisjoint(fault.files)]
    found.names = None if manifest["names"] is None else tuple(manifest["names"])
    return found


def read_manifest(directory: Path) -> dict[str, Any]:
    """What ``prepare`` says of a set that it finished.

    Raises:
        ValueError: if it has not finished, or the manifest is damaged or of another version.
    """
    path = directory / MANIFEST
    if not path.exists():
        raise ValueError(f"{directory} must hold {MANIFEST}: prepare has not finished here; run it again")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        form, _, _, _ = (manifest[key] for key in ("form", "dtype", "files", "names"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be what prepare wrote, got: {error!r}; run prepare again") from error
    if form != FORM:
        raise ValueError(f"{path} must be of form {FORM}, got {form}; run prepare again, into a new directory")
    return manifest


def find_damage(path: Path, entry: dict[str, Any]) -> str | None:
    """How a file differs from its entry in the manifest, in a line; None where it does not."""
    if not path.exists():
        return f"{path} is missing"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"{path} must have {entry['bytes']} bytes, as it was written, got {size}"
    if (digest := describe(path)["sha256"]) != entry["sha256"]:
        return f"{path} must have the digest {entry['sha256'][:12]}..., as it was written, got {digest[:12]}..."
    return None


def describe(path: Path) -> dict[str, Any]:
    """The bytes and the SHA-256 of a file, as the manifest has them."""
    status = path.stat()
    return {"bytes": status.st_size, "sha256": _digest(path, status.st_size, status.st_mtime_ns)}


@lru_cache
def _digest(path: Path, size: int, modified: int) -> str:
    """The SHA-256 of a file; a process that asks again reads it again only if its size or time has changed."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
