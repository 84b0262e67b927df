"""Measure the layers and the network against their alternatives, and write JSON, tables and charts.

Each row group has its own JSON file, which is written after every case. A run of some row groups does not change the
files of the others. The tables and charts are made from all JSON files of the directory.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ave.results.files import write_json
from benchmarks import agsca, cmra, epoch, growth, network, rival_networks, streams, windows
from benchmarks.machine import describe_machine
from benchmarks.measuring import SEED, Session
from benchmarks.report import write_report

ROWS = {
    "cmra": cmra,
    "agsca": agsca,
    "network": network,
    "rival_networks": rival_networks,
    "growth": growth,
    "windows": windows,
    "streams": streams,
    "epoch": epoch,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure the chosen row groups one after another, and write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure (default: cpu)")
    option("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), help="row groups to measure (default: all)")
    option(
        "--quick",
        action="store_true",
        help="few rounds of small cases: a check that everything runs, not a measurement",
    )
    option(
        "--brief",
        type=float,
        metavar="SECONDS",
        help="measure the most important cases, start no case of a row group after SECONDS, and write no report",
    )
    option(
        "--output", type=Path, metavar="DIR", help="directory for the results (default: benchmarks/results/<device>)"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, found none")
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
    print(f"wrote the results to {output}; the tables are in {output / 'report.md'}", file=sys.stderr)


if __name__ == "__main__":
    main()
