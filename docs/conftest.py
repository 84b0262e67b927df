"""The pages are doctests; the scripts are run where the site is built."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

collect_ignore_glob = ["*.py", "*/*.py", "_build/*", "guides/*"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow for doctest emptying the globals of a page before torch has removed its own names from them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:Exception ignored in.*ExactWeakKeyDictionary"))


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Random draws are the same each time, and what a page compiles ends with it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
