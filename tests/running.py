"""Runs of the command, in this process or in one of their own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from accelerate.state import AcceleratorState

import ave_cmran

COMMAND = [sys.executable, ave_cmran.__file__]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_main(parent, *arguments):
    """Train in this process; its directory of results, new below ``parent``, and the figures of its one seed."""
    output = Path(tempfile.mkdtemp(dir=parent))
    call_main("train", *arguments, "--output", output)
    (metrics,) = json.loads((output / "metrics.json").read_text())["runs"]
    return output, metrics


def call_main(*arguments):
    """Run any subcommand in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    ave_cmran.main(list(map(str, arguments)))


def start(*arguments, launcher=(), **options):
    """Start the command in a process of its own, or in several by a launcher."""
    script = [*launcher, ave_cmran.__file__] if launcher else COMMAND
    return subprocess.Popen(  # noqa: S603
        [*map(str, script), *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
