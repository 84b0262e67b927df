"""A prepared dataset: .npy files that are mapped into memory, and a manifest with the digest of each.

While ``prepare`` is at work the manifest is called ``unfinished.json``; the rename to ``prepared.json`` makes the
dataset complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ave.data.layout import FILES, ReleaseFile
from ave.data.release import Found, Problem, check_names, examine
from ave.reading import check_regular, convert, load_json

__all__ = ["FORM", "MANIFEST", "UNFINISHED", "Entry", "Manifest", "Source", "examine_prepared", "find_damage"]
__all__ += ["is_prepared", "parse_manifest", "read_manifest"]

FORM = 1
"""The version of the manifest; other versions cannot be read."""
MANIFEST, UNFINISHED = "prepared.json", "unfinished.json"


@dataclass(frozen=True)
class Source:
    """The file of the release that a prepared one was made from."""

    bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> Source:
        """Return the size and time of a file, by which a changed one is noticed."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Entry:
    """What the manifest holds of a file."""

    source: Source
    absolute_error: float
    relative_error: float
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the manifest holds."""

    form: int
    dtype: Literal["float16", "float32"]
    files: dict[str, Entry]
    names: tuple[str, ...] | None
    categories: tuple[str, ...] | None = None
    ave: bool = False


def is_prepared(directory: Path) -> bool:
    """Tell whether ``prepare`` has written to a directory, finished or not."""
    return (directory / MANIFEST).exists() or (directory / UNFINISHED).exists()


def examine_prepared(directory: Path, needed: Collection[str], files: Sequence[ReleaseFile] = FILES) -> Found:
    """Check that the arrays of a prepared dataset are those that were written.

    Args:
        directory: of the dataset.
        needed: the names of the files that must be there.
        files: the files to look at.

    Raises:
        ValueError: if the manifest is missing or damaged.
    """
    manifest = read_manifest(directory)
    listed = manifest.files
    remedies = {True: "run prepare again, which repairs it", False: "run prepare again with a release that holds it"}
    files = [file._replace(remedy=remedies[file.name in listed]) for file in files]
    paths = {file.name: directory / f"{file.name}.npy" for file in files}
    faults = {}
    for file in files:
        path = paths[file.name]
        if file.name not in listed:  # even if it is there, as its digest is not known
            place = f" in {MANIFEST}, which has the digests" if path.exists() else ""
            faults[file.name] = Problem(file.name, f"{path} is missing{place}", "missing")
        elif damage := find_damage(path, listed[file.name]):
            faults[file.name] = Problem(file.name, damage)
    found = Found(paths, manifest.categories, declared_ave=manifest.ave)
    examine(found, needed, files, faults)
    if manifest.names is not None:
        try:
            check_names(found, manifest.names, directory / MANIFEST)
        except ValueError as error:
            found.add(MANIFEST, str(error), "run prepare again")
    return found


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a finished dataset.

    Raises:
        ValueError: if ``prepare`` has not finished, or the manifest is damaged or of another version.
    """
    path = directory / MANIFEST
    if not path.exists():
        raise ValueError(f"{directory} must hold {MANIFEST}: prepare has not finished here; run it again")
    try:
        return parse_manifest(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be what prepare wrote, got: {error}; run prepare again") from error


def parse_manifest(path: Path) -> Manifest:
    """Read a manifest, and check the types of all that it holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no manifest, or of another version.
    """
    content = load_json(path)
    form = content.get("form") if isinstance(content, dict) else None
    if type(form) is int and form != FORM:
        raise ValueError(f"form {form}, expected {FORM}, so use a new directory")
    return convert(Manifest, content)


def find_damage(path: Path, entry: Entry) -> str | None:
    """Return how a file differs from its entry in the manifest, in one line; None if it does not."""
    if not path.exists():
        return f"{path} is missing"
    try:
        check_regular(path)
    except ValueError as error:
        return str(error)
    if (size := path.stat().st_size) != entry.bytes:
        return f"{path} must have {entry.bytes} bytes, as it was written, got {size}"
    if (digest := _digest(path, size, path.stat().st_mtime_ns)) != entry.sha256:
        return f"{path} must have the digest {entry.sha256[:12]}..., as it was written, got {digest[:12]}..."
    return None


@lru_cache
def _digest(path: Path, size: int, modified: int) -> str:
    """Compute the SHA-256 of a file; one whose size and time have not changed is not read again."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
