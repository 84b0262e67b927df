"""The AVE release as it is downloaded: a directory of HDF5 files, checked and opened where they lie.

Axes: N videos, T segments, H x W positions, C visual channels, A audio channels, L labels with background as the last,
M extra background videos, R rows of a split.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ave.data.arrays import StoredArray
from ave.data.dataset import AVE_CATEGORIES, SPLITS, AVEData, Setting
from ave.results.files import read_text

__all__ = [
    "ANNOTATIONS",
    "FILES",
    "BadValues",
    "Found",
    "Problem",
    "ReleaseFile",
    "examine_files",
    "examine_release",
    "needed_files",
    "read_release",
    "scan_features",
]

ANNOTATIONS = "Annotations.txt"
REPOSITORY = "data/ of https://github.com/YapengTian/AVE-ECCV18"
DRIVE = "https://drive.google.com/file/d/{}/view"
AXES = {
    "N": "videos",
    "T": "segments",
    "H": "rows of positions",
    "W": "columns of positions",
    "C": "visual channels",
    "A": "audio channels",
    "L": "labels",
    "M": "background videos",
}
MOST = {"N": 10**7, "M": 10**7, "R": 10**7, "C": 2**14, "A": 2**14}
"""The largest sizes of axes that are read; the network has matrices of channels x channels."""
MOST_NUMBERS = 2**27
"""The most numbers that are in memory at once: of all labels, of an order, or of the features of one video."""
UNNEEDED = {
    "labels_closs.h5": "labels without categories, which labels.h5 has too",
    **{f"{split}_order_match.h5": "of another task, cross-modal matching" for split in SPLITS},
    "prob_label.h5": "another project's file, not the labels",
}


class ReleaseFile(NamedTuple):
    """A file of the release."""

    name: str
    """Its name without the suffix."""
    content: str
    axes: str
    remedy: str
    """Where to download it."""
    weak: bool = False
    """Whether only the weak setting needs it."""

    @property
    def dataset(self) -> str:
        """The name of its array in the HDF5 file."""
        return "order" if self.axes == "R" else "avadataset"

    @property
    def is_features(self) -> bool:
        """Whether it holds features, and not labels or rows."""
        return self.axes[-1] in "CA"


def _source(place: str) -> str:
    return f"the release has it: {place if ' ' in place else DRIVE.format(place)}"


# Sizes in the first files decide what the later files must fit.
FILES = (
    ReleaseFile("labels", "labels of seconds", "NTL", _source(REPOSITORY)),
    ReleaseFile("visual_feature", "visual features", "NTHWC", _source("1hQwbhutA3fQturduRnHMyfRqdrRHgmC9")),
    ReleaseFile("audio_feature", "audio features", "NTA", _source("1F6p4BAOY-i0fDXUOhG7xHuw_fnO5exBS")),
    *(ReleaseFile(f"{split}_order", f"rows of {split}", "R", _source(REPOSITORY)) for split in SPLITS),
    ReleaseFile("mil_labels", "labels of videos", "NL", _source(REPOSITORY), weak=True),
    ReleaseFile("labels_noisy", "extra labels", "ML", _source(REPOSITORY), weak=True),
    ReleaseFile("visual_feature_noisy", "extra visual", "MTHWC", _source("1I3OtOHJ8G1-v5G2dHIGCfevHQPn-QyLh"), True),
    ReleaseFile("audio_feature_noisy", "extra audio", "MTA", _source(REPOSITORY), weak=True),
)
"""All files that the two settings need."""


def needed_files(setting: Setting) -> frozenset[str]:
    """Return the names of the files that a setting cannot do without.

    Raises:
        ValueError: if there is no such setting.
    """
    if setting not in ("supervised", "weak"):
        raise ValueError(f'setting must be "supervised" or "weak", got {setting!r}')
    return frozenset(file.name for file in FILES if setting == "weak" or not file.weak)


class Problem(NamedTuple):
    """One thing that is wrong with a file."""

    file: str
    """The name of the file without its suffix, or that of the annotations."""
    message: str
    """What was expected, what came, and what to do, in one line."""
    missing: bool = False


@dataclass
class Found:
    """The files of a dataset that a directory holds, and all problems with them."""

    paths: Mapping[str, Path]
    """Where each file is or should be, by name."""
    arrays: dict[str, StoredArray] = field(default_factory=dict)
    """The arrays that could be opened."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The labels, float32, and the rows of the splits, int64, that have no problem."""
    sizes: dict[str, tuple[int, Path]] = field(default_factory=dict)
    """The size of every axis, and the file that decided it."""
    names: tuple[str, ...] | None = None
    """The YouTube id of every video."""
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    title: str = ""

    def splits(self) -> dict[str, Tensor]:
        """Return the rows of the splits that could be read."""
        return {split: self.tensors[f"{split}_order"] for split in SPLITS if f"{split}_order" in self.tensors}

    def raise_problems(self) -> None:
        """Raise the first problem, if there is any, and name the files of the others.

        Raises:
            FileNotFoundError: if the first problem is that a file is missing.
            ValueError: if it is another.
        """
        if self.problems:
            first, *others = self.problems
            also = ", ".join(dict.fromkeys(problem.file for problem in others))
            kind = FileNotFoundError if first.missing else ValueError
            raise kind(f"{first.message}; and more is wrong with {also}: see `check`" if also else first.message)

    def to_data(self) -> AVEData:
        """Return the dataset, if there is no problem; features stay on disk.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if anything else is wrong.
        """
        self.raise_problems()
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


def read_release(directory: Path | str, setting: Setting = "supervised") -> AVEData:
    """Open the HDF5 files of an AVE release. Features, of any width, stay on disk and are read by rows.

    Args:
        directory: holds ``visual_feature.h5``, ``audio_feature.h5``, ``labels.h5`` (or ``right_labels.h5``),
            ``train_order.h5``, ``val_order.h5``, ``test_order.h5``; for the weak setting also ``mil_labels.h5``,
            ``visual_feature_noisy.h5``, ``audio_feature_noisy.h5``, ``labels_noisy.h5``. ``Annotations.txt`` gives
            the videos their names.
        setting: decides which files must be there; the others are read if they are there.

    Raises:
        FileNotFoundError: if the directory or a file is missing.
        ValueError: if a file is not HDF5, lacks its dataset, or does not fit the others. Features are not read.
    """
    return examine_release(Path(directory), needed_files(setting)).to_data()


def examine_release(directory: Path, needed: Collection[str], files: Sequence[ReleaseFile] = FILES) -> Found:
    """Find the HDF5 files of a release in a directory, and check that they are whole and fit each other.

    Args:
        directory: of the release.
        needed: the names of the files that must be there.
        files: the files to look at.

    Raises:
        FileNotFoundError: if there is no such directory.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory: expected the one with the files of the AVE release")
    paths = {file.name: directory / f"{file.name}.h5" for file in files}
    if (renamed := directory / "right_labels.h5").exists() and not (directory / "labels.h5").exists():
        paths["labels"] = renamed
    found = examine_files(paths, needed, files)
    annotations = directory / ANNOTATIONS
    if annotations.exists():
        try:
            found.names = _read_names(annotations, found.sizes)
        except ValueError as error:
            found.problems.append(Problem(ANNOTATIONS, f"{error}; {_source(REPOSITORY)}"))
    else:
        found.remarks.append(f"{ANNOTATIONS} is not there, so videos have no YouTube ids; {_source(REPOSITORY)}")
    found.remarks += [f"{name} is not needed: {why}" for name, why in UNNEEDED.items() if (directory / name).exists()]
    return found


def _read_names(path: Path, sizes: Mapping[str, tuple[int, Path]]) -> tuple[str, ...]:
    """Read the YouTube ids of the annotations, whose lines are in the order of the rows."""
    try:
        lines = [line for line in read_text(path, "utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be text in utf-8, got: {error}") from error
    lines = lines[1:] if lines and lines[0].startswith("Category&") else lines
    fields = [line.split("&") for line in lines]
    for line, parts in zip(lines, fields, strict=True):
        if len(parts) != 5:
            raise ValueError(f"{path} must hold lines category&YouTube id&quality&start&end, got {line[:60]!r}")
    videos, owner = sizes.get("N", (len(lines), path))
    if len(lines) != videos:
        raise ValueError(f"{path} must hold a line for each of the {videos} videos of {owner.name}, got {len(lines)}")
    return tuple(name for _, name, *_ in fields)


def examine_files(paths: Mapping[str, Path], needed: Collection[str], files: Sequence[ReleaseFile]) -> Found:
    """Check that arrays are there, whole, and fit each other.

    Args:
        paths: where each of ``files`` is or should be.
        needed: the names of those that must be there.
        files: the files to look at.
    """
    found = Found(paths)
    for file in files:
        path = paths[file.name]
        if path.exists():
            found.problems += [Problem(file.name, f"{message}; {file.remedy}") for message in _check(file, found)]
        elif file.name in needed:
            confused = file.name == "labels" and path.with_name("prob_label.h5").exists()
            hint = f"prob_label.h5 is {UNNEEDED['prob_label.h5']}; " if confused else ""
            found.problems.append(Problem(file.name, f"{path} is missing; {hint}{file.remedy}", missing=True))
    checked = [file for file in files if file.axes == "R" and file.name in found.tensors]
    orders = {file: set(found.tensors[file.name].tolist()) for file in checked}
    for (file, own), (other, others) in combinations(orders.items(), 2):
        if common := sorted(own & others):
            message = f"{paths[file.name]} and {paths[other.name].name} must have no row in common, "
            message += f"got {len(common)}, for example row {common[0]}; {file.remedy}"
            found.problems.append(Problem(file.name, message))
    if len(orders) == len(SPLITS) and "N" in found.sizes:
        left = sorted(set(range(found.sizes["N"][0])).difference(*orders.values()))
        if left:
            found.remarks.append(f"{len(left)} videos are in no split, for example row {left[0]}")
    if absent := [path.name for name, path in paths.items() if not path.exists() and name not in needed]:
        found.remarks.append(f"not there, and not needed here: {', '.join(absent)}")
    return found


def _check(file: ReleaseFile, found: Found) -> Iterator[str]:
    """Open a file, read it if it does not hold features, enter it in ``found``, and yield what is wrong."""
    path = found.paths[file.name]
    try:
        array = found.arrays[file.name] = StoredArray(path, file.dataset)
        if problem := _check_shape(file, array, found):
            yield problem
            return
        if file.is_features:
            return
        values = array[:]
    except (OSError, ValueError) as error:
        yield str(error)
        return
    if file.axes == "R":
        if array.dtype.kind == "f":
            yield f"{path} must hold integers, the rows of a split, got {array.dtype}"
            return
        values = values.long()
        problems = list(_check_order(path, values, found.sizes.get("N", (None, path))[0]))
    else:
        values = values.float()
        problems = list(_check_one_hot(path, values))
    if not problems:
        found.tensors[file.name] = values
    yield from problems


def _check_shape(file: ReleaseFile, array: StoredArray, found: Found) -> str | None:
    """Return what is wrong with the shape of an array; if nothing is, note the sizes of its axes."""
    sizes, own = found.sizes, dict(zip(file.axes, array.shape, strict=False))
    expected = ", ".join(str(sizes[axis][0]) if axis in sizes else "any" for axis in file.axes)
    if len(array.shape) != len(file.axes) or 0 in array.shape:
        return f"{array.path} must have the shape ({expected}), none of it empty, got {array.shape}"
    if own.get("L") == 1:
        return f"{array.path} must have two labels or more, of which the last is background, got one"
    differing = [axis for axis in own if axis in sizes and own[axis] != sizes[axis][0]]
    # What a file declares is not yet there: memory is taken only for what can be right.
    if large := [axis for axis in own if own[axis] > MOST.get(axis, MOST_NUMBERS) and axis not in sizes]:
        axis = large[0]
        most = MOST.get(axis, MOST_NUMBERS)
        return f"{array.path} must have at most {most} {AXES.get(axis, 'rows')}, got {own[axis]}"
    if (numbers := prod(array.shape[1:] if file.is_features else array.shape)) > MOST_NUMBERS:
        what = "numbers a video" if file.is_features else "numbers"
        return f"{array.path} must have at most {MOST_NUMBERS} {what}, got {numbers}, in the shape {array.shape}"
    if "R" in own and "N" in sizes and own["R"] > sizes["N"][0]:
        videos, owner = sizes["N"]
        return f"{array.path} must hold every row once, of the {videos} videos of {owner.name}, got {own['R']} rows"
    for axis in own.keys() - sizes.keys() - {"R"}:
        sizes[axis] = (own[axis], array.path)
    if not differing:
        return None
    why = ", ".join(f"{own[axis]} {AXES[axis]} where {sizes[axis][1].name} has {sizes[axis][0]}" for axis in differing)
    return f"{array.path} must have the shape ({expected}), got {array.shape}: {why}"


def _check_one_hot(path: Path, labels: Tensor) -> Iterator[str]:
    right = ((labels == 0) | (labels == 1)).all(-1) & (labels.sum(-1) == 1)
    if not right.all():
        first = tuple(torch.nonzero(~right)[0].tolist())
        place = ", second ".join(map(str, first))
        came = f"values from {labels[first].min():g} to {labels[first].max():g} that sum to {labels[first].sum():g}"
        count = f"{int((~right).sum())} of {right.numel()} are wrong"
        yield f"{path} must hold one-hot labels, a 1 among zeros, got {came} in row {place} ({count})"


def _check_order(path: Path, rows: Tensor, videos: int | None) -> Iterator[str]:
    least, most = int(rows.min()), int(rows.max())
    if least < 0 or (videos is not None and most >= videos):
        limit = "on" if videos is None else f"to {videos - 1}"
        yield f"{path} must hold row numbers from 0 {limit}, got {least} to {most}"
    values, counts = rows.unique(return_counts=True)
    if len(twice := values[counts > 1]):
        yield f"{path} must hold every row once, got {len(twice)} more often, for example row {int(twice[0])}"


class BadValues:
    """Finds values that no feature may have, in blocks that are read one after the other.

    Args:
        path: of the features, which the messages name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, tuple[int, int]] = {}

    def add(self, first: int, block: NDArray[Any]) -> None:
        """Look at a block whose first row is row ``first`` of the file."""
        if block.min() >= 0 and block.max() < np.inf:  # two quick passes without a copy; false with any NaN
            return
        finite = np.isfinite(block)
        for kind, bad in (("not finite", ~finite), ("negative", finite & (block < 0))):
            if count := int(np.count_nonzero(bad)):
                row = first + int(bad.reshape(len(block), -1).any(1).argmax())
                before, row = self._found.get(kind, (0, row))
                self._found[kind] = (before + count, row)

    def messages(self) -> Iterator[str]:
        """Yield what was wrong in all blocks."""
        expected = {"not finite": "finite features", "negative": "features of at least 0, as they follow a ReLU"}
        for kind, (count, row) in self._found.items():
            yield f"{self.path} must hold {expected[kind]}, got {count} that are {kind}, the first of them in row {row}"


def scan_features(found: Found) -> None:
    """Read all features, with a progress bar, and add values that are not finite or negative to the problems."""
    arrays = [(file, array) for file in FILES if file.is_features and (array := found.arrays.get(file.name))]
    wrong = {problem.file for problem in found.problems}
    arrays = [(file, array) for file, array in arrays if file.name not in wrong]
    total = sum(len(array) * array.row_bytes for _, array in arrays)
    with tqdm(total=total, desc="reading the features", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for file, array in arrays:
            bad, damage = BadValues(array.path), []
            end = bar.n + len(array) * array.row_bytes
            try:
                for first, block in array.blocks(skip_unwritten=True):
                    bad.add(first, block)
                    bar.update(block.nbytes)
            except ValueError as error:
                damage = [str(error)]
            bar.update(end - bar.n)
            found.problems += [Problem(file.name, f"{text}; {file.remedy}") for text in [*damage, *bad.messages()]]
