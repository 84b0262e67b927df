"""Reading a set in either form: the release's HDF5 files as they are downloaded, or what ``prepare`` made of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ave.data import SPLITS, AVEData
from ave.examination import raise_faults
from ave.inspection import Report, scan_features
from ave.layout import FILES, needed_files
from ave.model import Setting
from ave.prepared import examine_prepared, is_prepared, read_manifest, read_prepared
from ave.release import examine_release, read_release
from ave.storage import Rows

__all__ = ["Features", "inspect_set", "read_features", "read_set"]


class Features(NamedTuple):
    """The features of videos, whose labels need not be known."""

    visual: Rows
    """(N, T, H, W, C)"""
    audio: Rows
    """(N, T, A)"""
    names: tuple[str, ...] | None
    """The YouTube id of every video, where it is known."""
    splits: dict[str, Tensor] | None
    """int64 row indices of "train", "val" and "test", if all three are known."""


def read_set(directory: Path, setting: Setting = "supervised") -> AVEData:
    """Open a set; features stay on disk.

    Args:
        directory: of the release, or prepared.
        setting: which files must be there. Those of the weak setting are read where they are.

    Raises:
        FileNotFoundError: if the directory or a file is missing.
        ValueError: if a file is damaged or does not fit the others. Only ``inspect_set`` reads the release's features.
    """
    return (read_prepared if is_prepared(directory) else read_release)(directory, setting)


def read_features(directory: Path) -> Features:
    """Open the features of a set, of which only visual_feature and audio_feature must be there.

    Args:
        directory: of the release, or prepared.

    Raises:
        FileNotFoundError: if the directory or one of the two is missing.
        ValueError: if they, the orders or the annotations are damaged or do not fit each other.
    """
    examine = examine_prepared if is_prepared(directory) else examine_release
    needed = frozenset(file.name for file in FILES if file.axes[0] == "N" and file.is_features)
    found = examine(directory, needed, [file for file in FILES if file.name in needed or file.axes == "R"])
    raise_faults(found.faults)
    splits = found.splits()
    splits_or_none = splits if len(splits) == len(SPLITS) else None
    return Features(found.arrays["visual_feature"], found.arrays["audio_feature"], found.names, splits_or_none)


def inspect_set(directory: Path, setting: Setting = "supervised") -> Report:
    """Look at all of a set, the release's features from end to end, and report in one table what is there and wrong.

    Args:
        directory: of the release, or prepared.
        setting: which files must be there. Those of the weak setting are looked at where they are.

    Raises:
        FileNotFoundError: if the directory is missing.
        ValueError: if it holds a prepared set without a manifest that can be read.
    """
    needed = needed_files(setting)
    if is_prepared(directory):
        title = f"{directory}: prepared in {read_manifest(directory)['dtype']}, for the {setting} setting"
        return Report.of(title, examine_prepared(directory, needed))
    found = examine_release(directory, needed)
    scan_features(found)
    return Report.of(f"{directory}: the AVE release, for the {setting} setting", found)
