"""Open a dataset: the AVE release, your own dataset in its layout, or the output of ``prepare``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ave.data.comparison import compare_labels
from ave.data.dataset import AVEData, Setting, Split
from ave.data.features import scan_features
from ave.data.layout import FILES, ReleaseFile, needed_files
from ave.data.own_labels import OwnLabels
from ave.data.prepared import examine_prepared, is_prepared, read_manifest
from ave.data.release import Found, examine_release
from ave.printing import printable

__all__ = ["inspect_set", "label_set", "read_features", "read_set"]

FEATURES = frozenset(file.name for file in FILES if file.is_features and not file.is_extra)


def read_set(directory: Path, setting: Setting = "supervised", *, background_videos: bool = True) -> AVEData:
    """Open a dataset. Features stay on disk and are read by rows.

    Args:
        directory: the output of ``prepare``, or a directory with ``visual_feature.h5``, ``audio_feature.h5``,
            ``labels.h5`` (or ``right_labels.h5``), ``train_order.h5``, ``val_order.h5`` and ``test_order.h5``. The weak
            setting also needs ``mil_labels.h5``, ``visual_feature_noisy.h5``, ``audio_feature_noisy.h5`` and
            ``labels_noisy.h5``. ``Annotations.txt`` has the names of the videos. Each .h5 file may be .npy instead.
            A dataset without AVE's 4,143 rows and 29 columns is your own dataset. It does not need ``val_order`` and
            background videos. It may have ``categories.txt`` (one name per line), ``lengths.h5`` and
            ``lengths_noisy.h5`` (the length of each video in seconds), and seconds without a label (all zero).
        setting: decides which files are required. All others are read if they are there.
        background_videos: whether the weak setting requires the background videos of AVE.

    Raises:
        FileNotFoundError: if the directory or a file is missing.
        ValueError: if a file is damaged, does not have its dataset, or does not fit the other files. For a prepared
            dataset, every byte is checked; for a release, everything but the features.
    """
    return _examine(directory, needed_files(setting, background_videos=background_videos)).to_data()


def read_features(directory: Path, *, splits: bool = True) -> AVEData:
    """Open the features of a dataset without its labels.

    Args:
        directory: the dataset, as for :func:`read_set`.
        splits: whether to read the splits, too.

    Raises:
        FileNotFoundError: if the directory or features are missing.
        ValueError: if the features, the orders or the annotations are damaged or do not fit together.
    """
    return _examine(directory, FEATURES, _files_without_labels(splits=splits)).to_data()


def label_set(
    directory: Path,
    labels: Path,
    split: str | None = None,
    categories: Sequence[str] | None = None,
    say: Callable[[str], object] = lambda _: None,
    needed: Collection[Split] = ("train", "test"),
    *,
    split_seed: int | None = None,
) -> AVEData:
    """Open the features of a dataset, with the labels and splits of a text file.

    Args:
        directory: the dataset, as for :func:`read_set`.
        labels: the file, with a line for each event.
        split: the shares of train, val and test, as for :meth:`ave.data.own_labels.OwnLabels.apply`.
        categories: the names of the categories in their order. Default: those in the file.
        say: called with a line for each remark.
        needed: the splits that must have videos.
        split_seed: the seed of the division into splits.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the file or the features are damaged, or do not fit together.
    """
    own = OwnLabels.read(labels)
    data = read_features(directory, splits=False)

    def note(remark: str) -> None:
        say(printable(f"note: {remark}"))

    return own.apply(data, split, categories, note, needed, split_seed=split_seed)


def inspect_set(
    directory: Path, setting: Setting = "supervised", *, background_videos: bool = True, labels: bool = True
) -> Found:
    """Check all files of a dataset, that its labels agree, and, unless it is prepared, all of its features.

    Args:
        directory: the dataset, as for :func:`read_set`.
        setting: decides which files are required. All others are checked if they are there.
        background_videos: whether the weak setting requires the background videos of AVE.
        labels: whether to check the labels, too. False if they are in a separate file.

    Raises:
        FileNotFoundError: if the directory is missing.
        ValueError: if the manifest of a prepared dataset is missing or damaged.
    """
    if labels:
        found = _examine(directory, needed_files(setting, background_videos=background_videos))
    else:
        found = _examine(directory, FEATURES, _files_without_labels(splits=False))
    compare_labels(found)
    if is_prepared(directory):  # the digests are already checked
        made = read_manifest(directory)
        kind = f"prepared in {made.dtype}" if made.extraction is None else f"features by {made.extraction}"
    else:
        scan_features(found)
        kind = "the AVE release" if found.is_ave else "a dataset in the layout of the AVE release"
    found.title = f"{directory}: {kind}, for the {setting} setting"
    return found


def _files_without_labels(*, splits: bool) -> list[ReleaseFile]:
    return [file for file in FILES if file.name in FEATURES or file.axes == "N" or (splits and file.axes == "R")]


def _examine(directory: Path, needed: Collection[str], files: Sequence[ReleaseFile] = FILES) -> Found:
    return (examine_prepared if is_prepared(directory) else examine_release)(directory, needed, files)
