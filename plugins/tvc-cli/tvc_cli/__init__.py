"""The command `tvc`: list, show and build what plugins of tvc offer. Importing this package imports
nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .kinds import CommandSpec

__all__ = ["CommandSpec"]


def __getattr__(name: str) -> Any:
    if name == "CommandSpec":
        from .kinds import CommandSpec

        return CommandSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
