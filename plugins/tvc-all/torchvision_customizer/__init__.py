"""The import name of the user's guide: everything public of tvc_core under one name, imported as
lazily as there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvc_core

if TYPE_CHECKING:
    from tvc_core import *  # noqa: F403

__all__ = list(tvc_core.__all__)


def __getattr__(name: str) -> Any:
    if name not in tvc_core.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(tvc_core, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
