"""Optimizers in step with what is thawed; their state by the names of parameters, not by numbers
that change with every thaw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tvc_core import HybridModel, ParameterError, param_groups, short_repr, what_there_is

from .errors import TrainingError
from .rules import misfit
from .training_schema import TRAINING

__all__ = ["OptimizerSettings", "kept_state", "load_kept", "make_optimizer", "names_of"]

_NAMES = ("adamw", "sgd")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """What optimizer is made.

    Args:
        name: "adamw" (Loshchilov and Hutter 2019, arXiv:1711.05101) or "sgd", with Nesterov's
            momentum.
        weight_decay: of weights of layers; normalizations, biases and gates have none.
        momentum: of "sgd".

    Raises:
        ParameterError: there is no such optimizer, or it does not take such a number.
    """

    name: str = "adamw"
    weight_decay: float = 0.01
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            there = what_there_is(str(self.name), _NAMES, "There are")
            raise ParameterError(f"there is no optimizer {short_repr(self.name)}.{there}")
        for key in ("weight_decay", "momentum"):
            if problem := misfit(getattr(self, key), TRAINING["properties"][key]):
                raise ParameterError(f"{key} of an optimizer is {problem}")


def make_optimizer(
    model: HybridModel, settings: OptimizerSettings, *, rate: float, layer_decay: float | None
) -> Optimizer:
    """Return an optimizer of what is trainable.

    Args:
        model: the hybrid.
        settings: which one.
        rate: of the head and of new blocks.
        layer_decay: factor from one layer to the one before it; None for one rate.

    Raises:
        FreezeError: nothing is trainable.
    """
    groups = param_groups(
        model, lr=rate, layer_decay=layer_decay, weight_decay=settings.weight_decay
    )
    # each group takes a call in every step, so those that are stepped alike are one
    merged: dict[tuple[float, float], dict[str, Any]] = {}
    for group in groups:
        alike = merged.setdefault((group["lr"], group["weight_decay"]), group)
        if alike is not group:
            alike["params"] = [*alike["params"], *group["params"]]
            alike["name"] += f"; {group['name']}"
        alike["full_rate"] = group["lr"]
    groups = list(merged.values())
    # torch steps one tensor after the other on a CPU unless it is told otherwise, which takes six
    # times as long: for ResNet-18 as long as a backward pass of some small images
    if settings.name == "sgd":
        return _sgd(groups, rate=rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def _sgd(groups: list[dict[str, Any]], *, rate: float, momentum: float) -> Optimizer:
    parameters = [each for group in groups for each in group["params"]]
    shards = any(hasattr(each, "device_mesh") for each in parameters)
    optimizer = torch.optim.SGD(
        groups, lr=rate, momentum=momentum, nesterov=momentum > 0, fused=not shards
    )
    if momentum:  # fused steps fail where parts of a group have moved and others, thawed now, not
        for each in parameters:
            optimizer.state[each]["momentum_buffer"] = torch.zeros_like(each)
    return optimizer


def names_of(optimizer: Optimizer, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of an optimizer with their names in the model."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield known[id(parameter)], parameter


def kept_state(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the state of each parameter by its name.

    Raises:
        TrainingError: it has parameters that are not of the model.
    """
    own = {id(parameter) for parameter in model.parameters()}
    there = [each for group in optimizer.param_groups for each in group["params"]]
    if others := sum(id(each) not in own for each in there):
        raise TrainingError(
            f"{others} of the {len(there)} parameters of the optimizer are not of this model, and "
            "would be lost: give the one of the phase before, and step what is not of the model "
            "with another"
        )
    found = {}
    for name, parameter in names_of(optimizer, model):
        state = optimizer.state.get(parameter, {})
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        if tensors:
            found[name] = tensors
    return found


def load_kept(
    optimizer: Optimizer, model: nn.Module, kept: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Give an optimizer the state that was kept of its parameters."""
    for name, parameter in names_of(optimizer, model):
        if name in kept:
            optimizer.state[parameter] = dict(kept[name])
