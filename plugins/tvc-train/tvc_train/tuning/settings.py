"""The section `tune` of a recipe as data with types: what is searched, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvc_core import RecipeError, join_names, short_repr, what_there_is

from ..tune_schema import DOMAINS

__all__ = ["TuneSettings", "examples_of", "is_whole"]


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """What is searched, and how.

    Args:
        space: for each path of the recipe, as `--set` has it, what its value is drawn from: one of
            {"choice": [values]}, {"uniform": [low, high]}, {"loguniform": [low, high]},
            {"quniform": [low, high, step]} (whole numbers, if these three are), and, of whole
            numbers, {"randint": [low, high]} and {"lograndint": [low, high]}, without the high one,
            as in Ray Tune.
        trials: how many values are tried.
        by: the figure on the held-out images that decides; None for `training.best`.
        search: "tpe" learns from the trials before (Bergstra et al. 2011), "random" does not.
        seed: of the search.
        concurrent: trials that run at once.
    """

    space: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trials: int = 20
    by: str | None = None
    search: str = "tpe"
    seed: int = 0
    concurrent: int = 1

    def __post_init__(self) -> None:
        for path, domain in self.space.items():
            if problem := _problem(domain):
                error = RecipeError(f"tune.space[{path!r}]: {problem}")
                error.below = ("space", path)
                raise error

    @staticmethod
    def from_mapping(data: Mapping[str, Any]) -> TuneSettings:
        """Return the settings that the section describes, which fits its schema.

        Raises:
            RecipeError: a value is drawn from nothing.
        """
        return TuneSettings(**data)

    def examples(self) -> list[dict[str, Any]]:
        """Return values that can be drawn, so that each choice and both ends of all else occur."""
        drawn: dict[str, Sequence[Any]] = {}
        for path, domain in self.space.items():
            ((name, values),) = domain.items()
            drawn[path] = values
            if name != "choice":
                low, high = values[:2]
                drawn[path] = (low, high - 1 if name.endswith("randint") else high)
            if name.endswith("uniform") and not (name == "quniform" and is_whole(values)):
                drawn[path] = (float(low), float(high))  # as all in between are
        longest = max(map(len, drawn.values()), default=0)
        return [
            {path: values[min(turn, len(values) - 1)] for path, values in drawn.items()}
            for turn in range(longest)
        ]


def is_whole(values: Sequence[Any]) -> bool:
    """Return whether all of these numbers are whole ones, and so are multiples of the last."""
    return all(isinstance(each, int) for each in values)


def examples_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a search may put into its recipe: `TuneSettings.examples` of its section.

    Raises:
        RecipeError: a value is drawn from nothing.
    """
    return TuneSettings.from_mapping(data).examples()


def _problem(domain: Any) -> str:
    """Say why a value cannot be drawn from a domain; "" where it can."""
    if not isinstance(domain, Mapping) or len(domain) != 1:
        return (
            "a value is drawn from one of "
            f"{join_names(DOMAINS)}, such as {{loguniform: [0.0001, 0.1]}}, not from "
            f"{short_repr(domain)}"
        )
    ((name, values),) = domain.items()
    if name not in DOMAINS:
        there = what_there_is(str(name), list(DOMAINS), "There are")
        return f"there is no {short_repr(name)}.{there}"
    if not isinstance(values, (list, tuple)) or not values:
        return f"{name} takes a list, not {short_repr(values)}"
    if name == "choice":
        plain = all(each is None or isinstance(each, (str, int, float, bool)) for each in values)
        return "" if plain else f"choice takes single values, not {short_repr(values)}"
    count = 3 if name == "quniform" else 2
    whole = name.endswith("randint")
    kinds: Any = int if whole else (int, float)
    if len(values) != count or not all(
        isinstance(each, kinds) and not isinstance(each, bool) for each in values
    ):
        return f"{name} takes {count} {'whole ' if whole else ''}numbers, not {short_repr(values)}"
    if not values[0] < values[1]:
        return f"{name}: {values[0]} is not lower than {values[1]}"
    if name.startswith("log") and values[0] <= 0:
        return f"{name}: {values[0]} has no logarithm; begin above 0"
    if count == 3:
        low, high, step = values
        parts = [end / step if step > 0 else math.inf for end in (low, high)]
        fits = all(math.isfinite(n) and math.isclose(n, round(n), abs_tol=1e-9) for n in parts)
        if not fits or step > high - low:
            return f"quniform: {low} and {high} are not multiples of the step {step}"
    return ""
