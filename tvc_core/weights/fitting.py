"""Tensors that fit by a rule: another number of channels, other classes, dimensions of size 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError, join_names
from ..surgery.head import find_heads, find_last_layer, rows_by_name
from ..surgery.input import mixing
from ..written.rules import check_class_names
from .draft import Place
from .entries import Checkpoint

__all__ = [
    "Policy", "check_given_names", "class_names_of", "fit_channels", "given_names", "head_rows",
    "named_layers", "squeezed",
]  # fmt: skip

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


Names = Mapping[str, tuple[str, ...]]
"""Of classes, by the name of the head; "" is a model's only one."""


def named_layers(model: nn.Module) -> dict[str, str]:
    """Return the last layers of a hybrid's heads by their paths, each with its head's name."""
    hybrid: Any = model.__dict__.get("_hybrid")
    found: dict[str, str] = {}
    for head in hybrid.anatomy.heads if hybrid is not None else ():
        several = find_heads(model, head)
        found |= {path: name for name, path in several.items()}
        if not several and (last := find_last_layer(model, head)):
            found[last[0]] = ""
    return found


def class_names_of(model: nn.Module) -> Names:
    """Return the names of a hybrid's classes; nothing of other modules."""
    hybrid: Any = model.__dict__.get("_hybrid")
    return {} if hybrid is None else dict(hybrid.class_names)


def given_names(names: Any, model: nn.Module) -> Names:
    """Return class names that the user gives for a checkpoint, by head.

    Raises:
        WeightsError: they are no such names, or the model has none that they could be matched with.
    """
    by_head = names if isinstance(names, Mapping) else {"": names}
    if not all(isinstance(each, (list, tuple)) for each in by_head.values()):
        by_head = {"": names}  # a mapping of names to numbers, say
    found = {head: check_class_names(each, None, WeightsError) for head, each in by_head.items()}
    if not class_names_of(model):
        raise WeightsError(
            "class_names would have no effect, since the model has none to match them with: set "
            "model.class_names first, or leave them out"
        )
    return found


def check_given_names(
    arrived: Mapping[str, tuple[Tensor, Any]],
    heads: Mapping[str, str],
    sources: Mapping[str, str],
    checkpoint: Checkpoint,
) -> None:
    """Refuse class names that cannot be those of the checkpoint's outputs.

    Args:
        arrived: what the checkpoint has, by the model's keys.
        heads: for those keys that belong to a head of the model, its name.
        sources: the checkpoint's names, by the model's keys.
        checkpoint: it has the class names.

    Raises:
        WeightsError: they are another number, of a head that the checkpoint does not have, or of
            one of several heads.
    """
    names = checkpoint.class_names
    parts = {part for key in checkpoint.tensors for part in key.split(".")[:-1]}
    for head in names.keys() - {""} - parts:
        raise WeightsError(f"class_names: no tensor of {checkpoint.name} has {head!r} in its name")
    if "" in names and len(several := sorted(set(heads.values()))) > 1:
        raise WeightsError(
            f"class_names is one list, and {checkpoint.name} fills the heads "
            f"{join_names(several)}: give a mapping of heads to their names"
        )
    for key, head in heads.items():
        source, shape = sources.get(key), tuple(arrived[key][0].shape)
        each = checkpoint.names_of(source, head)
        if each and shape and shape[0] != len(each):
            raise WeightsError(
                f"class_names has {len(each)} entries, and {source or key!r} of {checkpoint.name} "
                f"has {shape[0]} outputs"
            )


def head_rows(
    value: Tensor, own: Tensor, names: tuple[str, ...] | None, theirs: tuple[str, ...] | None
) -> tuple[list[int], list[int], str] | None:
    """Return which rows of a head's tensor are filled from which of the checkpoint's, and what that
    is in words; None where names do not say, or are the same.

    Args:
        value: the checkpoint's.
        own: the model's.
        names: of the model's classes.
        theirs: of the checkpoint's.
    """
    if not names or not theirs or names == theirs or value.ndim != own.ndim or not own.ndim:
        return None
    if (value.shape[0], own.shape[0]) != (len(theirs), len(names)):
        return None
    if value.shape[1:] != own.shape[1:]:
        return None
    pairs = rows_by_name(theirs, names)
    return list(pairs), list(pairs.values()), f"{len(pairs)} of {len(names)} rows by class name"


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without its dimensions of size 1."""
    return tuple(size for size in shape if size != 1)
