"""Print requirements that pin everything to the oldest version that our metadata promise to work
with, one a line: for `pip install --constraint`.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOUND = re.compile(r'"([A-Za-z][\w.-]*)(?:\[[\w,]+\])?>=([\d.]+)"')


def lowest() -> dict[str, str]:
    """Return the oldest version of each distribution of others by its name.

    Read by a pattern, since the oldest Python that we promise reads no TOML.
    """
    found: dict[str, str] = {}
    for file in (ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))):
        project = file.read_text(encoding="utf-8").partition("\n[project]")[2]
        runtime = re.split(r"\n\[(?:project\.urls|dependency-groups)\]", project)[0]
        for name, version in BOUND.findall(runtime):
            if name != "tvc-core" and not name.startswith("tvc-"):
                found[name] = version
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in sorted(lowest().items())))
