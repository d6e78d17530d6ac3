"""Chromium for tests of pages, and axe-core, which comes from npm for these tests only."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

AXE = "axe-core@4.10.3"
AXE_SHA256 = "880970c081707360e64f34cea25ff91892f5bc95675b0776925b9709dd8a68bb"


def _absent(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and CI=true asks for all tests")
    pytest.skip(what)


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, which looks for what keeps people from using a page."""
    folder = tmp_path_factory.mktemp("axe")
    try:
        subprocess.run(
            ["npm", "pack", "--silent", AXE], cwd=folder, check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        _absent(f"npm does not get {AXE}, which looks at the pages: {error}")
    (archive,) = Path(folder).glob("*.tgz")
    with tarfile.open(archive) as package:
        file = package.extractfile("package/axe.min.js")
        assert file is not None
        script = file.read()
    assert hashlib.sha256(script).hexdigest() == AXE_SHA256
    return script.decode()
