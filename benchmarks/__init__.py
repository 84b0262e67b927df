"""What the layers cost, beside what a user would pick instead: run ``python -m benchmarks`` from a clone."""

import os
import sys
from pathlib import Path

# The network and the training that are measured live beside the package, not in it.
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler, which measures memory, reports its own start
