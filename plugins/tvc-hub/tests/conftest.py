"""A hub, a model, and a home of their own for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub, running
from hub_files import saved


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A saved model."""
    return saved(tmp_path_factory.mktemp("hub") / "pets.safetensors")


@pytest.fixture
def path(model: bytes, tmp_path: Path) -> Path:
    """The same in a file."""
    path = tmp_path / "pets.safetensors"
    path.write_bytes(model)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that keeps the rules."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running() as hub:
        yield hub
