"""Measure the layers and the network beside what a user would pick instead; write JSON, tables and pictures.

Every row group has a JSON file of its own, which grows by each case that is measured; a run of some rows leaves the
files of the others alone; the tables and pictures are made from all the files that are there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ave.results.files import write_json
from benchmarks import agsca, cmra, epoch, growth, network
from benchmarks.machine import describe_machine
from benchmarks.measuring import SEED, Session
from benchmarks.report import write_report

ROWS = {"cmra": cmra, "agsca": agsca, "network": network, "growth": growth, "epoch": epoch}


def main(arguments: list[str] | None = None) -> None:
    """Measure the rows that are asked for, one after another, and report all that are there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--device", choices=("cpu", "cuda"), default="cpu", help="what is measured (default: cpu)")
    option("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), help="row groups (default: all)")
    option("--quick", action="store_true", help="few rounds, and only what is small: shows that it works, no more")
    option(
        "--brief",
        type=float,
        metavar="SECONDS",
        help="measure what tells most, begin no case of a row after so many seconds, and make no report",
    )
    option(
        "--output", type=Path, metavar="DIR", help="where results are written (default: benchmarks/results/<device>)"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, and there is none")
    output = options.output or Path(__file__).parent / "results" / options.device
    output.mkdir(parents=True, exist_ok=True)
    for name in options.rows:
        row = ROWS[name]
        print(f"{name}: {row.TITLE}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        until = None if options.brief is None else start + options.brief
        session = Session(torch.device(options.device), options.quick, until)
        figures: dict[str, Any] = {
            "row": name,
            "title": row.TITLE,
            "quick": session.quick,
            "seed": SEED,
            "machine": describe_machine(session.device),
            "cases": [],
        }
        for case in row.run(session):
            figures["cases"].append(case)
            figures["measured_in_seconds"] = round(time.perf_counter() - start, 1)
            write_json(output / f"{name}.json", figures)
    if options.brief is not None:
        return
    write_report(output)
    print(f"written to {output}; the tables are in {output / 'report.md'}", file=sys.stderr)


if __name__ == "__main__":
    main()
