"""The import name of the user's guide: everything public of tvc_core under one name."""

from __future__ import annotations

from typing import Any

import tvc_core
from tvc_core import HybridBuilder, Recipe, Registry, TvcError, load_yaml_recipe

__all__ = list(tvc_core.__all__)


def __getattr__(name: str) -> Any:
    return getattr(tvc_core, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *tvc_core.__all__})
