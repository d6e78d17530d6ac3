"""Parameter groups for an optimizer: rates that fall with the distance from the head, and weight
decay where it belongs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..errors import FreezeError, ParameterError, did_you_mean, join_names, short_repr
from ..recipe.rules import check_hybrid
from ..surgery.anatomy import HEAD, STEM, Anatomy
from ..surgery.initializers import is_normalization
from .freezing import part_of_parameter
from .hybrid import HybridModel

__all__ = ["param_groups"]

BY_CHOICES = ("stage", "block")
_POSITIONS = re.compile(r"(token|pos_embed|position)[^.]*$|(^|\.)cpb_mlp\.")
"""Class tokens, position embeddings and Swin's tables of them, the network that makes Swin v2's
included.
"""


def param_groups(
    model: nn.Module,
    lr: float,
    layer_decay: float | None = None,
    weight_decay: float = 0.01,
    by: str = "stage",
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups for an optimizer: each once, from the stem to the
    head.

    A layer has the rate lr * layer_decay ** (its distance from the head). The head, auxiliary
    heads, inserted blocks and modules that patches put in the place of others are new, so they have
    the full rate wherever they are. Weight decay is for the weights of convolutions, linear layers
    and their like, not for normalizations, biases, gates, factors for each channel, class tokens
    and position embeddings.

    Args:
        model: a hybrid. Frozen parameters are left out, so call it again after thawing.
        lr: rate of the head.
        layer_decay: factor above 0, at most 1, from one layer to the one before it; None for one
            rate.
        weight_decay: of the groups that have it; 0.01 is that of torch.optim.AdamW.
        by: what a layer is: "stage" (stem, each stage, head) or "block" (stem, each block of a
            stage, head), for factors such as 0.75 that are given for each block of a network (Clark
            et al. 2020, arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254).

    Returns:
        Groups with the keys `params`, `lr`, `weight_decay` and `name`, such as "stage 2", "stage 2,
        no decay" or "new".

    Raises:
        ParameterError: `model` is no hybrid, or a value is out of range.
        FreezeError: nothing is trainable.
    """
    _check(model, lr, layer_decay, weight_decay, by)
    assert isinstance(model, HybridModel)
    anatomy, new = model._hybrid.anatomy, model._hybrid.new_modules
    modules = dict(model.named_modules())
    layers = list(_layers(anatomy, modules, by))
    names = list(dict.fromkeys(layer for layer, _ in layers))
    factor = 1.0 if layer_decay is None else layer_decay
    rates = {layer: lr * factor**distance for distance, layer in enumerate(reversed(names))}
    groups: dict[str, dict[str, Any]] = {}
    for layer in (*names, "new"):
        for name, decay in ((layer, weight_decay), (f"{layer}, no decay", 0.0)):
            groups[name] = {
                "params": [],
                "lr": rates.get(layer, lr),
                "weight_decay": decay,
                "name": name,
            }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = name.rpartition(".")[0]
        part, inserted = part_of_parameter(name, anatomy)
        if any(f"{name}.".startswith(f"{head}.") for head in anatomy.heads):
            layer = HEAD
        elif inserted or part is None or owner in new:
            layer = "new"
        else:
            layer = next(
                layer for layer, path in layers if name == path or name.startswith(f"{path}.")
            )
        decays = _decays(name, parameter, modules[owner])
        groups[layer if decays else f"{layer}, no decay"]["params"].append(parameter)
    found = [group for group in groups.values() if group["params"]]
    if not found:
        raise FreezeError(
            "nothing of the model is trainable, so an optimizer has nothing to do; thaw some of it "
            "first"
        )
    return found


def _layers(anatomy: Anatomy, modules: dict[str, nn.Module], by: str) -> Iterator[tuple[str, str]]:
    """Yield (layer, path) in order of execution. A layer has one or several paths; auxiliary heads
    are no layers.
    """
    auxiliary = {path for path, _ in anatomy.auxiliary}
    for part in anatomy.parts:
        paths = [path for found, path in anatomy.items() if found == part and path not in auxiliary]
        if by == "stage" or part in (STEM, HEAD):
            yield from ((part, path) for path in paths)
            continue
        index, begun = 0, False
        for block in (block for path in paths for block in _blocks(modules, path)):
            begins = _has_matrix(modules.get(block))
            index += begins and begun
            begun = begun or begins
            yield f"{part}, block {index}", block


def _blocks(modules: dict[str, nn.Module], path: str) -> list[str]:
    """Return the paths of the blocks in a module: the children of a sequence of modules that have
    children themselves.
    """
    module = modules.get(path)
    if isinstance(module, nn.Sequential) and any(child._modules for child in module.children()):
        return [f"{path}.{name}" for name in module._modules]
    return [path]


def _has_matrix(module: nn.Module | None) -> bool:
    """Tell whether a module makes a block; a normalization, activation or pooling layer belongs to
    its neighbor.
    """
    return module is not None and any(p.ndim >= 2 for p in module.parameters())


def _decays(name: str, parameter: nn.Parameter, owner: nn.Module) -> bool:
    if parameter.ndim < 2 or is_normalization(owner) or _POSITIONS.search(name):
        return False
    leaf = name.rpartition(".")[2]
    # of what is no layer's weight, a factor for each channel (ConvNeXt's layer_scale [C, 1, 1]) is
    # like a 1-D parameter
    return "bias" not in leaf and (
        "weight" in leaf or sum(size > 1 for size in parameter.shape) > 1
    )


def _check(
    model: object, lr: object, layer_decay: object, weight_decay: object, by: object
) -> None:
    check_hybrid(model, "param_groups")
    assert isinstance(model, HybridModel)
    if not _is_number(lr) or not 0 < lr < float("inf"):  # type: ignore[operator]
        raise ParameterError(f"lr is a number above 0, not {short_repr(lr)}")
    if layer_decay is not None and (not _is_number(layer_decay) or not 0 < layer_decay <= 1):  # type: ignore[operator]
        raise ParameterError(
            "layer_decay is a number above 0 and at most 1, or None for one rate, not "
            f"{short_repr(layer_decay)}"
        )
    if not _is_number(weight_decay) or not 0 <= weight_decay < float("inf"):  # type: ignore[operator]
        raise ParameterError(
            f"weight_decay is a number of at least 0, not {short_repr(weight_decay)}"
        )
    if by not in BY_CHOICES:
        hint = did_you_mean(str(by), BY_CHOICES)
        raise ParameterError(
            f"by says what a layer is: {join_names(BY_CHOICES)}, not {short_repr(by)}.{hint}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
