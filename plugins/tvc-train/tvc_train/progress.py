"""How far a training is, as plain data: what a checkpoint holds besides tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tvc_core import short_repr

from .errors import TrainingError

__all__ = ["Position", "Progress"]


@dataclass(kw_only=True)
class Position:
    """Where a training is, between two steps.

    Args:
        phase: number of the phase, from 0.
        epoch: epochs of the phase that are done.
        step: steps of the epoch that are done; all of them means that its evaluation is next.
        epochs: epochs of all phases that are done.
        steps: steps of all epochs that are done.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    epochs: int = 0
    steps: int = 0


@dataclass(kw_only=True)
class Progress:
    """What a training has found until now. Nothing of it depends on the clock.

    Args:
        position: where it is.
        rows: a row an epoch, as in metrics.csv.
        best: the best figure, and the epoch and phase that it is of; empty at first.
        sums: of the epoch that is under way: "loss" over "images".
        methods: what each method remembers, by its name.
    """

    position: Position = field(default_factory=Position)
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "images": 0})
    methods: dict[str, Any] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain data that `from_mapping` reads back."""
        return asdict(self)

    @staticmethod
    def from_mapping(data: Mapping[str, Any], *, phases: int, steps: int) -> Progress:
        """Return what `to_mapping` wrote.

        Args:
            data: of a checkpoint.
            phases: that the training has.
            steps: of an epoch.

        Raises:
            TrainingError: it is something else, or of a training with fewer phases or steps.
        """
        kinds = {name: type(value) for name, value in vars(Progress()).items()}
        kinds["position"] = dict
        fits = set(data) == set(kinds) and all(isinstance(data[k], kinds[k]) for k in kinds)
        place = data.get("position") if fits else None
        fits = isinstance(place, dict) and set(place) == set(vars(Position()))
        fits = fits and all(type(n) is int and n >= 0 for n in place.values())  # type: ignore[union-attr]
        fits = fits and all(isinstance(row, dict) for row in data["rows"])
        fits = fits and all(isinstance(data["sums"].get(k), (int, float)) for k in Progress().sums)
        if not fits:
            raise TrainingError(f"what it says of its progress is damaged: {short_repr(data)}")
        found = Progress(**{**data, "position": Position(**place)})  # type: ignore[arg-type]
        where = found.position
        if where.phase > phases or where.step > steps or len(found.rows) != where.epochs:
            raise TrainingError(
                f"it is at phase {where.phase + 1}, step {where.step}, and the training has "
                f"{phases} phases with {steps} steps an epoch"
            )
        return found
