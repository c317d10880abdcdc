"""Limits for tests of simulations, and the order in which they come."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
FIRST = "test_seeds_that_nobody_has_seen"
"""It takes minutes: other processes do the rest meanwhile."""
LIMIT_S = 300
"""For each test here without a limit of its own. What ends a test that takes too long is raised wherever the run is just then, also inside a client's
task, where it looks like a fault of the product: so the limit is far above what a test takes on a busy machine."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S))
    items.sort(key=lambda item: item.name != FIRST)
