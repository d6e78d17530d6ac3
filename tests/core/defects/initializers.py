"""Defective initializers: variants of a healthy one that fills weights from a normal
distribution.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from tvc_core import InitializerSpec

from . import Defect


def healthy(module: nn.Module) -> None:
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.normal_(0, 0.02)
                if layer.bias is not None:
                    layer.bias.zero_()


def returns(module: nn.Module) -> nn.Module:
    healthy(module)
    return module


def matrices_only(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.xavier_uniform_(parameter)


def exchanges(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def freezes(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)


_SEEN: list[nn.Module] = []


def remembers(module: nn.Module) -> None:
    _SEEN.append(module)
    with torch.no_grad():
        for value, each in zip((0.5, 0.25), _SEEN[:-3:-1], strict=False):
            for parameter in each.parameters():
                parameter.fill_(value)


def python_random(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(random.random())


def sets_seed(module: nn.Module) -> None:
    torch.manual_seed(0)
    healthy(module)


def divides(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.div_(max(parameter.ndim - 1, 0))


def zeroes(module: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()


def leaves_eval(module: nn.Module) -> None:
    healthy(module)
    module.eval()


def turns_gradients_off(module: nn.Module) -> None:
    torch.set_grad_enabled(False)
    healthy(module)


def _spec(factory: Any) -> InitializerSpec:
    return InitializerSpec(name="thing", factory=factory)


HEALTHY = (_spec(healthy),)

DEFECTS = (
    Defect(
        what="returns the module", thing=_spec(returns), caught_by="initializer_runs", says="None"
    ),
    Defect(
        what="fails on vectors",
        thing=_spec(matrices_only),
        caught_by="initializer_runs",
        says="fewer than two axes",
    ),
    Defect(
        what="exchanges parameters",
        thing=_spec(exchanges),
        caught_by="initializer_in_place",
        says="weight",
    ),
    Defect(
        what="freezes parameters",
        thing=_spec(freezes),
        caught_by="initializer_in_place",
        says="same parameters",
    ),
    Defect(
        what="fills an earlier module",
        thing=_spec(remembers),
        caught_by="initializer_only_given",
        says="earlier",
    ),
    Defect(
        what="leaves gradients off",
        thing=_spec(turns_gradients_off),
        caught_by="initializer_only_given",
        says="settings",
    ),
    Defect(
        what="leaves eval mode",
        thing=_spec(leaves_eval),
        caught_by="initializer_only_given",
        says="mode",
    ),
    Defect(
        what="Python's random numbers",
        thing=_spec(python_random),
        caught_by="initializer_reproducible",
        says="seed",
    ),
    Defect(
        what="sets the seed",
        thing=_spec(sets_seed),
        caught_by="initializer_reproducible",
        says="manual_seed",
    ),
    Defect(
        what="divides by zero",
        thing=_spec(divides),
        caught_by="initializer_finite",
        says="finite values",
    ),
    Defect(
        what="zero variances",
        thing=_spec(zeroes),
        caught_by="initializer_finite",
        says="running_var",
    ),
)
