"""What holds for all tests."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declare the one marker."""
    config.addinivalue_line("markers", "first: takes long, so it is started before all others")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first: the other worker does the rest meanwhile."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
