"""Read files that may be damaged or malicious: only regular files, of limited size, with checked types."""

from __future__ import annotations

import json
import stat
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["check_regular", "convert", "expecting", "load_json", "read_json", "read_text"]

T = TypeVar("T")
MOST_TEXT = 64 << 20
"""Size limit of text and JSON files, in bytes."""


@contextmanager
def expecting(expected: str) -> Iterator[None]:
    """Turn any error of a library into a ValueError with the message "EXPECTED, got: ...", in one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # libraries raise many types of error at damaged bytes
        came = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
        raise ValueError(f"{expected}, got: {came}") from error


def check_regular(path: Path) -> None:
    """Reject directories, and pipes and devices, which could block a reader forever.

    Raises:
        FileNotFoundError: if the file is missing.
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
    """Read a JSON file of at most 64 MiB.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not a regular file, too large, or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("lists or objects that are nested too deep") from error


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file into a dataclass. Fields with a default may be missing.

    Raises:
        ValueError: if the file is not JSON, or a value has another type than its field.
    """
    try:
        return convert(kind, load_json(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or not what a run wrote: {error}") from error


def convert(kind: type[T], value: Any) -> T:
    """Convert a value from JSON to a dataclass.

    Raises:
        ValueError: if a value has another type than its field.
    """
    try:
        converted: T = _convert(kind, value, kind.__name__)
        return converted
    except (OverflowError, RecursionError) as error:  # an integer too large for float, or nesting too deep
        raise ValueError(f"{kind.__name__} must hold plain numbers and text: {error}") from error


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Check the type of a value from JSON, and convert it to a dataclass, a path or a tuple if needed."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        if unknown := sorted(value.keys() - hints.keys()):
            raise ValueError(f"{name} has no {unknown[0]:.60}")
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
        return {key: _convert(arguments[1], part, f"{name}.{key:.60}") for key, part in value.items()}
    elif origin is Literal and value in arguments:
        return value
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind or kind is Any:
        return value
    raise ValueError(f"{name} must be {getattr(kind, '__name__', kind)}, got {value!r:.60}")
