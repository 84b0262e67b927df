"""Files: results are written whole or not at all, as JSON or CSV; text and JSON are read within bounds, or refused."""

from __future__ import annotations

import csv
import json
import os
import stat
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

__all__ = [
    "check_output",
    "check_regular",
    "clearing",
    "convert",
    "expecting",
    "is_leftover",
    "load_json",
    "new_output",
    "read_json",
    "read_text",
    "write_csv",
    "write_json",
    "write_predictions",
    "write_scores",
    "writing",
]

if TYPE_CHECKING:
    from ave.data.dataset import AVEData, Split
    from ave.results.metrics import Outcomes

T = TypeVar("T")
MOST_TEXT = 64 << 20
"""The bytes of the largest text or JSON that is read."""


def new_output(output: Path | None, name: str) -> Path:
    """Return the directory that was asked for, or one below runs/ that is named after the time."""
    return output or Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name}"


def check_output(directory: Path) -> None:
    """Refuse a directory that holds files, so that no run overwrites another.

    Raises:
        ValueError: if ``directory`` is a file, or holds anything.
    """
    if directory.exists() and not (directory.is_dir() and all(map(is_leftover, directory.iterdir()))):
        raise ValueError(f"--output must be a new or empty directory, got {directory}, which is not")


def is_leftover(path: Path) -> bool:
    """Tell whether a killed process left this file half-written; the next writing replaces it."""
    return path.name.startswith(".") and ".partial" in path.name


@contextmanager
def clearing(directory: Path) -> Iterator[None]:
    """Create a directory, and remove it again if the code inside fails before it has written anything."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # raised if it holds files
            directory.rmdir()
        raise


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes ``path`` if all went well, and else is removed.

    A process that is killed meanwhile leaves ``path`` as it was, and at most the hidden ``.NAME.partial.SUFFIX``,
    which the next writing of ``path`` replaces.
    """
    # It has the suffix of path, because some writers choose the format by it.
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        # A full disk may show only when the bytes reach it, and a rename may reach it before the bytes do.
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON; paths become text."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False, default=os.fspath) + "\n")


@contextmanager
def expecting(expected: str) -> Iterator[None]:
    """Turn whatever a library raises at damaged bytes into a ValueError, "EXPECTED, got: ...", of one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # of damaged bytes, libraries raise whatever they run into
        came = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
        raise ValueError(f"{expected}, got: {came}") from error


def check_regular(path: Path) -> None:
    """Refuse pipes and devices, which could block a reader for ever, and directories.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is not a regular file.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {"a directory": stat.S_ISDIR, "a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
        came = next((kind for kind, test in kinds.items() if test(mode)), "a device")
        raise ValueError(f"{path} must be a regular file, got {came}")


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file of at most 64 MiB.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not a regular file, too large, or not in this encoding.
    """
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(MOST_TEXT + 1)
    if len(content) > MOST_TEXT:
        raise ValueError(f"{path} must have at most {MOST_TEXT >> 20} MiB, got more")
    return content.decode(encoding)


def load_json(path: Path) -> Any:
    """Read JSON of at most 64 MiB.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not a regular file, too large, or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("lists or objects that are nested too deep") from error


def read_json(path: Path, kind: type[T]) -> T:
    """Read JSON as a dataclass, whose fields say what the file must hold; fields with a default may be absent.

    Raises:
        ValueError: if it is not JSON, or holds something else.
    """
    try:
        return convert(kind, load_json(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or not what a run wrote: {error}") from error


def convert(kind: type[T], value: Any) -> T:
    """Convert what JSON holds to a dataclass, whose fields say what it must be.

    Raises:
        ValueError: if it is something else.
    """
    try:
        converted: T = _convert(kind, value, kind.__name__)
        return converted
    except (OverflowError, RecursionError) as error:  # of an integer beyond float, or of showing what came
        raise ValueError(f"{kind.__name__} must be in plain numbers and text, got others: {error}") from error


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Check that a value of JSON has a type, and convert it, to a dataclass, a path or a tuple."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        if unknown := sorted(value.keys() - hints.keys()):
            raise ValueError(f"{name} has no {unknown[0]}")
        absent = [
            field.name
            for field in fields(kind)
            if field.name not in value and field.default is field.default_factory is MISSING
        ]
        if absent:
            raise ValueError(f"{name} needs {absent[0]}")
        return kind(**{key: _convert(hints[key], part, f"{name}.{key}") for key, part in value.items()})
    if origin in (Union, UnionType):
        for argument in arguments:
            with suppress(ValueError):
                return _convert(argument, value, name)
    elif origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], part, name) for part in value)
    elif origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], part, f"{name}.{key}") for key, part in value.items()}
    elif origin is Literal and value in arguments:
        return value
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind or kind is Any:
        return value
    raise ValueError(f"{name} must be {getattr(kind, '__name__', kind)}, got {value!r:.60}")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], header: Sequence[str] | None = None) -> None:
    """Write rows as CSV in UTF-8; None becomes an empty cell.

    Args:
        path: the file.
        rows: all with the same keys.
        header: these keys in the order of the columns, by default that of the first row.

    Raises:
        ValueError: if there is neither a row nor a header, or a row has other keys.
    """
    if header is None:
        if not rows:
            raise ValueError(f"rows must hold at least one row to take the header of {path} from, got none")
        header = list(rows[0])
    for number, row in enumerate(rows, 1):
        if row.keys() != set(header):
            raise ValueError(f"rows must all have the keys {list(header)}, got {list(row)} in row {number}")
    with writing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_scores(
    output: Path, runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], categories: Sequence[str]
) -> None:
    """Write ``metrics.json``, ``metrics.csv``, ``categories.csv`` and ``confusion.csv``.

    Args:
        output: the directory.
        runs: the metrics of each network.
        summary: their mean and standard deviation.
        categories: the names, without background.
    """
    write_json(output / "metrics.json", {"summary": summary, "runs": list(runs)})
    scalars = [{key: value for key, value in run.items() if not isinstance(value, (list, dict))} for run in runs]
    write_csv(output / "metrics.csv", scalars)
    shares = [{"category": name, **spread} for name, spread in summary["category_accuracy"].items()]
    write_csv(output / "categories.csv", shares)
    names = [*categories, "background"]
    confusion = [dict(zip(names, row, strict=True)) for row in summary["confusion"]]
    write_csv(output / "confusion.csv", [{"true": name, **row} for name, row in zip(names, confusion, strict=True)])


def write_predictions(output: Path, outcomes: Outcomes, data: AVEData, split: Split) -> None:
    """Write ``predictions.npz``, video by video what a network gave on a split, for the analysis of its errors.

    It holds ``names`` (B,), ids or rows of the dataset, ``rows`` (B,), ``labels`` and ``predictions`` (B, T),
    ``event_logits`` (B, T), ``category_logits`` (B, K), or weak (B, K + 1), and ``categories`` (K,); the label K is
    background.
    """
    rows = data.splits[split].tolist()
    with writing(output / "predictions.npz") as temporary:
        np.savez(
            temporary,
            names=np.array([str(row) if data.names is None else data.names[row] for row in rows]),
            rows=np.array(rows),
            labels=outcomes.truth.numpy(),
            predictions=outcomes.prediction.numpy(),
            event_logits=outcomes.event_logits.numpy(),
            category_logits=outcomes.category_logits.numpy(),
            categories=np.array(data.categories),
        )
