"""Check a dataset, and prepare the AVE release for training: each file is read once, and written with fewer bits."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ave import InputError, checking_input
from ave.data.dataset import Setting
from ave.data.features import BadValues, clear_padding
from ave.data.layout import FILES, ReleaseFile, needed_files
from ave.data.opening import inspect_set
from ave.data.prepared import FORM, MANIFEST, UNFINISHED, find_damage, parse_manifest
from ave.data.release import Found, examine_release
from ave.results.files import is_leftover, write_json, writing
from ave.results.tables import files_table, format_table

__all__ = ["CheckConfig", "PrepareConfig", "Rounding", "check", "prepare", "prepare_release", "round_features"]


@dataclass(frozen=True)
class CheckConfig:
    """Check a directory of the AVE release, or a prepared one: what is there, and precisely what is missing or wrong.

    It prints a table of all files, with their datasets, shapes, dtypes and counts per split, then a line for every
    problem, which says what to do. All features are read, to find values that are not finite, and videos whose features
    are all zero or were never written; what stands twice, such as labels and annotations, is compared. The exit code is
    0 if all is right, else 2.
    """

    data: Path
    """directory of the AVE release, of an own set in its form, or made by `prepare`"""
    setting: Setting = "supervised"
    """the use; weak needs four more files, which are otherwise checked if they are there"""


def check(config: CheckConfig) -> None:
    """Print the table, and end with the problems if there are any.

    Raises:
        InputError: if anything is missing or wrong.
    """
    with checking_input():
        found = inspect_set(config.data, config.setting)
        print(files_table(found))
        found.raise_problems()


@dataclass(frozen=True)
class PrepareConfig:
    """Prepare the AVE release for training: smaller files, which are mapped into memory, with a digest of each.

    Features are rounded, by default to float16: a quarter of the release's float64. If it is stopped, at any moment,
    run it again with the same options: it goes on after the last finished file. The other subcommands read the result,
    with --data, as they read the release.
    """

    data: Path
    """directory of the AVE release, or of an own set in its form"""
    output: Path
    """a new directory, or one where `prepare` was stopped; a finished one is verified and repaired"""
    dtype: Literal["float16", "float32"] = "float16"
    """of the features; float32 takes twice the space, with 24 bits of precision, not 11"""


def prepare(config: PrepareConfig) -> None:
    """Prepare a release, and print how much smaller it became and what the rounding cost.

    Raises:
        InputError: if the release is not as it must be, or the output holds something else.
        OSError: if a file cannot be written; finished files are kept.
    """
    manifest = prepare_release(config.data, config.output, config.dtype)
    rows = list(_lines(manifest["files"]))
    header = ("file", "before", "after", "ratio", "largest error", "relative error")
    print(format_table(f"{config.output}: prepared in {config.dtype}", rows, header))


def _lines(files: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each file, and last for all together."""
    sizes = {name: (entry["source"]["bytes"], entry["bytes"]) for name, entry in files.items()}
    errors = {
        name: (f"{entry['absolute_error']:.2e}", f"{entry['relative_error']:.2e}") if "feature" in name else ("", "")
        for name, entry in files.items()
    }
    sizes["all"] = (sum(before for before, _ in sizes.values()), sum(after for _, after in sizes.values()))
    for name, (before, after) in sizes.items():
        described = (tqdm.format_sizeof(size, "B") for size in (before, after))
        yield name, *described, f"{before / after:.2f}", *errors.get(name, ("", ""))


def prepare_release(
    directory: Path, output: Path, dtype: str = "float16", say: Callable[[str], object] = print
) -> dict[str, Any]:
    """Prepare every file that is not yet prepared, with a progress bar.

    Args:
        directory: of the release. The files of the weak setting are prepared if they are there.
        output: a new or empty directory, or one where this was stopped or finished with the same arguments.
        dtype: "float16" or "float32".
        say: called with remarks about what was found in ``output``.

    Returns:
        The manifest: under "files", for each its shape, dtype, bytes, SHA-256, source and largest rounding errors.

    Raises:
        InputError: if a file of the release is missing or wrong, features are not finite, all zero for a video, or too
            large for the dtype, ``output`` holds something else, or the disk is too small; ``output`` is as before.
        OSError: if a file cannot be written, for example because the disk is full; finished files are kept.
    """
    # ---- Check everything before anything is written ----
    with checking_input():
        found = examine_release(directory, needed_files("supervised"))
        found.raise_problems()
        complete, manifest = _take_over(output, found, dtype, say)
        waiting = [file for file in FILES if file.name in found.arrays and file.name not in manifest["files"]]
        _check_space(output, sum(prod(found.arrays[f.name].shape) * _dtype_of(f, dtype).itemsize for f in waiting))
    texts = {
        "names": manifest["names"] if found.names is None else found.names,
        "categories": manifest["categories"] if found.categories is None else found.categories,
        "ave": found.is_ave,
    }
    if complete and not waiting and all(manifest[key] == text for key, text in texts.items()):
        say(f"{output} is prepared, and every digest is right: there is nothing to do")
        return manifest
    manifest |= texts
    before = dict(manifest["files"])
    try:
        # ---- Convert file by file; each is noted once it is on the disk ----
        output.mkdir(parents=True, exist_ok=True)
        if (output / MANIFEST).exists():
            os.replace(output / MANIFEST, output / UNFINISHED)
        write_json(output / UNFINISHED, manifest)
        sizes = {name: len(array) * array.row_bytes for name, array in found.arrays.items()}
        with tqdm(total=sum(sizes.values()), desc="preparing", unit="B", unit_scale=True, disable=None) as bar:
            bar.update(sum(sizes[name] for name in before))
            for file in waiting:
                manifest["files"][file.name] = _convert(file, found, output, dtype, bar)
                write_json(output / UNFINISHED, manifest)
    except ValueError as error:
        # ---- Bad features: leave only what was complete before ----
        for file in waiting:
            (output / f"{file.name}.npy").unlink(missing_ok=True)
        if complete:
            _finish(output, {**manifest, "files": before})
        else:
            shutil.rmtree(output)
        raise InputError(str(error)) from error
    except OSError as error:
        advice = f"{error.strerror or error}; finished files are kept: run prepare again to go on"
        raise OSError(error.errno, advice, error.filename or str(output)) from error
    return _finish(output, manifest)


def _take_over(output: Path, found: Found, dtype: str, say: Callable[[str], object]) -> tuple[bool, dict[str, Any]]:
    """Return whether a finished dataset is in ``output``, and a manifest of the files there that are still right."""
    texts = {"names": None, "categories": None, "ave": False}
    fresh: dict[str, Any] = {"form": FORM, "dtype": dtype, **texts, "files": {}}
    if not output.exists():
        return False, fresh
    present = {path.name for path in output.iterdir()} if output.is_dir() else {"no directory"}
    own = {name for name in present if is_leftover(output / name)}
    if began := not present.isdisjoint({MANIFEST, UNFINISHED}):
        own |= {MANIFEST, UNFINISHED, *(f"{file.name}.npy" for file in FILES)}
    if strangers := sorted(present - own):
        expected = "--output must be a new or empty directory, or one where prepare was stopped"
        raise ValueError(f"{expected}, got {output}, which holds {strangers[0]}")
    if not began:
        return False, fresh
    complete = MANIFEST in present
    path = output / (MANIFEST if complete else UNFINISHED)
    try:
        manifest = parse_manifest(path)
        came, files = manifest["dtype"], manifest["files"]
        changed = [name for name, entry in files.items() if entry["source"] != _source(found, name)]
    except (OSError, ValueError) as error:
        say(f"{path} is damaged, so all is prepared anew: {error}")
        return False, fresh
    if came != dtype or changed:
        other = f"from another {found.paths[changed[0]].name}" if changed else f"in {came}"
        if complete:
            raise ValueError(f"--output must be a new directory, got {output}, which holds a set prepared {other}")
        say(f"{output} was begun {other}, so all is prepared anew")
        return False, fresh
    whole = {}
    for name, entry in files.items():
        if damage := find_damage(output / f"{name}.npy", entry):
            say(f"{damage}; it is prepared anew")
        else:
            whole[name] = entry
    if not complete:
        say(f"going on in {output} with {len(whole)} files ready")
    return complete, {**fresh, **{key: manifest.get(key) for key in texts}, "files": whole}


def _source(found: Found, name: str) -> dict[str, Any] | None:
    """Return the size and time of a file of the release, by which a changed one is noticed."""
    if name not in found.arrays:
        return None
    status = found.paths[name].stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _check_space(output: Path, needed: int) -> None:
    place = next(path for path in (output, *output.absolute().parents) if path.exists())
    if needed > (free := shutil.disk_usage(place).free):
        sizes = (tqdm.format_sizeof(size, "B") for size in (needed, free))
        raise ValueError("--output must be on a disk with {} free, got {} free at {}".format(*sizes, place))


def _convert(file: ReleaseFile, found: Found, output: Path, dtype: str, bar: tqdm[Any]) -> dict[str, Any]:
    """Write one file, whole or not at all, and return its entry in the manifest.

    Raises:
        ValueError: if features are not finite, all zero for a video, or too large for the dtype.
    """
    array, kind = found.arrays[file.name], _dtype_of(file, dtype)
    entry: dict[str, Any] = {"source": _source(found, file.name), "absolute_error": 0.0, "relative_error": 0.0}
    bad = BadValues(file, found)
    path = output / f"{file.name}.npy"
    with writing(path) as temporary, temporary.open("wb") as stream:
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(header, description)
        digest = hashlib.sha256(header.getvalue())
        stream.write(header.getvalue())
        for first, block in array.blocks():
            values = block.astype(kind) if not file.is_features else block
            if file.is_features:
                clear_padding(first, block, found.lengths_of(file))
                bad.add(first, block)
                for message in bad.messages():
                    raise ValueError(f"{message}, and maybe more after it: `check` finds all")
                try:
                    values, absolute, relative = round_features(block, kind)
                except ValueError as error:
                    raise ValueError(f"{array.path}: {error}") from error
                entry["absolute_error"] = max(entry["absolute_error"], absolute)
                entry["relative_error"] = max(entry["relative_error"], relative)
            digest.update(values.data)
            stream.write(values.data)
            bar.update(block.nbytes)
    return {
        **entry,
        "shape": array.shape,
        "dtype": kind.name,
        "bytes": path.stat().st_size,
        "sha256": digest.hexdigest(),
    }


def _finish(output: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest, whose last name makes the dataset complete."""
    files = manifest["files"]
    manifest = {**manifest, "files": {file.name: files[file.name] for file in FILES if file.name in files}}
    write_json(output / UNFINISHED, manifest)
    os.replace(output / UNFINISHED, output / MANIFEST)
    return manifest


def _dtype_of(file: ReleaseFile, dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype if file.is_features else "int64" if len(file.axes) == 1 else "float32")


class Rounding(NamedTuple):
    """Rounded values, and the largest errors among them."""

    values: NDArray[Any]
    absolute: float
    relative: float
    """Of values from the least normal number of the dtype on; below it (6.1e-5 in float16) precision ends."""


def round_features(features: NDArray[Any], dtype: np.dtype[Any]) -> Rounding:
    """Round features, which are finite, to ``dtype``.

    Raises:
        ValueError: if one is too large for it.

    Examples:
        >>> round_features(np.array([0.0, 1.0, 1.0004]), np.dtype("float16")).values
        array([0., 1., 1.], dtype=float16)
    """
    with np.errstate(over="ignore", under="ignore"):
        values = features.astype(dtype)
    sizes = np.abs(features)
    if np.isinf(values.max()) or np.isinf(values.min()):
        limit = np.finfo(dtype).max
        raise ValueError(f"--dtype {dtype} ends at {limit:g}, got features up to {sizes.max():g}: use --dtype float32")
    errors = np.subtract(features, values, dtype=np.float64)
    np.abs(errors, out=errors)
    absolute = float(errors.max())
    normal = sizes >= np.finfo(dtype).tiny
    np.divide(errors, sizes, out=errors, where=normal)
    return Rounding(values, absolute, float(errors.max(where=normal, initial=0.0)))
