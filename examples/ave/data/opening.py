"""Open a dataset: the AVE release, an own one in its form, or what ``prepare`` made of either."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ave.data.comparison import compare_labels
from ave.data.dataset import AVEData, Setting
from ave.data.features import scan_features
from ave.data.layout import FILES, ReleaseFile, needed_files
from ave.data.prepared import examine_prepared, is_prepared, read_manifest
from ave.data.release import Found, examine_release

__all__ = ["inspect_set", "read_features", "read_set"]


def read_set(directory: Path, setting: Setting = "supervised", *, background_videos: bool = True) -> AVEData:
    """Open a dataset. Features stay on disk and are read by rows.

    Args:
        directory: what ``prepare`` wrote; or ``visual_feature.h5``, ``audio_feature.h5``, ``labels.h5`` (or
            ``right_labels.h5``), ``train_order.h5``, ``val_order.h5``, ``test_order.h5``; for the weak setting also
            ``mil_labels.h5``, ``visual_feature_noisy.h5``, ``audio_feature_noisy.h5``, ``labels_noisy.h5``.
            ``Annotations.txt`` gives the videos their names. Each may be ``.npy`` instead. An own dataset, which is one
            that has not AVE's 4,143 rows and 29 columns, may do without ``val_order`` and background videos, and have
            ``categories.txt``, a name a line; ``lengths.h5``, the seconds of each video, and ``lengths_noisy.h5``; and
            seconds without a label, all zero.
        setting: decides which files must be there; the others are read if they are there.
        background_videos: whether the extra videos of AVE must be there for the weak setting.

    Raises:
        FileNotFoundError: if the directory or a file is missing.
        ValueError: if a file is damaged, lacks its dataset, or does not fit the others. Of a prepared dataset every
            byte is checked, of the release not the features.
    """
    return _examine(directory, needed_files(setting, background_videos=background_videos)).to_data()


def read_features(directory: Path) -> AVEData:
    """Open the features of a dataset, whose labels need not be there and are not read.

    Args:
        directory: as :func:`read_set` takes it.

    Raises:
        FileNotFoundError: if the directory or features are missing.
        ValueError: if the features, the orders or the annotations are damaged or do not fit each other.
    """
    needed = frozenset(file.name for file in FILES if file.is_features and not file.is_extra)
    return _examine(
        directory, needed, [file for file in FILES if file.name in needed or file.axes in ("N", "R")]
    ).to_data()


def inspect_set(directory: Path, setting: Setting = "supervised", *, background_videos: bool = True) -> Found:
    """Check all of a dataset: its labels against each other, and the release's features from end to end.

    Args:
        directory: as :func:`read_set` takes it, as the others.
        setting: decides which files must be there; the others are checked if they are there.
        background_videos: whether the extra videos of AVE must be there for the weak setting.

    Raises:
        FileNotFoundError: if the directory is missing.
        ValueError: if it holds a prepared dataset without a manifest that can be read.
    """
    found = _examine(directory, needed_files(setting, background_videos=background_videos))
    compare_labels(found)
    if is_prepared(directory):  # whose digests have been checked
        kind = f"prepared in {read_manifest(directory).dtype}"
    else:
        scan_features(found)
        kind = "the AVE release" if found.is_ave else "a dataset in the form of the AVE release"
    found.title = f"{directory}: {kind}, for the {setting} setting"
    return found


def _examine(directory: Path, needed: Collection[str], files: Sequence[ReleaseFile] = FILES) -> Found:
    return (examine_prepared if is_prepared(directory) else examine_release)(directory, needed, files)
