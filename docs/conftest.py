"""Collect the pages as doctests. The scripts run when the site is built."""

from pathlib import Path

import pytest

collect_ignore_glob = ["*.py", "*/*.py", "_build/*", "guides/*"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore a warning of torch at the end of a page, when doctest clears the globals before torch does."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:Exception ignored in.*ExactWeakKeyDictionary"))
