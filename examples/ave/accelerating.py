"""Hugging Face Accelerate on the device, in the precision, and over the processes that were asked for."""

from __future__ import annotations

import argparse
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

__all__ = ["add_device_options", "describe_place", "make_accelerator"]

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
DEVICE_VARIABLE = "ACCELERATE_TORCH_DEVICE"
PATIENCE = timedelta(hours=2)
"""For how long processes wait for one that checks files or writes."""


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--precision``, None where they are not given, which is "auto" and "fp32"."""
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps ... (default: auto, the best there is)")
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        help="mixed precision of the forward pass; fp16 needs a GPU (default: fp32)",
    )


def make_accelerator(device: str | None = None, precision: str | None = None) -> Accelerator:
    """Join the processes that `accelerate launch` or `torchrun` started, or stand alone.

    Raises:
        ValueError: if the device is not there, or can't do the precision, or the launch is not of plain processes.
    """
    device, precision = device or "auto", precision or "fp32"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # Without a word about the CPU, Accelerate would not join the processes of a machine that has no accelerator.
    cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    before = os.environ.get(DEVICE_VARIABLE)
    if device != "auto":
        _check_device(device, processes)
        if processes == 1:
            os.environ[DEVICE_VARIABLE] = device
    try:
        accelerator = Accelerator(
            mixed_precision=PRECISIONS[precision],
            cpu=cpu,
            # A configuration for other scripts must not divide the loss.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except (ValueError, RuntimeError) as error:
        wanted = f"--device {device} and --precision {precision}"
        raise ValueError(f"{wanted} do not work here: {str(error).splitlines()[0]}") from error
    finally:
        if before is None:
            os.environ.pop(DEVICE_VARIABLE, None)
        else:
            os.environ[DEVICE_VARIABLE] = before
    if precision == "fp16" and accelerator.device.type == "cpu":  # where Accelerate would leave it at fp32
        raise ValueError("--precision fp16 needs a GPU, got cpu: use bf16 or fp32")
    if accelerator.distributed_type.value != "NO" and not accelerator.distributed_type.value.startswith("MULTI_"):
        raise ValueError(
            f"the launcher must start plain processes, one for each device, got {accelerator.distributed_type.value}"
        )
    return accelerator


def _check_device(device: str, processes: int) -> None:
    try:
        wanted = torch.device(device)
        if processes > 1 and wanted.index is not None:
            raise ValueError(f"--device must leave the choice to each of {processes} processes, got {device}")
        if processes == 1:
            torch.zeros(1, device=wanted).item()
            if wanted.type == "cuda":  # Accelerate leaves the current device at the first
                torch.cuda.set_device(wanted.index or 0)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"--device must name a device that works here, got {device}") from error


def describe_place(accelerator: Accelerator) -> str:
    """The device, and of how many processes it is the one."""
    processes = accelerator.num_processes
    return str(accelerator.device) if processes == 1 else f"{processes} x {accelerator.device.type}"
