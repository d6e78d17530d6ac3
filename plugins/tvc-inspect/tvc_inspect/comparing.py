"""Say in what two models differ: patches, head, what is trainable, settings, paths, shapes,
tensors, costs.

What follows from a difference that is named already is not named again: the tensors of a patch that
only one model has, or those of a head with other classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from torch import nn

from tvc_core import HybridModel, diff_weights

from .facts import ModelFacts, PatchFacts

__all__ = ["Comparison", "CostChange", "Difference", "compare_models"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something in which two models differ.

    Args:
        kind: "backbone", "patch", "head", "class names", "trainable", "freezing", "checkpointing",
            "preprocessing", "path", "shape" or "tensor".
        path: of the module, part or tensor.
        a: what the first model has there, in words; "" where it has nothing.
        b: what the second one has.
    """

    kind: str
    path: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class CostChange:
    """One total of two models.

    Args:
        name: of what, with its unit.
        a: of the first model; None where it is not known.
        b: of the second.
    """

    name: str
    a: float | None
    b: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """In what two models differ.

    Args:
        name: of the second model.
        differences: what was changed, each once.
        costs: the totals of both, whether they differ or not.
    """

    name: str
    differences: tuple[Difference, ...]
    costs: tuple[CostChange, ...]

    def as_data(self) -> dict[str, Any]:
        """Return the comparison as plain data, which JSON has a form for."""
        return asdict(self)


def compare_models(
    a: HybridModel, b: HybridModel, facts_a: ModelFacts, facts_b: ModelFacts
) -> Comparison:
    """Return in what two models differ; neither of them runs.

    Args:
        a: the first model.
        b: the second model.
        facts_a: what `inspect_model` returns for the first.
        facts_b: what `inspect_model` returns for the second, of an image of the same size.
    """
    patches, covered = _patches(facts_a, facts_b)
    heads, of_heads = _heads(a, b)
    covered |= of_heads
    changed = any(each.kind == "head" for each in heads)
    after_head = {row.path for row in facts_a.paths if row.part == "head"} if changed else set()
    paths, gone = _paths(a, b, covered)
    covered |= gone
    return Comparison(
        name=facts_b.name,
        differences=(
            *_backbone(facts_a, facts_b),
            *patches,
            *heads,
            *_trainable(a, b, facts_a, covered),
            *_wholes(a, b),
            *paths,
            *_shapes(facts_a, facts_b, covered, after_head),
            *_tensors(a, b, covered),
        ),
        costs=tuple(_costs(facts_a, facts_b)),
    )


def _is_in(path: str, roots: set[str]) -> bool:
    """Tell whether a path is one of some, or below one."""
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def _backbone(a: ModelFacts, b: ModelFacts) -> Iterator[Difference]:
    if a.backbone != b.backbone:
        yield Difference(kind="backbone", path="", a=a.backbone, b=b.backbone)


def _patches(a: ModelFacts, b: ModelFacts) -> tuple[list[Difference], set[str]]:
    differences, covered = [], set()
    for target in dict.fromkeys(each.target for facts in (a, b) for each in facts.patches):
        # another block at a target lives at another path: it took the place of the one there
        for one, other in _pairs(*(_at(target, facts) for facts in (a, b))):
            first, second = _in_words(one), _in_words(other)
            if first != second:
                differences.append(Difference(kind="patch", path=target, a=first, b=second))
                covered |= {each.path for each in (one, other) if each is not None}
    return [*differences, *_orders(a, b)], covered


def _orders(a: ModelFacts, b: ModelFacts) -> Iterator[Difference]:
    """Yield where patches that both models have run one after another in another order."""
    both = {each.path for each in a.patches} & {each.path for each in b.patches}
    sides: list[dict[tuple[str, str], list[str]]] = [{}, {}]
    for side, facts in zip(sides, (a, b), strict=True):
        for each in facts.patches:
            node, _, leaf = each.path.rpartition(".")
            if each.path in both and each.position is not None:
                side.setdefault((node.partition(".")[2], each.position), []).append(leaf)
    for place, names in sides[0].items():
        first, second = (", then ".join(each) for each in (names, sides[1].get(place, names)))
        if first != second and sorted(names) == sorted(sides[1][place]):
            yield Difference(kind="patch", path=place[0], a=first, b=second)


def _at(target: str, facts: ModelFacts) -> dict[str, PatchFacts]:
    return {each.path: each for each in facts.patches if each.target == target}


def _pairs(
    a: dict[str, PatchFacts], b: dict[str, PatchFacts]
) -> Iterator[tuple[PatchFacts | None, PatchFacts | None]]:
    """Yield the patches of the same path, then those that are left on each side, in order."""
    yield from ((a[path], b[path]) for path in a if path in b)
    yield from zip_longest(*([s[path] for path in s if path not in o] for s, o in ((a, b), (b, a))))


def _in_words(patch: PatchFacts | None) -> str:
    if patch is None:
        return ""
    params = ", ".join(f"{name}={value!r}" for name, value in patch.params.items())
    init = f", init {patch.init}" if patch.init else ""
    start = "" if patch.gate is not None or patch.position is None else ", without a gate"
    return f"{patch.op} {patch.block or 'its own module'}({params}){init}{start}"


def _heads(a: HybridModel, b: HybridModel) -> tuple[list[Difference], set[str]]:
    sides = [{info.name: info for info in model.head_info} for model in (a, b)]
    differences, covered = [], set()
    for name in dict.fromkeys((*sides[0], *sides[1])):
        both = [
            (model, side[name]) for model, side in zip((a, b), sides, strict=True) if name in side
        ]
        hidden = [_hidden(model, info.module) for model, info in both]
        words = [f"{info.num_classes} classes" for _, info in both]
        modules = {info.module for _, info in both}
        if hidden[0][1] != hidden[-1][1]:
            modules = {path for path, _ in hidden}
            words = [
                f"{text} after {', '.join(map(str, sizes)) or 'none'} hidden"
                for text, (_, sizes) in zip(words, hidden, strict=True)
            ]
        if len(both) == 1:
            words = [words[0] if name in side else "" for side in sides]
        if words[0] != words[1]:
            path = name or " or ".join(sorted(modules))
            differences.append(Difference(kind="head", path=path, a=words[0], b=words[1]))
            covered |= modules
            continue
        names = [info.class_names or () for _, info in both]
        if names[0] != names[1]:
            # from the first that differs on
            start = next(i for i, (x, y) in enumerate(zip_longest(*names)) if x != y)
            start = start if start > 7 else 0
            first, second = ("..., " * bool(start) + ", ".join(n[start:][:8]) for n in names)
            differences.append(Difference(kind="class names", path=name, a=first, b=second))
    # several heads answer in their order, which exports keep
    orders = [[name for name in side if name in sides[0] and name in sides[1]] for side in sides]
    if orders[0] != orders[1]:
        first, second = (", then ".join(each) for each in orders)
        differences.append(Difference(kind="head", path="", a=first, b=second))
    return differences, covered


def _hidden(model: HybridModel, last: str) -> tuple[str, list[int]]:
    """Return the path of a head with several layers, or of its only one, and the widths of those
    before the last.
    """
    parent = last.rpartition(".")[0]
    layers = model.get_submodule(parent) if parent else None
    if not isinstance(layers, nn.Sequential):
        return last, []
    wide = [each for each in layers if isinstance(each, (nn.Linear, nn.Conv2d))]
    widths = [e.out_features if isinstance(e, nn.Linear) else e.out_channels for e in wide]
    return (parent, widths[:-1]) if widths[1:] else (last, [])


def _trainable(
    a: HybridModel, b: HybridModel, facts: ModelFacts, covered: set[str]
) -> Iterator[Difference]:
    """Yield the parts and patches, or single parameters, that only one of the models trains."""
    parts = {row.path: row.part for row in facts.paths}
    sides = [dict(model.named_parameters()) for model in (a, b)]
    both = [name for name in sides[0] if name in sides[1] and not _is_in(name, covered)]
    groups: dict[str, list[str]] = {}
    homes = [patch.path for patch in facts.patches if patch.path != patch.target]
    for name in both:
        # a block in a frozen part may learn, so it counts by itself
        home = next((each for each in homes if name.startswith(f"{each}.")), None)
        groups.setdefault(home or parts.get(name.rpartition(".")[0]) or name, []).append(name)
    found = False
    for part, names in groups.items():
        moved = [n for n in names if sides[0][n].requires_grad != sides[1][n].requires_grad]
        found = found or bool(moved)
        if len(moved) == len(names):
            counts = [_count(side, names) for side in sides]
            yield Difference(kind="trainable", path=part, a=counts[0], b=counts[1])
            continue
        for name in moved:
            counts = [_count(side, [name]) for side in sides]
            yield Difference(kind="trainable", path=name, a=counts[0], b=counts[1])
    states = [model.freeze_state() for model in (a, b)]
    for key in dict.fromkeys((*states[0], *states[1])):
        if key in ("backbone", "num_stages"):  # of what it is, not what is frozen
            continue
        values = [state.get(key) for state in states]
        if not found and values[0] != values[1]:
            yield Difference(kind="freezing", path=key, a=str(values[0]), b=str(values[1]))


def _count(parameters: dict[str, nn.Parameter], names: list[str]) -> str:
    trained = sum(parameters[name].numel() for name in names if parameters[name].requires_grad)
    return f"{trained:,} of {sum(parameters[name].numel() for name in names):,} trainable"


def _paths(a: HybridModel, b: HybridModel, covered: set[str]) -> tuple[list[Difference], set[str]]:
    """Return modules that only one model has or whose class differs, the topmost of each, and those
    whose settings differ.
    """
    sides = [dict(m.named_modules()) for m in (a, b)]
    differences: list[Difference] = []
    gone: set[str] = set()
    for path in dict.fromkeys((*sides[0], *sides[1])):
        both = [side.get(path) for side in sides]
        if _is_in(path, covered) or _is_in(path, gone):
            continue
        first, second = _settings(*both)
        if first == second:
            continue
        differences.append(Difference(kind="path", path=path, a=first, b=second))
        if type(both[0]) is not type(both[1]) and path:  # so what is below does as well
            gone.add(path)
    return differences, gone


def _settings(a: nn.Module | None, b: nn.Module | None) -> tuple[str, str]:
    """Return two modules in words that differ where the modules do; "" for none."""
    words = ["" if m is None else f"{type(m).__name__}({m.extra_repr()})" for m in (a, b)]
    if words[0] != words[1] or a is None or b is None:
        return words[0], words[1]
    # many modules do not show all of their settings: the dropout of an attention, for example
    first, second = _plain_settings(a), _plain_settings(b)
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    texts = (", ".join(f"{n}={side[n]!r}" for n in names if n in side) for side in (first, second))
    one, other = (f"{type(a).__name__}({text})" for text in texts)
    return one, other


def _plain_settings(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes that are plain values, without its mode and what follows from
    the head: `num_classes`, and the `names` of several heads.
    """
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in ("training", "num_classes", "names")
        and all(
            each is None or isinstance(each, (bool, int, float, str))
            for each in (value if isinstance(value, (list, tuple)) else (value,))
        )
    }


def _wholes(a: HybridModel, b: HybridModel) -> Iterator[Difference]:
    """Yield settings of a whole model."""
    stages = [model.recipe.grad_checkpointing for model in (a, b)]
    recomputed = ["all stages" if each is True else each for each in stages]
    for kind, (one, other) in (
        ("checkpointing", recomputed),
        ("preprocessing", (a.preprocessing, b.preprocessing)),
    ):
        if one != other:
            yield Difference(kind=kind, path="", a=str(one or "none"), b=str(other or "none"))


def _shapes(
    a: ModelFacts, b: ModelFacts, covered: set[str], after_head: set[str]
) -> Iterator[Difference]:
    others = {row.path: row for row in b.paths}
    for row in a.paths:
        other = others.get(row.path)
        of_head = row.path in after_head or (after_head and not row.path)
        if other is None or of_head or _is_in(row.path, covered):
            continue
        first, second = ((each.shape, each.layout) for each in (row, other))
        if first != second:
            words = [
                f"{list(shape or ())} {layout or ''}".strip() for shape, layout in (first, second)
            ]
            yield Difference(kind="shape", path=row.path, a=words[0], b=words[1])


def _tensors(a: HybridModel, b: HybridModel, covered: set[str]) -> Iterator[Difference]:
    found = diff_weights(a, b)
    for change in found.changed:
        if not _is_in(change.key, covered):
            yield Difference(
                kind="tensor",
                path=change.key,
                a="",
                b=f"differs by at most {change.max_difference:.3g} in {change.num_changed:,} of "
                f"{change.num_values:,} values",
            )
    for text in found.unlike:
        key, _, kinds = text.partition(": ")
        if not _is_in(key, covered):
            first, _, second = kinds.partition(" and ")
            yield Difference(kind="tensor", path=key, a=first, b=second)
    for key in found.only_in_a:
        if not _is_in(key, covered):
            yield Difference(kind="tensor", path=key, a="a tensor", b="")
    for key in found.only_in_b:
        if not _is_in(key, covered):
            yield Difference(kind="tensor", path=key, a="", b="a tensor")


def _costs(a: ModelFacts, b: ModelFacts) -> Iterator[CostChange]:
    first, second = a.total, b.total
    names = {
        "modules": (len(a.paths), len(b.paths)),
        "parameters": (first.parameters, second.parameters),
        "trainable parameters": (first.trainable, second.trainable),
        "FLOPs of a forward pass": (first.flops, second.flops),
        "bytes kept for backward": (first.kept, second.kept),
        "milliseconds of a forward pass": (first.milliseconds, second.milliseconds),
    }
    for name, (one, other) in names.items():
        yield CostChange(name=name, a=one, b=other)
    counts = [Counter({op.name: op.calls for op in facts.uncounted}) for facts in (a, b)]
    yield CostChange(
        name="calls of operations without FLOPs", a=counts[0].total(), b=counts[1].total()
    )
