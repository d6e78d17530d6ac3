"""The kind `loss` for tvc: losses by name, from any plugin."""

from __future__ import annotations

from typing import Any

from .kinds import LossSpec

__all__ = ["LossSpec", "make_loss"]
__version__ = "0.1.0"


def make_loss(name: str, registry: Any = None, **params: Any) -> Any:
    """Return a loss `(logits, targets) -> scalar`.

    Args:
        name: short ("focal") or qualified ("acme-losses:focal") name.
        registry: a `tvc_core.Registry`; by default of what is installed.
        **params: the loss's own.

    Raises:
        tvc_core.UnknownNameError: no installed plugin offers it.
    """
    from tvc_core import Registry

    return (registry or Registry()).resolve(LossSpec, name).load()(**params)
