"""What the layers cost, beside what a user would pick instead: run ``python -m benchmarks`` from a clone."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler, which measures memory, reports its own start
