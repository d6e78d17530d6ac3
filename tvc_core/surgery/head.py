"""The head's last layer, what stands in its place, and its dropout: exchanged in place, so that
every name and every layer before it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import HeadError, count_of, did_you_mean, join_names
from ..written.rules import CLASS_NAMES, DROPOUT, NUM_CLASSES, Rule
from .anatomy import Anatomy
from .head_layers import (
    HeadDropout,
    HeadMLP,
    Heads,
    Layout,
    NoClassifier,
    make_classifier,
    maker_of,
    widths_of,
)
from .hooks import carry_hooks
from .patches import add_child, installed_patches, set_module

__all__ = [
    "HeadDropout", "HeadReport", "Layout", "NoClassifier", "check_classes", "check_known",
    "check_moves", "dropout_of", "exchange_heads", "fill_empty", "find_classifier", "find_heads",
    "find_last_layer", "last_layer", "num_classes_of", "report_of", "rows_by_name", "set_dropout",
    "set_num_classes",
]  # fmt: skip

Rows = Mapping[int, int]
"""Of which outputs the weights are kept: new index to old index."""

ClassNames = tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class HeadReport:
    """What `reset_classifier` did to the classes of a head.

    Args:
        num_classes: outputs that the head has now.
        kept: names of the classes whose weights and bias are those of before.
        new: names of the classes that were initialized; empty where only a number was given.
        dropped: names of the classes that the head had and has no more.
    """

    num_classes: int
    kept: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = (("kept", self.kept), ("new", self.new), ("dropped", self.dropped))
        said = [f"{len(n)} {what} ({join_names(n, most=4)})" for what, n in rows if n]
        return count_of(self.num_classes, "class") + (f": {'; '.join(said)}" if said else "")


def report_of(num_classes: int, before: ClassNames, names: ClassNames) -> HeadReport:
    """Compare the names of before with those of now."""
    old, now = before or (), names or ()
    return HeadReport(
        num_classes=num_classes,
        kept=tuple(name for name in now if name in old),
        new=tuple(name for name in now if name not in old),
        dropped=tuple(name for name in old if name not in now),
    )


def rows_by_name(before: ClassNames, names: ClassNames) -> dict[int, int]:
    """Return for each class that was there before its new index, and its old one."""
    old = {name: index for index, name in enumerate(before or ())}
    return {index: old[name] for index, name in enumerate(names or ()) if name in old}


def check_classes(classes: Any, least: Rule = NUM_CLASSES) -> tuple[int, ClassNames]:
    """Return the number of classes and their names, if these were given.

    Args:
        classes: the number, or the names.
        least: what a number may be.

    Raises:
        HeadError: it is no such number, and no list of different names.
    """
    if isinstance(classes, (list, tuple)) and classes:
        names = CLASS_NAMES.check("class_names", classes, HeadError)
        return len(names), names
    return least.check("num_classes", classes, HeadError), None


# -- where it is -----------------------------------------------------------------------------------


def find_last_layer(network: nn.Module, head: str) -> tuple[str, nn.Module] | None:
    """Return path and module of the head's last layer with weights, or of what stands for it; None
    where the head has none, as an `nn.Identity` that a user has put there.

    A layer is known by its widths, whatever its class: quantized layers and the wrappers of PEFT
    are layers, and what they are made of is not looked at. Several heads are one layer.
    """
    found = list(_layers(head, network.get_submodule(head), (NoClassifier, Heads)))
    return found[-1] if found else None


def find_classifier(network: nn.Module, head: str) -> tuple[str, nn.Module] | None:
    """Return path and module of what stands where the backbone's last layer stood: that layer, or
    the new layers in its place.
    """
    found = list(_layers(head, network.get_submodule(head), (NoClassifier, Heads, HeadMLP)))
    return found[-1] if found else None


def find_heads(network: nn.Module, head: str) -> dict[str, str]:
    """Return the paths of several heads by their names; empty where there is one."""
    path, layer = find_last_layer(network, head) or ("", None)
    return {name: f"{path}.{name}" for name in layer.names} if isinstance(layer, Heads) else {}


def last_layer(network: nn.Module, head: str) -> tuple[str, nn.Module]:
    """Return what `find_last_layer` finds.

    Raises:
        HeadError: there is no linear or convolutional layer in the head.
    """
    found = find_last_layer(network, head)
    if found is None:
        kind = type(network.get_submodule(head)).__name__
        raise HeadError(
            f"the head {head!r} ({kind}) has no linear or convolutional layer to exchange: put one "
            f"there first, such as model.{head} = torch.nn.Linear(in_features, num_classes)"
        )
    return found


def _layers(
    path: str, module: nn.Module, whole: tuple[type[nn.Module], ...]
) -> Iterator[tuple[str, nn.Module]]:
    # In depth first, and the walk ends at a layer that has widths: a LoRA layer holds the linear
    # layer that it wraps, and a quantized one its packed weights, and of these the outer one is the
    # layer. Without that, exchanging the head would exchange what is inside of an adapter.
    if isinstance(module, whole) or widths_of(module) is not None:
        yield path, module
        return
    for name, child in module.named_children():
        yield from _layers(f"{path}.{name}", child, whole)


def num_classes_of(layer: nn.Module | None) -> int:
    """Return the number of outputs of a last layer, of several heads all together; 0 where there is
    no classifier.
    """
    if isinstance(layer, Heads):
        heads = (find_last_layer(layer, name) for name in layer.names)
        return sum(num_classes_of(last[1]) for last in heads if last)
    widths = None if layer is None else widths_of(layer)
    return 0 if widths is None else widths[1]


# -- exchanging it ---------------------------------------------------------------------------------


def set_num_classes(network: nn.Module, head: str, num_classes: int) -> None:
    """Give the head a new last layer with `num_classes` outputs; the layers before it stay.

    With 0 outputs a `NoClassifier` takes its place.

    Raises:
        HeadError: `num_classes` is no whole number from 0 to 10 million, or as for
            `set_classifier`.
    """
    NUM_CLASSES.check("num_classes", num_classes, HeadError)
    set_classifier(network, head, Layout(num_classes=num_classes))


def set_classifier(
    network: nn.Module, head: str, layout: Layout, rows: Mapping[str, Rows] | None = None
) -> None:
    """Put what a layout describes where the head's last layer stands, with torch's default start.

    Device, dtype and mode of the old layer go over to what is new, and so do the hooks that tvc has
    put there: patches and the dropout of `set_dropout`. Hooks of others (pruning masks, a user's
    own) are about the old layer's weights or can be removed by whoever has their handle: they stay
    with it.

    Args:
        network: the root.
        head: path of the head.
        layout: what is wanted.
        rows: outputs whose weights and bias are taken over, for "" or each of several heads; they
            have no hidden layers.

    Raises:
        HeadError: the head has no layer to exchange, weights that are to be kept cannot be read, or
            a block inserted after that layer has its width.
    """
    path, old = last_layer(network, head)
    if layout.num_outputs != num_classes_of(old):
        for block in _after(network, path):
            raise HeadError(
                f"{block} was made for {num_classes_of(old)} outputs, so the head cannot change to "
                f"{layout.num_outputs}: put it at an earlier layer (patterns that start with "
                "'stage:' leave out the head); in a built model, fold it first (fold_patches) or "
                "take it out (unpatch)"
            )
    # The order matters: everything is checked, the new layers are made with the old one's device
    # and dtype, kept rows are copied, and only then does the new module take the place. A patch
    # after the layer keeps its hook, since hooks of ours go over; one whose width would change was
    # refused above.
    rows = {name: each for name, each in (rows or {}).items() if each}
    for each in rows.values():
        _check_rows(path, old, each)
    like = next(
        (t for t in chain(old.parameters(), network.parameters()) if t.is_floating_point()),
        torch.empty(0, device="cpu"),
    )  # of a network without classifier, the first parameter
    make = old.make if isinstance(old, NoClassifier) else maker_of(old)
    new = make_classifier(layout, make, like)
    for name, each in rows.items():
        _keep_rows(old, new.get_submodule(name), each)
    for hook in old._forward_pre_hooks.values():
        if isinstance(hook, HeadDropout) and hook.name in old._modules:
            add_child(new, hook.name, old.get_submodule(hook.name))
    new.train(old.training)
    carry_hooks(old, new)
    set_module(network, path, new)


def fill_empty(network: nn.Module, head: str) -> None:
    """Give the layers of a head torch's own start where a file had no values (NaN) for them."""
    for layer in network.get_submodule(head).modules():
        own = [t for t in layer.parameters(recurse=False) if not t.is_meta]
        reset = getattr(layer, "reset_parameters", None)
        if reset is not None and any(not bool(torch.isfinite(t).all()) for t in own):
            reset()


def _check_rows(path: str, old: nn.Module, rows: Rows) -> None:
    weight = getattr(old, "weight", None)
    plain = isinstance(weight, Tensor) and weight.is_floating_point()
    if not plain or hasattr(old, "get_base_layer"):
        raise HeadError(
            f"the weights of {path!r} ({type(old).__name__}) cannot be taken over by class name: "
            "another tool has quantized it, or wrapped it in an adapter. Merge the adapter first, "
            "or give the number of classes alone for a new layer"
        )
    if (needed := max(rows.values()) + 1) > num_classes_of(old):
        raise HeadError(
            f"{path!r} has {num_classes_of(old)} outputs, and weights of {needed} classes are to "
            "be taken over by name: give the number of classes alone for a new layer"
        )


def _keep_rows(old: nn.Module, new: nn.Module, rows: Rows) -> None:
    """Copy the weights and biases of outputs; a new layer has a bias where the old one has."""
    with torch.no_grad():
        for name in ("weight", "bias"):
            before, now = getattr(old, name), getattr(new, name)
            if now is not None:
                now[list(rows)] = before[list(rows.values())].to(now.dtype)


def check_moves(network: nn.Module, anatomy: Anatomy, number: int, rows: Rows, name: str) -> None:
    """Refuse to take classes over by name where a patch has learned for the outputs as they are.

    Args:
        network: the root.
        anatomy: says where the heads are.
        number: outputs that a head is to have.
        rows: which of them are kept: new index to old index.
        name: which of several heads is meant.

    Raises:
        HeadError: a block after the last layer, or beside it, would meet other classes at an output
            than those that it was trained with.
    """
    if not rows or rows == {index: index for index in range(number)}:
        return
    for head in anatomy.heads:
        path, _ = last_layer(network, find_heads(network, head)[name] if name else head)
        for block in _after(network, path):
            raise HeadError(
                f"{block} has learned for the classes as they are now, and does not move with "
                "their weights: fold it first (fold_patches) or take it out (unpatch), or give the "
                "number of classes alone for a new layer"
            )


def _after(network: nn.Module, path: str) -> Iterator[str]:
    """Yield what errors call each patch that gets the outputs of a layer or adds to them."""
    for target, patch in installed_patches(network):
        if patch.position.runs_after and f"{path}.".startswith(f"{target}."):
            yield f"the block {patch.position.label} {target!r}"


def exchange_heads(
    network: nn.Module,
    anatomy: Anatomy,
    layout: Layout,
    rows: Mapping[str, Rows] | None = None,
    name: str = "",
) -> tuple[str, ...]:
    """Give the head and every auxiliary head what a layout describes, the auxiliary ones without
    hidden layers; return the paths of the auxiliary ones' new layers.

    Args:
        network: the root.
        anatomy: says where the heads are.
        layout: what is wanted.
        rows: outputs whose weights are taken over, as for `set_classifier`.
        name: which of several heads is meant.
    """
    for head in anatomy.heads:
        at = find_heads(network, head)[name] if name else head
        wanted = layout if head == anatomy.head else layout.without_hidden()
        set_classifier(network, at, wanted, rows)
    return tuple(
        last_layer(network, path)[0]
        for head, _ in anatomy.auxiliary
        for path in find_heads(network, head).values() or [head]
    )


def check_known(names: Iterable[str], heads: Iterable[str]) -> None:
    """Refuse the name of a head that is not there.

    Raises:
        HeadError: there is no head of this name, or the model has one without a name.
    """
    heads = list(heads)
    for name in names:
        if name not in heads:
            there = (
                f"the heads are {join_names(heads)}"
                if heads
                else ("the model has one head, and heads={...} builds several")
            )
            raise HeadError(f"there is no head {name!r}: {there}.{did_you_mean(name, heads)}")


# -- dropout ---------------------------------------------------------------------------------------


def set_dropout(network: nn.Module, head: str, p: float) -> None:
    """Set the probability of the head's last dropout, or of the hidden layers' in the last layer's
    place; a head without one gets it before its last layer.

    Raises:
        HeadError: `p` is no probability from 0 to below 1, or the head has neither a dropout nor a
            layer.
    """
    DROPOUT.check("dropout", p, HeadError)
    if dropouts := _dropouts(network, head):
        for dropout in dropouts:
            dropout.p = float(p)
        return
    # A dropout cannot be put before the last layer as a module of the tree: that would rename the
    # layer, and its keys in every checkpoint. So it becomes a child of the layer, which has no
    # tensors and so no keys, and a pre-hook runs it.
    _, layer = last_layer(network, head)
    name = "dropout"
    while hasattr(layer, name):
        name = f"head_{name}"
    dropout = nn.Dropout(float(p))
    dropout.training = layer.training
    add_child(layer, name, dropout)
    layer.register_forward_pre_hook(HeadDropout(name))


def dropout_of(network: nn.Module, head: str) -> float | None:
    """Return the probability of the head's last dropout, None where there is none."""
    dropouts = _dropouts(network, head)
    return dropouts[-1].p if dropouts else None


def _dropouts(network: nn.Module, head: str) -> list[nn.Dropout]:
    """Return what `dropout` sets: the last dropout before the last layer, all those of hidden
    layers; of several heads each has its own.
    """
    path, place = find_classifier(network, head) or ("", None)
    own = {f"{name}." for name in place.names} if isinstance(place, Heads) else set()
    if isinstance(place, HeadMLP):
        return [layer for layer in place if isinstance(layer, nn.Dropout)]
    found = [
        module
        for name, module in network.get_submodule(head).named_modules(prefix=head)
        if isinstance(module, nn.Dropout)
        and not any(name.startswith(f"{path}.{each}") for each in own)
    ]
    return found[-1:]
