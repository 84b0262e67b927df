"""Measure the peak memory of a call: the most bytes allocated at one time, beyond those allocated before."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["measure_peak_bytes"]


def measure_peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that ``call`` allocates at one time, including its result.

    Memory that was allocated before the call does not count.

    Args:
        call: runs once. Run it before, so that memory that it keeps forever does not count.
        device: the device of the allocator. On a CPU, libraries may use memory that does not come from it.

    Examples:
        >>> zeros = torch.zeros(1000)
        >>> measure_peak_bytes(lambda: zeros.exp().sin(), torch.device("cpu"))
        8000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]) for event in events if event["name"] == "[memory]"]
    changes.sort(key=lambda change: (change[0], change[1]["Ev Idx"]))
    return max(accumulate((int(change["Bytes"]) for _, change in changes), initial=0))
