"""From the AVE release to a prepared set: each file is read once, in blocks of rows, and written with fewer bits.

After every block, once it is on the disk, ``unfinished.json`` notes how far it goes, so that a run that was stopped at
any moment goes on from there. A finished file gets its name by a rename, and the manifest comes last.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ave.examination import raise_faults
from ave.inspection import BadValues
from ave.layout import FILES, ReleaseFile, needed_files
from ave.prepared import FORM, MANIFEST, UNFINISHED, describe, find_damage
from ave.release import examine_release
from ave.results import write_json

__all__ = ["DTYPES", "Preparation", "Rounding", "round_features"]

DTYPES = ("float16", "float32")
"""What features can be stored in."""


class Rounding(NamedTuple):
    """Rounded values, and the largest errors among them."""

    values: NDArray[Any]
    absolute: float
    relative: float
    """Among values from the least normal number of the dtype on; below it (6.1e-5 in float16) precision ends."""


def round_features(features: NDArray[Any], dtype: np.dtype[Any]) -> Rounding:
    """Round features, which are finite and at least 0, to ``dtype``.

    Raises:
        ValueError: if one is too large for it.

    Examples:
        >>> round_features(np.array([0.0, 1.0, 1.0004]), np.dtype("float16")).values
        array([0., 1., 1.], dtype=float16)
    """
    with np.errstate(over="ignore", under="ignore"):
        values = features.astype(dtype)
    if np.isinf(values.max()):
        limit = np.finfo(dtype).max
        raise ValueError(
            f"--dtype {dtype} ends at {limit:g}, got features up to {features.max():g}: use --dtype float32"
        )
    errors = np.subtract(features, values, dtype=np.float64)
    np.abs(errors, out=errors)
    absolute = float(errors.max())
    normal = features >= np.finfo(dtype).tiny
    np.divide(errors, features, out=errors, where=normal)
    return Rounding(values, absolute, float(errors.max(where=normal, initial=0.0)))


class Preparation:
    """A set to be prepared: what it takes is looked at first, and nothing is written before ``run``.

    Args:
        directory: of the release. What the weak setting needs is prepared too, where it is there.
        output: a new or empty directory, or one where a run with the same arguments was stopped or finished.
        dtype: one of DTYPES.

    Raises:
        FileNotFoundError: if the release lacks a file.
        ValueError: if another is not as it must be, ``output`` holds something else, or the disk is too small.
    """

    def __init__(self, directory: Path, output: Path, dtype: str = "float16") -> None:
        self.found = examine_release(directory, needed_files("supervised"))
        raise_faults(self.found.faults)
        self.output, self.dtype = output, np.dtype(dtype)
        self.remarks: list[str] = []
        """What is to be said before the run."""
        self._state: dict[str, Any] = {"form": FORM, "dtype": dtype, "names": None, "files": {}, "current": None}
        self._was_complete = False
        self._look_at_output()
        self._check_space()

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self._was_complete and not self._waiting() and self._state["names"] == self._names()

    def run(self) -> dict[str, Any]:
        """Prepare what is not yet prepared, with a progress bar.

        Returns:
            The manifest: under "files", for each its shape, dtype, bytes, SHA-256, source and largest rounding errors.

        Raises:
            ValueError: if features are not finite, negative, or too large for the dtype; nothing is left behind then.
            OSError: if a file cannot be written, as when the disk is full; another run goes on from there.
        """
        if self.is_finished:
            return self._state
        before = dict(self._state["files"])
        try:
            self._prepare()
        except ValueError:
            self._undo(before)
            raise
        except OSError as error:
            advice = f"{error.strerror or error}; what is written is kept: run prepare again to go on"
            raise OSError(error.errno, advice, error.filename or str(self.output)) from error
        return self._state

    def _prepare(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        self._note()
        (self.output / MANIFEST).unlink(missing_ok=True)
        sizes = {name: len(array) * array.row_bytes for name, array in self.found.arrays.items()}
        with tqdm(total=sum(sizes.values()), desc="preparing", unit="B", unit_scale=True, disable=None) as bar:
            bar.update(sum(sizes[name] for name in self._state["files"]))
            for file in self._waiting():
                self._convert(file, bar)
        self._state["names"] = self._names()
        self._complete(self._state["files"])

    def _convert(self, file: ReleaseFile, bar: tqdm[Any]) -> None:
        """Write one file on from where it stands, and enter it among those that are ready."""
        array, dtype = self.found.arrays[file.name], self._dtype_of(file)
        final = self.output / f"{file.name}.npy"
        unfinished = final.with_name(f"{final.name}.partial")
        header, row_bytes = _header(array.shape, dtype), prod(array.shape[1:]) * dtype.itemsize
        current = self._state["current"]
        if (
            current is None
            or current["name"] != file.name
            or not unfinished.exists()
            or unfinished.stat().st_size < len(header) + current["rows"] * row_bytes
        ):
            source = self._source(file.name)
            current = {"name": file.name, "source": source, "rows": 0, "absolute_error": 0.0, "relative_error": 0.0}
        self._state["current"] = current
        bad = BadValues(array.path)
        bar.update(current["rows"] * array.row_bytes)
        with unfinished.open("r+b" if current["rows"] else "wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + current["rows"] * row_bytes)
            stream.seek(0, io.SEEK_END)
            for first, block in array.blocks(current["rows"]):
                rounding = self._round(file, first, block, bad)
                stream.write(rounding.values.data)
                stream.flush()
                os.fsync(stream.fileno())
                current["rows"] = first + len(block)
                for kind in ("absolute", "relative"):
                    current[f"{kind}_error"] = max(current[f"{kind}_error"], getattr(rounding, kind))
                self._note()
                bar.update(block.nbytes)
        os.replace(unfinished, final)
        entry = {key: current[key] for key in ("source", "absolute_error", "relative_error")}
        entry |= {"shape": array.shape, "dtype": dtype.name, **describe(final)}
        self._state["files"][file.name] = entry
        self._state["current"] = None
        self._note()

    def _round(self, file: ReleaseFile, first: int, block: NDArray[Any], bad: BadValues) -> Rounding:
        if not file.is_features:
            return Rounding(block.astype(self._dtype_of(file)), 0.0, 0.0)
        bad.add(first, block)
        for _, message in bad.verdicts():
            raise ValueError(f"{message}, and maybe more after it: `check` finds all")
        try:
            return round_features(block, self.dtype)
        except ValueError as error:
            raise ValueError(f"{bad.path}: {error}") from error

    def _undo(self, before: dict[str, Any]) -> None:
        """Leave only what was complete when the run began."""
        for file in FILES:
            final = self.output / f"{file.name}.npy"
            final.with_name(f"{final.name}.partial").unlink(missing_ok=True)
            if not (self._was_complete and file.name in before):
                final.unlink(missing_ok=True)
        if self._was_complete:
            self._complete(before)
        else:
            (self.output / UNFINISHED).unlink()
            self.output.rmdir()

    def _look_at_output(self) -> None:
        if not self.output.exists():
            return
        present = {path.name for path in self.output.iterdir()} if self.output.is_dir() else {"no directory"}
        own = {f".{name}.partial.json" for name in (MANIFEST, UNFINISHED)}
        if began := not present.isdisjoint({MANIFEST, UNFINISHED}):
            own |= {MANIFEST, UNFINISHED, *(f"{file.name}.npy{end}" for file in FILES for end in ("", ".partial"))}
        if strangers := sorted(present - own):
            expected = "--output must be a new or empty directory, or one where prepare was stopped"
            raise ValueError(f"{expected}, got {self.output}, which holds {strangers[0]}")
        if began:
            self._was_complete = MANIFEST in present
            self._take_over(self.output / (MANIFEST if self._was_complete else UNFINISHED))

    def _take_over(self, path: Path) -> None:
        """Go on from what an earlier run noted, as far as it is still so."""
        try:
            state = json.loads(path.read_text("utf-8"))
            form, dtype, names, files = (state[key] for key in ("form", "dtype", "names", "files"))
            changed = [name for name, entry in files.items() if entry["source"] != self._source(name)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.remarks.append(f"{path} is damaged, so all is prepared anew: {error!r}")
            self._was_complete = False
            return
        if (form, dtype) != (FORM, self.dtype.name) or changed:
            came = f"from another {changed[0]}.h5" if changed else f"in {dtype}"
            if self._was_complete:
                raise ValueError(
                    f"--output must be a new directory, got {self.output}, which holds a set prepared {came}"
                )
            self.remarks.append(f"{self.output} was begun {came}, so all is prepared anew")
            return
        for name, entry in files.items():
            if damage := find_damage(self.output / f"{name}.npy", entry):
                self.remarks.append(f"{damage}; it is prepared anew")
            else:
                self._state["files"][name] = entry
        self._state["names"] = names
        if (current := state.get("current")) and current["source"] == self._source(current["name"]):
            self._state["current"] = current
        if not self._was_complete:
            rows = f", and {current['rows']} rows of {current['name']}" if self._state["current"] else ""
            self.remarks.append(f"going on in {self.output} with {len(self._state['files'])} files ready{rows}")

    def _source(self, name: str) -> dict[str, Any] | None:
        """What tells whether a file of the release is still the one that was read."""
        if name not in self.found.arrays:
            return None
        status = self.found.paths[name].stat()
        return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}

    def _names(self) -> list[str] | None:
        return self._state["names"] if self.found.names is None else list(self.found.names)

    def _waiting(self) -> list[ReleaseFile]:
        return [file for file in FILES if file.name in self.found.arrays and file.name not in self._state["files"]]

    def _dtype_of(self, file: ReleaseFile) -> np.dtype[Any]:
        return self.dtype if file.is_features else np.dtype("int64" if file.axes == "R" else "float32")

    def _check_space(self) -> None:
        arrays = {file: self.found.arrays[file.name] for file in self._waiting()}
        needed = sum(prod(array.shape) * self._dtype_of(file).itemsize for file, array in arrays.items())
        needed -= sum(path.stat().st_size for path in self.output.glob("*.partial"))
        place = next(path for path in (self.output, *self.output.absolute().parents) if path.exists())
        if needed > (free := shutil.disk_usage(place).free):
            sizes = (tqdm.format_sizeof(size, "B") for size in (needed, free))
            raise ValueError("--output must be on a disk with {} free, got {} free at {}".format(*sizes, place))

    def _note(self) -> None:
        write_json(self.output / UNFINISHED, self._state)

    def _complete(self, files: dict[str, Any]) -> None:
        """Write the manifest of ``files``, with which the set is complete."""
        self._state["files"] = {file.name: files[file.name] for file in FILES if file.name in files}
        write_json(self.output / MANIFEST, {key: value for key, value in self._state.items() if key != "current"})
        (self.output / UNFINISHED).unlink()


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """How a .npy file of an array begins."""
    stream = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()
