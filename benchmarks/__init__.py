"""Measure the layers against their alternatives. Run ``python -m benchmarks`` from a clone."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler, which measures memory, prints when it starts
