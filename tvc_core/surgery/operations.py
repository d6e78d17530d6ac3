"""The core's patch operations, and what every operation works with: the `Target`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import nn

from ..errors import ParameterError, TargetError, did_you_mean, join_names
from ..specs import LAYOUTS, BlockSpec
from .branches import branch_of, known_blocks
from .layouts import find_view
from .patch import Patch
from .positions import POSITIONS, Position, position_of
from .sites import Site
from .widths import depends_on_width

__all__ = ["BlockMaker", "Insertion", "Target", "inject", "replace", "wrap"]


class BlockMaker(Protocol):
    """Makes the user's block: `block(in_channels)`, or `block(in_channels, original)` for one that
    keeps what it can of the module whose place it is to take.
    """

    def __call__(self, in_channels: int, original: nn.Module | None = None, /) -> nn.Module:
        """Return a new block for a number of input channels."""
        ...


@dataclass(frozen=True)
class Insertion:
    """A patch that an operation wants at a target.

    Args:
        patch: the block and its gate.
        position: how it hangs there.
        site: where its hook goes: the target, or the end of the target's branch.
    """

    patch: Patch
    position: Position
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
        branches: where the branches of known blocks end, by class; see `BackboneSpec.branches`.
    """

    module: nn.Module
    site: Site
    block_spec: BlockSpec | None = None
    branch_end: Site | None = None
    branches: Mapping[str, str] = field(default_factory=dict)
    insertions: list[Insertion] = field(default_factory=list)
    thawed: list[str] = field(default_factory=list)

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
        return self.channels("branch")

    @property
    def stride(self) -> tuple[int, int]:
        """Height and width of the map that goes in divided by those of the one that comes out, at
        least 1; (1, 1) where they are no maps [pixels].
        """
        axes = {"NCHW": (2, 3), "NHWC": (1, 2)}.get(self.site.layout("input"), ())
        if self.site.layout("output") != self.site.layout("input") or not axes:
            return (1, 1)
        before, after = self.site.shape("input"), self.site.shape("output")
        height, width = (max(1, round(before[axis] / after[axis])) for axis in axes)
        return height, width

    def channels(self, position: str | Position) -> int:
        """Return the channels of the map that a block reads at a position [channels].

        Raises:
            ParameterError: there is no position of this name.
            TargetError: the position is in a branch, and the target is no block with a known
                branch.
        """
        position = position_of(position)
        return self._site(position).channels(position.reads)

    def after(self, block: nn.Module) -> None:
        """Insert a block that maps the target's output, starting as the identity."""
        self.insert(block, "after")

    def before(self, block: nn.Module) -> None:
        """Insert a block that maps the target's input, starting as the identity."""
        self.insert(block, "before")

    def parallel(self, block: nn.Module) -> None:
        """Insert a block beside the target: its result for the target's input is added to the
        target's output. Raises as `insert` does.
        """
        self.insert(block, "parallel")

    def branch(self, block: nn.Module) -> None:
        """Insert a block at the end of the target's residual branch, before the addition, starting
        as the identity. Raises as `insert` does.
        """
        self.insert(block, "branch")

    def insert(self, block: nn.Module, position: str | Position) -> None:
        """Insert a block at a position, starting as the identity.

        Args:
            block: the module, made for `channels(position)`.
            position: a name out of `POSITIONS`, or a position of one's own.

        Raises:
            ParameterError: there is no position of this name.
            TargetError: the block does not take the layout of the map that it would read; input and
                output have different layouts, or different numbers of tokens, and the position has
                to do with both; or it is in a branch, and the target is no block with a known one.
        """
        # Declared, not done: an operation is a plugin's code, and what it wants is checked with all
        # other patches before the first hook is placed. The block sees the map in a layout that it
        # takes; without a view for that, the error says what flows there and what the block
        # takes.
        position = position_of(position)
        self._check_position(position)
        site = self._site(position)
        shape, layout = site.shape(position.reads), site.layout(position.reads)
        if position.keeps_input:
            _check_both_sides(site, position)
        takes = self.block_spec.layouts if self.block_spec else ("NCHW",)
        view = find_view(shape, layout, takes, site.image)
        if isinstance(view, str):
            name = self.block_spec.name if self.block_spec else type(block).__name__
            raise TargetError(
                f"{name} cannot be inserted {position.label} {site.path!r} ({site.type_name}): the "
                f"{position.reads} there is {list(shape)} ({layout}), and {name} {view}."
            )
        gated = bool(self.block_spec and self.block_spec.gated) and hasattr(block, "gate")
        patch = Patch(block, gated=gated, view=view, position=position)
        self.insertions.append(Insertion(patch, position, site))

    def thaw(self, names: Iterable[str]) -> None:
        """Let parameters of the target's own learn even where `freeze_backbone` freezes their part,
        as inserted blocks do; `freeze_patches` freezes them. Since plugin API 1.1.

        Args:
            names: of the parameters, below the target: "bias", or "conv1.bias".

        Raises:
            TargetError: the target has no such parameter.
        """
        there = dict(self.module.named_parameters())
        for name in names:
            if name not in there:
                raise TargetError(
                    f"{self.path!r} ({type(self.module).__name__}) has no parameter {name!r}."
                    f"{did_you_mean(name, there)} Its parameters are {join_names(there, most=8)}."
                )
            self.thawed.append(name)

    def _check_position(self, position: Position) -> None:
        spec = self.block_spec
        if spec is not None and spec.positions and position.name not in spec.positions:
            raise ParameterError(
                f"{spec.name} is for the position {' or '.join(map(repr, spec.positions))}, not "
                f"{position.name!r}. Without a position it takes {spec.positions[0]!r}."
            )

    def _site(self, position: Position) -> Site:
        # A position in a branch is a position after another module: the one with which the branch
        # ends. So the target itself is not touched, and what counts is what was measured at that
        # module. The errors below differ by what the user most likely meant: a declaration that is
        # wrong, a container of blocks, for which there is a pattern, or a class that tvc does not
        # know.
        if not position.in_branch:
            return self.site
        if self.branch_end is not None:
            return self.branch_end
        where = f"{self.path!r} ({type(self.module).__name__})"
        end = branch_of(self.module, self.branches)
        if end is not None:
            raise TargetError(
                f"the branch of {where} is said to end at {end!r}, and nothing was measured there: "
                "its class declares it wrong, or another patch put the block there."
            )
        what = f"the position {position.name!r} is inside one residual block, and {where} is"
        inside = [
            path
            for path, module in self.module.named_modules(prefix=self.path)
            if branch_of(module, self.branches) is not None
        ]
        if inside:
            parents = list(dict.fromkeys(path.rpartition(".")[0] for path in inside))
            patterns = [f"'{parent}.*'" for parent in parents]
            raise TargetError(
                f"{what} not one but has {len(inside)}: {join_names(inside, most=4)}. Patch one, "
                f"or all by the pattern {join_names(patterns, most=3)}."
            )
        raise TargetError(
            f"{what} not one that tvc knows. In this network it knows "
            f"{join_names(known_blocks(self.branches), most=20)}; another class says where its "
            "branch ends by an attribute, such as tvc_branch = 'bn2'."
        )


def _check_both_sides(site: Site, position: Position) -> None:
    """Refuse a block that would read one side and write the other where it cannot fit both."""
    before, after = site.layout("input"), site.layout("output")
    shapes = site.shape("input"), site.shape("output")
    if before != after or (before == "NLC" and shapes[0][1] != shapes[1][1]):
        raise TargetError(
            f"nothing can be inserted {position.label} {site.path!r} ({site.type_name}): it turns "
            f"{list(shapes[0])} ({before}) into {list(shapes[1])} ({after}), and a block keeps the "
            "layout and the tokens."
        )


def wrap(
    target: Target, block: BlockMaker, position: Literal["after", "branch"] | None = None
) -> nn.Module:
    """Make a block the last part of the target: original -> block. It is what `inject` does there:
    both are addressed and frozen with the target, and differ in the positions that they take.

    Args:
        target: where.
        block: makes the block.
        position: one at which the block reads the target's output, such as "after", or "branch"
            (of a residual block: before the addition). None is the first that the block is for
            (`BlockSpec.positions`), or "after".

    Raises:
        ParameterError: another `position`.
    """
    names = tuple(name for name, each in POSITIONS.items() if each.reads == "output")
    return _insert(target, block, position, names, what="wrap")


def inject(
    target: Target,
    block: BlockMaker,
    position: Literal["after", "before", "parallel", "branch"] | None = None,
) -> nn.Module:
    """Add a block as a step of its own at the target.

    Args:
        target: where.
        block: makes the block.
        position: "after" (original -> block), "before" (block -> original), "parallel" (original +
            block), or "branch" (the end of a residual block's branch, before the addition). None is
            the first that the block is for (`BlockSpec.positions`), or "after".

    Raises:
        ParameterError: another `position`.
    """
    return _insert(target, block, position, what="inject")


def _insert(
    target: Target, block: BlockMaker, given: str | None, names: tuple[str, ...] = (), *, what: str
) -> nn.Module:
    own = target.block_spec.positions if target.block_spec else ()
    default = own[0] if own else "after"
    position = position_of(default) if given is None else position_of(given, names, what=what)
    target._check_position(position)  # before the block is made for what it would read there
    target.insert(block(target.channels(position)), position)
    return target.module


def replace(target: Target, block: BlockMaker) -> nn.Module:
    """Put a block in the target's place. It keeps of the target's weights what its spec says how
    to keep (`BlockSpec.in_place_of`); the others are gone, and the network's function changes.

    Where the target sees maps of several widths, as an activation does that a block shares, it is
    replaced by a block that does not depend on the width.

    Raises:
        TargetError: the block does not take the layout there (at one image size its shape may fit
            by chance), or it depends on the width and there are several.
        ParameterError: the block is for some positions only.
    """
    site, spec = target.site, target.block_spec
    name = spec.name if spec else "the block"
    if spec is not None and spec.positions:
        raise ParameterError(
            f"{name} cannot take the place of {target.path!r} ({site.type_name}): it is for the "
            f"position {join_names(map(repr, spec.positions))}. Use inject."
        )
    layouts = dict.fromkeys(site.layouts("input"))
    takes_all = spec is not None and set(spec.layouts) == set(LAYOUTS)
    wrong = [layout for layout in layouts if spec is not None and layout not in spec.layouts]
    if wrong and not takes_all:
        assert spec is not None
        raise TargetError(
            f"{name} cannot take the place of {target.path!r} ({site.type_name}): the input there "
            f"is {list(site.seen('input')[0])} ({wrong[0] or 'no known layout'}), and {name} takes "
            f"{' or '.join(spec.layouts)}."
        )
    widths = site.widths("input")
    if None in layouts:  # whatever its width is, the block must not depend on it
        widths.append(max(widths) + 1)
    if len(widths) > 1 and depends_on_width(block, target.module, widths):
        raise TargetError(
            f"{name} cannot take the place of {target.path!r} ({site.type_name}): it runs "
            f"{len(site.calls)} times with the widths {join_names(map(str, widths))}, and {name} "
            "is made for one of them. A block that does not depend on the width can, such as an "
            "activation."
        )
    return block(widths[0], target.module)
