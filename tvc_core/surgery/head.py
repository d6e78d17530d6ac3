"""The head's last layer and its dropout: exchanged in place, so that every name and every layer
before it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import HeadError
from ..recipe.rules import DROPOUT, NUM_CLASSES
from .anatomy import Anatomy
from .hooks import TvcHook, carry_hooks
from .patches import add_child, installed_patches, set_module

__all__ = [
    "HeadDropout",
    "NoClassifier",
    "dropout_of",
    "exchange_heads",
    "fill_empty",
    "find_last_layer",
    "last_layer",
    "num_classes_of",
    "set_dropout",
    "set_num_classes",
]


class HeadDropout(TvcHook):
    """A picklable forward pre-hook: the input of the head's last layer goes through a child of that
    layer, an `nn.Dropout`.

    A layer of its own would rename the last one (`fc.weight` to `fc.1.weight`), and
    `model.fc.in_features` would fail. A subclass of the layer with another forward would no longer
    be what other tools look for: quantizers ask for `nn.Linear` itself. As a child, which has no
    tensors, it renames nothing, is printed and listed, and is frozen with the head.

    Args:
        name: of the child. Where a tool has taken it away, nothing is dropped.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        dropout = module._modules.get(self.name)
        return args if dropout is None else (dropout(args[0]), *args[1:])


class NoClassifier(nn.Identity):
    """Stands where the last layer of a head was: the network returns what that layer got, and has
    no classes.

    A factory whose network is built without a classifier puts it there as well, so that the head
    can be given one later.

    Args:
        layer: what it stands for; a new last layer has its kind and its input width.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.make = _maker(layer)


def find_last_layer(network: nn.Module, head: str) -> tuple[str, nn.Module] | None:
    """Return path and module of the head's last layer with weights, or of what stands for it; None
    where the head has none, as an `nn.Identity` that a user has put there.

    A layer is known by its widths, whatever its class: quantized layers and the wrappers of PEFT
    are layers, and what they are made of is not looked at.
    """
    found = list(_layers(head, network.get_submodule(head)))
    return found[-1] if found else None


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


def _layers(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, NoClassifier) or _widths(module) is not None:
        yield path, module
        return
    for name, child in module.named_children():
        yield from _layers(f"{path}.{name}", child)


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """Return the widths of a linear layer or a convolution; None for what is neither."""
    if not hasattr(module, "weight"):  # a module that only remembers its widths
        return None
    for kind in ("features", "channels"):
        found = getattr(module, f"in_{kind}", None), getattr(module, f"out_{kind}", None)
        if isinstance(found[0], int) and isinstance(found[1], int):
            return found  # type: ignore[return-value]
    return None


def num_classes_of(layer: nn.Module | None) -> int:
    """Return the number of outputs of a last layer; 0 where there is no classifier."""
    widths = None if layer is None else _widths(layer)
    return 0 if widths is None else widths[1]


def set_num_classes(network: nn.Module, head: str, num_classes: int) -> None:
    """Give the head a new last layer with `num_classes` outputs and torch's default start; the
    layers before it stay.

    With 0 outputs a `NoClassifier` takes its place. Device, dtype and mode of the old layer go over
    to the new one, and so do the hooks that tvc has put there: patches and the dropout of
    `set_dropout`. Hooks of others (pruning masks, a user's own) are about the old layer's weights
    or can be removed by whoever has their handle: they stay with it.

    Raises:
        HeadError: `num_classes` is no whole number from 0 to 10 million, the head has no layer to
            exchange, or a block inserted after that layer has its width.
    """
    NUM_CLASSES.check("num_classes", num_classes, HeadError)
    path, old = last_layer(network, head)
    for target, patch in installed_patches(network):
        if (
            patch.position.runs_after
            and f"{path}.".startswith(f"{target}.")
            and num_classes != num_classes_of(old)
        ):
            raise HeadError(
                f"the block {patch.position.label} {target!r} was made for {num_classes_of(old)} "
                f"outputs, so the head cannot change to {num_classes}; insert it before the last "
                "layer, or keep the number of classes"
            )
    like = next(
        (t for t in chain(old.parameters(), network.parameters()) if t.is_floating_point()),
        torch.empty(0),
    )  # of a network without classifier, the first parameter
    make = old.make if isinstance(old, NoClassifier) else _maker(old)
    layer = make(max(1, num_classes), device=like.device, dtype=like.dtype)
    new = layer if num_classes else NoClassifier(layer)
    for hook in old._forward_pre_hooks.values():
        if isinstance(hook, HeadDropout) and hook.name in old._modules:
            add_child(new, hook.name, old.get_submodule(hook.name))
    new.training = old.training
    carry_hooks(old, new)
    set_module(network, path, new)


def fill_empty(network: nn.Module, head: str) -> None:
    """Give the layers of a head torch's own start where a file had no values (NaN) for them."""
    for layer in network.get_submodule(head).modules():
        own = [t for t in layer.parameters(recurse=False) if not t.is_meta]
        reset = getattr(layer, "reset_parameters", None)
        if reset is not None and any(not bool(torch.isfinite(t).all()) for t in own):
            reset()


def exchange_heads(network: nn.Module, anatomy: Anatomy, num_classes: int) -> tuple[str, ...]:
    """Give the head and every auxiliary head a new last layer, and return the paths of the
    auxiliary ones' layers.
    """
    for head in anatomy.heads:
        set_num_classes(network, head, num_classes)
    return tuple(last_layer(network, head)[0] for head, _ in anatomy.auxiliary)


def set_dropout(network: nn.Module, head: str, p: float) -> None:
    """Set the probability of the head's last dropout; a head without one gets it before its last
    layer.

    Raises:
        HeadError: `p` is no probability from 0 to below 1, or the head has neither a dropout nor a
            layer.
    """
    DROPOUT.check("dropout", p, HeadError)
    if dropouts := _dropouts(network, head):
        dropouts[-1].p = float(p)
        return
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
    modules = network.get_submodule(head).modules()
    return [module for module in modules if isinstance(module, nn.Dropout)]


def _maker(layer: nn.Module) -> Callable[..., nn.Module]:
    """Return what makes a layer of the same kind and input width: `make(outputs, device=,
    dtype=)`.
    """
    if hasattr(layer, "get_base_layer"):  # a wrapper of PEFT's
        layer = cast(Any, layer).get_base_layer()
    widths, given = _widths(layer), cast(Any, getattr(layer, "bias", None))
    assert widths is not None, layer
    bias = (given() if callable(given) else given) is not None  # of a quantized layer a method
    if hasattr(layer, "in_features"):
        return partial(nn.Linear, widths[0], bias=bias)
    of: Any = layer
    shape = {"kernel_size": of.kernel_size, "stride": of.stride, "padding": of.padding}
    return partial(nn.Conv2d, widths[0], bias=bias, **shape)
