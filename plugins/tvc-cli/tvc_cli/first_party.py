"""The distributions of the tvc project itself: their names are taken, and their versions belong
together. Data only.
"""

from __future__ import annotations

__all__ = ["FIRST_PARTY"]

FIRST_PARTY = (
    "tvc-core",
    "tvc-all",
    "tvc-attention",
    "tvc-blocks",
    "tvc-cli",
    "tvc-convnets",
    "tvc-convnext",
    "tvc-dense",
    "tvc-efficientnet",
    "tvc-mobilenet",
    "tvc-resnet",
    "tvc-timm",
    "tvc-transformers",
)
