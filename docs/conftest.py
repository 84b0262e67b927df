"""The pages are doctests; the scripts are run where the site is built."""

import sys
from collections.abc import Iterator

import pytest
import torch

collect_ignore_glob = ["*.py", "*/*.py", "_build/*", "guides/*"]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Random draws are the same each time, and what a page compiles ends with it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
