"""What torch's own `load_state_dict` would do, tried on a draft of the model.

Modules migrate old files while they load them: `_load_from_state_dict` and pre-hooks rename keys,
add and drop tensors, resample them, even exchange layers. None of that can be foreseen, so it is
run: on modules of the same classes and attributes as the model's, with other tensors. Those of a
module without loading code of its own are on the meta device, since torch then only looks at shapes
and puts the checkpoint's tensor in the place (`assign=True`). A module with such code gets copies
of its tensors, since it may read and write them. What has changed in the draft afterwards is what
arrived; the model is untouched.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import WeightsError, foreign

__all__ = ["Draft", "Place", "make_draft", "places", "versions"]

_COPIED = (dict, list, set, OrderedDict)
_TENSORS, _CHILDREN = ("_parameters", "_buffers"), "_modules"
_HOOKS = "_load_state_dict_pre_hooks"


@dataclass(frozen=True)
class Place:
    """Where a tensor of a model stands: a module, its path, and a name in it."""

    module: nn.Module
    path: str
    name: str

    @property
    def key(self) -> str:
        """The path of the tensor in the tree of modules."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def tensor(self) -> Tensor:
        """The tensor itself."""
        store: Any = self.module._parameters if self.is_parameter else self.module._buffers
        return store[self.name]

    @property
    def is_parameter(self) -> bool:
        """It is a parameter, not a buffer."""
        return self.name in self.module._parameters


def places(model: nn.Module) -> dict[str, Place]:
    """Return where each tensor of a state dict stands.

    Hooks may give a tensor another name in the state dict than in the tree (activation
    checkpointing does), so the tensors are looked for by their identity.

    Raises:
        WeightsError: a module keeps weights outside of its tensors, as quantized ones do in packed
            form, so that only its own `load_state_dict` can load them.
    """
    with foreign(WeightsError, "the model's state_dict() fails"):
        state = model.state_dict(keep_vars=True)
    tree: dict[str, Place] = {}
    by_identity: dict[int, Place] = {}
    for path, module in _named(model):
        for name, tensor in _persistent(module):
            place = Place(module, path, name)
            tree[place.key] = place
            by_identity.setdefault(id(tensor), place)
    found = {}
    for key, value in state.items():
        at = tree.get(key)
        # a script module makes a new object for each look
        if at is None or not (at.tensor is value or isinstance(at.module, torch.jit.ScriptModule)):
            at = by_identity.get(id(value))
        if at is not None:
            found[key] = at
        elif not key.endswith("_extra_state"):
            raise WeightsError(
                f"the model keeps {key!r} outside of its parameters and buffers, as quantized "
                "modules and FSDP do; only its own load_state_dict can load that. Load before the "
                "model is quantized or wrapped."
            )
    return found


def _named(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _named(child, f"{path}.{name}" if path else name)


def _persistent(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return a module's own parameters and persistent buffers by name."""
    hidden = getattr(module, "_non_persistent_buffers_set", ())
    found = [*module._parameters.items(), *module._buffers.items()]
    return [(n, t) for n, t in found if t is not None and n not in hidden]


@dataclass(kw_only=True)
class Draft:
    """What came of a trial.

    Args:
        arrived: tensors by their paths in the tree.
        supplied: paths of tensors that a migration filled with what the module has itself.
        misshaped: tensors that were refused for their shape, or for the reason beside them.
        missed: the checkpoint's names that no module asked for.
        exchanged: modules of the model, and the children that a migration has put there.
        changed: modules of the model, and the attributes that a migration has set.
        origin: the checkpoint's names of a tensor, by its storage.
    """

    arrived: dict[str, Tensor] = field(default_factory=dict)
    supplied: set[str] = field(default_factory=set)
    misshaped: dict[str, tuple[Tensor, str]] = field(default_factory=dict)
    missed: set[str] = field(default_factory=set)
    exchanged: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    changed: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    origin: dict[tuple[int, int, int], dict[str, None]] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)

    def source(self, tensor: Tensor, key: str) -> str | None:
        """Return the checkpoint's name of a tensor, preferably `key`; None where a migration made
        it.
        """
        names = self.origin.get(_memory(tensor), {})
        return key if key in names else next(iter(names), None)


def _memory(tensor: Tensor) -> tuple[int, int, int]:
    return (tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.numel())


def versions(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the metadata that the model's own state dict would have: the versions of modules."""
    return {path: {"version": module._version} for path, module in _named(model)}


def make_draft(
    model: nn.Module, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> Draft:
    """Let a draft of the model load a state dict.

    Args:
        model: it is not changed.
        tensors: by names that are as near to the model's as is known.
        metadata: of the modules that wrote them, by path.

    Raises:
        WeightsError: the loading code of a module fails.
    """
    # Modules and tensors that the model has at two places are drafted once, by their identity, so
    # that the draft has the same ties. Hooks that are bound to a module are bound to its twin: one
    # that changes `self` must not reach the model.
    twins: dict[int, nn.Module] = {}
    tensor_memo: dict[int, Tensor] = {}
    fields: list[tuple[nn.Module, nn.Module, dict[str, Any]]] = []
    twin = _twin(model, twins, tensor_memo, fields)
    for module in twins.values():
        hooks = module.__dict__.get(_HOOKS, {})
        module.__dict__[_HOOKS] = OrderedDict((k, _bound(h, twins)) for k, h in hooks.items())
    draft = Draft()
    state: OrderedDict[str, Any] = OrderedDict()
    for name, tensor in tensors.items():
        state[name] = alone = tensor.detach()
        draft.kept.append(alone)
        draft.origin.setdefault(_memory(alone), {})[name] = None
    known = {id(t): t._version for t in tensor_memo.values() if not is_lazy(t)}
    known |= {id(t): -1 for t in tensor_memo.values() if is_lazy(t)}
    drafted = {id(module) for module in twins.values()}
    with foreign(WeightsError, "a module of the model cannot load the checkpoint"), torch.no_grad():
        _visit(twin, "", state, metadata, draft, known, drafted)
    draft.kept += tensor_memo.values()
    for original, module, before in fields:
        for name, child in module._modules.items():
            expected = before[_CHILDREN].get(name)
            if child is not None and expected is not None and child is not expected:
                draft.exchanged.append((original, name, child))
        for name, value in module.__dict__.items():
            if name in (*_TENSORS, _CHILDREN, _HOOKS):
                continue
            if name not in before or before[name] is not value:
                draft.changed.append((original, name, value))
    return draft


def _visit(
    module: nn.Module,
    prefix: str,
    state: OrderedDict[str, Any],
    metadata: Mapping[str, Any],
    draft: Draft,
    known: dict[int, int],
    drafted: set[int],
) -> None:
    """Do what torch's `load_state_dict` does with one module and what is below it."""
    if id(module) not in drafted:  # which a migration has made
        found = [tensor for _, tensor in _persistent(module)]
        known |= {id(tensor): _version(tensor) for tensor in found}
        draft.kept += found  # an identity is one while it lives
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    local = {**(metadata.get(prefix[:-1]) or {}), "assign_to_params_buffers": True}
    module._load_from_state_dict(state, prefix, local, True, missing, unexpected, errors)
    for name in unexpected:
        if isinstance(value := state.get(name), Tensor):
            names = draft.origin.get(_memory(value), {})
            draft.missed |= {name} if name in names else names.keys()
    for name, tensor in _persistent(module):
        key = prefix + name
        given = state.get(key)
        # How it is seen that a tensor arrived: a migration may load it in three ways. It puts
        # another tensor in its place, whose identity is not known; or it writes into the old one,
        # which raises the count of changes that torch keeps for each tensor; or it writes past that
        # count, by `.data`, and then only the state dict tells, which has a tensor of the right
        # shape for it. If the state dict has the module's own tensor, a pre-hook has put it there
        # because old files lack it.
        if known.get(id(tensor)) != _version(tensor):
            draft.arrived[key] = tensor
        elif isinstance(given, Tensor) and given is not tensor:
            if given.shape == tensor.shape and not errors:
                draft.arrived[key] = tensor  # written past torch's count of changes
            else:
                reason = "" if given.shape != tensor.shape else "; ".join(errors)
                draft.misshaped[key] = (given, reason)
        elif given is tensor:
            draft.supplied.add(key)
    for name, child in module._modules.items():
        if child is not None:
            inner = f"{prefix}{name}."
            below = OrderedDict((k, v) for k, v in state.items() if k.startswith(inner))
            _visit(child, inner, below, metadata, draft, known, drafted)


def _version(tensor: Tensor) -> int:
    return -1 if is_lazy(tensor) else tensor._version


def _twin(
    module: nn.Module,
    twins: dict[int, nn.Module],
    tensors: dict[int, Tensor],
    fields: list[tuple[nn.Module, nn.Module, dict[str, Any]]],
) -> nn.Module:
    found = twins.get(id(module))
    if found is not None:
        return found
    is_script = isinstance(module, torch.jit.ScriptModule)
    twin: nn.Module = nn.Module() if is_script else object.__new__(type(module))
    twins[id(module)] = twin
    if not is_script:
        for name, value in module.__dict__.items():
            twin.__dict__[name] = value.copy() if type(value) in _COPIED else value
    has_code = type(module)._load_from_state_dict is not nn.Module._load_from_state_dict or bool(
        module.__dict__.get(_HOOKS)
    )
    for kind in _TENSORS:
        twin.__dict__[kind] = {
            name: None if tensor is None else _stand_in(tensor, has_code, tensors)
            for name, tensor in getattr(module, kind).items()
        }
    twin.__dict__[_CHILDREN] = {
        name: None if child is None else _twin(child, twins, tensors, fields)
        for name, child in module._modules.items()
    }
    before = dict(twin.__dict__)
    before[_CHILDREN] = dict(twin._modules)
    fields.append((module, twin, before))
    return twin


def _stand_in(tensor: Tensor, real: bool, memo: dict[int, Tensor]) -> Tensor:
    """Return a tensor for the draft. No parameter needs a gradient: then a checkpoint's integers
    can stand in its place, and are seen.
    """
    if id(tensor) not in memo:
        new: Tensor
        if is_lazy(tensor):
            lazy: Any = type(tensor)
            frozen = {"requires_grad": False} if isinstance(tensor, nn.Parameter) else {}
            memo[id(tensor)] = lazy(device=tensor.device, dtype=tensor.dtype, **frozen)
            return memo[id(tensor)]
        if real and not tensor.is_meta:
            new = tensor.detach().clone()
        else:
            new = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(new, requires_grad=False) if is_parameter else new
    return memo[id(tensor)]


def _bound(hook: Any, twins: Mapping[int, nn.Module]) -> Any:
    """Return a hook for the draft: what belongs to a module of the model belongs to its twin."""
    if isinstance(hook, nn.Module):
        return twins.get(id(hook), hook)
    if isinstance(hook, types.MethodType):
        return types.MethodType(hook.__func__, twins.get(id(hook.__self__), hook.__self__))
    if isinstance(hook, functools.partial):
        args = [_bound(part, twins) for part in hook.args]
        named = {name: _bound(value, twins) for name, value in hook.keywords.items()}
        return functools.partial(_bound(hook.func, twins), *args, **named)
    if hasattr(hook, "with_module") and hasattr(hook, "hook"):  # torch's wrapper of hooks
        module = twins.get(id(hook.module())) if hook.with_module else None
        return type(hook)(_bound(hook.hook, twins), module)
    return hook
