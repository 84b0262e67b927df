"""Check that all videos have features and that these are finite, and set padding to zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ave.data.layout import FILES, ReleaseFile
from ave.data.release import Found

__all__ = ["BadValues", "clear_padding", "scan_features"]


def clear_padding(first: int, block: NDArray[Any], lengths: Tensor | None) -> None:
    """Set the features after the length of each video to zero, in a block that starts at row ``first``."""
    if lengths is not None:
        own = lengths[first : first + len(block)].numpy()
        block[np.arange(block.shape[1]) >= own[:, None]] = 0


class BadValues:
    """Find videos without features, or with features that are not finite, block by block.

    Args:
        file: the file of the features.
        found: the dataset. Videos that are in no split may have no features.
    """

    def __init__(self, file: ReleaseFile, found: Found) -> None:
        self.path, rows = found.arrays[file.name].path, len(found.arrays[file.name])
        self.infinite, self.empty = np.zeros(rows, bool), np.zeros(rows, bool)
        self.used = np.ones(rows, bool)
        if found.splits and not file.is_extra:
            self.used = np.isin(np.arange(rows), torch.cat(list(found.splits.values())))

    def add(self, first: int, block: NDArray[Any]) -> None:
        """Check a block that starts at row ``first`` of the file."""
        rows, values = slice(first, first + len(block)), block.reshape(len(block), -1)
        with np.errstate(invalid="ignore"):
            least, most = values.min(1), values.max(1)  # NaN if any value is NaN
        self.infinite[rows] = ~(np.isfinite(least) & np.isfinite(most))
        self.empty[rows] = (least == 0) & (most == 0) & self.used[rows]

    def messages(self) -> Iterator[str]:
        """Yield an error message for each problem in the blocks so far."""
        for wrong, expected, came in (
            (self.infinite, "finite features", "NaN or Inf"),
            (self.empty, "features of every video", "only zeros, or nothing written,"),
        ):
            if wrong.any():
                count = f"{came} in {wrong.sum()} of {len(wrong)} videos, for example row {wrong.argmax()}"
                yield f"{self.path} must hold {expected}, got {count}"


def scan_features(found: Found) -> None:
    """Read all features, and add those that are not finite, all zero or never written to the problems."""
    wrong = {problem.file for problem in found.problems}
    files = [file for file in FILES if file.is_features and file.name in found.arrays and file.name not in wrong]
    total = sum(len(found.arrays[file.name]) * found.arrays[file.name].row_bytes for file in files)
    with tqdm(total=total, desc="reading the features", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for file in files:
            bad = BadValues(file, found)
            array = found.arrays[file.name]
            bad.empty |= array.is_unwritten & bad.used
            try:
                for first, block in [] if array.is_unwritten else array.blocks():
                    clear_padding(first, block, found.lengths_of(file))
                    bad.add(first, block)
                    bar.update(block.nbytes)
                messages = list(bad.messages())
            except ValueError as error:
                messages = [str(error)]
            for message in messages:
                found.add(file.name, message, file.remedy)
