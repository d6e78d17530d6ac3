"""Which first-party distribution provides a name, for the advice in errors.

`hints.json` holds the names, as `docs/generate.py` writes them from what the plugins offer: nothing
is resolved here, and none of those plugins need be installed.
"""

from __future__ import annotations

import functools
import json
import pkgutil

__all__ = ["distributions", "table"]


def distributions() -> frozenset[str]:
    """Return the first-party distributions that provide names."""
    return frozenset(owner for owners in _tables().values() for owner in owners.values())


def table(kind: str) -> dict[str, str]:
    """Return the first-party distribution of every name of a kind, sorted by name."""
    return _tables().get(kind, {})


@functools.cache
def _tables() -> dict[str, dict[str, str]]:
    tables: dict[str, dict[str, str]] = json.loads(pkgutil.get_data(__name__, "hints.json") or "{}")
    return tables
