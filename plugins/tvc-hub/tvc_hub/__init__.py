"""Share hybrids of tvc through the Hugging Face Hub. Importing this package imports nothing
else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import HubError, UnreachableError
    from .pulling import Pulled, pull
    from .pushing import Pushed, push

__all__ = ["HubError", "Pulled", "Pushed", "UnreachableError", "pull", "push"]

_HOMES = {
    "HubError": "errors", "Pulled": "pulling", "Pushed": "pushing", "UnreachableError": "errors",
    "pull": "pulling", "push": "pushing",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
