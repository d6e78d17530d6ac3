"""The head's last layer and its dropout: exchanged in place, so that every name and every layer
before it stays.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import HeadError
from .patches import installed_patches, set_module

__all__ = [
    "HeadDropout",
    "NoClassifier",
    "check_dropout",
    "dropout_of",
    "last_layer",
    "num_classes_of",
    "set_dropout",
    "set_num_classes",
]


class HeadDropout:
    """A picklable forward pre-hook: dropout on the input of the head's last layer, in training mode
    only.

    A layer of its own would rename the last one (`fc.weight` to `fc.1.weight`), and
    `model.fc.in_features` would fail.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        return (F.dropout(args[0], self.p, module.training), *args[1:])


class NoClassifier(nn.Identity):
    """Stands where the last layer of a head was: the network returns what that layer got, and has
    no classes.

    A factory whose network is built without a classifier puts it there, too, so that the head can
    be given one later.

    Args:
        layer: what it stands for; a new last layer has its kind and its input width.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.make = _maker(layer)


Layer = nn.Linear | nn.Conv2d | NoClassifier


def last_layer(network: nn.Module, head: str) -> tuple[str, Layer]:
    """Return path and module of the head's last layer with weights, or of what stands for it.

    Raises:
        HeadError: there is no linear or convolutional layer in the head.
    """
    root = network.get_submodule(head)
    layers = [
        (path, layer) for path, layer in root.named_modules(prefix=head) if isinstance(layer, Layer)
    ]
    if not layers:
        raise HeadError(
            f"the head {head!r} ({type(root).__name__}) has no linear or convolutional layer to "
            "exchange"
        )
    return layers[-1]


def num_classes_of(layer: Layer) -> int:
    """Return the number of outputs of a last layer; 0 where there is no classifier."""
    if isinstance(layer, NoClassifier):
        return 0
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def set_num_classes(network: nn.Module, head: str, num_classes: int) -> None:
    """Give the head a new last layer with `num_classes` outputs and torch's default start; the
    layers before it stay.

    With 0 outputs a `NoClassifier` takes its place. The last layer's hooks (the dropout
    of `set_dropout`, patches) and device, dtype and mode go over to the new one.

    Raises:
        HeadError: `num_classes` is no whole number of at least 0, the head has no layer to
            exchange, or a block inserted after that layer has its width.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise HeadError(f"num_classes is a whole number of at least 0, not {num_classes!r}")
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
        chain(old.parameters(), network.parameters()), torch.empty(0)
    )  # of a network without classifier, the first parameter
    make = old.make if isinstance(old, NoClassifier) else _maker(old)
    layer = make(max(1, num_classes), device=like.device, dtype=like.dtype)
    new = layer if num_classes else NoClassifier(layer)
    new.train(old.training)
    for hook in old._forward_pre_hooks.values():
        new.register_forward_pre_hook(hook)
    for post in old._forward_hooks.values():
        new.register_forward_hook(post)
    set_module(network, path, new)


def set_dropout(network: nn.Module, head: str, p: float) -> None:
    """Set the probability of the head's last dropout; a head without one gets it before its last
    layer.

    Raises:
        HeadError: `p` is no probability from 0 to below 1.
    """
    check_dropout(p)
    dropouts = [
        module for module in network.get_submodule(head).modules() if isinstance(module, nn.Dropout)
    ]
    if dropouts:
        dropouts[-1].p = float(p)
        return
    _, layer = last_layer(network, head)
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, HeadDropout):
            hook.p = float(p)
            return
    layer.register_forward_pre_hook(HeadDropout(float(p)))


def check_dropout(p: object) -> None:
    """Refuse what is no probability of dropout.

    Raises:
        HeadError: `p` is no number from 0 to below 1.
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p < 1:
        raise HeadError(f"dropout is a probability from 0 to below 1, not {p!r}")


def dropout_of(network: nn.Module, head: str) -> float | None:
    """Return the probability of the head's last dropout, None where there is none."""
    dropouts = [
        module.p
        for module in network.get_submodule(head).modules()
        if isinstance(module, nn.Dropout)
    ]
    hooks = last_layer(network, head)[1]._forward_pre_hooks.values()
    added = [hook.p for hook in hooks if isinstance(hook, HeadDropout)]
    found = added or dropouts
    return found[-1] if found else None


def _maker(layer: nn.Linear | nn.Conv2d) -> partial[Any]:
    """Return what makes a layer of the same kind and input width: `make(outputs, device=,
    dtype=)`.
    """
    if isinstance(layer, nn.Linear):
        return partial(nn.Linear, layer.in_features, bias=layer.bias is not None)
    shape = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
    return partial(nn.Conv2d, layer.in_channels, bias=layer.bias is not None, **shape)  # type: ignore[arg-type]
