"""What a set is found to hold, in one table; and the features read from end to end, for values that none may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ave.data import SPLITS
from ave.examination import Fault, Found, Verdicts, raise_faults
from ave.layout import ANNOTATIONS, FILES, ReleaseFile
from ave.results import format_table
from ave.storage import StoredArray

__all__ = ["BadValues", "Report", "scan_features"]


@dataclass(frozen=True)
class Report:
    """What was found in a directory; printed, a table with a line for every fault and every remark below."""

    table: str
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        said = [f"wrong: {fault.message}" for fault in self.faults] + [f"note: {remark}" for remark in self.remarks]
        return "\n".join([self.table, *said])

    def raise_for_faults(self) -> None:
        """Do nothing where all is right, or say in a line what is wrong.

        Raises:
            FileNotFoundError: if the first fault is that a file is missing.
            ValueError: if it is another.
        """
        raise_faults(self.faults)

    @classmethod
    def of(cls, title: str, found: Found) -> Report:
        """Put in a table all files that must be there, and all that may."""
        splits = found.splits()
        verdicts: dict[str, list[str]] = {}
        for fault in found.faults:
            for name in fault.files:
                verdicts.setdefault(name, []).append(fault.verdict)
        rows = []
        for file in FILES:
            path, array = found.paths[file.name], found.arrays.get(file.name)
            verdict = ", ".join(verdicts.get(file.name, ["ok" if path.exists() else "not there"]))
            facts = ("", "", "")
            if array is not None:
                place = array.dataset if path.suffix == ".h5" else tqdm.format_sizeof(path.stat().st_size, "B")
                facts = (place, "x".join(map(str, array.shape)), str(array.dtype))
            rows.append((path.name, *facts, file.content, *_count(file, array, splits), verdict))
            if file.name == "labels" and "labels" in found.tensors:
                background = {split: int(found.tensors["labels"][rows, :, -1].sum()) for split, rows in splits.items()}
                rows.append(
                    ("", "", "", "", "background seconds", *(str(background.get(split, "")) for split in SPLITS), "")
                )
        if ANNOTATIONS in verdicts or found.names is not None:
            count = "" if found.names is None else str(len(found.names))
            verdict = ", ".join(verdicts.get(ANNOTATIONS, ["ok"]))
            rows.append((ANNOTATIONS, "", count, "", "YouTube ids", "", "", "", verdict))
        place = "dataset" if found.paths["labels"].suffix == ".h5" else "size"
        table = format_table(title, rows, ("file", place, "shape", "dtype", "holds", *SPLITS, "verdict"))
        return cls(table, tuple(found.faults), (*found.remarks, *_remark_names(found.names, splits)))


def _count(file: ReleaseFile, array: StoredArray | None, splits: Mapping[str, Tensor]) -> list[str]:
    """How many rows of a file belong to every split."""
    if array is None:
        counts = {}
    elif file.axes[0] == "N":
        counts = {split: len(rows) for split, rows in splits.items()}
    else:  # the extra videos are for training only; an order is of one split
        counts = {"train" if file.axes[0] == "M" else file.name.partition("_")[0]: len(array)}
    return [str(counts.get(split, "")) for split in SPLITS]


def _remark_names(names: tuple[str, ...] | None, splits: Mapping[str, Tensor]) -> list[str]:
    if names is None or len(splits) < len(SPLITS):
        return []
    groups = [{names[row] for row in rows.tolist()} for rows in splits.values()]
    shared = {name for own, other in combinations(groups, 2) for name in own & other}
    return [f"the {len(names)} videos have {len(set(names))} YouTube ids, {len(shared)} of them in more than one split"]


class BadValues:
    """Looks for what no feature may be, while blocks of them go by.

    Args:
        path: of the features, which the verdicts name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._counts: dict[str, int] = {"non-finite": 0, "negative": 0}
        self._first: dict[str, int] = {}

    def add(self, first: int, block: NDArray[Any]) -> None:
        """Look at a block whose first row is ``first`` of the file."""
        if block.min() >= 0 and block.max() < np.inf:  # in two quick passes without a copy; a NaN is neither
            return
        finite = np.isfinite(block)
        for verdict, bad in (("non-finite", ~finite), ("negative", finite & (block < 0))):
            if count := int(np.count_nonzero(bad)):
                self._counts[verdict] += count
                self._first.setdefault(verdict, first + int(bad.reshape(len(block), -1).any(1).argmax()))

    def verdicts(self) -> Verdicts:
        """What was bad among all that went by."""
        expected = {"non-finite": "finite features", "negative": "features of at least 0, as they follow a ReLU"}
        for verdict, row in self._first.items():
            count = self._counts[verdict]
            came = f"{count} that are {'not' if verdict == 'non-finite' else 'less'}"
            yield verdict, f"{self.path} must hold {expected[verdict]}, got {came}, the first of them in row {row}"


def scan_features(found: Found) -> None:
    """Read all features, with a progress bar, and add to the faults what is not finite or is negative."""
    arrays = [(file, array) for file in FILES if file.is_features and (array := found.arrays.get(file.name))]
    arrays = [(file, array) for file, array in arrays if 0 not in array.shape]
    total = sum(len(array) * array.row_bytes for _, array in arrays)
    with tqdm(total=total, desc="reading the features", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for file, array in arrays:
            bad, verdicts = BadValues(array.path), []
            end = bar.n + len(array) * array.row_bytes
            try:
                for first, block in array.blocks(skip_unwritten=True):
                    bad.add(first, block)
                    bar.update(block.nbytes)
            except ValueError as error:
                verdicts = [("unreadable", str(error))]
            bar.update(end - bar.n)
            found.faults += [
                Fault((file.name,), verdict, f"{message}; the release has it: {file.source}")
                for verdict, message in [*verdicts, *bad.verdicts()]
            ]
