"""The head's last layer and its dropout: exchanged in place, so that every name and every layer before it stays."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import HeadError
from .patches import installed_patches, set_module

__all__ = ["HeadDropout", "check_dropout", "dropout_of", "last_layer", "num_classes_of", "set_dropout", "set_num_classes"]


class HeadDropout:
    """A picklable forward pre-hook: dropout on the input of the head's last layer, in training mode only.

    A layer of its own would rename the last one (`fc.weight` to `fc.1.weight`), and `model.fc.in_features` would fail.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        return (F.dropout(args[0], self.p, module.training), *args[1:])


def last_layer(network: nn.Module, head: str) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return path and module of the head's last layer with weights.

    Raises:
        HeadError: there is no linear or convolutional layer in the head.
    """
    root = network.get_submodule(head)
    layers = [(path, layer) for path, layer in root.named_modules(prefix=head) if isinstance(layer, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise HeadError(f"the head {head!r} ({type(root).__name__}) has no linear or convolutional layer to exchange")
    return layers[-1]


def num_classes_of(layer: nn.Linear | nn.Conv2d) -> int:
    """Return the number of outputs of a last layer."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def set_num_classes(network: nn.Module, head: str, num_classes: int) -> None:
    """Give the head a new last layer with `num_classes` outputs and torch's default start; the layers before it stay.

    The last layer's hooks (the dropout of `set_dropout`, patches) and device, dtype and mode go over to the new one.

    Raises:
        HeadError: `num_classes` is no whole number of at least 1, the head has no layer to exchange, or a block
            inserted after that layer has its width.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise HeadError(f"num_classes is a whole number of at least 1, not {num_classes!r}")
    path, old = last_layer(network, head)
    for target, position, _ in installed_patches(network):
        if position != "before" and f"{path}.".startswith(f"{target}.") and num_classes != num_classes_of(old):
            where = "after" if position == "after" else "parallel to"
            raise HeadError(
                f"the block {where} {target!r} was made for {num_classes_of(old)} outputs, so the head cannot change to "
                f"{num_classes}; insert it before the last layer, or keep the number of classes"
            )
    like: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype, "bias": old.bias is not None}
    new: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, **like)
    else:
        new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size, old.stride, old.padding, **like)  # type: ignore[arg-type]
    new.train(old.training)
    for hook in old._forward_pre_hooks.values():
        new.register_forward_pre_hook(hook)
    for post in old._forward_hooks.values():
        new.register_forward_hook(post)
    set_module(network, path, new)


def set_dropout(network: nn.Module, head: str, p: float) -> None:
    """Set the probability of the head's last dropout; a head without one gets it before its last layer.

    Raises:
        HeadError: `p` is no probability from 0 to below 1.
    """
    check_dropout(p)
    dropouts = [module for module in network.get_submodule(head).modules() if isinstance(module, nn.Dropout)]
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
    dropouts = [module.p for module in network.get_submodule(head).modules() if isinstance(module, nn.Dropout)]
    hooks = last_layer(network, head)[1]._forward_pre_hooks.values()
    added = [hook.p for hook in hooks if isinstance(hook, HeadDropout)]
    found = added or dropouts
    return found[-1] if found else None
