"""The state in which every test begins, whatever ran before it: that of torch, of Accelerate and of the process."""

import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

# The processes of pytest-xdist, and those that tests start, inherit both.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Inductor does not tell apart what it compiled for another capability of the same CPU.
    _cache = tempfile.TemporaryDirectory(prefix="crossmodal-attn-tests-")  # is removed where this process ends
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _cache.name
    os.environ["MPLBACKEND"] = "agg"

import torch

# The tensors are tiny: threads would only wait for one another.
torch.set_num_threads(1)
# Else a warning that torch gives once in a process is an error in the first test that meets it, and in no other.
torch.set_warn_always(True)

SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (os.getcwd, os.chdir),
    (lambda: logging.root.level, logging.root.setLevel),
    (lambda: logging.root.manager.disable, logging.disable),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    *(
        (partial(read, device), partial(write, device))
        for read, write in [
            (torch.is_autocast_enabled, torch.set_autocast_enabled),
            (torch.get_autocast_dtype, torch.set_autocast_dtype),
        ]
        for device in ("cpu", "cuda")
    ),
]
"""How each of them is read, and how it is set."""


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    """Begin with nothing drawn, compiled or started, and leave every setting as it was."""
    settings = [(write, read()) for read, write in SETTINGS]
    environment, handlers = dict(os.environ), logging.root.handlers[:]
    styles = dict.copy(sys.modules["matplotlib"].rcParams) if "matplotlib" in sys.modules else None
    forget()
    yield
    torch.set_default_device(None)
    for write, value in settings:
        write(value)
    logging.root.handlers[:] = handlers
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    if styles is not None:
        dict.update(sys.modules["matplotlib"].rcParams, styles)
    forget()


def forget() -> None:
    """Seed all generators, and drop what modules hold for the whole process, those only that were imported."""
    random.seed(0)
    torch.manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    if "accelerate.state" in sys.modules:
        state = sys.modules["accelerate.state"]
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
