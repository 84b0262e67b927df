"""Describe the machine that runs a benchmark, and find the cases that are too slow to measure on it."""

from __future__ import annotations

import functools
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from crossmodal_attn import __version__

__all__ = ["describe_machine", "out_of_reach", "product_rate"]

PACKAGES = ("torch", "numpy", "einops", "accelerate", "x-transformers")
PROBE_SIZES = {"cpu": 512, "cuda": 4096}
SLOWEST = 4.0
"""A half-precision dtype that is this many times slower than float32 has no hardware support here."""


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what results depend on: processor, threads, memory, versions, and the GPU if it is measured."""
    device = torch.device(device)
    machine: dict[str, Any] = {
        "device": device.type,
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.system(),
        "python": platform.python_version(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "versions": {"crossmodal-attn": __version__, **{name: _version(name) for name in PACKAGES}},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["gpu"] = properties.name
        machine["gpu_memory_bytes"] = properties.total_memory
        machine["compute_capability"] = f"{properties.major}.{properties.minor}"
        machine["cuda"] = torch.version.cuda
        machine["cudnn"] = torch.backends.cudnn.version()
    return machine


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@functools.cache
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of a square matrix product."""
    size = PROBE_SIZES[device.type]
    matrix = torch.randn(size, size, device=device).to(dtype)
    timer = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=0.05).median


def out_of_reach(device: torch.device, dtype: torch.dtype, operations: float, limit: float) -> str | None:
    """Return why a pass is too slow to measure on a device, or None if it is not.

    Args:
        device: the device to measure.
        dtype: dtype of the matrix products.
        operations: number of operations in the matrix products. A multiplication and an addition are two.
        limit: seconds that the matrix products may take.
    """
    rate = product_rate(device, dtype)
    slower = product_rate(device, torch.float32) / rate
    name = str(dtype).removeprefix("torch.")
    if dtype in (torch.bfloat16, torch.float16) and slower > SLOWEST:
        return f"matrix products in {name} are {slower:.0f} times slower than in float32 on this {device.type}"
    if operations > limit * rate:
        return (
            f"its matrix products alone take about {operations / rate:.1f} s in {name} on this {device.type}; "
            f"the limit is {limit:g} s"
        )
    return None
