"""Tensors that fit by a rule: another number of channels, other classes, dimensions of size 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError, join_names
from ..surgery.head import find_last_layer
from ..surgery.input import mixing
from .draft import Place

__all__ = ["Head", "Policy", "fit_channels", "head_of", "head_rows", "last_layers", "squeezed"]

Policy = str | Sequence[str | int]


def fit_channels(
    misshaped: Mapping[str, Tensor], own: Mapping[str, Place], policy: Policy
) -> tuple[str, Tensor, str] | None:
    """Return the first convolution's key, weights for its number of channels, and what was done;
    None where no convolution differs in its channels.

    Args:
        misshaped: the checkpoint's tensors that do not fit, by the model's keys.
        own: where the model's tensors stand.
        policy: as the builder's `in_channels_policy`.

    Raises:
        WeightsError: more than one convolution differs.
        ParameterError: the policy does not fit.
    """
    found = {}
    for key, value in misshaped.items():
        layer, like = own[key].module, own[key].tensor
        plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and own[key].name == "weight"
        if plain and value.ndim == 4 and _but_channels(value) == _but_channels(like):
            found[key] = value
    if not found:
        return None
    if len(found) > 1:
        raise WeightsError(
            "in_channels_policy is for the one layer that takes the image, and "
            f"{len(found)} convolutions have other channels: {join_names(found, most=4)}. "
            "Nothing was loaded."
        )
    ((key, value),) = found.items()
    channels, before = own[key].tensor.shape[1], value.shape[1]
    mix = mixing(policy, channels, before)
    weight = torch.einsum("nc,ochw->onhw", mix, value.double()).to(value.dtype)
    return key, weight, f"channels {before} to {channels} by {policy!r}"


def _but_channels(weight: Tensor) -> tuple[int, ...]:
    return (weight.shape[0], *weight.shape[2:])


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last layers of a model's heads, and the names of its classes.

    Args:
        layers: paths of the layers; each has a row for each class.
        class_names: of the rows.
    """

    layers: tuple[str, ...]
    class_names: tuple[str, ...]


def head_of(model: nn.Module) -> Head | None:
    """Return the head of a hybrid that has class names."""
    hybrid: Any = model.__dict__.get("_hybrid")
    names = getattr(hybrid, "class_names", None)
    if not names:
        return None
    found = (find_last_layer(model, head) for head in hybrid.anatomy.heads)
    return Head(layers=tuple(last[0] for last in found if last), class_names=tuple(names))


def last_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the last layers of a hybrid's heads."""
    hybrid: Any = model.__dict__.get("_hybrid")
    for head in hybrid.anatomy.heads if hybrid is not None else ():
        if found := find_last_layer(model, head):
            yield found[1]


def head_rows(
    key: str, value: Tensor, own: Place, head: Head, names: tuple[str, ...]
) -> tuple[list[int], list[int], str] | None:
    """Return which rows of a head's tensor are filled from which of the checkpoint's, and what that
    is in words; None where the tensor is not of the head, or the classes are the same.

    Args:
        key: the model's.
        value: the checkpoint's.
        own: the model's tensor.
        head: of the model.
        names: of the checkpoint's classes.
    """
    of_head = own.path in head.layers and value.ndim == own.tensor.ndim
    if not of_head or names == head.class_names or value.shape[0] != len(names):
        return None
    if own.tensor.shape[0] != len(head.class_names) or value.shape[1:] != own.tensor.shape[1:]:
        return None
    at = {name: index for index, name in enumerate(names)}
    pairs = [(i, at[name]) for i, name in enumerate(head.class_names) if name in at]
    text = f"{len(pairs)} of {len(head.class_names)} rows by class name"
    return [i for i, _ in pairs], [j for _, j in pairs], text


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without its dimensions of size 1."""
    return tuple(size for size in shape if size != 1)
