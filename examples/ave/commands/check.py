"""Check a directory of the AVE release, or a prepared one: what is there, and precisely what is missing or wrong.

Prints one table of all files, with their datasets, shapes, dtypes and counts per split, then a line for every fault,
which says what to do. All features are read, to find what is not finite or is negative. The exit code is 0 if all is
right, else 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ave.commands import checking_input
from ave.reading import inspect_set


def add_options(parser: argparse.ArgumentParser) -> None:
    """The set, and what it is to be used for."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of the AVE release's HDF5 files, or one that `prepare` made",
    )
    parser.add_argument(
        "--setting",
        choices=("supervised", "weak"),
        default="supervised",
        help="weak needs four files more; without it they are checked where they are there (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Print the table, and end with the faults if there are any."""
    with checking_input():
        report = inspect_set(options.data, options.setting)
        print(report)
        report.raise_for_faults()
