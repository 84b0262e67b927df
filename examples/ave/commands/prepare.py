"""Prepare the AVE release for training: smaller files, read by memory map, with a digest of each.

Features are rounded, by default to float16: a quarter of the release's float64. A run that was stopped, at any moment,
goes on where it was when it is started again with the same options. The other subcommands read the result, with --data,
as they read the release.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ave.commands import InputError, checking_input
from ave.preparing import DTYPES, Preparation
from ave.results import format_table


def add_options(parser: argparse.ArgumentParser) -> None:
    """The release, and what to make of it."""
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="directory of the AVE release's HDF5 files"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="a new directory, or one where `prepare` was stopped; one that is finished is verified and mended",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float16",
        help="of the features; float32 takes twice the space, with 24 bits of precision, not 11 (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Check the release and the output, prepare, and say what it came to."""
    with checking_input():
        preparation = Preparation(options.data, options.output, options.dtype)
    for remark in preparation.remarks:
        print(remark)
    if preparation.is_finished:
        print(f"{options.output} is prepared, and every digest is right: there is nothing to do")
    try:
        manifest = preparation.run()
    except ValueError as error:
        raise InputError(str(error)) from error
    header = ("file", "before", "after", "ratio", "largest error", "relative error")
    print(format_table(f"{options.output}: prepared in {options.dtype}", list(_lines(manifest["files"])), header))


def _lines(files: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The files, and last all together."""
    sizes = {name: (entry["source"]["bytes"], entry["bytes"]) for name, entry in files.items()}
    errors = {
        name: (f"{entry['absolute_error']:.2e}", f"{entry['relative_error']:.2e}") if "feature" in name else ("", "")
        for name, entry in files.items()
    }
    sizes["all"] = (sum(before for before, _ in sizes.values()), sum(after for _, after in sizes.values()))
    for name, (before, after) in sizes.items():
        described = (tqdm.format_sizeof(size, "B") for size in (before, after))
        yield name, *described, f"{before / after:.2f}", *errors.get(name, ("", ""))
