"""Names solved from the data: what stands in the names of one side and not in the other's.

Wrappers put a segment into the names of what is inside them: DataParallel `module`, torch.compile
`_orig_mod`, activation checkpointing `_checkpoint_wrapped_module`, a trainer's class whatever its
attribute is called. No list has them all, and they stand anywhere in a name. So each name of the
checkpoint is walked through the tree of the model's names, and the walk may leave a segment of the
name out, take two as one (DenseNet's `norm.1` is `norm1`), or enter the only child of a module
without a segment for it (the model itself is wrapped). Where a walk ends at a tensor of the same
shape, it is a vote for its first step aside. The steps with the most votes are taken, for all names
below them, and the search starts again, until nothing new is found.

Two steps that lead to the same tensors are alternatives: an encoder and its moving average. The one
with more votes is taken, the other's tensors stay unexpected. If both have as many, only the
user can tell.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain

from ..errors import WeightsError, join_names

__all__ = ["Names", "solve"]

_ASIDE = 6
"""Steps aside that one walk may make."""

Shape = tuple[int, ...]
Same = Callable[[str, str], bool]


@dataclass(frozen=True)
class _Step:
    """A step aside: leave out the last segment of a path (`drop`), or take it and the next as one
    (`join`), in the checkpoint's names or, for `enter`, leave it out in the model's.
    """

    kind: str
    path: str

    def apply(self, name: str) -> str:
        """Return a name, or a module's path, after this step."""
        if name != self.path and not name.startswith(f"{self.path}."):
            return name
        parent, _, last = self.path.rpartition(".")
        rest = name[len(self.path) + 1 :]
        if self.kind == "join":
            return ".".join(filter(None, (parent, last + rest))) if rest else name
        return ".".join(filter(None, (parent, rest)))

    def undo(self, name: str) -> str:
        """Return the name that the step was given, for a name that lies where the path did."""
        parent, _, last = self.path.rpartition(".")
        if parent and not name.startswith(f"{parent}."):
            return name
        return ".".join(filter(None, (parent, last, name[len(parent) :].lstrip("."))))


@dataclass(kw_only=True)
class Names:
    """The names of a checkpoint as the model has them.

    Args:
        names: for each new name, the checkpoint's.
        steps: what was done to the checkpoint's names, in order; of those done at once, a name has
            had the first that is for it.
        entered: what was done to the model's.
        counts: tensors that a step was for.
    """

    names: dict[str, str]
    steps: list[list[_Step]] = field(default_factory=list)
    entered: list[_Step] = field(default_factory=list)
    counts: dict[_Step, int] = field(default_factory=dict)

    def module_path(self, path: str) -> str:
        """Return the new path of a module of the checkpoint."""
        for steps in self.steps:
            path = _first_applied(steps, path)
        for step in reversed(self.entered):
            path = step.undo(path)
        return path

    def explained(self) -> list[str]:
        """Return what was done, in words."""
        words: dict[str, tuple[list[str], int]] = {}
        for step in (*chain.from_iterable(self.steps), *self.entered):
            parent, _, last = step.path.rpartition(".")
            what = {
                "drop": f"without {last!r}",
                "join": f"{last!r} and the number after it as one",
                "enter": f"into the model's {last!r}",
            }[step.kind]
            places, count = words.get(what, ([], 0))
            words[what] = ([*places, parent], count + self.counts[step])
        return [
            f"{what}{_where(places)} ({count} tensors)" for what, (places, count) in words.items()
        ]


def _where(places: list[str]) -> str:
    inside = [place or "front" for place in places]
    return f" in {join_names(inside, most=3)}" if any(places) else ""


def solve(
    given: Mapping[str, Shape], own: Mapping[str, Shape], same: Same, held: Set[str] = frozenset()
) -> Iterator[Names]:
    """Yield the names of a checkpoint as they are, and then nearer and nearer to the model's, as
    far as the data say. A migration may know what to do with names before the last step.

    Args:
        given: shapes by the checkpoint's names.
        own: shapes by the model's names.
        same: tells whether two tensors of the checkpoint have equal values.
        held: names of the checkpoint that stay as they are.

    Raises:
        WeightsError: two prefixes fit as many tensors of the model, with different values.
    """
    found = Names(names={name: name for name in given})
    targets = {name: name for name in own}  # the model's names, without what was entered
    fits: dict[str, str] = {}  # of the model's names to the checkpoint's
    rejected: set[_Step] = set()
    been = {(frozenset(found.names.items()), frozenset(targets.items()))}
    yield found
    while True:
        for name, key in found.names.items():
            target = targets.get(name)
            if target is not None and target not in fits and own[target] == given[key]:
                fits[target] = key
        done = set(fits.values())
        free = {n: targets[n] for n in targets if targets[n] not in fits}
        if not free or len(done) == len(given):
            break
        votes = _votes(
            {n: given[k] for n, k in found.names.items() if k not in done and k not in held},
            {n: own[t] for n, t in targets.items()},
            found.names,
        )
        taken = _choose(votes, targets, fits, rejected, same)
        if not taken:
            break
        reached = {
            step: {targets[name]: key for name, key in votes[step].items()} for step in taken
        }
        for step, tensors in reached.items():
            found.counts[step] = len(tensors)
            fits = {target: key for target, key in fits.items() if target not in tensors}
        for step in (step for step in taken if step.kind == "enter"):
            found.entered.append(step)
            targets = _applied([step], targets, set())
        if aside := [step for step in taken if step.kind != "enter"]:
            found.steps.append(aside)
            fitting = {key for step in aside for key in reached[step].values()}
            # what fits as it is stays, where the steps would lead it to nothing
            stays = {
                key
                for name, key in found.names.items()
                if fits.get(targets.get(name, "")) == key
                and own.get(targets.get(_first_applied(aside, name), "")) != given[key]
            }
            found.names = _applied(aside, found.names, fitting, held | stays)
        state = frozenset(found.names.items()), frozenset(targets.items())
        if state in been:
            break  # names that stand in each other's way would take turns without end
        been.add(state)
        yield replace(
            found,
            names={targets.get(n) or _undone(n, found): k for n, k in found.names.items()},
            steps=list(found.steps),
            entered=list(found.entered),
        )


def _undone(name: str, found: Names) -> str:
    for step in reversed(found.entered):
        name = step.undo(name)
    return name


def _first_applied(steps: Sequence[_Step], name: str) -> str:
    return next((new for step in steps if (new := step.apply(name)) != name), name)


def _applied(
    steps: Sequence[_Step],
    names: Mapping[str, str],
    fitting: Set[str],
    held: Set[str] = frozenset(),
) -> dict[str, str]:
    """Apply steps to all names at once, but those of `held` keys.

    Where the new name is another tensor's, the one that fits by its shape has it, and the other
    one keeps its name, or loses it: it is found nowhere then, and is unexpected.
    """
    after = {n: n if key in held else _first_applied(steps, n) for n, key in names.items()}
    new = {name: key for name, key in names.items() if after[name] == name}
    for name, key in names.items():
        if after[name] != name:
            new[after[name] if after[name] not in new or key in fitting else name] = key
    return new


def _votes(
    given: Mapping[str, Shape], own: Mapping[str, Shape], keys: Mapping[str, str]
) -> dict[_Step, dict[str, str]]:
    """Return for each first step aside the names of the model that it leads to, each with the
    checkpoint's key.
    """
    tree: dict[str, dict[str, str]] = defaultdict(dict)
    for name in own:
        parts = name.split(".")
        for index, part in enumerate(parts):
            parent = ".".join(parts[:index])
            tree[parent][part] = f"{parent}.{part}" if parent else part
    votes: dict[_Step, dict[str, str]] = defaultdict(dict)
    below = _below(own, given)
    for name in sorted(given):
        for ends in _walk(name.split("."), tree):
            fitting = {t: steps for t, steps in ends.items() if own.get(t) == given[name]}
            # a name of two numbers (blocks.0.1 for blocks.1) leads to several places: the step that
            # most names agree on counts
            for first in {step: None for steps in fitting.values() for step in steps}:
                target = next(t for t, steps in fitting.items() if first in steps)
                votes[first].setdefault(target, keys[name])
            if fitting:
                break
        else:
            if len(found := below.get(name, [])) == 1:
                first = _Step("enter", found[0].partition(".")[0])
                votes[first].setdefault(found[0], keys[name])
    return votes


def _below(own: Mapping[str, Shape], given: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Return for names of the checkpoint where in the model they stand below something: a backbone
    is a part of the model.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for target, shape in own.items():
        _, dot, rest = target.partition(".")
        while dot:
            if given.get(rest) == shape:
                found[rest].append(target)
            _, dot, rest = rest.partition(".")
    return found


def _walk(
    parts: list[str], tree: Mapping[str, dict[str, str]]
) -> Iterator[dict[str, dict[_Step, None]]]:
    """Yield where a name can lead to by one step aside, by two and so on; each place with the first
    steps of the ways there.
    """
    states: dict[tuple[int, str], dict[_Step, None]] = {(0, ""): {}}
    seen: set[tuple[int, str]] = set()
    for _ in range(_ASIDE + 1):
        aside: dict[tuple[int, str], dict[_Step, None]] = defaultdict(dict)
        ends: dict[str, dict[_Step, None]] = {}
        queue = sorted(states)  # by index, along which ways meet
        while queue:  # steps along the name cost nothing
            index, node = queue.pop(0)
            children, ways = tree.get(node, {}), states[index, node]
            if index == len(parts):
                if ways and not children:
                    ends[node] = ways
                continue
            after = children.get(parts[index])
            if after is not None and (index + 1, after) not in seen:
                if (index + 1, after) not in states:
                    insort(queue, (index + 1, after))
                states[index + 1, after] = {**states.get((index + 1, after), {}), **ways}
            here = ".".join(parts[: index + 1])
            if index + 1 < len(parts):
                aside[index + 1, node] |= ways or {_Step("drop", here): None}
                joined = children.get(parts[index] + parts[index + 1])
                if joined is not None:
                    aside[index + 2, joined] |= ways or {_Step("join", here): None}
            inner = [child for child in children.values() if tree.get(child)]
            if len(inner) == 1:
                aside[index, inner[0]] |= ways or {_Step("enter", inner[0]): None}
        yield ends
        seen |= states.keys()
        states = {state: ways for state, ways in aside.items() if state not in seen}


def _choose(
    votes: Mapping[_Step, Mapping[str, str]],
    targets: Mapping[str, str],
    fits: Mapping[str, str],
    rejected: set[_Step],
    same: Same,
) -> list[_Step]:
    """Return the steps to take: the most votes first, and none that leads to what another fills."""
    order = sorted(votes, key=lambda step: (-len(votes[step]), step.kind != "drop", step.path))
    taken: list[_Step] = []
    for step in order:
        reached = {targets[name] for name in votes[step]}
        filled = reached & fits.keys()
        if step in rejected or filled == reached:
            continue
        rivals = [other for other in taken if votes[other].keys() & votes[step].keys()]
        if rivals and all(_is_other_way(votes[step], votes[other]) for other in rivals):
            continue  # which the next round looks at again
        if 2 * len(filled) > len(reached) or rivals:
            rejected.add(step)
            for other in rivals:
                _refuse_tie(other, step, votes, same)
            continue
        taken.append(step)
    return taken


def _is_other_way(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Tell whether two steps lead to the same tensors of the model from the same ones of the
    checkpoint.
    """
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def _refuse_tie(
    one: _Step, other: _Step, votes: Mapping[_Step, Mapping[str, str]], same: Same
) -> None:
    a, b = votes[one], votes[other]
    if len(a) != len(b) or one.kind != other.kind or one.kind == "enter":
        return
    shared = a.keys() & b.keys()
    if all(same(a[name], b[name]) for name in shared):
        return
    prefixes = " and ".join(repr(_before(votes[step])) for step in (one, other))
    raise WeightsError(
        f"the names fit in two ways: {len(a)} of the model's tensors are found under the prefixes "
        f"{prefixes}, with different values. Nothing was loaded. Say which is meant: "
        f"prefix={_before(a)!r}, or prefix={_before(b)!r}."
    )


def _before(vote: Mapping[str, str]) -> str:
    """Return what stands before the model's names in the checkpoint's keys."""
    for name, key in vote.items():
        if key.endswith(f".{name}"):
            return key[: -len(name)]
    return next(iter(vote.values()))
