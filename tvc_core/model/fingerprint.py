"""What every module of a network is, in a line: so that a change by another tool can be named.

A file holds tensors and a recipe, and reading it builds the recipe's modules again. If another
tool has exchanged modules since, the file would compute something other than the saved model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..remembered import recall, remember
from ..surgery.hooks import TvcHook
from ..surgery.sites import find_module, plain_name, wrapped_module
from .checkpointing import Checkpointed, CheckpointedRuns

__all__ = ["changes", "fingerprint", "foreign_hooks", "kind_of", "known_lines", "new_lines"]

# What may differ while the function in eval mode is the same: how it is trained, and where it runs.
_TRAINING_ONLY = re.compile(r",? *(momentum|inplace|process_group)=[^,)]*")
_OUTPUTS = re.compile(r"out_features=\d+|(?<=\d), \d+(?=, kernel_size)")
_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_KNOWN = ("torch", "torchvision", "timm", "tvc_core")
"""Packages whose classes are known by their names alone, and whose modules no pass changes."""
_OF_EVERY_MODULE = frozenset(dir(nn.Module())) | {"forward"}
_WHERE = " where "
_NOT_COMPUTED = re.compile(
    r"drop|checkpoint|^(training|p|stddev|inplace|momentum|memory_efficient|fused_attn|"
    r"aux_logits|distilled_training|num_classes)$"
)
"""Attributes that change nothing in eval mode, or that follow what is told elsewhere."""


def fingerprint(
    network: nn.Module, within: str | None = None, known: Mapping[int, str] | None = None
) -> dict[str, str]:
    """Return class, settings and tensors of every module below the root, by path, and under "" the
    root's own tensors and settings. What torch wraps around a module (`torch.compile`) is not
    there.

    Args:
        network: the root.
        within: only the module at this path, and what is in it.
        known: the lines of modules by their ids, which are not made again.
    """
    known = known or {}
    lines = {
        plain_name(path): known.get(id(module)) or _line(module)
        for path, module in network.named_modules()
        if path
        and (within is None or f"{path}.".startswith(f"{within}."))
        and wrapped_module(module) is None
    }
    return lines if within is not None else {"": _tensors(network) + _where(network), **lines}


def known_lines(network: nn.Module, made: str) -> dict[int, str]:
    """Return the lines of a network's modules by their ids, which are remembered.

    Args:
        network: the root, as it was made.
        made: what stands for all that the network is; empty where nothing does.
    """
    if not made:
        return {}
    modules = list(network.modules())
    lines = recall("module-settings", made)
    if not isinstance(lines, list) or len(lines) != len(modules):
        lines = [_line(module) for module in modules]
        remember("module-settings", made, lines)
    return {id(module): line for module, line in zip(modules, lines, strict=True)}


def changes(network: nn.Module, built: Mapping[str, str]) -> list[str]:
    """Return in words what has changed since the build, outermost first.

    Args:
        network: the root.
        built: its fingerprint when it was built.
    """
    return list(_changes(network, built))


def new_lines(
    built: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]
) -> dict[str, str]:
    """Return the lines that tvc's own exchange of layers changed, and a new build would have.

    Where a module had been exchanged by hand before, the new one may have taken over what no recipe
    says, such as having no bias.

    Args:
        built: the fingerprint when the network was built.
        before: that of a part before the exchange.
        after: that of the part after it.
    """
    return {
        path: line
        for path, line in after.items()
        if line != before.get(path)
        and (before.get(path) == built.get(path) or _settings(line) == _settings(built.get(path)))
    }


def _settings(line: str | None) -> str:
    """Return what a line says of a layer, except for how many outputs it has."""
    return _OUTPUTS.sub("", (line or "").partition(" with ")[0])


def _changes(network: nn.Module, built: Mapping[str, str]) -> Iterator[str]:
    # Outermost first: where a tool has exchanged a whole block, its twenty layers are not worth a
    # line each. named_modules gives parents before children, so whatever is inside of a path that
    # was told is passed over.
    now = fingerprint(network)
    told: list[str] = []
    for path in dict.fromkeys((*built, *now)):
        before, after = built.get(path), now.get(path)
        if before == after or any(path.startswith(f"{other}.") for other in told):
            continue
        if before is not None and after is not None:
            (before, _, was), (after, _, has) = before.partition(_WHERE), after.partition(_WHERE)
            if before == after:
                module = find_module(network, path) if path else network
                yield from _settings_changed(type(module), path, was, has)
                continue
        if path:
            told.append(path)
        if not path:
            yield f"the model itself had {before or 'no tensors'} and has {after or 'none'}"
        elif after is None:
            yield f"{path} ({before}) is gone"
        elif before is None:
            yield f"{path} ({after}) is new"
        else:
            yield f"{path} was {before} and is {after}"


def _settings_changed(cls: type, path: str, was: str, has: str) -> Iterator[str]:
    """Yield which attributes have changed. Those that are new are of no use to the class's code,
    unless they hide something of the class.
    """
    old, new = (dict(each.partition("=")[::2] for each in text.split("; ")) for text in (was, has))
    for name in dict.fromkeys((*old, *new)):
        if name == "forward" and old.get(name) != new.get(name):
            yield f"{path or 'the model'} has a forward that was assigned to it"
        elif old.get(name) != new.get(name) and (name in old or hasattr(cls, name)):
            where = f"{path}.{name}" if path else f"the model's {name}"
            before, after = old.get(name, "that of its class"), new.get(name, "gone")
            yield f"{where} was {before} and is {after}"


def _runs_its_own(module: nn.Module, forward: Any) -> bool:
    """Return whether an assigned forward runs the class's, in mixed precision or checkpointed.

    accelerate assigns such a one and leaves it there; another wrapper may do anything.
    """
    while True:
        if isinstance(forward, (Checkpointed, CheckpointedRuns)):
            return forward.inner is None or _runs_its_own(module, forward.inner)
        forward = getattr(forward, "__func__", forward)
        if forward is type(module).forward:
            return True
        where = getattr(forward, "__globals__", {}).get("__name__", type(forward).__module__)
        if not where.startswith(("torch.amp.", "accelerate.")):
            return False
        forward = getattr(forward, "__wrapped__", None)


def foreign_hooks(network: nn.Module) -> dict[str, int]:
    """Return how many forward hooks other code has put on each module, by path, where there are
    any; torch's own (FSDP's, say) move and gather tensors and are left out.
    """
    found: dict[str, int] = {}
    for path, module in network.named_modules():
        if module._forward_pre_hooks or module._forward_hooks:
            hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            if number := sum(map(_is_foreign, hooks)):
                found[path] = number
    return found


def _is_foreign(hook: Any) -> bool:
    made_in = getattr(hook, "__module__", None) or type(hook).__module__
    return not isinstance(hook, TvcHook) and not made_in.startswith("torch.")


def kind_of(module: nn.Module) -> str:
    """Return the name of a module's class, one name for those that compute the same.

    A class of other code stands with its package, since it may have the name of another one. One
    that computes in eval mode what another does may name that as its `tvc_computes_as`.
    """
    cls = type(module)
    if cls.__name__.startswith("FSDP") and cls.__module__.startswith("torch."):
        cls = cls.__mro__[2]  # FSDP2 makes a class of itself and the module's own
    cls = vars(cls).get("tvc_computes_as", cls)
    name, package = cls.__name__, cls.__module__.partition(".")[0]
    if "BatchNorm" in name:  # a synchronized one does in eval mode
        package = _KNOWN[0] if name.startswith("Sync") else package
        name = re.sub(r"\dd$", "", name.removeprefix("Sync"))
    return name if package in _KNOWN else f"{package}.{name}"


def _line(module: nn.Module) -> str:
    settings = "" if isinstance(module, _DROPOUTS) else module.extra_repr()
    text = f"{kind_of(module)}({_TRAINING_ONLY.sub('', settings)})"
    shapes = _tensors(module)
    return (f"{text} with {shapes}" if shapes else text) + _where(module)


def _where(module: nn.Module) -> str:
    """Return the settings that a module says nothing of by itself, and methods assigned to it."""
    # Code that is not known may count its calls in an attribute, or note that it has run, so only
    # what is computed by methods is compared there.
    cls = getattr(type(module), "_hybrid_base", type(module))
    quiet = cls.extra_repr is nn.Module.extra_repr and cls.__module__.partition(".")[0] in _KNOWN
    found = {}
    for name, value in module.__dict__.items():
        if name in _OF_EVERY_MODULE and (name != "forward" or _runs_its_own(module, value)):
            continue
        is_setting = quiet and not name.startswith("_")
        if callable(value):
            if is_setting or callable(getattr(cls, name, None)):
                found[name] = getattr(value, "__qualname__", type(value).__qualname__)
        elif is_setting and not _NOT_COMPUTED.search(name) and _is_plain(value):
            found[name] = repr(value)
    text = "; ".join(f"{name}={value}" for name, value in sorted(found.items()))
    return f"{_WHERE}{text}" if text else ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str))


def _tensors(module: nn.Module) -> str:
    # Not in the order in which they were registered: what a tool has undone (a pruning mask, weight
    # normalization) comes back as the last one.
    tensors = {**module._parameters, **module._buffers}
    return ", ".join(
        f"{key} {'x'.join(map(str, tensor.shape))}"
        for key, tensor in sorted(tensors.items(), reverse=True)
        if tensor is not None and key not in module._non_persistent_buffers_set
    )
