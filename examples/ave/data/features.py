"""Check that all videos have features and that these are finite, and set padding to zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ave.data.layout import FILES, ReleaseFile
from ave.data.release import Found

__all__ = ["CheckedFeatures", "scan_features"]


class CheckedFeatures:
    """Read a file of features block by block, and find videos without features, or with NaN or Inf.

    Args:
        file: the file of the features.
        found: the dataset. Videos that are in no split may have no features.
    """

    def __init__(self, file: ReleaseFile, found: Found) -> None:
        self.array, self.lengths = found.arrays[file.name], found.lengths_of(file)
        rows = len(self.array)
        self.infinite, self.empty = np.zeros(rows, bool), np.zeros(rows, bool)
        self.used = np.ones(rows, bool)
        if found.splits and not file.is_extra:
            self.used = np.isin(np.arange(rows), torch.cat(list(found.splits.values())))

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Read and check all rows, as :meth:`StoredArray.blocks`, with the features at padding set to zero."""
        for first, block in self.array.blocks():
            rows = slice(first, first + len(block))
            if self.lengths is not None:
                block[np.arange(block.shape[1]) >= self.lengths[rows].numpy()[:, None]] = 0
            values = block.reshape(len(block), -1)
            with np.errstate(invalid="ignore"):
                least, most = values.min(1), values.max(1)  # NaN if any value is NaN
            self.infinite[rows] = ~(np.isfinite(least) & np.isfinite(most))
            self.empty[rows] = (least == 0) & (most == 0) & self.used[rows]
            yield first, block

    def messages(self) -> Iterator[str]:
        """Yield an error message for each problem in the blocks so far."""
        for wrong, expected, came in (
            (self.infinite, "finite features", "NaN or Inf"),
            (self.empty, "features of every video", "only zeros, or nothing written,"),
        ):
            if wrong.any():
                count = f"{came} in {wrong.sum()} of {len(wrong)} videos, for example row {wrong.argmax()}"
                yield f"{self.array.path} must hold {expected}, got {count}"


def scan_features(found: Found) -> None:
    """Read all features, and add those that are not finite, all zero or never written to the problems."""
    wrong = {problem.file for problem in found.problems}
    files = [file for file in FILES if file.is_features and file.name in found.arrays and file.name not in wrong]
    total = sum(len(found.arrays[file.name]) * found.arrays[file.name].row_bytes for file in files)
    with tqdm(total=total, desc="reading the features", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for file in files:
            features = CheckedFeatures(file, found)
            try:
                if features.array.is_unwritten:  # all zero, and perhaps far larger than the disk
                    features.empty |= features.used
                else:
                    for _, block in features.blocks():
                        bar.update(block.nbytes)
                messages = list(features.messages())
            except ValueError as error:
                messages = [str(error)]
            for message in messages:
                found.add(file.name, message, file.remedy)
