"""Run the command in this process or a new one, with a small network and few figures, so that it is fast."""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from accelerate.state import AcceleratorState

import ave_cmran
from ave.networks.cmran import CMRAN

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = partial(CMRAN, embed_dim=20, dim_feedforward=17)
"""A small network, because a short run of the full one spends most of its time on checkpoints."""


def run_main(parent, *arguments, **options):
    """Train a small network in this process. Return its directory of results, a new one in ``parent``, and the metrics
    of its single seed."""
    output = Path(tempfile.mkdtemp(dir=parent))
    call_main("train", *arguments, "--output", output, **options)
    (metrics,) = json.loads((output / "metrics.json").read_text())["runs"]
    return output, metrics


def call_main(*arguments, **options):
    """Run any subcommand in this process. Training uses a small network, and figures are drawn only with ``draw``."""
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = list(map(str, arguments))
    trains = not arguments or arguments[0] == "train" or arguments[0].startswith("-")
    if trains or arguments[0] == "evaluate":
        options.setdefault("draw", False)
    if trains:
        options.setdefault("network", SMALL)
    ave_cmran.main(arguments, **options)


def start(*arguments, launcher=(sys.executable,), script=ave_cmran.__file__, **options):
    """Start the command, or another script, in a new process, or in several with a launcher."""
    return subprocess.Popen(  # noqa: S603
        [*map(str, (*launcher, script, *arguments))],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
