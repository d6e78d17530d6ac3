"""Rows of a long measurement: in a JSON file, so that a run that was stopped goes on where it was,
and from there in the tables of a page, between marks.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["filled", "made_with", "read", "table", "write"]


def made_with(packages: Iterable[str], how: str) -> dict[str, str]:
    """Return versions and machine; `how` says what ran on it."""
    return {
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {how}",
    }


def read(file: Path) -> dict[str, Any]:
    """Return what has been measured."""
    if not file.exists():
        return {"made with": {}, "rows": {}}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def write(file: Path, found: Mapping[str, Any]) -> None:
    """Write what has been measured; a kill leaves the old file or the new one."""
    new = file.with_suffix(".tmp")
    rows = dict(sorted(found["rows"].items()))
    lines = ",\n  ".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
    head = json.dumps(found["made with"])
    new.write_text(
        f'{{\n "made with": {head},\n "rows": {{\n  {lines}\n }}\n}}\n', encoding="utf-8"
    )
    new.replace(file)


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    rows = [list(head)]
    rows += [["---"] * len(rows[0]), *(list(line) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def filled(text: str, tables: Mapping[str, str], command: str) -> str:
    """Return a page with its tables written.

    Args:
        text: the page; a table stands between `<!-- NAME: written by COMMAND -->` and
            `<!-- end -->`.
        tables: by their names.
        command: what writes them.
    """
    for name, each in tables.items():
        marked = rf"(<!-- {name}: written by {re.escape(command)} -->\n).*?(<!-- end -->)"
        text, count = re.subn(marked, lambda m, t=each: f"{m[1]}\n{t}\n\n{m[2]}", text, flags=re.S)
        assert count == 1, f"the page has {count} places for the table {name!r}"
    return text
