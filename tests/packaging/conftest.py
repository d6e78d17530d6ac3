"""Built distributions, and clean environments to install them into."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributions import FOLDERS, Built, Environment, build, by_name


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build every distribution: an sdist, the wheel of that sdist, and a wheel of the tree."""
    out, tree, sources = (tmp_path_factory.mktemp(name) for name in ("dist", "tree", "sources"))
    build(
        [(kind, folder, to) for folder in FOLDERS for kind, to in (("sdist", out), ("wheel", tree))]
    )
    for sdist in out.glob("*.tar.gz"):
        with tarfile.open(sdist) as archive:
            archive.extractall(sources, filter="data")
    build([("wheel", folder, out) for folder in sources.iterdir()])
    return Built(out, by_name(out, "*.tar.gz"), by_name(out, "*.whl"), by_name(tree, "*.whl"))


@pytest.fixture(scope="session")
def wheels(built: Built) -> dict[str, Path]:
    """Return the wheel of each distribution."""
    return built.wheels


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    """An empty environment."""
    yield Environment(tmp_path)
    shutil.rmtree(tmp_path / "env")
