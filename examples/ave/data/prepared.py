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

from ave.data.comparison import compare_labels
from ave.data.dataset import AVEData, Setting
from ave.data.release import (
    FILES,
    Found,
    Problem,
    ReleaseFile,
    examine_files,
    examine_release,
    needed_files,
    scan_features,
)
from ave.reading import check_regular, convert, load_json

__all__ = [
    "FORM",
    "MANIFEST",
    "UNFINISHED",
    "Entry",
    "Manifest",
    "Source",
    "examine_prepared",
    "examine_set",
    "find_damage",
    "inspect_set",
    "is_prepared",
    "parse_manifest",
    "read_features",
    "read_manifest",
    "read_prepared",
    "read_set",
]

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


def read_set(directory: Path, setting: Setting = "supervised", *, background_videos: bool = True) -> AVEData:
    """Open a dataset, the release or a prepared one; features stay on disk.

    Args:
        directory: of the release, or prepared.
        setting: decides which files must be there; the others are read if they are there.
        background_videos: whether the extra videos of AVE must be there for the weak setting.

    Raises:
        FileNotFoundError: if the directory or a file is missing.
        ValueError: if a file is damaged or does not fit the others. Of a prepared dataset every byte is checked, of
            the release not the features.
    """
    return examine_set(directory, needed_files(setting, background_videos=background_videos)).to_data()


def read_prepared(directory: Path | str, setting: Setting = "supervised") -> AVEData:
    """Open what ``prepare`` wrote; arguments and errors as :func:`read_set`."""
    return examine_prepared(Path(directory), needed_files(setting)).to_data()


def read_features(directory: Path) -> Found:
    """Open the features of a dataset, whose labels need not be there.

    Args:
        directory: of the release, or prepared.

    Raises:
        FileNotFoundError: if the directory or features are missing.
        ValueError: if the features, the orders or the annotations are damaged or do not fit each other.
    """
    needed = frozenset(file.name for file in FILES if file.axes[0] == "N" and file.is_features)
    found = examine_set(directory, needed, [file for file in FILES if file.name in needed or file.axes in ("N", "R")])
    found.raise_problems()
    return found


def examine_set(directory: Path, needed: Collection[str], files: Sequence[ReleaseFile] = FILES) -> Found:
    """Check the files of a dataset, the release or a prepared one; arguments as :func:`examine_prepared`."""
    return (examine_prepared if is_prepared(directory) else examine_release)(directory, needed, files)


def inspect_set(directory: Path, setting: Setting = "supervised", *, background_videos: bool = True) -> Found:
    """Check all of a dataset: its labels against each other, and the release's features from end to end.

    Args:
        directory: of the release, or prepared.
        setting: decides which files must be there; the others are checked if they are there.
        background_videos: as :func:`read_set` takes it.

    Raises:
        FileNotFoundError: if the directory is missing.
        ValueError: if it holds a prepared dataset without a manifest that can be read.
    """
    found = examine_set(directory, needed_files(setting, background_videos=background_videos))
    compare_labels(found)
    if is_prepared(directory):  # whose digests have been checked
        found.title = f"{directory}: prepared in {read_manifest(directory).dtype}, for the {setting} setting"
    else:
        scan_features(found)
        kind = "the AVE release" if found.is_ave else "a dataset in the form of the AVE release"
        found.title = f"{directory}: {kind}, for the {setting} setting"
    return found


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
    damages = {file: find_damage(paths[file.name], listed[file.name]) for file in files if file.name in listed}
    damaged = [Problem(file.name, f"{damage}; {file.remedy}") for file, damage in damages.items() if damage]
    # A file that is there without an entry cannot be checked, so it does not count.
    for file in files:
        if file.name not in listed and paths[file.name].exists() and file.name in needed:
            came = f"{paths[file.name]} is missing in {MANIFEST}, which has the digests"
            damaged.append(Problem(file.name, f"{came}; {file.remedy}", "missing"))
    found = Found(paths, names=manifest.names, categories=manifest.categories, declared_ave=manifest.ave)
    examine_files(found, needed, [file for file in files if file.name in listed or not paths[file.name].exists()])
    wrong = {problem.file for problem in damaged}
    found.problems = damaged + [problem for problem in found.problems if problem.file not in wrong]
    videos, owner = found.sizes.get("N", (None, None))
    if videos is not None and owner is not None and found.names is not None and len(found.names) != videos:
        came = f"{directory / MANIFEST} must have names for the {videos} videos of {owner.name}, got {len(found.names)}"
        found.problems.append(Problem(MANIFEST, f"{came}; run prepare again"))
        found.names = None
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
