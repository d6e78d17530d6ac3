"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tvc_core import HybridBuilder
from tvc_core.testing import official_weights

pytest_plugins = ["for_all_tests"]

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a session for made-up checkpoints, since some are large."""
    return tmp_path_factory.mktemp("torch_home")


@pytest.fixture
def made_up(torch_home: Path) -> Iterator[Callable[..., dict[str, Path]]]:
    """Return a function that puts made-up checkpoints under their official names for the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda *names: stack.enter_context(official_weights(torch_home, *names))


@pytest.fixture
def builder() -> HybridBuilder:
    """A builder over what is installed."""
    return HybridBuilder()


@pytest.fixture
def seed() -> int:
    """What a test draws its cases by: SEED of the environment, else 0."""
    return int(os.environ.get("SEED", "0"))


@pytest.fixture
def photos() -> list[Path]:
    """The real ImageNet photos beside the project; tests that need them skip where they are
    absent.
    """
    found = sorted((SHARED / "data" / "photos").glob("*.jpg"))
    if not found:
        pytest.skip("no photos beside the project")
    return found


os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
