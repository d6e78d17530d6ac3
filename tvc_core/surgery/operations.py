"""The core's patch operations, and what every operation works with: the `Target`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from ..errors import ParameterError, TargetError, did_you_mean
from ..specs import BlockSpec
from .layouts import find_adapter
from .patches import Patch
from .sites import Site

__all__ = ["BlockMaker", "Insertion", "Target", "inject", "replace", "wrap"]

BlockMaker = Callable[[int], nn.Module]
"""Makes the user's block for a number of input channels."""


@dataclass(frozen=True)
class Insertion:
    """A patch that an operation wants at a target."""

    patch: Patch
    position: str


@dataclass
class Target:
    """Where an operation acts, with what was measured there. Operations declare; the core checks and then inserts.

    Args:
        module: what stands at the target now.
        site: its path and the shapes seen there.
        block_spec: description of the user's block; None for an operation without one.
    """

    module: nn.Module
    site: Site
    block_spec: BlockSpec | None = None
    insertions: list[Insertion] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Dotted path from the network's root."""
        return self.site.path

    @property
    def in_channels(self) -> int:
        """Channels of the map that goes in [channels]."""
        return self.site.channels("input")

    @property
    def out_channels(self) -> int:
        """Channels of the map that comes out [channels]."""
        return self.site.channels("output")

    def after(self, block: nn.Module) -> None:
        """Insert a block that maps the target's output, starting as the identity."""
        self._insert(block, "after", "output")

    def before(self, block: nn.Module) -> None:
        """Insert a block that maps the target's input, starting as the identity."""
        self._insert(block, "before", "input")

    def _insert(self, block: nn.Module, position: str, side: str) -> None:
        layout = self.site.layout(side)
        takes = self.block_spec.layouts if self.block_spec else ("NCHW",)
        adapter = find_adapter(self.site.shape(side), layout, takes, self.site.image)
        if isinstance(adapter, str):
            name = self.block_spec.name if self.block_spec else type(block).__name__
            raise TargetError(
                f"{name} cannot be inserted {position} {self.path!r} ({self.site.type_name}): the {side} there is "
                f"{list(self.site.shape(side))} ({layout}), and {name} {adapter}."
            )
        gated = bool(self.block_spec and self.block_spec.gated) and hasattr(block, "gate")
        self.insertions.append(Insertion(Patch(block, gated=gated, adapter=adapter), position))


def wrap(target: Target, block: BlockMaker) -> nn.Module:
    """Make a block the last part of the target: original -> block. It is frozen and addressed with the target."""
    target.after(block(target.out_channels))
    return target.module


def inject(target: Target, block: BlockMaker, position: str = "after") -> nn.Module:
    """Add a block as a step of its own after the target (original -> block) or before it (block -> original).

    Raises:
        ParameterError: `position` is neither "after" nor "before".
    """
    if position == "after":
        target.after(block(target.out_channels))
    elif position == "before":
        target.before(block(target.in_channels))
    else:
        positions = ("after", "before")
        hint = did_you_mean(str(position), positions)
        raise ParameterError(f"inject takes the position 'after' or 'before', not {position!r}.{hint}")
    return target.module


def replace(target: Target, block: BlockMaker) -> nn.Module:
    """Put a block in the target's place. The target's weights are gone, and the network's function changes."""
    return block(target.in_channels)
