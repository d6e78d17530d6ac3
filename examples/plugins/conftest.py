"""Loads what the tests of the example plugins share with all others."""

import pytest

pytest_plugins = ["for_all_tests"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the deeper ones of a family that differs in depth alone to the sweep."""
    for item in items:
        if any(f"cifar_resnet{depth}-" in item.name for depth in (32, 44, 56)):
            item.add_marker(pytest.mark.sweep)
