"""Match the tensors of one architecture by order and shape, where the names tell nothing.

timm and torchvision write the same network down in the same order with other names. What a tensor
is, its role says (weight, bias, a statistic) and its shape, without dimensions of size 1. A role
and shape that each side has once is matched wherever it stands; all others must agree in order,
one after another. Where they do not, a match would be a guess, and is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from ..errors import WeightsError, join_names
from .fitting import squeezed

__all__ = ["by_order", "fits_by_order"]

_ROLES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

Shape = Sequence[int]
Signature = tuple[str, tuple[int, ...]]


def by_order(given: Mapping[str, Shape], own: Mapping[str, Shape]) -> dict[str, str]:
    """Return for the model's keys the checkpoint's, by order and shape.

    Args:
        given: shapes by the checkpoint's names, in its order.
        own: shapes by the model's names, in its order.

    Raises:
        WeightsError: the match is ambiguous; the message has the candidates.
    """
    sides = [
        [(name, _signature(name, shape)) for name, shape in side.items()] for side in (given, own)
    ]
    counts = [Counter(signature for _, signature in side) for side in sides]
    shared = counts[0].keys() & counts[1].keys()
    # Libraries differ most in where they list single tensors, such as a class token or a final
    # norm: before or after all blocks. Those are told apart by kind and shape alone, so their order
    # is not asked for. The rest, which repeats, must agree from the first to the last: one
    # difference in the middle would shift everything after it by one, and often the shapes would
    # still fit.
    once = {s for s in shared if counts[0][s] == counts[1][s] == 1}
    rest = [[(n, s) for n, s in side if s in shared - once] for side in sides]
    matched = {s: name for name, s in sides[0] if s in once}
    found = {name: matched[s] for name, s in sides[1] if s in once}
    for (theirs, a), (ours, b) in zip(*rest, strict=False):
        if a != b:
            raise _ambiguous(
                rest, f"from {theirs!r} of the checkpoint and {ours!r} of the model on", b
            )
        found[ours] = theirs
    if len(rest[0]) != len(rest[1]):
        longer = max((0, 1), key=lambda side: len(rest[side]))
        name, signature = rest[longer][min(map(len, rest))]
        named = ("the checkpoint", "the model")
        goes_on = f"where {named[longer]} goes on with {name!r} and {named[1 - longer]} ends"
        raise _ambiguous(rest, goes_on, signature)
    return {name: found[name] for name in own if name in found}


def fits_by_order(given: Mapping[str, Shape], own: Mapping[str, Shape]) -> int:
    """Return how many tensors `by_order` would match; 0 where it would refuse."""
    try:
        return len(by_order(given, own))
    except WeightsError:
        return 0


def _signature(name: str, shape: Shape) -> Signature:
    last = name.rpartition(".")[2]
    role = next((r for r in _ROLES if last == r or last.endswith(f"_{r}")), "other")
    return role, squeezed(shape)


def _ambiguous(
    rest: Sequence[Sequence[tuple[str, Signature]]], where: str, signature: Signature
) -> WeightsError:
    by_side: list[dict[Signature, list[str]]] = []
    for side in rest:
        groups: dict[Signature, list[str]] = defaultdict(list)
        for name, each in side:
            groups[each].append(name)
        by_side.append(groups)
    candidates, wanted = by_side[0][signature], by_side[1][signature]
    role, shape = signature
    return WeightsError(
        f"the match by order and shape is ambiguous, and nothing was loaded: the order differs "
        f"{where}. For the model's {len(wanted)} tensors of the kind {role} {list(shape)} "
        f"({join_names(wanted, most=4)}) the candidates are {len(candidates)}: "
        f"{join_names(candidates, most=4)}. Say which belong together by rename or layer_mapping, "
        "or exclude them."
    )
