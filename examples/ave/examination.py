"""Whether the arrays of a set are whole and fit each other: all that is wrong is found, not only the first.

The release and what ``prepare`` makes of it hold the same arrays, so both are examined here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ave.data import AVE_CATEGORIES, SPLITS, AVEData
from ave.layout import AXES, FILES, ReleaseFile
from ave.storage import NotOpenedError, StoredArray

__all__ = ["Fault", "Found", "Verdicts", "examine", "raise_faults"]

Verdicts: TypeAlias = Iterator[tuple[str, str]]
"""What is wrong with a file: in a word or two, and in a line."""


class Fault(NamedTuple):
    """What is wrong with one file, or between two."""

    files: tuple[str, ...]
    """The names of FILES, or that of the annotations."""
    verdict: str
    """In a word or two."""
    message: str
    """In a line, with what to do."""


@dataclass
class Found:
    """What stands in a directory, and all that is wrong with it."""

    paths: Mapping[str, Path]
    """Where each of FILES is or should be, by name."""
    arrays: dict[str, StoredArray] = field(default_factory=dict)
    """Those that could be opened."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The labels, float32, and the rows of the splits, int64, that are as they must be."""
    sizes: dict[str, tuple[int, Path]] = field(default_factory=dict)
    """The size of every axis, and the file that says so."""
    names: tuple[str, ...] | None = None
    """The YouTube id of every video."""
    faults: list[Fault] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def splits(self) -> dict[str, Tensor]:
        """The rows of the splits that could be read."""
        return {split: self.tensors[f"{split}_order"] for split in SPLITS if f"{split}_order" in self.tensors}

    def to_data(self) -> AVEData:
        """The set, if nothing is wrong; features stay on disk.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if anything else is wrong.
        """
        raise_faults(self.faults)
        labels = self.tensors["labels"]
        columns = labels.shape[-1]
        return AVEData(
            visual=self.arrays["visual_feature"],
            audio=self.arrays["audio_feature"],
            labels=labels,
            splits=self.splits(),
            categories=AVE_CATEGORIES if columns == len(AVE_CATEGORIES) + 1 else tuple(map(str, range(columns - 1))),
            names=self.names,
            video_labels=self.tensors.get("mil_labels"),
            background_visual=self.arrays.get("visual_feature_noisy"),
            background_audio=self.arrays.get("audio_feature_noisy"),
            background_labels=self.tensors.get("labels_noisy"),
        )


def raise_faults(faults: Sequence[Fault]) -> None:
    """Say in a line what is wrong: the first fault in full, and where there are others.

    Raises:
        FileNotFoundError: if the first fault is that a file is missing.
        ValueError: if it is another.
    """
    if not faults:
        return
    first, *others = faults
    verdicts: dict[str, list[str]] = {}
    for fault in others:
        verdicts.setdefault(" and ".join(fault.files), []).append(fault.verdict)
    also = ", ".join(f"{files} ({', '.join(said)})" for files, said in verdicts.items())
    kind = FileNotFoundError if first.verdict == "missing" else ValueError
    raise kind(f"{first.message}; and also {also}" if also else first.message)


def examine(
    paths: Mapping[str, Path],
    needed: Collection[str],
    remedy: Callable[[ReleaseFile], str],
    files: Sequence[ReleaseFile] = FILES,
) -> Found:
    """See which arrays there are, and whether they are whole and fit each other.

    Args:
        paths: where each of ``files`` is or should be.
        needed: the names of those that must be there.
        remedy: says what to do about one that is missing or wrong.
        files: those to look at.
    """
    found = Found(paths)
    for file in files:
        path = paths[file.name]
        if path.exists():
            verdicts = list(_examine_file(file, found))
        else:
            verdicts = [("missing", f"{path} is missing")] if file.name in needed else []
        found.faults += [
            Fault((file.name,), verdict, message if verdict == "not opened" else f"{message}; {remedy(file)}")
            for verdict, message in verdicts
        ]
    _examine_splits(found, remedy)
    unneeded = [path.name for name, path in paths.items() if not path.exists() and name not in needed]
    if unneeded:
        found.remarks.append(f"not there, and not needed here: {', '.join(unneeded)}")
    return found


def _examine_file(file: ReleaseFile, found: Found) -> Verdicts:
    path = found.paths[file.name]
    try:
        array = found.arrays[file.name] = StoredArray(path, file.dataset)
        verdicts = list(_examine_shape(file, array, found))
        yield from verdicts
        if verdicts or file.is_features:
            return
        values = array[:]
    except NotOpenedError as error:
        yield "not opened", str(error)
        return
    except ValueError as error:
        yield "unreadable", str(error)
        return
    except OSError as error:
        yield "unreadable", f"{path} must be whole, got: {error}"
        return
    if file.axes == "R":
        if array.dtype.kind == "f":
            yield "not integers", f"{path} must hold integers, the rows of a split, got {array.dtype}"
            return
        values = values.long()
        verdicts = list(_examine_order(path, values, found.sizes.get("N", (None, path))[0]))
    else:
        values = values.float()
        verdicts = list(_examine_one_hot(path, values))
    if not verdicts:
        found.tensors[file.name] = values
    yield from verdicts


def _examine_shape(file: ReleaseFile, array: StoredArray, found: Found) -> Verdicts:
    sizes, own = found.sizes, dict(zip(file.axes, array.shape, strict=False))
    expected = ", ".join(str(sizes[axis][0]) if axis in sizes else "any" for axis in file.axes)
    if len(array.shape) != len(file.axes) or 0 in array.shape:
        yield "wrong shape", f"{array.path} must have the shape ({expected}), none of it empty, got {array.shape}"
        return
    if own.get("L") == 1:
        yield "wrong shape", f"{array.path} must have two labels or more, of which the last is background, got one"
        return
    differing = [axis for axis in own if axis in sizes and own[axis] != sizes[axis][0]]
    if differing:
        why = ", ".join(
            f"{own[axis]} {AXES[axis]} where {sizes[axis][1].name} has {sizes[axis][0]}" for axis in differing
        )
        yield "wrong shape", f"{array.path} must have the shape ({expected}), got {array.shape}: {why}"
    for axis in AXES.keys() & own.keys() - sizes.keys():
        sizes[axis] = (own[axis], array.path)


def _examine_one_hot(path: Path, labels: Tensor) -> Verdicts:
    right = ((labels == 0) | (labels == 1)).all(-1) & (labels.sum(-1) == 1)
    if not right.all():
        first = tuple(torch.nonzero(~right)[0].tolist())
        place = ", second ".join(map(str, first))
        came = f"values from {labels[first].min():g} to {labels[first].max():g} that sum to {labels[first].sum():g}"
        count = f"so or alike in {int((~right).sum())} of {right.numel()}"
        yield "not one-hot", f"{path} must hold one-hot labels, a 1 among zeros, got {came} in row {place} ({count})"


def _examine_order(path: Path, rows: Tensor, videos: int | None) -> Verdicts:
    least, most = int(rows.min()), int(rows.max())
    if least < 0 or (videos is not None and most >= videos):
        limit = "on" if videos is None else f"to {videos - 1}"
        yield "out of range", f"{path} must hold row numbers from 0 {limit}, got {least} to {most}"
    values, counts = rows.unique(return_counts=True)
    if len(twice := values[counts > 1]):
        yield (
            "repeats",
            f"{path} must hold every row once, got {len(twice)} more often, for example row {int(twice[0])}",
        )


def _examine_splits(found: Found, remedy: Callable[[ReleaseFile], str]) -> None:
    rows = {
        file: set(found.tensors[file.name].tolist())
        for file in FILES
        if file.axes == "R" and file.name in found.tensors
    }
    for (file, own), (other, others) in combinations(rows.items(), 2):
        if common := sorted(own & others):
            came = f"got {len(common)}, for example row {common[0]}"
            message = f"{found.paths[file.name]} and {found.paths[other.name].name} must have no row in common, {came}"
            found.faults.append(Fault((file.name, other.name), "overlap", f"{message}; {remedy(file)}"))
    if len(rows) == len(SPLITS) and "N" in found.sizes:
        left = sorted(set(range(found.sizes["N"][0])).difference(*rows.values()))
        if left:
            found.remarks.append(f"{len(left)} videos are in no split, for example row {left[0]}")
