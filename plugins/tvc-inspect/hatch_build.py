"""Gets the table library of the pages from npm, by version and hash, when tvc-inspect is built or
installed for development; it is not committed.

By itself, `python hatch_build.py` does it for a checkout.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface as _Hook
except ImportError:  # by itself
    _Hook = object

PACKAGE = "tabulator-tables@6.3.1"
FILES = {
    "package/dist/js/tabulator.min.js": (
        "tabulator.min.js",
        "e952272c3b2afa4ebb60cef5db8cbe9cbaabaa52b50c3cd3d22993ca5215a6ff",
    ),
    "package/dist/css/tabulator.min.css": (
        "tabulator.min.css",
        "a46d8051944c745cae8a7976b4fb9d93d894d20876a4521cc4f6f035cfef52ea",
    ),
    "package/LICENSE": (
        "LICENSE.tabulator",
        "6031e51b8450fa6047887f018951c8cf1456d98a5a08291774410c13696de18e",
    ),
}
"""Of the package: the name here, and the SHA-256."""
VENDOR = Path(__file__).parent / "tvc_inspect" / "vendor"


class CustomBuildHook(_Hook):  # type: ignore[misc,valid-type]
    """Puts the library where the wheel takes it from."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Get what is not there. An editable install goes on without npm, and says so: then
        only pages cannot be written.
        """
        try:
            fetch()
        except RuntimeError as error:
            if version != "editable":
                raise
            self.app.display_warning(f"tvc inspect will not write pages: {error}")


def fetch() -> None:
    """Get the files that are not there, or not as they should be.

    Raises:
        RuntimeError: npm is not there or fails, or the package is another than it should be.
    """
    if all(_digest(VENDOR / name) == digest for name, digest in FILES.values()):
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                ["npm", "pack", "--silent", "--pack-destination", folder, PACKAGE],
                check=True, capture_output=True, text=True, cwd=folder,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise RuntimeError(f"npm, which gets {PACKAGE}, is not installed") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"npm pack {PACKAGE} fails: {error.stderr.strip()}") from error
        (archive,) = Path(folder).glob("*.tgz")
        VENDOR.mkdir(exist_ok=True)
        with tarfile.open(archive) as package:
            for member, (name, digest) in FILES.items():
                found = package.extractfile(member)
                content = found.read() if found else b""
                if hashlib.sha256(content).hexdigest() != digest:
                    raise RuntimeError(f"{member} of {PACKAGE} is another file than it should be")
                (VENDOR / name).write_bytes(content)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


if __name__ == "__main__":
    try:
        fetch()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
