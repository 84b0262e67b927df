"""Check and open the AVE release, or your own dataset in its layout: HDF5 or .npy files.

Axes: N videos, T segments, H x W positions, C visual channels, A audio channels, L labels with background as the last,
M extra background videos, R rows of a split.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ave.data.arrays import StoredArray
from ave.data.dataset import AVE_CATEGORIES, SPLITS, AVEData
from ave.data.layout import ANNOTATIONS, CATEGORIES, DOWNLOAD, FILES, REPOSITORY, ReleaseFile
from ave.reading import read_text
from ave.videos.extraction import Extraction
from crossmodal_attn import padding_mask

__all__ = ["Found", "Problem", "check_names", "examine", "examine_release"]

SUFFIXES = (".h5", ".npy")
AVE_SIZES = {"N": 4143, "L": len(AVE_CATEGORIES) + 1}
AXES = {
    "N": "videos",
    "T": "segments",
    "H": "rows of positions",
    "W": "columns of positions",
    "C": "visual channels",
    "A": "audio channels",
    "L": "labels",
    "M": "background videos",
    "R": "rows",
}
MOST = {"N": 10**7, "M": 10**7, "R": 10**7, "C": 2**14, "A": 2**14}
"""Size limits of axes. The network has matrices of channels x channels."""
MOST_NUMBERS = 2**27
"""Limit for the number of values in a file that is read as a whole, and in the features of one video."""
Verdict = Literal["wrong", "missing", "not opened"]


class Problem(NamedTuple):
    """A problem with a file."""

    file: str
    """The name of the file, without its suffix if it is in the table."""
    message: str
    """What was expected, what was found, and what to do, in one line."""
    verdict: Verdict = "wrong"


@dataclass
class Found:
    """The files of a dataset, and all problems with them."""

    paths: Mapping[str, Path]
    """The path of each file by name, even if it is missing."""
    categories: tuple[str, ...] | None = None
    """The names of the categories, if the dataset has them."""
    declared_ave: bool = False
    """Whether a manifest says that the dataset is AVE."""
    extraction: Extraction | None = None
    """How the features were extracted, if that is known."""
    arrays: dict[str, StoredArray] = field(default_factory=dict)
    """The arrays that could be opened."""
    sizes: dict[str, tuple[int, Path]] = field(default_factory=dict)
    """The size of each axis, and the file where it was found."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The content of the files without a problem: labels, float32; rows of splits and lengths, int64."""
    names: tuple[str, ...] | None = None
    """The YouTube id of each video."""
    annotations: list[list[str]] | None = None
    """Category, YouTube id, quality, start and end of each video."""
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    title: str = ""

    @property
    def ids(self) -> str:
        """What the names of its videos are."""
        return "YouTube ids" if self.is_ave else "names"

    @property
    def is_ave(self) -> bool:
        """Whether the dataset is AVE: a manifest says so, or all known sizes and names are those of AVE."""
        known = {axis: self.sizes[axis][0] for axis in AVE_SIZES if axis in self.sizes}
        return self.declared_ave or (known.items() <= AVE_SIZES.items() and self.categories in (None, AVE_CATEGORIES))

    @property
    def splits(self) -> dict[str, Tensor]:
        """The rows of the splits that could be read."""
        return {split: self.tensors[f"{split}_order"] for split in SPLITS if f"{split}_order" in self.tensors}

    def lengths_of(self, file: ReleaseFile) -> Tensor | None:
        """Return the lengths of the videos in a file of features in seconds, or None without padding."""
        return self.tensors.get("lengths_noisy" if file.is_extra else "lengths")

    def add(self, file: str, message: str, remedy: str = "", verdict: Verdict = "wrong") -> None:
        """Add a problem. A download is suggested only for AVE."""
        if remedy and (self.is_ave or not remedy.startswith(DOWNLOAD)):
            message = f"{message}; {remedy}"
        self.problems.append(Problem(file, message, verdict))

    def raise_problems(self) -> None:
        """Raise the first problem, if there is one, and name the files of all others.

        Raises:
            FileNotFoundError: if the first problem is a missing file.
            ValueError: if it is any other problem.
        """
        if self.problems:
            first, *others = self.problems
            also = ", ".join(dict.fromkeys(problem.file for problem in others))
            kind = FileNotFoundError if first.verdict == "missing" else ValueError
            raise kind(f"{first.message}; there are also problems with {also}: see `check`" if also else first.message)

    def to_data(self) -> AVEData:
        """Return the dataset, without labels if they were not read. Features stay on disk.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if there is any other problem.
        """
        self.raise_problems()
        unlabeled = torch.zeros(*self.arrays["audio_feature"].shape[:2], 0)
        labels, lengths = self.tensors.get("labels", unlabeled), self.tensors.get("lengths")
        if lengths is not None:  # there are no labels at padding
            labels = labels.masked_fill(padding_mask(lengths, labels.shape[1]).unsqueeze(-1), 0)
        numbers = tuple(map(str, range(labels.shape[-1] - 1)))
        return AVEData(
            visual=self.arrays["visual_feature"],
            audio=self.arrays["audio_feature"],
            labels=labels,
            splits=self.splits,
            categories=self.categories or (AVE_CATEGORIES if self.is_ave else numbers),
            names=self.names,
            video_labels=self.tensors.get("mil_labels"),
            background_visual=self.arrays.get("visual_feature_noisy"),
            background_audio=self.arrays.get("audio_feature_noisy"),
            background_labels=self.tensors.get("labels_noisy"),
            lengths=lengths,
            background_lengths=self.tensors.get("lengths_noisy"),
            eventless_category=0 if self.is_ave else None,
            is_ave=self.is_ave,
            extraction=self.extraction,
        )


def examine_release(directory: Path, needed: Collection[str], files: Sequence[ReleaseFile] = FILES) -> Found:
    """Find the files of a release in a directory, and check that they are not damaged and fit together.

    Args:
        directory: the directory of the release.
        needed: the names of the required files.
        files: the files to check.

    Raises:
        FileNotFoundError: if ``directory`` is not a directory.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory: expected the one with the files of the AVE release")
    paths, faults = {}, {}
    for file in files:
        names = (file.name, "right_labels") if file.name == "labels" else (file.name,)
        places = [directory / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        there = [path for path in places if path.exists()]
        paths[file.name] = (there or places)[0]
        if len(twins := [path.name for path in there if path.stem == there[0].stem]) > 1:
            message = f"{there[0]} and {twins[1]} must not both exist: remove one of them"
            faults[file.name] = Problem(file.name, message)
        elif not there:
            faults[file.name] = Problem(file.name, f"{places[0]} is missing", "missing")
    found = Found(paths)
    if (path := directory / CATEGORIES).exists():
        try:
            found.categories = tuple(_read_lines(path))
        except ValueError as error:
            found.add(CATEGORIES, str(error))
    examine(found, needed, files, faults)
    if (path := directory / ANNOTATIONS).exists():
        try:
            annotations = _read_annotations(path)
            check_names(found, [name for _, name, *_ in annotations], path)
            found.annotations = annotations
        except ValueError as error:
            found.add(ANNOTATIONS, str(error), REPOSITORY)
    else:
        link = f"; {REPOSITORY}" if found.is_ave else ""
        found.remarks.append(f"{ANNOTATIONS} is not there, so videos have no {found.ids}{link}")
    return found


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that are not blank."""
    try:
        return [line.strip() for line in read_text(path, "utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be text in utf-8, got: {error}") from error


def _read_annotations(path: Path) -> list[list[str]]:
    """Read the annotations. Their lines are in the order of the rows."""
    fields = [line.split("&") for line in _read_lines(path)]
    if fields and fields[0][0] == "Category":
        del fields[0]
    for parts in fields:
        if len(parts) != 5:
            came = "&".join(parts)[:60]
            raise ValueError(f"{path} must hold lines category&YouTube id&quality&start&end, got {came!r}")
    return fields


def check_names(found: Found, names: Sequence[str], path: Path) -> None:
    """Set the names of all videos.

    Raises:
        ValueError: if the number of names is not the number of videos.
    """
    videos, owner = found.sizes.get("N", (len(names), path))
    if len(names) != videos:
        raise ValueError(f"{path} must name each of the {videos} videos of {owner.name}, got {len(names)} names")
    found.names = tuple(names)


def examine(found: Found, needed: Collection[str], files: Sequence[ReleaseFile], faults: Mapping[str, Problem]) -> None:
    """Open the files of a dataset, read all but the features, and check that they are valid and fit together.

    Args:
        found: has the path of each file. Arrays, sizes, tensors and problems are added to it.
        needed: the names of the required files. A dataset other than AVE does not need val_order and background videos.
        files: the files to check.
        faults: problems that are already known, by the name of the file, without remedies.
    """
    # ---- Open the files. Their sizes tell whether the dataset is AVE ----
    faults = dict(faults)
    for file in files:
        if file.name not in faults:
            try:
                array = StoredArray(found.paths[file.name], file.dataset)
                if "HW" in file.axes and len(array.shape) == 3:  # a vector is a map with one position
                    array.shape = (*array.shape[:2], 1, 1, array.shape[2])
                found.arrays[file.name] = array
                _check_shape(found, file, array)
            except OSError as error:  # the file may be intact
                faults[file.name] = Problem(file.name, str(error), "not opened")
            except ValueError as error:
                faults[file.name] = Problem(file.name, str(error))

    # ---- Find which files may be missing ----
    absent = {file.name for file in files if not found.paths[file.name].exists()}
    if not found.is_ave:
        extra = {file.name for file in files if file.is_extra}
        needed = set(needed) - ({"val_order"} & absent) - (extra if extra <= absent else set())
        if "val_order" in absent:
            found.remarks.append(f"{found.paths['val_order'].name} is not there, so training keeps its last epoch")

    # ---- Read labels, rows and lengths ----
    for file in files:
        if fault := faults.get(file.name):
            if fault.verdict != "missing" or file.name in needed:
                remedy = "" if fault.verdict == "not opened" else file.remedy
                found.add(file.name, fault.message, remedy, fault.verdict)
        elif not file.is_features:
            try:
                found.tensors[file.name] = _read_values(found, file)
            except (OSError, ValueError) as error:
                found.add(file.name, str(error), file.remedy)

    # ---- Compare the files ----
    if found.categories is not None:
        expected = found.sizes["L"][0] - 1 if "L" in found.sizes else len(found.categories)
        distinct = len(set(found.categories) - {"background"})
        if not distinct == len(found.categories) == expected:
            message = f"{CATEGORIES} must hold {expected} different names, one per line in the order of the labels, "
            message += f"without background, got {len(found.categories)} lines with {distinct} such names"
            found.add(CATEGORIES, message)

    for (split, own), (other, others) in combinations(found.splits.items(), 2):
        if len(common := own[torch.isin(own, others)]):
            both = f"{found.paths[f'{split}_order']} and {found.paths[f'{other}_order'].name}"
            came = f"got {len(common)}, for example row {int(common.min())}"
            remedy = next(file.remedy for file in files if file.name == f"{split}_order")
            found.add(f"{split}_order", f"{both} must have no row in common, {came}", remedy)
    if found.splits and "N" in found.sizes and not any(problem.file.endswith("_order") for problem in found.problems):
        left = torch.ones(found.sizes["N"][0]).index_fill(0, torch.cat(list(found.splits.values())), 0).nonzero()
        if len(left):
            found.remarks.append(f"{len(left)} videos are in no split, for example row {int(left[0])}")


def _check_shape(found: Found, file: ReleaseFile, array: StoredArray) -> None:
    """Check the shape of an array, and add the sizes of its axes.

    Raises:
        ValueError: if the shape does not fit the earlier files, or is too large.
    """
    sizes, own, must = found.sizes, dict(zip(file.axes, array.shape, strict=False)), f"{array.path} must"
    shape = f"have the shape ({', '.join(str(sizes[axis][0]) if axis in sizes else 'any' for axis in file.axes)})"
    if len(array.shape) != len(file.axes) or 0 in array.shape:
        raise ValueError(f"{must} {shape}, with no size 0, got {array.shape}")
    if differing := [axis for axis in own if axis in sizes and own[axis] != sizes[axis][0]]:
        why = (f"{own[axis]} {AXES[axis]} where {sizes[axis][1].name} has {sizes[axis][0]}" for axis in differing)
        raise ValueError(f"{must} {shape}, got {array.shape}: {', '.join(why)}")
    if own.get("L") == 1:
        raise ValueError(f"{must} have at least two labels, where the last is background, got one")
    # A file may declare any size, so check it before memory is allocated.
    for axis, size in own.items():
        if size > (most := MOST.get(axis, MOST_NUMBERS)):
            raise ValueError(f"{must} have at most {most} {AXES[axis]}, got {size}")
    numbers, what = prod(array.shape), "numbers"
    if file.is_features:
        numbers, what = prod(array.shape[1:]), "numbers per video"
    if numbers > MOST_NUMBERS:
        raise ValueError(f"{must} have at most {MOST_NUMBERS} {what}, got {numbers}, in the shape {array.shape}")
    videos, owner = sizes.get("N", (MOST["R"], array.path))
    if own.get("R", 0) > videos:
        raise ValueError(f"{must} hold at most the {videos} rows of {owner.name}, got {own['R']} rows")
    sizes.update({axis: (size, array.path) for axis, size in own.items() if axis not in sizes and axis != "R"})
    if "H" in own and own["H"] > own["C"]:
        read = f"{array.path.name} is read as {own['H']} x {own['W']} positions with {own['C']} channels"
        axes = ", ".join(file.axes)
        found.remarks.append(f"{read}: if channels come first in your maps, move them last, to ({axes})")


def _read_values(found: Found, file: ReleaseFile) -> Tensor:
    """Read and check labels, float32, or rows of a split or lengths, int64.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the values are not valid labels, rows or lengths.
    """
    array = found.arrays[file.name]
    values, must = array[:], f"{array.path} must hold"
    if len(file.axes) > 1:
        total, may_be_zero = values.sum(-1), file.name == "labels" and not found.is_ave
        right = ((values == 0) | (values == 1)).all(-1) & ((total == 1) | (may_be_zero & (total == 0)))
        if not right.all():
            first = tuple(torch.nonzero(~right)[0].tolist())
            came = f"values from {values[first].min():g} to {values[first].max():g} that sum to {total[first]:g}"
            place = f"row {', second '.join(map(str, first))} ({int((~right).sum())} of {right.numel()} are wrong)"
            raise ValueError(f"{must} one-hot labels, one 1 and zeros, got {came} in {place}")
        return values.float()
    content = "the seconds of each video" if file.is_lengths else "row numbers"
    if array.dtype.kind == "f":
        raise ValueError(f"{must} integers, {content}, got {array.dtype}")
    values = values.long()
    axis, start = ("T", 1) if file.is_lengths else ("N", 0)
    end = found.sizes[axis][0] - 1 + start if axis in found.sizes else MOST.get(axis, MOST_NUMBERS)
    least, most = int(values.min()), int(values.max())
    if least < start or most > end:
        raise ValueError(f"{must} {content}, from {start} to {end}, got {least} to {most}")
    rows, counts = values.unique(return_counts=True)
    if not file.is_lengths and len(twice := rows[counts > 1]):
        raise ValueError(f"{must} each row once, got {len(twice)} more often, for example row {int(twice[0])}")
    return values
