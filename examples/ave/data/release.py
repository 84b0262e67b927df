"""The AVE release as it is downloaded, or an own dataset in its form: HDF5 or .npy files, checked and opened.

Axes: N videos, T segments, H x W positions, C visual channels, A audio channels, L labels with background as the last,
M extra background videos, R rows of a split.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ave.data.arrays import NotOpenedError, StoredArray
from ave.data.dataset import AVE_CATEGORIES, SPLITS, AVEData, Setting
from ave.reading import read_text
from crossmodal_attn import padding_mask

__all__ = [
    "ANNOTATIONS",
    "CATEGORIES",
    "FILES",
    "BadValues",
    "Found",
    "Problem",
    "ReleaseFile",
    "clear_padding",
    "examine_files",
    "examine_release",
    "needed_files",
    "read_release",
    "scan_features",
]

ANNOTATIONS, CATEGORIES = "Annotations.txt", "categories.txt"
SUFFIXES = (".h5", ".npy")
AVE_SIZES = {"N": 4143, "L": len(AVE_CATEGORIES) + 1}
DOWNLOAD = "the release has it: "
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
    optional: bool = False
    """Whether AVE does without it."""

    @property
    def dataset(self) -> str:
        """The name of its array in the HDF5 file."""
        return "order" if self.axes == "R" else "lengths" if self.is_lengths else "avadataset"

    @property
    def is_lengths(self) -> bool:
        """Whether it holds the seconds of each video."""
        return self.axes in ("N", "M")

    @property
    def is_features(self) -> bool:
        """Whether it holds features, and not labels or rows."""
        return self.axes[-1] in "CA"

    @property
    def is_extra(self) -> bool:
        """Whether it is of the extra background videos."""
        return self.axes[0] == "M"


def _source(place: str) -> str:
    return f"{DOWNLOAD}{place if ' ' in place else DRIVE.format(place)}"


LENGTHS_REMEDY = "leave it out if no video is padded"

# Sizes in the first files decide what the later files must fit.
FILES = (
    ReleaseFile("labels", "labels of seconds", "NTL", _source(REPOSITORY)),
    ReleaseFile("visual_feature", "visual features", "NTHWC", _source("1hQwbhutA3fQturduRnHMyfRqdrRHgmC9")),
    ReleaseFile("audio_feature", "audio features", "NTA", _source("1F6p4BAOY-i0fDXUOhG7xHuw_fnO5exBS")),
    ReleaseFile("lengths", "seconds of videos", "N", LENGTHS_REMEDY, optional=True),
    *(ReleaseFile(f"{split}_order", f"rows of {split}", "R", _source(REPOSITORY)) for split in SPLITS),
    ReleaseFile("mil_labels", "labels of videos", "NL", _source(REPOSITORY), weak=True),
    ReleaseFile("labels_noisy", "extra labels", "ML", _source(REPOSITORY), weak=True),
    ReleaseFile("visual_feature_noisy", "extra visual", "MTHWC", _source("1I3OtOHJ8G1-v5G2dHIGCfevHQPn-QyLh"), True),
    ReleaseFile("audio_feature_noisy", "extra audio", "MTA", _source(REPOSITORY), weak=True),
    ReleaseFile("lengths_noisy", "extra seconds", "M", LENGTHS_REMEDY, optional=True),
)
"""All files that the two settings need."""


def needed_files(setting: Setting, *, background_videos: bool = True) -> frozenset[str]:
    """Return the names of the files that a setting cannot do without.

    Args:
        setting: "supervised" or "weak".
        background_videos: whether the weak setting needs the extra videos; a dataset other than AVE may lack them.

    Raises:
        ValueError: if there is no such setting.
    """
    if setting not in ("supervised", "weak"):
        raise ValueError(f'setting must be "supervised" or "weak", got {setting!r}')
    extra = setting == "weak" and background_videos
    return frozenset(
        file.name
        for file in FILES
        if not file.optional and (extra or not file.weak or (setting == "weak" and not file.is_extra))
    )


class Problem(NamedTuple):
    """One thing that is wrong with a file."""

    file: str
    """The name of the file without its suffix, or that of the annotations."""
    message: str
    """What was expected, what came, and what to do, in one line."""
    verdict: Literal["wrong", "missing", "not opened"] = "wrong"


@dataclass
class Found:
    """The files of a dataset that a directory holds, and all problems with them."""

    paths: Mapping[str, Path]
    """Where each file is or should be, by name."""
    arrays: dict[str, StoredArray] = field(default_factory=dict)
    """The arrays that could be opened."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The labels, float32, and the rows of the splits and the lengths, int64, that have no problem."""
    sizes: dict[str, tuple[int, Path]] = field(default_factory=dict)
    """The size of every axis, and the file that decided it."""
    names: tuple[str, ...] | None = None
    """The YouTube id of every video."""
    annotations: list[list[str]] | None = None
    """Category, YouTube id, quality, start and end of every video."""
    categories: tuple[str, ...] | None = None
    """The names that come with the dataset."""
    declared_ave: bool = False
    """Whether a manifest says that it is AVE."""
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    title: str = ""

    @property
    def is_own(self) -> bool:
        """Whether the sizes that are known are not AVE's; both can be False, if files are missing."""
        known = (self.sizes[axis][0] != size for axis, size in AVE_SIZES.items() if axis in self.sizes)
        return not self.declared_ave and any(known)

    def drop_links(self) -> None:
        """Leave out where AVE's files are, from problems and remarks, if the dataset is not AVE."""
        if self.is_own:
            self.problems = [p._replace(message=p.message.partition(f"; {DOWNLOAD}")[0]) for p in self.problems]
            self.remarks = [remark.partition(f"; {DOWNLOAD}")[0] for remark in self.remarks]

    @property
    def is_ave(self) -> bool:
        """Whether it is AVE: a manifest says so, or it has 4,143 rows and 29 columns, and no names of its own."""
        sizes = {axis: size for axis, (size, _) in self.sizes.items() if axis in AVE_SIZES}
        return self.declared_ave or (sizes == AVE_SIZES and self.categories in (None, AVE_CATEGORIES))

    def lengths_of(self, file: ReleaseFile) -> Tensor | None:
        """Return the seconds of each video in a file of features, if some are padded."""
        lengths = self.tensors.get("lengths_noisy" if file.axes[0] == "M" else "lengths")
        return lengths if lengths is not None and len(lengths) == len(self.arrays[file.name]) else None

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
            kind = FileNotFoundError if first.verdict == "missing" else ValueError
            raise kind(f"{first.message}; and more is wrong with {also}: see `check`" if also else first.message)

    def to_data(self) -> AVEData:
        """Return the dataset, without labels if they were not looked for; features stay on disk.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if anything else is wrong.
        """
        self.raise_problems()
        unlabeled = torch.zeros(*self.arrays["audio_feature"].shape[:2], 0)
        labels, lengths = self.tensors.get("labels", unlabeled), self.tensors.get("lengths")
        if lengths is not None:  # what stands in padding is no label
            labels = labels.masked_fill(padding_mask(lengths, labels.shape[1]).unsqueeze(-1), 0)
        numbers = tuple(map(str, range(labels.shape[-1] - 1)))
        return AVEData(
            visual=self.arrays["visual_feature"],
            audio=self.arrays["audio_feature"],
            labels=labels,
            splits=self.splits(),
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
        )


def read_release(directory: Path | str, setting: Setting = "supervised") -> AVEData:
    """Open the files of an AVE release, or of an own dataset in its form. Features stay on disk and are read by rows.

    Args:
        directory: holds ``visual_feature.h5``, ``audio_feature.h5``, ``labels.h5`` (or ``right_labels.h5``),
            ``train_order.h5``, ``val_order.h5``, ``test_order.h5``; for the weak setting also ``mil_labels.h5``,
            ``visual_feature_noisy.h5``, ``audio_feature_noisy.h5``, ``labels_noisy.h5``. ``Annotations.txt`` gives
            the videos their names. Each may be ``.npy`` instead. An own dataset, which is one that has not AVE's 4,143
            rows and 29 columns, may do without ``val_order``, and have ``categories.txt``, a name a line;
            ``lengths.h5``, the seconds of each video, and ``lengths_noisy.h5``; and seconds without a label, all zero.
        setting: decides which files must be there; the others are read if they are there.

    Raises:
        FileNotFoundError: if the directory or a file is missing.
        ValueError: if a file is damaged, lacks its dataset, or does not fit the others. Features are not read.
    """
    return examine_release(Path(directory), needed_files(setting)).to_data()


def examine_release(directory: Path, needed: Collection[str], files: Sequence[ReleaseFile] = FILES) -> Found:
    """Find the files of a release in a directory, and check that they are whole and fit each other.

    Args:
        directory: of the release.
        needed: the names of the files that must be there.
        files: the files to look at.

    Raises:
        FileNotFoundError: if there is no such directory.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory: expected the one with the files of the AVE release")
    found = Found({file.name: _find(directory, file.name) for file in files})
    if (path := directory / CATEGORIES).exists():
        try:
            found.categories = tuple(_read_lines(path))
        except ValueError as error:
            found.problems.append(Problem(CATEGORIES, str(error)))
    examine_files(found, needed, files)
    for file in files:
        if len(both := [path for suffix in SUFFIXES if (path := directory / f"{file.name}{suffix}").exists()]) > 1:
            message = f"{both[0]} and {both[1].name} must not both be there: remove the one that is not meant"
            found.problems.append(Problem(file.name, message))
    annotations = directory / ANNOTATIONS
    if annotations.exists():
        try:
            found.annotations = _read_annotations(annotations, found.sizes)
            found.names = tuple(name for _, name, *_ in found.annotations)
        except ValueError as error:
            found.problems.append(Problem(ANNOTATIONS, f"{error}; {_source(REPOSITORY)}"))
    else:
        found.remarks.append(f"{ANNOTATIONS} is not there, so videos have no YouTube ids; {_source(REPOSITORY)}")
    found.remarks += [f"{name} is not needed: {why}" for name, why in UNNEEDED.items() if (directory / name).exists()]
    found.drop_links()
    return found


def _find(directory: Path, name: str) -> Path:
    """Return the path of a file that is there under any of its names, or else the usual one."""
    names = (name, "right_labels") if name == "labels" else (name,)
    paths = [directory / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    return next((path for path in paths if path.exists()), paths[0])


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text that are not blank."""
    try:
        return [line.strip() for line in read_text(path, "utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be text in utf-8, got: {error}") from error


def _read_annotations(path: Path, sizes: Mapping[str, tuple[int, Path]]) -> list[list[str]]:
    """Read the annotations, whose lines are in the order of the rows."""
    lines = _read_lines(path)
    lines = lines[1:] if lines and lines[0].startswith("Category&") else lines
    fields = [line.split("&") for line in lines]
    for line, parts in zip(lines, fields, strict=True):
        if len(parts) != 5:
            raise ValueError(f"{path} must hold lines category&YouTube id&quality&start&end, got {line[:60]!r}")
    videos, owner = sizes.get("N", (len(lines), path))
    if len(lines) != videos:
        raise ValueError(f"{path} must hold a line for each of the {videos} videos of {owner.name}, got {len(lines)}")
    return fields


def examine_files(found: Found, needed: Collection[str], files: Sequence[ReleaseFile]) -> None:
    """Check that arrays are there, whole, and fit each other, and enter them and what is wrong in ``found``.

    Args:
        found: says where each of ``files`` is or should be.
        needed: the names of those that must be there.
        files: the files to look at.
    """
    paths = found.paths
    for file in files:
        path = paths[file.name]
        if path.exists():
            try:
                found.problems += [Problem(file.name, f"{message}; {file.remedy}") for message in _check(file, found)]
            except NotOpenedError as error:
                found.problems.append(Problem(file.name, str(error), "not opened"))
        elif file.name == "val_order" and file.name in needed and not found.is_ave:
            found.remarks.append(f"{path.name} is not there, so training keeps its last epoch")
        elif (
            file.is_extra and found.is_own and not any(paths[other.name].exists() for other in files if other.is_extra)
        ):
            pass  # a set other than AVE may have no extra background videos
        elif file.name in needed:
            confused = file.name == "labels" and path.with_name("prob_label.h5").exists()
            hint = f"prob_label.h5 is {UNNEEDED['prob_label.h5']}; " if confused else ""
            found.problems.append(Problem(file.name, f"{path} is missing; {hint}{file.remedy}", "missing"))
    if found.categories is not None:
        expected = found.sizes["L"][0] - 1 if "L" in found.sizes else len(found.categories)
        distinct = len(set(found.categories) - {"background"})
        if not distinct == len(found.categories) == expected:
            message = f"{CATEGORIES} must hold {expected} different names, one a line in the order of the labels, "
            message += f"without background, got {len(found.categories)} lines, {distinct} such names among them"
            found.problems.append(Problem(CATEGORIES, message))
    checked = [file for file in files if file.axes == "R" and file.name in found.tensors]
    orders = {file: set(found.tensors[file.name].tolist()) for file in checked}
    for (file, own), (other, others) in combinations(orders.items(), 2):
        if common := sorted(own & others):
            message = f"{paths[file.name]} and {paths[other.name].name} must have no row in common, "
            message += f"got {len(common)}, for example row {common[0]}; {file.remedy}"
            found.problems.append(Problem(file.name, message))
    if orders and len(orders) == sum(paths[f.name].exists() for f in files if f.axes == "R") and "N" in found.sizes:
        left = sorted(set(range(found.sizes["N"][0])).difference(*orders.values()))
        if left:
            found.remarks.append(f"{len(left)} videos are in no split, for example row {left[0]}")
    spare = [paths[file.name] for file in files if file.name not in needed and not file.optional]
    if absent := [path.name for path in spare if not path.exists()]:
        found.remarks.append(f"not there, and not needed here: {', '.join(absent)}")


def _check(file: ReleaseFile, found: Found) -> Iterator[str]:
    """Open a file, read it if it does not hold features, enter it in ``found``, and yield what is wrong.

    Raises:
        NotOpenedError: if the system does not open it.
    """
    path = found.paths[file.name]
    try:
        array = found.arrays[file.name] = StoredArray(path, file.dataset)
        if "HW" in file.axes and len(array.shape) == 3:  # vectors are maps of one position
            array.shape = (*array.shape[:2], 1, 1, array.shape[2])
        if problem := _check_shape(file, array, found):
            yield problem
            return
        if file.is_features:
            return
        values = array[:]
    except NotOpenedError:
        raise
    except (OSError, ValueError) as error:
        yield str(error)
        return
    if len(file.axes) == 1:
        if array.dtype.kind == "f":
            content = "the seconds of each video" if file.is_lengths else "the rows of a split"
            yield f"{path} must hold integers, {content}, got {array.dtype}"
            return
        values = values.long()
        if file.is_lengths:
            problems = list(_check_lengths(path, values, found.sizes.get("T", (None, path))[0]))
        else:
            problems = list(_check_order(path, values, found.sizes.get("N", (None, path))[0]))
    else:
        values = values.float()
        problems = list(_check_one_hot(path, values, or_zero=file.name == "labels" and not found.is_ave))
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
        if "H" in own and own["H"] > own["C"]:
            found.remarks.append(
                f"{array.path.name} is read as {own['H']} x {own['W']} positions with {own['C']} channels: if channels "
                f"come first in your maps, move them last, to ({', '.join(file.axes)})"
            )
        return None
    why = ", ".join(f"{own[axis]} {AXES[axis]} where {sizes[axis][1].name} has {sizes[axis][0]}" for axis in differing)
    return f"{array.path} must have the shape ({expected}), got {array.shape}: {why}"


def _check_one_hot(path: Path, labels: Tensor, *, or_zero: bool) -> Iterator[str]:
    right = ((labels == 0) | (labels == 1)).all(-1) & ((labels.sum(-1) == 1) | (or_zero & (labels.sum(-1) == 0)))
    if not right.all():
        first = tuple(torch.nonzero(~right)[0].tolist())
        place = ", second ".join(map(str, first))
        came = f"values from {labels[first].min():g} to {labels[first].max():g} that sum to {labels[first].sum():g}"
        count = f"{int((~right).sum())} of {right.numel()} are wrong"
        yield f"{path} must hold one-hot labels, a 1 among zeros, got {came} in row {place} ({count})"


def _check_lengths(path: Path, lengths: Tensor, seconds: int | None) -> Iterator[str]:
    least, most = int(lengths.min()), int(lengths.max())
    if least < 1 or (seconds is not None and most > seconds):
        limit = "on" if seconds is None else f"to {seconds}"
        yield f"{path} must hold the seconds of each video, from 1 {limit}, got {least} to {most}"


def _check_order(path: Path, rows: Tensor, videos: int | None) -> Iterator[str]:
    least, most = int(rows.min()), int(rows.max())
    if least < 0 or (videos is not None and most >= videos):
        limit = "on" if videos is None else f"to {videos - 1}"
        yield f"{path} must hold row numbers from 0 {limit}, got {least} to {most}"
    values, counts = rows.unique(return_counts=True)
    if len(twice := values[counts > 1]):
        yield f"{path} must hold every row once, got {len(twice)} more often, for example row {int(twice[0])}"


def clear_padding(first: int, block: NDArray[Any], lengths: Tensor | None) -> None:
    """Set the features after the length of each video to zero, in a block whose first row is row ``first``."""
    if lengths is not None:
        own = lengths[first : first + len(block)].numpy()
        block[np.arange(block.shape[1]) >= own[:, None]] = 0


class BadValues:
    """Finds values that no feature may have, and videos without features, in blocks read one after the other.

    Args:
        file: of the features.
        found: the dataset; videos in no split may have no features.
    """

    def __init__(self, file: ReleaseFile, found: Found) -> None:
        self.path = found.arrays[file.name].path
        splits = found.splits().values()
        self._used = None if file.axes[0] == "M" or not splits else torch.cat(list(splits)).numpy()
        self._next = 0
        self._found: dict[str, tuple[int, int]] = {}

    def add(self, first: int, block: NDArray[Any]) -> None:
        """Look at a block whose first row is row ``first`` of the file."""
        self.skip_to(first)
        self._next = first + len(block)
        empty = np.flatnonzero(~block[:, 0].reshape(len(block), -1).any(1))  # a quick look at the first second
        if len(empty):
            self._add_empty(first + empty[~block[empty].reshape(len(empty), -1).any(1)])
        if block.min() > -np.inf and block.max() < np.inf:  # two quick passes without a copy; false with any NaN
            return
        bad = ~np.isfinite(block)
        self._add("not finite", int(np.count_nonzero(bad)), first + int(bad.reshape(len(block), -1).any(1).argmax()))

    def skip_to(self, row: int) -> None:
        """Take note that the rows before ``row`` that were not added were never written."""
        if row > self._next:
            self._add_empty(np.arange(self._next, row))

    def _add_empty(self, rows: NDArray[np.integer[Any]]) -> None:
        if self._used is not None:
            rows = rows[np.isin(rows, self._used)]
        if len(rows):
            self._add("empty", len(rows), int(rows[0]))

    def _add(self, kind: str, count: int, row: int) -> None:
        before, row = self._found.get(kind, (0, row))
        self._found[kind] = (before + count, row)

    def messages(self) -> Iterator[str]:
        """Yield what was wrong in all blocks."""
        for kind, (count, row) in self._found.items():
            if kind == "empty":
                message = f"features of every video, got {count} videos of zeros alone, or never written"
            else:
                message = f"finite features, got {count} that are not finite"
            yield f"{self.path} must hold {message}, the first of them in row {row}"


def scan_features(found: Found) -> None:
    """Read all features, with a progress bar, and add to the problems what is not finite, all zero or not written."""
    arrays = [(file, array) for file in FILES if file.is_features and (array := found.arrays.get(file.name))]
    wrong = {problem.file for problem in found.problems}
    arrays = [(file, array) for file, array in arrays if file.name not in wrong]
    total = sum(len(array) * array.row_bytes for _, array in arrays)
    with tqdm(total=total, desc="reading the features", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for file, array in arrays:
            bad, damage = BadValues(file, found), []
            end = bar.n + len(array) * array.row_bytes
            try:
                for first, block in array.blocks(skip_unwritten=True):
                    clear_padding(first, block, found.lengths_of(file))
                    bad.add(first, block)
                    bar.update(block.nbytes)
                bad.skip_to(len(array))
            except ValueError as error:
                damage = [str(error)]
            bar.update(end - bar.n)
            found.problems += [Problem(file.name, f"{text}; {file.remedy}") for text in [*damage, *bad.messages()]]
    found.drop_links()
