"""Classes and heads of a hybrid: other classes, their names, and outputs by head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import HeadError
from ..recipe import Plan, Recipe
from ..surgery.anatomy import Anatomy
from ..surgery.head import (
    HeadReport,
    Layout,
    check_classes,
    check_known,
    check_moves,
    exchange_heads,
    find_heads,
    find_last_layer,
    last_layer,
    num_classes_of,
    report_of,
    rows_by_name,
    set_dropout,
)
from ..surgery.head_layers import Heads
from ..surgery.sites import Probe, first_tensor
from ..weights.torchvision import class_names_of
from ..written.rules import DROPOUT, HEAD, NUM_CLASSES, check_class_names
from . import freezing
from .fingerprint import fingerprint, new_lines
from .settling import settle
from .state import HybridState, num_classes

__all__ = [
    "HeadInfo", "NewHead", "head_info", "joined", "make_head", "named_outputs",
    "reset_classifier", "set_class_names", "unnamed",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HeadInfo:
    """One head as it is now.

    Args:
        name: as `heads` has it, the key of its outputs; "" of a model's only head.
        module: path of its last layer.
        num_classes: its outputs.
        class_names: one for each output; None where there are none.
    """

    name: str
    module: str
    num_classes: int
    class_names: tuple[str, ...] | None


def head_info(network: nn.Module, state: HybridState) -> tuple[HeadInfo, ...]:
    """Do the work of `HybridModel.head_info`."""
    paths = find_heads(network, state.anatomy.head) or {"": state.anatomy.head}
    found = ((name, find_last_layer(network, path)) for name, path in paths.items())
    return tuple(
        HeadInfo(
            name=name,
            module=last[0],
            num_classes=num_classes_of(last[1]),
            class_names=state.class_names.get(name),
        )
        for name, last in found
        if last is not None
    )


@dataclass(frozen=True, kw_only=True)
class NewHead:
    """What a build has done to the head.

    Args:
        new_layers: paths of the auxiliary heads' new layers.
        class_names: of each head, by its name.
        kept_classes: of each head, the classes that kept their weights.
        widths: the outputs of several heads, by name.
        dim: of the output, along which several heads are concatenated.
    """

    new_layers: tuple[str, ...]
    class_names: dict[str, tuple[str, ...]]
    kept_classes: dict[str, tuple[str, ...]]
    widths: dict[str, int]
    dim: int


def make_head(plan: Plan, network: nn.Module, anatomy: Anatomy, probe: Probe) -> NewHead:
    """Give the head the classes, the layers and the dropout that a recipe asks for.

    Raises:
        HeadError: the head cannot be changed so, or the network does not return what several heads
            give.
    """
    recipe, weights = plan.recipe, plan.weights
    found = find_last_layer(network, anatomy.head)
    classes = num_classes_of(found[1]) if found else 0
    before = class_names_of(weights) if weights and weights.num_classes == classes else None
    layout, names = Layout.of(recipe, classes), recipe.class_names
    # as many names as the head has outputs name these, unless they are its own in another order
    moved = any(new != old for new, old in rows_by_name(before, names).items())
    exchanged = bool(layout.hidden or layout.heads or layout.num_classes != classes or moved)
    named = _recipe_names(recipe)
    new_layers: tuple[str, ...] = ()
    kept: dict[str, tuple[str, ...]] = {}
    if exchanged:
        bare = [n for n in named if not (layout.hidden or (n and layout.heads[n].hidden))]
        rows = {name: rows_by_name(before, named[name]) for name in bare}
        kept = {name: tuple(named[name][new] for new in rows[name]) for name in bare}
        new_layers = exchange_heads(network, anatomy, layout, rows)
    elif before is not None:
        named = {"": before, **named}
    if recipe.dropout is not None:
        set_dropout(network, anatomy.head, recipe.dropout)
    for name, path in find_heads(network, anatomy.head).items():
        if recipe.heads and (dropout := recipe.heads[name].get("dropout")) is not None:
            set_dropout(network, path, dropout)
    last = find_last_layer(network, anatomy.head)
    dim = last[1].dim if last and isinstance(last[1], Heads) else -1
    if layout.heads:
        _check_outputs(network, probe, layout.num_outputs, dim)
    return NewHead(
        new_layers=new_layers,
        class_names=named,
        kept_classes=kept,
        widths={name: head.num_classes for name, head in layout.heads.items()},
        dim=dim,
    )


def _recipe_names(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Return the class names that a recipe gives, by the name of the head."""
    heads = {name: head.get("class_names") for name, head in (recipe.heads or {}).items()}
    heads[""] = recipe.class_names
    return {name: tuple(names) for name, names in heads.items() if names is not None}


def _check_outputs(network: nn.Module, probe: Probe, wanted: int, dim: int) -> None:
    """Refuse several heads where the network does not return their outputs one after another."""
    found = probe.run(network)
    if found.shape[dim] != wanted:
        raise HeadError(
            f"several heads with {wanted} outputs together do not fit this network: it returns "
            f"{list(found.shape)}, so it does more with the logits than to return them"
        )


def set_class_names(network: nn.Module, state: HybridState, names: Any) -> None:
    """Name the outputs of the head; of several heads, of those that a mapping has."""
    outputs = {info.name: info.num_classes for info in head_info(network, state)}
    if not _several(outputs):
        kept = (
            {}
            if names is None
            else {"": check_class_names(names, num_classes(network, state), HeadError)}
        )
    else:
        given = dict.fromkeys(outputs) if names is None else _by_head(names, outputs)
        kept = dict(state.class_names)
        for name, each in given.items():
            kept.pop(name, None)
            if each is not None:
                kept[name] = check_class_names(each, outputs[name], HeadError)
    state.class_names = kept


def reset_classifier(
    network: nn.Module, state: HybridState, classes: Any, dropout: float | None
) -> Any:
    """Do the work of `HybridModel.reset_classifier`: check everything, then exchange.

    Raises:
        HeadError: classes or dropout are not right; nothing has changed.
        FreezeError: the model is wrapped in DistributedDataParallel; nothing has changed.
    """
    head = state.anatomy.head
    if dropout is not None:
        DROPOUT.check("dropout", dropout, HeadError)
    several = find_heads(network, head)
    if several or isinstance(classes, Mapping):
        least = HEAD["num_classes"]
        given = _by_head(classes, several)
    else:
        least, given = NUM_CLASSES, {"": classes}
    # All that can be wrong is found before the first head is exchanged: an error at the second of
    # several heads must not leave the first one new. What follows the exchange makes the new layers
    # the model's own. `settle` moves patches from the old layers to them, `new_lines` records them
    # as what `save` may expect (but nothing that was put there by hand), and `adopt` freezes them
    # where the head is frozen.
    wanted = {name: check_classes(each, least) for name, each in given.items()}
    for name, (number, names) in wanted.items():
        rows = rows_by_name(state.class_names.get(name), names)
        check_moves(network, state.anatomy, number, rows, name)
    freezing.refuse_under_ddp(network, [last_layer(network, head)[0]])
    before = {path: fingerprint(network, path) for path in state.anatomy.heads}
    reports = {
        name: _exchange(network, state, name, number, names)
        for name, (number, names) in wanted.items()
    }
    if dropout is not None:
        set_dropout(network, head, dropout)
    settle(network, state)
    for each in state.anatomy.heads:
        state.modules |= new_lines(state.modules, before[each], fingerprint(network, each))
    paths = [find_heads(network, e)[n] if n else e for e in state.anatomy.heads for n in wanted]
    places = (find_last_layer(network, path) for path in paths)
    freezing.adopt(network, state, [place[0] for place in places if place is not None])
    return reports if several else reports[""]


def _exchange(
    network: nn.Module, state: HybridState, name: str, number: int, names: tuple[str, ...] | None
) -> HeadReport:
    before = state.class_names.pop(name, None)
    rows = rows_by_name(before, names)
    try:
        state.new_layers = exchange_heads(
            network, state.anatomy, Layout(num_classes=number), {"": rows}, name
        )
    except BaseException:
        if before is not None:
            state.class_names[name] = before
        raise
    report = report_of(number, before, names)
    state.kept_classes[name] = report.kept
    if names is not None:
        state.class_names[name] = names
    if name:
        state.head_widths[name] = number
    return report


def _several(names: Mapping[str, Any]) -> bool:
    return "" not in names and bool(names)


def _by_head(given: Any, heads: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what was given for each of several heads.

    Raises:
        HeadError: it is not a mapping, or names a head that is not there.
    """
    if heads and (not isinstance(given, Mapping) or not given):
        if type(given) is int and not given:
            raise HeadError(
                "several heads cannot be taken away: model.forward_head(features, "
                "pre_logits=True) returns what they get, and num_classes=0 builds a model without"
            )
        example = f"{{{next(iter(heads))!r}: ...}}"
        raise HeadError(f"the model has several heads: say which, as in {example}")
    check_known(given or [""], heads)
    return given


# -- outputs ---------------------------------------------------------------------------------------


def named_outputs(state: HybridState, output: Any) -> Any:
    """Return a network's output as the hybrid gives it: of several heads, by their names.

    Inside the network they are one tensor, so that whatever it does with logits works: pooling,
    flattening, auxiliary outputs. Of a tuple or mapping, as GoogLeNet returns it in training, each
    entry becomes a dict.
    """
    return _split(output, state.head_widths, state.head_dim) if state.head_widths else output


def _split(output: Any, widths: Mapping[str, int], dim: int) -> Any:
    # Under torch.fx the output is a proxy, which stands for any value: it cannot be iterated, but
    # each part can be asked for by its index.
    if isinstance(output, (Tensor, torch.fx.Proxy)):
        parts: Any = output.split(list(widths.values()), dim)
        return {name: parts[index] for index, name in enumerate(widths)}
    if isinstance(output, Mapping):
        return {key: _split(each, widths, dim) for key, each in output.items()}
    if isinstance(output, (tuple, list)):
        found = [_split(each, widths, dim) for each in output]
        return type(output)(*found) if hasattr(output, "_fields") else type(output)(found)
    return output


def joined(state: HybridState, output: Any) -> Tensor:
    """Return the logits of a hybrid's output as one tensor."""
    # A mapping is either the heads by name, or what the network itself returns around them, as a
    # segmenter's "out" and "aux". Only the names tell which. Of the second kind the first entry is
    # the main output; that of a tuple is taken by `first_tensor`.
    while isinstance(output, Mapping) and output.keys() != state.head_widths.keys():
        output = next(iter(output.values()))
    if state.head_widths and isinstance(output, Mapping):
        return torch.cat(list(output.values()), state.head_dim)
    return first_tensor(output)


@contextmanager
def unnamed(state: HybridState) -> Iterator[None]:
    """Let forward return one tensor for a look, while the network is being changed."""
    widths, state.head_widths = state.head_widths, {}
    try:
        yield
    finally:
        state.head_widths = widths
