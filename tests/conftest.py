"""Fixtures that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweep_page import Rows

from tvc_core import HybridBuilder
from tvc_core.testing import official_weights, write_distribution

SHARED = Path(__file__).resolve().parents[2] / "shared"
ROWS = Rows()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        ROWS.add(report.user_properties)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # the main process sees the rows of all workers
        ROWS.write()


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
def fake_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Path]]:
    """Return a function that installs a distribution with one plugin module for the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield lambda name, source, **more: write_distribution(folder, name, source, **more)
    for module in set(sys.modules) - before:
        if module.endswith("_plugin"):
            del sys.modules[module]


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
