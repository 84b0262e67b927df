"""Check a dataset, and prepare the AVE release for training: convert each file to a smaller one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ave import InputError, checking_input
from ave.data.dataset import Setting
from ave.data.features import CheckedFeatures
from ave.data.layout import FILES, ReleaseFile, needed_files
from ave.data.opening import inspect_set, label_set
from ave.data.prepared import FORM, MANIFEST, UNFINISHED, Entry, Manifest, Source, find_damage, parse_manifest
from ave.data.release import Found, examine_release
from ave.results.files import clearing, is_leftover, write_array, write_json
from ave.results.tables import files_table, format_table

__all__ = ["CheckConfig", "PrepareConfig", "check", "prepare", "prepare_release"]

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class CheckConfig:
    """Check the directory of a dataset, and print which files are there, missing or wrong.

    The command prints a table of all files, with their HDF5 datasets, shapes, dtypes and counts per split, then one
    line for each problem, with what to do. It reads all features, to find values that are not finite, and videos whose
    features are all zero or were never written. It also compares files that hold the same facts, such as labels and
    annotations. The exit code is 0 if there is no problem, else 2.
    """

    data: Path
    """directory of the AVE release, your own dataset in that layout, or the output of `prepare`"""
    setting: Setting = "supervised"
    """weak needs four more files; supervised checks them only if they are there"""
    labels: Path | None = None
    """labels as text, as for `train`; then the dataset needs only features"""
    split: str | None = None
    """percentages of train, val and test, by video, if --labels has no column split; if omitted: 70/15/15"""
    split_seed: int | None = None
    """seed of this division of the videos; if omitted: 0"""


def check(config: CheckConfig) -> None:
    """Check the files of a dataset, and print the table.

    Raises:
        InputError: if anything is missing or wrong.
    """
    with checking_input():
        for option, value in (("--split", config.split), ("--split-seed", config.split_seed)):
            if value is not None and config.labels is None:
                raise ValueError(f"{option} must be given with --labels, got {value} alone")
        if config.split_seed is not None and config.split_seed < 0:
            raise ValueError(f"--split-seed must be at least 0, got {config.split_seed}")
        found = inspect_set(config.data, config.setting, labels=config.labels is None)
        print(files_table(found))
        found.raise_problems()
        if config.labels is not None:
            label_set(config.data, config.labels, config.split, say=print, split_seed=config.split_seed)


@dataclass(frozen=True)
class PrepareConfig:
    """Prepare a dataset for training: write smaller files that can be memory-mapped, with a digest of each.

    Features are rounded to float16 by default, a quarter of the size of the release's float64. If the command is
    stopped, run it again with the same options: it continues after the last finished file. Give the result to the other
    subcommands with --data.
    """

    data: Path
    """directory of the AVE release, or of your own dataset in that layout"""
    output: Path
    """new directory, or one where `prepare` was stopped; a finished one is checked and repaired"""
    dtype: Dtype = "float16"
    """dtype of the features; float32 takes twice the space, and has 24 bits of precision instead of 11"""


def prepare(config: PrepareConfig) -> None:
    """Prepare a dataset, and print the sizes before and after, and the rounding errors."""
    manifest = prepare_release(config.data, config.output, config.dtype)
    header = ("file", "before", "after", "ratio", "largest error", "relative error")
    print(format_table(f"{config.output}: prepared in {config.dtype}", list(_lines(manifest.files)), header))


def _lines(files: Mapping[str, Entry]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each file, then a row for the total."""
    sizes = {name: (entry.source.bytes, entry.bytes) for name, entry in files.items()}
    sizes["all"] = (sum(before for before, _ in sizes.values()), sum(after for _, after in sizes.values()))
    for name, (before, after) in sizes.items():
        described = (tqdm.format_sizeof(size, "B") for size in (before, after))
        errors = ("", "")
        if "feature" in name:
            errors = (f"{files[name].absolute_error:.2e}", f"{files[name].relative_error:.2e}")
        yield name, *described, f"{before / after:.2f}", *errors


def prepare_release(
    directory: Path, output: Path, dtype: Dtype = "float16", say: Callable[[str], object] = print
) -> Manifest:
    """Prepare every file that is not yet prepared, with a progress bar.

    Args:
        directory: the directory of the release. The files of the weak setting are prepared if they are there.
        output: a new or empty directory, or the output of an earlier call with the same arguments, finished or not.
        dtype: the dtype of the prepared features.
        say: called with each message about what was found in ``output``.

    Returns:
        Manifest: for each file its shape, dtype, bytes, SHA-256, source and largest rounding errors.

    Raises:
        InputError: before anything is written, if a file of the release is missing or wrong, ``output`` holds other
            files or is in use, or there is too little disk space. Later, if features are not finite, all zero for a
            video, or too large for the dtype. Finished files are kept.
        OSError: if a file cannot be written, for example because the disk is full. Finished files are kept.
    """
    with checking_input():
        found = examine_release(directory, needed_files("supervised"))
        found.raise_problems()
    with clearing(output, new=False):
        # ---- Find the files that are not prepared yet ----
        with checking_input():
            old = _read_old(output, found, dtype, say)
            waiting = {file: found.arrays[file.name] for file in FILES if file.name in found.arrays.keys() - old.files}
            needed = sum(prod(array.shape) * _dtype_of(file, dtype).itemsize for file, array in waiting.items())
            if needed > (free := shutil.disk_usage(output).free):
                expected, came = (tqdm.format_sizeof(size, "B") for size in (needed, free))
                raise ValueError(f"--output must be on a disk with {expected} free, got {came} free at {output}")
        names, categories = found.names or old.names, found.categories or old.categories
        manifest = replace(old, names=names, categories=categories, ave=found.is_ave)
        if not waiting and manifest == old and not (output / UNFINISHED).exists():
            say(f"{output} is prepared, and every digest is right: there is nothing to do")
            return manifest

        # ---- Convert the files one by one, and add each to the manifest when it is on the disk ----
        total = sum(len(array) * array.row_bytes for array in waiting.values())
        try:
            write_json(output / UNFINISHED, asdict(manifest))
            with tqdm(total=total, desc="preparing", unit="B", unit_scale=True, disable=None) as bar:
                for file in waiting:
                    manifest.files[file.name] = _convert(file, found, output, dtype, bar)
                    write_json(output / UNFINISHED, asdict(manifest))

            # ---- Write the final manifest, which makes the dataset complete ----
            files = {file.name: manifest.files[file.name] for file in FILES if file.name in manifest.files}
            manifest = replace(manifest, files=files)
            for file in FILES:
                if file.name not in files:  # left by a preparation of another release
                    (output / f"{file.name}.npy").unlink(missing_ok=True)
            write_json(output / MANIFEST, asdict(manifest))
            (output / UNFINISHED).unlink()
        except ValueError as error:
            raise InputError(f"{error}; finished files are kept in {output}") from error
        except OSError as error:
            advice = f"{error.strerror or error}; finished files are kept: run prepare again to continue"
            raise OSError(error.errno, advice, error.filename or str(output)) from error
    return manifest


def _read_old(output: Path, found: Found, dtype: Dtype, say: Callable[[str], object]) -> Manifest:
    """Read the manifest in ``output``, finished or not, without the files that are damaged.

    Raises:
        ValueError: if ``output`` holds other files, or a finished dataset with another dtype or from another release.
    """
    fresh = Manifest(FORM, dtype, {}, None)
    present = {path.name for path in output.iterdir() if not is_leftover(path)}
    finished = MANIFEST in present
    own = {MANIFEST, UNFINISHED, *(f"{file.name}.npy" for file in FILES)}
    if strangers := sorted(present - own if finished or UNFINISHED in present else present):
        expected = "--output must be a new or empty directory, or one where prepare was stopped"
        raise ValueError(f"{expected}, got {output}, which holds {strangers[0]}")
    if not present:
        return fresh
    path = output / (UNFINISHED if UNFINISHED in present else MANIFEST)
    try:
        old = parse_manifest(path)
    except (OSError, ValueError) as error:
        say(f"{path} is damaged, so all files are prepared again: {error}")
        return fresh
    listed = {file.name: old.files[file.name] for file in FILES if file.name in old.files}
    sources = {name: Source.of(array.path) for name, array in found.arrays.items()}
    changed = [name for name, entry in listed.items() if entry.source != sources.get(name)]
    if old.dtype != dtype or changed:
        other = f"from another {found.paths[changed[0]].name}" if changed else f"in {old.dtype}"
        if finished:
            raise ValueError(f"--output must be a new directory, got {output}, which holds a set prepared {other}")
        say(f"{output} was started {other}, so all files are prepared again")
        return fresh
    damages = {name: find_damage(output / f"{name}.npy", entry) for name, entry in listed.items()}
    for damage in filter(None, damages.values()):
        say(f"{damage}; it is prepared again")
    whole = {name: entry for name, entry in listed.items() if damages[name] is None}
    if not finished:
        say(f"continuing in {output}, where {len(whole)} files are ready")
    return replace(old, files=whole)


def _convert(file: ReleaseFile, found: Found, output: Path, dtype: str, bar: tqdm[Any]) -> Entry:
    """Convert one file, and return its entry in the manifest. If that fails, no file is left.

    Raises:
        ValueError: if features are not finite, all zero for a video, or too large for the dtype.
    """
    array, kind = found.arrays[file.name], _dtype_of(file, dtype)
    source, absolute, relative = Source.of(array.path), 0.0, 0.0
    features = CheckedFeatures(file, found) if file.is_features else None
    path = output / f"{file.name}.npy"

    def convert() -> Iterator[NDArray[Any]]:
        nonlocal absolute, relative
        for _, block in (features or array).blocks():
            for message in features.messages() if features else ():
                raise ValueError(f"{message}; there may be more: `check` finds all")
            with np.errstate(over="ignore", under="ignore"):
                values = block.astype(kind)
            if features:
                if not np.isfinite(values).all():
                    came = f"the largest {kind} is {np.finfo(kind).max:g}, got features up to {np.abs(block).max():g}"
                    raise ValueError(f"{array.path}: {came}: use --dtype float32")
                errors = _rounding_errors(block, values)
                absolute, relative = max(absolute, errors[0]), max(relative, errors[1])
            yield values
            bar.update(block.nbytes)

    size, digest = write_array(path, array.shape, kind, convert())
    return Entry(source, absolute, relative, array.shape, kind.name, size, digest)


def _dtype_of(file: ReleaseFile, dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype if file.is_features else "int64" if len(file.axes) == 1 else "float32")


def _rounding_errors(features: NDArray[Any], rounded: NDArray[Any]) -> tuple[float, float]:
    """Return the largest absolute error, and the largest relative error among normal numbers of the dtype."""
    sizes = np.abs(features)
    errors = np.abs(np.subtract(features, rounded, dtype=np.float64))
    absolute = float(errors.max())
    normal = sizes >= np.finfo(rounded.dtype).tiny  # 6.1e-5 in float16; smaller numbers lose precision
    np.divide(errors, sizes, out=errors, where=normal)
    return absolute, float(errors.max(where=normal, initial=0.0))
