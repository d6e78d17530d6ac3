"""Give the plain network, as its own library builds it, the weights of a hybrid."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..errors import BackboneError, WeightsError, join_names
from ..surgery.head import find_classifier
from ..surgery.head_layers import HeadMLP, Heads
from ..surgery.marks import is_hybrid
from ..surgery.patch import PatchTree
from ..surgery.patches import CONTAINERS
from .state import HybridState, PatchRecord, state_of

__all__ = ["plain_state_dict"]


def plain_state_dict(model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return a state dict that the plain network loads with `strict=True`: torchvision's, timm's or
    the user's own, built with the model's number of classes, channels and options.

    What the plain network has no place for is left out, and a UserWarning names it: the blocks of
    patches. Where a patch has replaced a module, what stood there before has its weights of then.
    The tensors are the model's own, not copies.

    Args:
        model: a hybrid.

    Raises:
        BackboneError: it is no hybrid.
        WeightsError: the plain network has no such form: the model has hidden layers or several
            heads, ends early, or was read from a file and has a replaced module.
    """
    if not is_hybrid(model):
        raise BackboneError(
            f"plain_state_dict takes a hybrid, not a {type(model).__name__}, whose own state dict "
            "is plain"
        )
    state = state_of(model)
    _check_form(model, state)
    found: Any = model.state_dict()
    left = {name: [k for k in found if k.startswith(f"{name}.")] for name in _trees(model)}
    for keys in left.values():
        for key in keys:
            del found[key]
    replaced = [each for each in state.records if each.replaced is not None]
    for record in replaced:
        _put_back(found, record, state)
    homes = [path for record in state.records for path in record.paths if record.replaced is None]
    told = (
        [f"{join_names(homes, most=6)} ({sum(map(len, left.values()))} tensors)"] if homes else []
    )
    told += [f"what replaced {record.target}" for record in replaced]
    if told:
        warnings.warn(
            f"left out, since the plain network has no place for it: {'; '.join(told)}. With these "
            "weights it computes something other than the model",
            UserWarning,
            stacklevel=2,
        )
    plain: OrderedDict[str, Tensor] = found
    return plain


def _trees(model: nn.Module) -> Iterator[str]:
    for name in CONTAINERS:
        if isinstance(model._modules.get(name), PatchTree):
            yield name


def _check_form(model: nn.Module, state: HybridState) -> None:
    found = find_classifier(model, state.anatomy.head)
    if found is not None and isinstance(found[1], (HeadMLP, Heads)):
        kind = "several heads" if isinstance(found[1], Heads) else "hidden layers"
        raise WeightsError(
            f"the model has {kind} at {found[0]!r}, where the plain network has one layer: take "
            "what you need out of model.state_dict()"
        )
    if state.left_out is not None:
        raise WeightsError(
            f"the model ends early, and the plain network does not: {state.left_out}"
        )


def _put_back(found: OrderedDict[str, Tensor], record: PatchRecord, state: HybridState) -> None:
    """Give a module that was replaced its tensors again."""
    path, original = record.target, state.originals.get(record.target)
    own = [key for key in found if f"{key}.".startswith(f"{path}.")]
    if original is None:
        raise WeightsError(
            f"{path!r} was replaced, and what stood there is not known: files keep no replaced "
            "modules. Take what you need out of model.state_dict()"
        )
    rest: list[tuple[str, Any]] = [(key, found.pop(key)) for key in list(found)]
    place = next((i for i, (key, _) in enumerate(rest) if key in own), len(rest))
    old = [(f"{path}.{name}", each) for name, each in original.state_dict().items()]
    rest[place:place] = old
    gone = {*own} - {key for key, _ in old}
    for key, each in rest:
        if key not in gone and key not in found:
            found[key] = each
