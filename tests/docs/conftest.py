"""A hub on this machine for the page that pushes to one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import TOKEN, running


@pytest.fixture(autouse=True)
def hub_of_the_page(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    page = getattr(request.node, "callspec", None) and request.node.callspec.params.get("page")
    if not isinstance(page, Path) or page.name != "sharing.md":
        yield
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        yield
