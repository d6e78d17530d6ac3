"""Which first-party distribution provides a name, for the advice in errors.

`hints.json` holds the names, as `docs/generate.py` writes them from what the plugins offer: nothing
is resolved here, and none of those plugins need be installed. `other_names.json` holds what other
libraries and papers call our blocks.
"""

from __future__ import annotations

import functools
import json
import pkgutil
import re

__all__ = ["block_meant", "distributions", "table"]


def distributions() -> frozenset[str]:
    """Return the first-party distributions that provide names."""
    return frozenset(owner for owners in _tables().values() for owner in owners.values())


def table(kind: str) -> dict[str, str]:
    """Return the first-party distribution of every name of a kind, sorted by name."""
    return _tables().get(kind, {})


def block_meant(given: str) -> str:
    """Return the block that others give this name, "DropPath" or "nn.DropPath"; or the name
    itself.
    """
    return _other_names().get(_letters(given.rpartition(".")[2]), given)


def _letters(name: str) -> str:
    return re.sub(r"\W|_", "", name).lower()


@functools.cache
def _other_names() -> dict[str, str]:
    ours = json.loads(pkgutil.get_data(__name__, "other_names.json") or "{}")
    return {_letters(other): name for name, others in ours.items() for other in others}


@functools.cache
def _tables() -> dict[str, dict[str, str]]:
    tables: dict[str, dict[str, str]] = json.loads(pkgutil.get_data(__name__, "hints.json") or "{}")
    return tables
