"""Fixtures for pytest: the conftest.py at the root of the tests says `pytest_plugins =
["tvc_core.testing.fixtures"]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from . import weights
from .distributions import fake_distributions, no_discovery

__all__ = ["cached_weights", "fake_distribution", "official_weights", "registry_of"]


@pytest.fixture
def fake_distribution(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that installs a distribution with one plugin module for the test: `(name,
    source, version=...)`.
    """
    with fake_distributions(tmp_path / "site") as install:
        yield install


@pytest.fixture
def registry_of() -> Iterator[Callable[..., Any]]:
    """Return a function that makes a registry of in-process plugins; looking for installed ones is
    an error in the test.
    """
    with no_discovery() as make:
        yield make


@pytest.fixture
def cached_weights(tmp_path: Path) -> Iterator[Callable[..., weights.CachedFile]]:
    """Return a function that puts a state dict into the cache of torch.hub for the test: `(tensors,
    name)`.
    """
    with ExitStack() as stack:
        yield lambda tensors, name="weights": stack.enter_context(
            weights.cached_weights(tmp_path / "torch", tensors, name)
        )


@pytest.fixture
def official_weights(tmp_path: Path) -> Iterator[Callable[..., dict[str, Path]]]:
    """Return a function that puts made-up checkpoints under torchvision's names into the cache for
    the test: `(*names)`.
    """
    with ExitStack() as stack:
        yield lambda *names, **more: stack.enter_context(
            weights.official_weights(tmp_path / "torch", *names, **more)
        )
