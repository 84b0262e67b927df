"""The subcommands of ave_cmran.py: each module is one, with ``add_options`` and ``run``."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["InputError", "add_output_option", "checking_input", "new_output", "number"]


class InputError(Exception):
    """What was given cannot be worked with. The command says why in a line and ends with exit code 2."""


@contextmanager
def checking_input() -> Iterator[None]:
    """Around what looks at options and files before any work: its errors are of the input, not of the program."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error


def add_output_option(container: argparse._ActionsContainer, name: str) -> None:
    """Add ``--output``, which :func:`new_output` makes a path of."""
    container.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"new directory for the results (default: runs/<date and time>-{name})",
    )


def new_output(output: Path | None, name: str) -> Path:
    """The directory that was asked for, or one named after the time."""
    return output or Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name}"


def number(kind: type[int] | type[float], expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """A type for argparse: a number that ``fits``, or an error that says what was ``expected``."""

    def parse(text: str) -> float:
        value = kind(text)
        if not -math.inf < value < math.inf or not fits(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names it where the text is no number at all
    return parse
