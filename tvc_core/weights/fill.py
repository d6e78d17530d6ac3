"""Values for what a checkpoint does not have, by an initializer, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..registry import Named
from ..specs import InitializerSpec
from ..surgery.blocks import call_factory
from ..surgery.patch import Patch
from .draft import Place
from .fitting import named_layers

__all__ = ["new_values"]


def new_values(
    model: nn.Module,
    keys: Iterable[str],
    own: Mapping[str, Place],
    initializer: Named[InitializerSpec],
) -> dict[str, Tensor]:
    """Return what an initializer makes of tensors, by their keys; those that it leaves are absent.

    It gets each layer by itself, without children: a copy with the layer's attributes and copies
    of its tensors. The gates of patches, and blocks that start as the identity by their own
    weights, are left out.

    Args:
        model: it is not changed.
        keys: what is to be filled.
        own: where the model's tensors stand.
        initializer: from the registry.

    Raises:
        ParameterError: the initializer fails.
    """
    kept = _identity_starts(model)
    heads = {id(model.get_submodule(path)) for path in named_layers(model)}
    by_layer: dict[int, list[str]] = {}
    for key in keys:
        if id(own[key].module) not in kept and not is_lazy(own[key].tensor):
            by_layer.setdefault(id(own[key].module), []).append(key)
    found: dict[str, Tensor] = {}
    for identity, names in by_layer.items():
        layer = own[names[0]].module
        alone = _alone(layer)
        if identity in heads and isinstance(layer, nn.Conv2d):
            alone = _as_linear(cast(Any, alone))
        tensors = {**alone._parameters, **alone._buffers}
        before = {n: t._version for n, t in tensors.items() if t is not None}
        call_factory(initializer, (alone,), {})
        for key in names:
            tensor = tensors.get(own[key].name)
            if tensor is not None and tensor._version != before[own[key].name]:
                found[key] = tensor.detach().reshape(own[key].tensor.shape)
    return found


def _identity_starts(model: nn.Module) -> set[int]:
    """Return the modules whose values are the proof that a patch starts as the identity."""
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, Patch):
            found.add(id(module))
            if module.neutral and module.alpha is None:
                found |= {id(inner) for inner in module.modules()}
    return found


def _alone(layer: nn.Module) -> nn.Module:
    alone: nn.Module = object.__new__(type(layer))
    alone.__dict__.update(layer.__dict__, _modules={})
    for kind in ("_parameters", "_buffers"):
        alone.__dict__[kind] = {
            name: None if tensor is None else _copy(tensor)
            for name, tensor in getattr(layer, kind).items()
        }
    return alone


def _copy(tensor: Tensor) -> Tensor:
    if is_lazy(tensor):
        return tensor
    new = torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().clone()
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(new, requires_grad=tensor.requires_grad) if is_parameter else new


def _as_linear(layer: nn.Conv2d) -> nn.Module:
    """Return a head's convolution as the linear layer that it is at every pixel: its outputs are
    the classes, and rules for the width of a map do not fit them.
    """
    outputs = layer.out_channels
    linear = nn.Linear(layer.weight[0].numel(), outputs, bias=layer.bias is not None, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().reshape(outputs, -1))
    linear.bias = layer.bias  # type: ignore[assignment]
    return linear
