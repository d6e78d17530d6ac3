"""The names of timm's models, read from its source files: importing timm takes seconds, since it
imports torch.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from tvc_core import BackboneError

__all__ = ["names"]

_REGISTERED = re.compile(r"^@register_model[ \t]*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """Return the name of every architecture of the installed timm, sorted; those that it calls
    deprecated are left out.

    Raises:
        BackboneError: timm is not installed.
    """
    found = find_spec("timm")
    if found is None or not found.submodule_search_locations:
        raise BackboneError("timm is not installed: pip install timm")
    folder = Path(found.submodule_search_locations[0]) / "models"
    files = sorted(folder.rglob("*.py"))
    return tuple(
        sorted(
            {
                name
                for file in files
                for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))
            }
        )
    )
