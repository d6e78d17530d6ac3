"""The positions that a block can have at a target. One table: all that depends on a position reads
the attributes of its entry, so another position is another entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import ParameterError, did_you_mean

__all__ = ["POSITIONS", "Position", "add", "position_of"]

SIDES = ("input", "output")
STARTS = ("identity", "zero", "")

Combine = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a block runs at a target, what it reads, and what becomes of its result.

    The core's positions are in `POSITIONS`. An operation of a plugin may pass one of its own to
    `Target.insert`.

    Args:
        name: short name, as a recipe has it.
        formula: what runs, for `explain`, with {target} and {block}: "{target} -> {block}".
        reads: the target's map that the block gets, "input" or "output".
        writes: the map that the result becomes, "input" or "output". Where `reads` is another one,
            the block gets a copy of the target's input, and the result comes after the target.
        in_branch: the target is a residual block, and the position is at the end of its branch.
        combine: `combine(map, result, gate) -> map`, of the map that is written and of what the
            block made of the map that it read. With a gate of 0 it must give the map, bit for bit;
            the gate is None for a block without one. Has to be importable, so that the model can be
            pickled. None: the block's result takes the place of the map that it read, blended in:
            map + gate * (result - map).
        neutral: what a block must be to leave the map unchanged here without a gate: "identity",
            "zero" (its result is 0), or "" where no block does.
        label: what errors say before the target's path, such as "parallel to"; by default the name.

    Raises:
        ValueError: a side or `neutral` is not one of those, the block would read what is only there
            after what it writes, or without `combine` it reads another map than it writes.
    """

    name: str
    formula: str
    reads: str = "output"
    writes: str = "output"
    in_branch: bool = False
    combine: Combine | None = None
    neutral: str = "identity"
    label: str = ""

    def __post_init__(self) -> None:
        what = f"Position {self.name!r}"
        if self.reads not in SIDES or self.writes not in SIDES or self.neutral not in STARTS:
            raise ValueError(
                f"{what}: reads and writes are {' or '.join(map(repr, SIDES))}, and neutral is "
                f"{', '.join(map(repr, STARTS))}, not {self.reads!r}, {self.writes!r} and "
                f"{self.neutral!r}"
            )
        if self.reads == "output" and self.writes == "input":
            raise ValueError(f"{what}: the target's input cannot depend on the target's output")
        if self.combine is None and self.reads != self.writes:
            raise ValueError(
                f"{what}: reads the {self.reads} and writes the {self.writes}, so it needs combine"
            )
        if not self.label:
            object.__setattr__(self, "label", self.name)

    # A position says only what a block reads and writes. Which hooks that takes follows: reading
    # the input needs a pre-hook, writing the output needs a hook, and a block that does both gets a
    # copy of the input, since the target may overwrite it in place before the block runs.
    @property
    def keeps_input(self) -> bool:
        """The target's input is kept until the target has run."""
        return self.reads != self.writes

    @property
    def runs_before(self) -> bool:
        """Something runs before the target: a forward pre-hook is needed."""
        return self.reads == "input"

    @property
    def runs_after(self) -> bool:
        """Something runs after the target: a forward hook is needed."""
        return self.writes == "output"

    def describe(self, target: str, block: str) -> str:
        """Return the formula with the names of a target and a block."""
        return self.formula.format(target=target, block=block)


def add(map: Tensor, result: Tensor, gate: Tensor | None) -> Tensor:
    """Return map + gate * result: the block's result is added to the map."""
    return map + (result if gate is None else gate * result)


POSITIONS = {
    position.name: position
    for position in (
        Position(name="after", formula="{target} -> {block}"),
        Position(name="before", formula="{block} -> {target}", reads="input", writes="input"),
        Position(
            name="parallel",
            formula="{target} + {block}",
            reads="input",
            combine=add,
            neutral="zero",
            label="parallel to",
        ),
        Position(name="branch", formula="{target} -> {block}", in_branch=True, label="after"),
    )
}
"""The core's positions by their names."""


def position_of(
    given: str | Position, allowed: tuple[str, ...] = (), *, what: str = ""
) -> Position:
    """Return the position that a name stands for; a `Position` stands for itself.

    Args:
        given: a name, or a position.
        allowed: the names that may be given; by default all.
        what: who takes a position, for the error.

    Raises:
        ParameterError: the name is not one of `allowed`.
    """
    if isinstance(given, Position):
        return given
    names = allowed or tuple(POSITIONS)
    if given not in names:
        quoted = [repr(name) for name in names]
        hint = did_you_mean(str(given), names)
        if given in POSITIONS:
            hint = f" inject takes it: {{'inject': {{'type': ..., 'position': {given!r}}}}}."
        raise ParameterError(
            f"{what or 'a patch'} takes the position {', '.join(quoted[:-1])} or {quoted[-1]}, not "
            f"{given!r}.{hint}"
        )
    return POSITIONS[given]
