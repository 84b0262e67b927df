"""The AVE release as it is downloaded: a directory of HDF5 files, opened where they lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ave.data import AVEData
from ave.examination import Fault, Found, examine
from ave.layout import ANNOTATIONS, FILES, REPOSITORY, UNNEEDED, ReleaseFile, needed_files
from ave.model import Setting

__all__ = ["examine_release", "read_release"]


def read_release(directory: Path | str, setting: Setting = "supervised") -> AVEData:
    """Open the HDF5 files of an AVE release. Features, of any width, stay on disk and are read by rows.

    Args:
        directory: holds ``visual_feature.h5``, ``audio_feature.h5``, ``labels.h5`` (or ``right_labels.h5``),
            ``train_order.h5``, ``val_order.h5``, ``test_order.h5``; for the weak setting also ``mil_labels.h5``,
            ``visual_feature_noisy.h5``, ``audio_feature_noisy.h5``, ``labels_noisy.h5``. ``Annotations.txt`` gives
            the videos their names.
        setting: which of them must be there. Those of the weak setting are read where they are.

    Raises:
        FileNotFoundError: if the directory or a file is missing.
        ValueError: if a file is not HDF5, lacks its dataset, or does not fit the others. Whether features are finite
            and not negative is not looked at, as that takes reading them all.
    """
    return examine_release(Path(directory), needed_files(setting)).to_data()


def examine_release(directory: Path, needed: Collection[str], files: Sequence[ReleaseFile] = FILES) -> Found:
    """See which HDF5 files of the release a directory holds, and whether they are whole and fit each other.

    Args:
        directory: of the release.
        needed: the names of the files that must be there.
        files: those to look at.

    Raises:
        FileNotFoundError: if there is no such directory.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory: expected the one with the files of the AVE release")

    def remedy(file: ReleaseFile) -> str:
        mistaken = file.name == "labels" and (directory / "prob_label.h5").exists()
        hint = f"prob_label.h5 is {UNNEEDED['prob_label.h5']}; " if mistaken else ""
        return f"{hint}the release has it: {file.source}"

    paths = {file.name: directory / f"{file.name}.h5" for file in files}
    if (renamed := directory / "right_labels.h5").exists() and not (directory / "labels.h5").exists():
        paths["labels"] = renamed
    found = examine(paths, needed, remedy, files)
    annotations = directory / ANNOTATIONS
    if annotations.exists():
        try:
            found.names = _read_names(annotations, found.sizes)
        except ValueError as error:
            found.faults.append(Fault((ANNOTATIONS,), "wrong", f"{error}; the release has it: {REPOSITORY}"))
    else:
        found.remarks.append(
            f"{ANNOTATIONS} is not there, so videos have no YouTube ids; the release has it: {REPOSITORY}"
        )
    found.remarks += [f"{name} is not needed: {why}" for name, why in UNNEEDED.items() if (directory / name).exists()]
    return found


def _read_names(path: Path, sizes: Mapping[str, tuple[int, Path]]) -> tuple[str, ...]:
    """The YouTube ids of the annotations, whose lines stand for the rows of every array."""
    try:
        lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
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
