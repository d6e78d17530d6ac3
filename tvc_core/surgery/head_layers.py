"""What stands where a backbone's last layer stood: its dropout, layers before it, several heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import HeadError
from ..recipe import Recipe
from ..written.rules import ACTIVATIONS
from .hooks import TvcHook
from .patches import add_child

__all__ = [
    "HeadDropout", "HeadMLP", "Heads", "Layout", "NoClassifier", "make_classifier", "maker_of",
    "widths_of",
]  # fmt: skip

Make = Callable[..., nn.Module]
"""Makes a layer of one kind and input width: `make(outputs, device=, dtype=)`."""


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
        self.make = maker_of(layer)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is to stand where the backbone's last layer stood.

    Args:
        num_classes: outputs of the last layer; of several heads each has its own.
        hidden: widths of layers before it.
        activation: name of their activation; None for "relu".
        heads: several heads in the place of the last layer.
    """

    num_classes: int = 0
    hidden: tuple[int, ...] = ()
    activation: str | None = None
    heads: Mapping[str, Layout] = field(default_factory=dict)

    @property
    def num_outputs(self) -> int:
        """Outputs of all heads together."""
        return sum(e.num_outputs for e in self.heads.values()) if self.heads else self.num_classes

    @staticmethod
    def of(recipe: Recipe, num_classes: int) -> Layout:
        """Return what a recipe wants, for a network of so many classes where it does not say."""
        wanted = num_classes if recipe.num_classes is None else recipe.num_classes
        heads = {
            name: Layout(
                num_classes=head["num_classes"],
                hidden=tuple(head.get("hidden", ())),
                activation=head.get("activation"),
            )
            for name, head in (recipe.heads or {}).items()
        }
        return Layout(
            num_classes=wanted,
            hidden=recipe.hidden or (),
            activation=recipe.activation,
            heads=heads,
        )

    def without_hidden(self) -> Layout:
        """Return the same outputs without layers before them, as auxiliary heads have them."""
        heads = {name: head.without_hidden() for name, head in self.heads.items()}
        return Layout(num_classes=self.num_classes, heads=heads)


class HeadMLP(nn.Sequential):
    """Layers in the place of a head's last layer: for each width a layer, an activation and a
    dropout, then what gives the outputs. Numbered as in VGG's classifier: 0, 3, 6, ...
    """


class Heads(nn.Module):
    """Several heads in the place of one last layer: children by name, which all get its input.

    Inside the network their outputs are one tensor, so that whatever the network does with logits
    (squeezenet's pooling, a flatten, auxiliary outputs) keeps working. The hybrid's forward makes
    the dict.

    Args:
        heads: what gives the outputs of each.
        dim: the dimension of the outputs: -1 of linear layers, 1 of convolutions.

    Raises:
        HeadError: a name that a child of a module cannot have.
    """

    def __init__(self, heads: Mapping[str, nn.Module], dim: int) -> None:
        super().__init__()
        self.dim, self.names = dim, tuple(heads)
        for name, head in heads.items():
            if hasattr(self, name):
                raise HeadError(
                    f"a head cannot be called {name!r}, since a module has an attribute of that "
                    "name: choose another"
                )
            add_child(self, name, head)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all heads, one after another."""
        return torch.cat([self._modules[name](x) for name in self.names], self.dim)  # type: ignore[misc]


def make_classifier(layout: Layout, make: Make, like: Tensor) -> nn.Module:
    """Make what a layout describes.

    Args:
        layout: what is wanted.
        make: makes a layer for what the old last layer got.
        like: device and type of the new tensors.
    """
    # `make` is always what makes a layer for the features at this point: at first those that the
    # old last layer got, after each hidden layer those of its width. So the heads, which may have
    # hidden layers of their own, need not know what lies before them. The dropout is there even
    # where none is wanted, with probability 0: with and without it, the keys of the layers after it
    # are the same.
    layers: list[nn.Module] = []
    for width in layout.hidden:
        layer = make(width, bias=True, device=like.device, dtype=like.dtype)
        layers += [layer, getattr(nn, ACTIVATIONS[layout.activation or "relu"])(), nn.Dropout(0.0)]
        make = _maker_after(layer)
    if layout.heads:
        heads = {name: make_classifier(each, make, like) for name, each in layout.heads.items()}
        last: nn.Module = Heads(heads, 1 if _is_convolution(make) else -1)
    else:
        last = make(max(1, layout.num_classes), device=like.device, dtype=like.dtype)
        last = last if layout.num_classes else NoClassifier(last)
    return HeadMLP(*layers, last) if layers else last


def _is_convolution(make: Make) -> bool:
    return isinstance(make, partial) and make.func is nn.Conv2d


def _maker_after(layer: nn.Module) -> Make:
    """Return what makes the layer after a new one: of its kind, and the kernel of a convolution has
    been applied.
    """
    if isinstance(layer, nn.Conv2d):
        return partial(nn.Conv2d, layer.out_channels, kernel_size=1)
    return partial(nn.Linear, cast(nn.Linear, layer).out_features)


def widths_of(module: nn.Module) -> tuple[int, int] | None:
    """Return the widths of a linear layer or a convolution; None for what is neither."""
    if not hasattr(module, "weight"):  # a module that only remembers its widths
        return None
    for kind in ("features", "channels"):
        found = getattr(module, f"in_{kind}", None), getattr(module, f"out_{kind}", None)
        if isinstance(found[0], int) and isinstance(found[1], int):
            return found  # type: ignore[return-value]
    return None


def maker_of(layer: nn.Module) -> Make:
    """Return what makes a layer of the same kind and input width: `make(outputs, device=,
    dtype=)`.
    """
    # A maker is kept for later, and with it only the widths: keeping the old layer would keep its
    # weights in every copy and file of the model. Nor is the layer's class used again. Other tools
    # may have put a quantized layer or an adapter there, which cannot be made from widths alone;
    # the new layer is a plain one.
    if hasattr(layer, "get_base_layer"):  # a wrapper of PEFT's
        layer = cast(Any, layer).get_base_layer()
    widths, given = widths_of(layer), cast(Any, getattr(layer, "bias", None))
    assert widths is not None, layer
    bias = (given() if callable(given) else given) is not None  # of a quantized layer a method
    if hasattr(layer, "in_features"):
        return partial(nn.Linear, widths[0], bias=bias)
    of: Any = layer
    shape = {"kernel_size": of.kernel_size, "stride": of.stride, "padding": of.padding}
    return partial(nn.Conv2d, widths[0], bias=bias, **shape)
