"""The core's patch operations, and what every operation works with: the `Target`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from ..errors import ParameterError, TargetError, did_you_mean, join_names
from ..specs import BlockSpec
from .branches import branch_of, known_blocks
from .layouts import find_adapter
from .patch import Patch
from .sites import Site

__all__ = ["BlockMaker", "Insertion", "Target", "inject", "replace", "wrap"]

BlockMaker = Callable[[int], nn.Module]
"""Makes the user's block for a number of input channels."""


@dataclass(frozen=True)
class Insertion:
    """A patch that an operation wants at a target.

    Args:
        patch: the block and its gate.
        position: "after", "before" or "parallel".
        site: where its hook goes: the target, or the end of the target's branch.
    """

    patch: Patch
    position: str
    site: Site


@dataclass
class Target:
    """Where an operation acts, with what was measured there. Operations declare; the core checks
    and then inserts.

    Args:
        module: what stands at the target now.
        site: its path and the shapes seen there.
        block_spec: description of the user's block; None for an operation without one.
        branch_end: the same for the module whose output is the end of the target's residual branch;
            None where the target is no block with a known branch.
    """

    module: nn.Module
    site: Site
    block_spec: BlockSpec | None = None
    branch_end: Site | None = None
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

    @property
    def branch_channels(self) -> int:
        """Channels of the map at the end of the target's residual branch [channels].

        Raises:
            TargetError: the target is no block with a known branch.
        """
        return self._branch().channels("output")

    def after(self, block: nn.Module) -> None:
        """Insert a block that maps the target's output, starting as the identity."""
        self._insert(block, "after", "output", self.site)

    def before(self, block: nn.Module) -> None:
        """Insert a block that maps the target's input, starting as the identity."""
        self._insert(block, "before", "input", self.site)

    def parallel(self, block: nn.Module) -> None:
        """Insert a block beside the target: its result for the target's input is added to the
        target's output.

        Raises:
            TargetError: input and output have different layouts, or different numbers of tokens.
        """
        before, after = self.site.layout("input"), self.site.layout("output")
        shapes = self.site.shape("input"), self.site.shape("output")
        if before != after or (before == "NLC" and shapes[0][1] != shapes[1][1]):
            raise TargetError(
                f"nothing can be added parallel to {self.path!r} ({self.site.type_name}): it turns "
                f"{list(shapes[0])} "
                f"({before}) into {list(shapes[1])} ({after}), and a block keeps the layout and "
                "the tokens."
            )
        self._insert(block, "parallel", "input", self.site)

    def branch(self, block: nn.Module) -> None:
        """Insert a block at the end of the target's residual branch, before the addition, starting
        as the identity.

        Raises:
            TargetError: the target is no block with a known branch.
        """
        self._insert(block, "after", "output", self._branch())

    def _branch(self) -> Site:
        if self.branch_end is not None:
            return self.branch_end
        what = (
            f"the position 'branch' is inside one residual block, and {self.path!r} "
            f"({type(self.module).__name__}) is"
        )
        end = branch_of(self.module)
        if end is not None:
            raise TargetError(
                f"the branch of {self.path!r} ({type(self.module).__name__}) is said to end at "
                f"{end!r}, and nothing was "
                "measured there: its class declares it wrong, or another patch put the block there."
            )
        inside = [
            path
            for path, module in self.module.named_modules(prefix=self.path)
            if branch_of(module) is not None
        ]
        if inside:
            parents = list(dict.fromkeys(path.rpartition(".")[0] for path in inside))
            patterns = [f"'{parent}.*'" for parent in parents]
            raise TargetError(
                f"{what} none but has {len(inside)}: {join_names(inside, most=4)}. Patch one, or "
                "all "
                "by the pattern "
                f"{join_names(patterns, most=3)}."
            )
        raise TargetError(
            f"{what} none that tvc knows. It knows torchvision's "
            f"{join_names(known_blocks(), most=20)}; another class says where "
            "its branch ends by an attribute, such as tvc_branch = 'bn2'."
        )

    def _insert(self, block: nn.Module, position: str, side: str, site: Site) -> None:
        layout = site.layout(side)
        takes = self.block_spec.layouts if self.block_spec else ("NCHW",)
        adapter = find_adapter(site.shape(side), layout, takes, site.image)
        if isinstance(adapter, str):
            name = self.block_spec.name if self.block_spec else type(block).__name__
            where = "parallel to" if position == "parallel" else position
            raise TargetError(
                f"{name} cannot be inserted {where} {site.path!r} ({site.type_name}): the {side} "
                "there is "
                f"{list(site.shape(side))} ({layout}), and {name} {adapter}."
            )
        gated = bool(self.block_spec and self.block_spec.gated) and hasattr(block, "gate")
        self.insertions.append(
            Insertion(Patch(block, gated=gated, adapter=adapter), position, site)
        )


def wrap(target: Target, block: BlockMaker, position: str = "after") -> nn.Module:
    """Make a block the last part of the target: original -> block. It is what `inject` does there:
    both are addressed and frozen with the target, and differ in the positions that they take.

    Raises:
        ParameterError: `position` is neither "after" nor "branch" (of a residual block: before the
            addition).
    """
    return _put(target, block, "wrap", position, ("after", "branch"))


def inject(target: Target, block: BlockMaker, position: str = "after") -> nn.Module:
    """Add a block as a step of its own at the target.

    Args:
        target: where.
        block: makes the block.
        position: "after" (original -> block), "before" (block -> original), "parallel" (original +
            block), or "branch" (the end of a residual block's branch, before the addition).

    Raises:
        ParameterError: another `position`.
    """
    return _put(target, block, "inject", position, ("after", "before", "parallel", "branch"))


def _put(
    target: Target, block: BlockMaker, op: str, position: str, positions: tuple[str, ...]
) -> nn.Module:
    if position not in positions:
        hint = did_you_mean(str(position), positions)
        names = [repr(name) for name in positions]
        raise ParameterError(
            f"{op} takes the position {', '.join(names[:-1])} or {names[-1]}, not "
            f"{position!r}.{hint}"
        )
    if position == "after":
        target.after(block(target.out_channels))
    elif position == "branch":
        target.branch(block(target.branch_channels))
    elif position == "before":
        target.before(block(target.in_channels))
    else:
        target.parallel(block(target.in_channels))
    return target.module


def replace(target: Target, block: BlockMaker) -> nn.Module:
    """Put a block in the target's place. The target's weights are gone, and the network's function
    changes.

    Raises:
        TargetError: the block does not take the layout there. At one image size its shape may fit
            by chance.
    """
    layout = target.site.layout("input")
    if target.block_spec is not None and layout not in target.block_spec.layouts:
        name = target.block_spec.name
        raise TargetError(
            f"{name} cannot take the place of {target.path!r} ({target.site.type_name}): the input "
            "there is "
            f"{list(target.site.shape('input'))} ({layout}), and {name} takes "
            f"{' or '.join(target.block_spec.layouts)}."
        )
    return block(target.in_channels)
