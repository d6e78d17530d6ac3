"""The distributions of the tvc project itself: their names are taken, and their versions belong
together.
"""

from __future__ import annotations

import re

__all__ = ["FIRST_PARTY", "WITH_COMMANDS", "normalized"]

FIRST_PARTY = (
    "tvc-core",
    "tvc-adapters",
    "tvc-all",
    "tvc-attention",
    "tvc-blocks",
    "tvc-cli",
    "tvc-convnets",
    "tvc-convnext",
    "tvc-dense",
    "tvc-efficientnet",
    "tvc-export",
    "tvc-hub",
    "tvc-inspect",
    "tvc-mobilenet",
    "tvc-recipes",
    "tvc-resnet",
    "tvc-timm",
    "tvc-train",
    "tvc-transformers",
)

WITH_COMMANDS = ("tvc-cli", "tvc-export", "tvc-hub", "tvc-inspect", "tvc-recipes", "tvc-train")
"""Those of them that offer commands of `tvc`: where commands are looked for, the others are not
loaded.
"""


def normalized(distribution: str) -> str:
    """Return a distribution's name in the form that owners have (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()
