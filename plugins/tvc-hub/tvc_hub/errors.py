"""What can go wrong with a hub."""

from __future__ import annotations

from tvc_core import TvcError

__all__ = ["HubError", "UnreachableError"]


class HubError(TvcError, RuntimeError):
    """A hub refuses, or a repository is refused: nothing was kept or changed here."""


class UnreachableError(HubError):
    """No answer comes from a hub."""
