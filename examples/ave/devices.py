"""The device of a run: choosing it, and measuring time and peak memory on it."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

from ave.stopping import find_reason

__all__ = ["Pace", "Precision", "Stopwatch", "describe_device", "make_accelerator", "peak_memory"]

Precision = Literal["fp32", "bf16", "fp16"]
PATIENCE = timedelta(minutes=30)
"""How long processes wait for one that has stopped, or that checks files or writes.

The longest work of one process alone is to read all features once: the 8.7 GB of the release at 5 MB/s.
"""


def make_accelerator(device: str = "auto", precision: Precision = "fp32", logs: Path | None = None) -> Accelerator:
    """Join the processes that `accelerate launch` or `torchrun` started, or stand alone.

    Args:
        device: "auto", the best there is, or a device of torch, such as "cpu" or "cuda:1".
        precision: of the forward pass; fp16 needs a GPU.
        logs: a directory for the logs of TensorBoard, if there are to be any.

    Raises:
        ValueError: if the device does not work, or not with the precision, or the launcher starts no plain processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if device != "auto":
        _check_device(device, processes)
    # Without cpu=True, Accelerate would not join the processes of a machine without an accelerator.
    cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    try:
        accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            cpu=cpu,
            # A configuration for other scripts must not divide the loss.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
            log_with=None if logs is None else "tensorboard",
            project_dir=logs,
        )
    except (ValueError, RuntimeError) as error:
        if find_reason(error) is not None:
            raise
        wanted = f"--device {device} and --precision {precision}"
        raise ValueError(f"{wanted} do not work here: {str(error).splitlines()[0]}") from error
    if device not in ("auto", "cpu") and accelerator.device.type != torch.device(device).type:
        raise ValueError(f"--device must be cpu or {accelerator.device.type} here, got {device}")
    if precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would silently leave it at fp32
        raise ValueError("--precision fp16 needs a GPU, got cpu: use bf16 or fp32")
    if accelerator.distributed_type.value != "NO" and not accelerator.distributed_type.value.startswith("MULTI_"):
        raise ValueError(
            f"the launcher must start plain processes, one for each device, got {accelerator.distributed_type.value}"
        )
    return accelerator


def _check_device(device: str, processes: int) -> None:
    """Check that a device works, and make one of several GPUs the current one."""
    try:
        wanted = torch.device(device)
        if processes > 1 and wanted.index is not None:
            raise ValueError(f"--device must leave the choice to each of {processes} processes, got {device}")
        if processes == 1:
            torch.zeros(1, device=wanted).item()
            if wanted.type == "cuda":
                torch.cuda.set_device(wanted.index or 0)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = f": {_cuda_fault(error)}" if device.partition(":")[0] == "cuda" else ""
        raise ValueError(f"--device must name a device that works here, got {device}{reason}") from error


def _cuda_fault(error: Exception) -> str:
    """Tell whether torch was built without CUDA, or what its driver says."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA; https://pytorch.org/get-started has builds with it"
    return str(error).partition("\n")[0]  # "Found no NVIDIA driver ...", or "The NVIDIA driver ... is too old ..."


def describe_device(accelerator: Accelerator) -> str:
    """Name the device, and how many processes there are."""
    processes = accelerator.num_processes
    return str(accelerator.device) if processes == 1 else f"{processes} x {accelerator.device.type}"


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that this process has held, in GB: of the host, and of the GPU if there is one."""
    if sys.platform == "win32":
        host = psutil.Process().memory_info().peak_wset
    else:
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = {"host_gb": host / 1e9}
    if device.type == "cuda":
        peak["device_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return peak


class Stopwatch:
    """Adds up the seconds that each part of a loop takes, without holding up the device.

    On a GPU the host runs ahead, so events in the stream are timed instead of the host, and read at the end only.

    Args:
        device: runs the parts.

    Examples:
        >>> watch = Stopwatch(torch.device("cpu"))
        >>> watch.lap("data")
        >>> list(watch.read())
        ['data']
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._laps: list[tuple[str, Any]] = []
        self.start()

    def start(self) -> None:
        """Begin the next lap now; the time since the lap before belongs to no part."""
        self._laps.append(("", self._mark()))

    def lap(self, part: str) -> None:
        """Add the time since the last call to ``part``."""
        self._laps.append((part, self._mark()))

    def read(self) -> dict[str, float]:
        """Return the seconds of every part since the last reading. Waits for the device."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)
        seconds: defaultdict[str, float] = defaultdict(float)
        for (_, start), (part, stop) in zip(self._laps, self._laps[1:], strict=False):
            if part:
                seconds[part] += start.elapsed_time(stop) / 1e3 if on_gpu else stop - start
        del self._laps[:-1]
        return dict(seconds)

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


class Pace:
    """Measures how long the first steps of a run take, without the very first, which is slow.

    Args:
        device: runs the steps.
        steps: how many to measure.
    """

    def __init__(self, device: torch.device, steps: int = 10) -> None:
        self.device, self.steps = device, steps
        self._count, self._start = 0, 0.0

    def step(self) -> float | None:
        """Count a step; at the end of the measured ones return the seconds of one, and else None."""
        self._count += 1
        if self._count not in (1, 1 + self.steps):
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        start, self._start = self._start, now
        return None if self._count == 1 else (now - start) / self.steps
