"""Choose the device of a run, and measure its time and peak memory."""

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
from tqdm import tqdm

from ave.stopping import find_reason

__all__ = ["Pace", "Precision", "Stopwatch", "describe_device", "make_accelerator", "peak_memory"]

Precision = Literal["fp32", "bf16", "fp16"]
EVALUATION_COST = 0.35
"""The time to evaluate one video, divided by the time to train on it."""
TIMED_STEPS = 10
"""Number of steps that are timed to estimate the time of a run."""
PATIENCE = timedelta(minutes=30)
"""How long each process waits for the others before it fails.

The main process alone reads all features once. In half an hour, it can read the 8.7 GB of the release even at 5 MB/s.
"""


def make_accelerator(device: str = "auto", precision: Precision = "fp32", logs: Path | None = None) -> Accelerator:
    """Make the accelerator for one process, or for all processes of `accelerate launch` or `torchrun`.

    Args:
        device: "auto", the best available device, or a device of torch, such as "cpu" or "cuda:1".
        precision: precision of the forward pass; fp16 needs a GPU.
        logs: directory for the logs of TensorBoard. Default: no logs.

    Raises:
        ValueError: if the device does not work, or does not support the precision, or the launcher uses DeepSpeed, FSDP
            or the like.
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
            # Accelerate's own configuration file must not divide the loss.
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
    if precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would silently use fp32
        raise ValueError("--precision fp16 needs a GPU, got cpu: use bf16 or fp32")
    if accelerator.distributed_type.value != "NO" and not accelerator.distributed_type.value.startswith("MULTI_"):
        raise ValueError(
            f"the launcher must start plain processes, one for each device, got {accelerator.distributed_type.value}"
        )
    return accelerator


def _check_device(device: str, processes: int) -> None:
    """Check that a device works. Make a CUDA device the current one."""
    try:
        wanted = torch.device(device)
        if processes > 1 and wanted.index is not None:
            raise ValueError(f"--device must have no index, since there are {processes} processes, got {device}")
        if processes == 1:
            torch.zeros(1, device=wanted).item()
            if wanted.type == "cuda":
                torch.cuda.set_device(wanted.index or 0)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = f": {_cuda_fault(error)}" if device.partition(":")[0] == "cuda" else ""
        raise ValueError(f"--device must name a device that works here, got {device}{reason}") from error


def _cuda_fault(error: Exception) -> str:
    """Explain why CUDA does not work: torch is built without it, or the message of the driver."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA; https://pytorch.org/get-started has builds with it"
    return str(error).partition("\n")[0]  # "Found no NVIDIA driver ...", or "The NVIDIA driver ... is too old ..."


def describe_device(accelerator: Accelerator) -> str:
    """Return the device as text, with the number of processes if there are several."""
    processes = accelerator.num_processes
    return str(accelerator.device) if processes == 1 else f"{processes} x {accelerator.device.type}"


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory of this process in GB, on the host and, with CUDA, on the GPU."""
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
    """Measure the total time of each part of a loop, without waiting for the device.

    On a GPU, the host runs ahead of the device. So CUDA events in the stream are timed, and read only at the end.

    Args:
        device: the device that runs the loop.

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
        """Start the next lap now. The time since the previous lap is not counted."""
        self._laps.append(("", self._mark()))

    def lap(self, part: str) -> None:
        """Add the time since the previous lap to ``part``."""
        self._laps.append((part, self._mark()))

    def read(self) -> dict[str, float]:
        """Return the seconds of each part since the last call. Waits for the device."""
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
    """Time the first steps of a run, and print how long the rest of it will take.

    The very first step is slow, and is not timed. Only the main process prints.

    Args:
        accelerator: gives the device that runs the steps.
        evaluated: the number of videos that are evaluated after an epoch, divided by the number of training videos.
    """

    def __init__(self, accelerator: Accelerator, *, evaluated: float) -> None:
        self.accelerator, self.evaluated = accelerator, evaluated
        self._count, self._begin, self._left, self._note = 0, 0.0, 0, ""

    def start(self, steps_left: int, note: str) -> None:
        """Set the number of steps that are left in the whole run, and a note that is printed after the time."""
        self._left, self._note = steps_left, note

    def step(self) -> None:
        """Count a step. After the last timed step, print the time left."""
        self._count += 1
        self._left -= 1
        if self._count not in (1, 1 + TIMED_STEPS) or not self.accelerator.is_main_process:
            return
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        if self._count == 1:
            self._begin = time.perf_counter()
            return
        seconds = (
            (time.perf_counter() - self._begin) / TIMED_STEPS * self._left * (1 + EVALUATION_COST * self.evaluated)
        )
        unit, name = (3600, "h") if seconds > 5400 else (60, "min") if seconds > 90 else (1, "s")
        tqdm.write(f"about {seconds / unit:.{int(unit == 3600)}f} {name} left; {self._note}")
