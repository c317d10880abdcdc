"""Thorough runs take their time."""

import pytest

from tests.property.effort import THOROUGH, TIMEOUT_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if THOROUGH:
        for item in items:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
