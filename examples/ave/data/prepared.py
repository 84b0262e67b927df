"""Read a prepared dataset: memory-mapped .npy files, and a manifest with a digest of each.

Until ``prepare`` or ``extract`` has finished, the manifest is called ``unfinished.json``. ``prepared.json`` means that
the dataset is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ave.data.layout import FILES, ReleaseFile
from ave.data.release import Found, Problem, check_names, examine
from ave.reading import check_regular, convert, load_json
from ave.videos.extraction import Extraction

__all__ = ["FORM", "MANIFEST", "UNFINISHED", "Entry", "Manifest", "Source", "examine_prepared", "find_damage"]
__all__ += ["is_prepared", "parse_manifest", "read_manifest"]

FORM = 1
"""The version of the manifest. Other versions cannot be read."""
MANIFEST, UNFINISHED = "prepared.json", "unfinished.json"
UNLABELED = "`extract` writes features only: give your labels with --labels labels.csv"


@dataclass(frozen=True)
class Source:
    """Size and modification time of the original file of a prepared file."""

    bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> Source:
        """Return the size and modification time of a file, which show whether it has changed."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Entry:
    """The entry of a file in the manifest."""

    source: Source
    absolute_error: float
    relative_error: float
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of the manifest."""

    form: int
    dtype: Literal["float16", "float32"]
    files: dict[str, Entry]
    names: tuple[str, ...] | None
    categories: tuple[str, ...] | None = None
    ave: bool = False
    extraction: Extraction | None = None
    """How the features were extracted, in a dataset that `extract` wrote. Such a dataset has no labels."""


def is_prepared(directory: Path) -> bool:
    """Return whether a directory is the output of ``prepare`` or ``extract``, finished or not."""
    return (directory / MANIFEST).exists() or (directory / UNFINISHED).exists()


def examine_prepared(directory: Path, needed: Collection[str], files: Sequence[ReleaseFile] = FILES) -> Found:
    """Check the files of a prepared dataset against its manifest.

    Args:
        directory: the directory of the dataset.
        needed: the names of the required files.
        files: the files to check.

    Raises:
        ValueError: if the manifest is missing or damaged.
    """
    manifest = read_manifest(directory)
    listed = manifest.files
    remedies = {True: "run prepare again, which repairs it", False: "run prepare again with a release that holds it"}
    if manifest.extraction is not None:
        remedies = {True: "run extract again, which extracts all videos again", False: UNLABELED}
        needed = {file.name for file in files if file.name in needed and (file.is_features or file.axes == "NTL")}
    files = [file._replace(remedy=remedies[file.name in listed]) for file in files]
    paths = {file.name: directory / f"{file.name}.npy" for file in files}
    faults = {}
    for file in files:
        path = paths[file.name]
        if file.name not in listed:  # even if it exists, because its digest is not known
            place = f" in {MANIFEST}, which has the digests" if path.exists() else ""
            faults[file.name] = Problem(file.name, f"{path} is missing{place}", "missing")
        elif damage := find_damage(path, listed[file.name]):
            faults[file.name] = Problem(file.name, damage)
    found = Found(paths, manifest.categories, declared_ave=manifest.ave, extraction=manifest.extraction)
    examine(found, needed, files, faults)
    if manifest.names is not None:
        try:
            check_names(found, manifest.names, directory / MANIFEST)
        except ValueError as error:
            found.add(MANIFEST, str(error), remedies[True])
    return found


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a finished dataset.

    Raises:
        ValueError: if the dataset is not finished, or the manifest is damaged or of another version.
    """
    path = directory / MANIFEST
    if not path.exists():
        command = "prepare"
        with suppress(OSError, ValueError):
            command = "prepare" if parse_manifest(directory / UNFINISHED).extraction is None else "extract"
        raise ValueError(f"{directory} must hold {MANIFEST}: {command} has not finished here; run it again")
    try:
        return parse_manifest(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be what prepare or extract wrote, got: {error}; run it again") from error


def parse_manifest(path: Path) -> Manifest:
    """Read a manifest, and check the types of all values.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is not a manifest, or has another version.
    """
    content = load_json(path)
    form = content.get("form") if isinstance(content, dict) else None
    if type(form) is int and form != FORM:
        raise ValueError(f"form {form}, expected {FORM}, so use a new directory")
    return convert(Manifest, content)


def find_damage(path: Path, entry: Entry) -> str | None:
    """Return an error message if a file differs from its entry in the manifest, else None."""
    if not path.exists():
        return f"{path} is missing"
    try:
        check_regular(path)
    except ValueError as error:
        return str(error)
    if (size := path.stat().st_size) != entry.bytes:
        return f"{path} must have {entry.bytes} bytes, as in the manifest, got {size}"
    if (digest := _digest(path, size, path.stat().st_mtime_ns)) != entry.sha256:
        return f"{path} must have the digest {entry.sha256[:12]}..., as in the manifest, got {digest[:12]}..."
    return None


@lru_cache
def _digest(path: Path, size: int, modified: int) -> str:
    """Compute the SHA-256 of a file. The result is cached until its size or modification time changes."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
