"""Give every test the same initial state of torch, Accelerate and the process, whatever ran before it."""

import gc
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

# Processes of pytest-xdist, and those that tests start, inherit these variables.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # The cache of Inductor does not distinguish code for different capabilities of the same CPU.
    _cache = tempfile.TemporaryDirectory(prefix="crossmodal-attn-tests-")  # removed at the end of this process
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _cache.name
    os.environ["MPLBACKEND"] = "agg"

import torch

# The tensors are tiny, so threads would only make them slower.
torch.set_num_threads(1)
# Otherwise a warning that torch gives once per process would be an error in one test only.
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
"""The functions that read and write each setting."""


SLOW = {
    *("test_onnx", "test_benchmarks", "test_launch", "test_paper_tables", "test_compile_export", "test_stopping"),
    *("test_resume", "test_golden_run", "test_distribution", "test_fuzz", "test_real_training", "test_kill_files"),
}
"""Files that take longest, mostly with few tests. They begin first, so that no worker waits at the end for another."""


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist keep the order of the files, which it would sort by their numbers of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow files first."""
    items.sort(key=lambda item: item.path.stem not in SLOW)


def pytest_collection_finish() -> None:
    """Exempt the modules and tests that are there from garbage collection, which takes much longer with them."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    """Reset global state before and after each test, and restore every setting."""
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
    """Seed all random generators, and clear the global state of the modules that were imported."""
    random.seed(0)
    # Without an accelerator, torch.manual_seed would keep three stack traces for accelerators that may come.
    (torch if torch.accelerator.is_available() else torch.default_generator).manual_seed(0)
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
