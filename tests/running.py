"""Run the command in this process or a new one, with a small network and few figures, so that it is fast."""

import json
import os
import tempfile
from functools import partial
from pathlib import Path

from accelerate.state import AcceleratorState

import ave_cmran
from ave.networks.cmran import CMRAN
from ave.results import baselines

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = partial(CMRAN, embed_dim=20, dim_feedforward=17)
"""A small network, because a short run of the full one spends most of its time on checkpoints."""

baselines.MOST_SECONDS = 0
"""No linear probe, which takes as long as the rest of a short training. ``test_baselines.py`` has one."""


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
