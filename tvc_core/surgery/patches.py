"""The only code that changes a network's modules: where patches live, and which module runs them.

The network's own tree stays as it is. Every inserted module lives under one child of the root, in a
tree that mirrors the targets' paths (`patches.layer3.se.block...`), and the target calls it through
a forward hook that refers to it. So names, state-dict keys and types of the original do not change,
whatever is inserted.

That tree is the one record of what hangs where: a patch belongs to a path, not to the module that
stood there when it was made. Other tools exchange modules (SyncBatchNorm, quantization, LoRA), and
`hang` then lets the new module run the patch.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from .patch import Patch, PatchHook, PatchTree
from .sites import find_module

__all__ = [
    "CONTAINERS", "add_child", "attach", "detach", "free_name", "hang", "installed_patches",
    "moving_hooks", "placed_patches", "restore_module", "rollback_on_error", "set_module",
]  # fmt: skip

CONTAINERS = ("patches", "tvc_patches")
"""Names of the root's child that holds the patches; the second where the network has a `patches` of
its own.
"""

_HANGING = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_HANGING._at_fork_reinit)  # type: ignore[attr-defined]


def attach(network: nn.Module, path: str, name: str, patch: Patch) -> str:
    """Insert a patch at a target, and return the path where it lives.

    Args:
        network: the root.
        path: dotted path of the target.
        name: wanted last part of the patch's path. Where the target has a child of that name, or a
            patch, a number follows.
        patch: the patch; its position says which hooks it needs.
    """
    # The tree grows along the target's path: a patch of layer3.0.conv2 lives at
    # patches.layer3.0.conv2.NAME. So the path of the target can be read off where a patch lives, in
    # a state dict as well as in the modules, and needs to be written down nowhere.
    target = network.get_submodule(path)
    others = [other for _, _, other in placed_patches(network)]
    node, node_path = _container(network)
    for part in path.split("."):
        if part not in node._modules:
            node.add_module(part, PatchTree())
        child = node._modules[part]
        assert child is not None
        node, node_path = child, f"{node_path}.{part}"
    leaf = free_name(name, target, node._modules)
    node.add_module(leaf, patch)
    patch.home = f"{node_path}.{leaf}"
    patch.told = others[0].told if others else patch.told
    _register(target, patch, patch)
    return patch.home


def free_name(name: str, target: nn.Module, taken: Container[str]) -> str:
    """Return a name for a patch at a target, with a number where the target has such a child, or
    the name is taken.
    """
    number, leaf, empty = 1, name, PatchTree()
    # PEFT takes every parameter with "lora_" in its name for its own
    separator = "" if name.endswith("lora") else "_"
    # an attribute of nn.Module such as `half` is no free name, either
    while leaf in target._modules or leaf in taken or hasattr(empty, leaf):
        number += 1
        leaf = f"{name}{separator}{number}"
    return leaf


def detach(network: nn.Module, home: str) -> None:
    """Take a patch out: its hooks, its module, and the nodes of the tree that are empty then."""
    _unregister(network, {home})
    while home:
        home, _, leaf = home.rpartition(".")
        node = network.get_submodule(home)
        del node._modules[leaf]
        if node._modules or not isinstance(node, PatchTree):
            break


def restore_module(network: nn.Module, path: str, original: nn.Module) -> None:
    """Put a replaced module back, with the device, type and mode that its replacement has now."""
    replacement = network.get_submodule(path)
    tensors = (*replacement.parameters(), *replacement.buffers(), *network.parameters())
    if (like := next((each for each in tensors if each.is_floating_point()), None)) is not None:
        original.to(device=like.device, dtype=like.dtype)
    original.train(network.training)
    set_module(network, path, original)


def placed_patches(network: nn.Module) -> Iterator[tuple[str, str, Patch]]:
    """Yield (where it lives, path of its target, patch) for every patch in a network's tree."""
    yield from ((home, path, patch) for home, path, patch, _ in _all_leaves(network))


def installed_patches(network: nn.Module) -> Iterator[tuple[str, Patch]]:
    """Yield (target's path, patch) for every patch that a module within `network` runs."""
    for path, module in network.named_modules():
        for patch in dict.fromkeys(hook.patch for hook in _hooks_of(module)):
            yield path, patch


def hang(network: nn.Module) -> list[tuple[str, str]]:
    """Let the module that stands at a patch's path run it, once, whoever has put it there.

    Returns:
        (where it lives, why it has no place) of those that cannot hang.
    """
    # A patch belongs to a path. Three things can have happened to the module there: it is another
    # one (the patch hangs nowhere, or a copy of it does), it is gone, or two paths have become one
    # module, at which the patch would run for both. The order of the hooks follows the order of the
    # tree, so a patch that is hung again runs where it ran before.
    leaves = _all_leaves(network)
    misplaced, lost = _misplaced(network, leaves)
    if not misplaced:
        return lost
    with moving_hooks():
        misplaced, lost = _misplaced(network, leaves)
        if misplaced:
            misplaced = _not_copied(network, misplaced)
            _unregister(network, {home for home, _, _, _ in misplaced})
        order = {id(patch): number for number, (_, _, patch, _) in enumerate(leaves)}
        for _, target, patch, module in misplaced:
            _register(target, patch, module)
            _sort(target._forward_pre_hooks, order)
            _sort(target._forward_hooks, order)
    return lost


@contextmanager
def moving_hooks() -> Iterator[None]:
    """Let one thread at a time move hooks.

    Whoever waited here has to look again what is to be moved: the thread before may have done it,
    and be in a pass that needs these hooks.
    """
    # an interrupt may come between the lock and its release: no thread waits for that for long
    _HANGING.acquire(timeout=5)
    try:
        yield
    finally:
        with suppress(RuntimeError):
            _HANGING.release()


Leaf = tuple[str, str, Patch, nn.Module]
"""Where a patch lives, the path of its target, the patch, and what is to be called for it."""


Hanging = tuple[str, nn.Module, Patch, nn.Module]
"""Where a patch lives, its target, the patch, and what is to be called for it."""


def _misplaced(
    network: nn.Module, leaves: list[Leaf]
) -> tuple[list[Hanging], list[tuple[str, str]]]:
    """Return the patches that do not hang at their targets, with these, and those without one."""
    found: list[Hanging] = []
    lost: list[tuple[str, str]] = []
    first: dict[int, str] = {}
    for home, path, patch, module in leaves:
        target = find_module(network, path)
        if target is None:
            lost.append((home, f"there is no module {path!r}"))
        elif (other := first.setdefault(id(target), path)) != path:  # it would run at both paths
            lost.append((home, f"{path!r} is {other!r} now"))
        elif reason := _cannot_run(target):
            lost.append((home, f"{path!r} {reason}"))
        elif not _hangs(target, patch, module):
            found.append((home, target, patch, module))
    return found, lost


def _cannot_run(target: nn.Module) -> str:
    """Return why a module cannot run a patch: it is part of a graph that a tool has recorded, or
    such a graph, in which the patch may stand already.
    """
    kind = type(target)
    if kind is nn.Module:
        return "is only a name in a recorded graph"
    if not issubclass(kind, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        return ""
    # what torch.fx records itself calls layers, and has no patch of the one that it began with
    if any(cls.__module__.startswith(("torch.export", "torch.jit")) for cls in kind.__mro__):
        return "is a recorded graph, of which the patch may be a part"
    return ""


def _sort(hooks: Any, order: dict[int, int]) -> None:
    """Let patches run before other hooks: what reads a module's map reads the patched one."""
    # Hooks run in the order of their dict. Among patches that is the order of the tree, which is
    # the order of the build; after them come taps and the hooks of others, as a tool that reads a
    # module's map means the patched one.
    first = sorted(
        (number for number, hook in hooks.items() if isinstance(hook, PatchHook)),
        key=lambda number: order.get(id(hooks[number].patch), -1),
    )
    ordered = {number: hooks[number] for number in (*first, *hooks)}
    hooks.clear()
    hooks.update(ordered)


def _all_leaves(network: nn.Module) -> list[Leaf]:
    trees = ((name, network._modules.get(name)) for name in CONTAINERS)
    return [
        leaf
        for name, tree in trees
        if isinstance(tree, PatchTree)
        for leaf in _leaves(tree, name, "")
    ]


def _leaves(tree: nn.Module, home: str, path: str) -> Iterator[Leaf]:
    for name, child in tree._modules.items():
        if isinstance(child, Patch):
            yield f"{home}.{name}", path, child, child
        elif isinstance(child, PatchTree):
            yield from _leaves(child, f"{home}.{name}", f"{path}.{name}" if path else name)
        elif child is not None:  # another tool has wrapped the patch
            inside = next((each for each in child.modules() if isinstance(each, Patch)), None)
            if inside is not None:
                yield f"{home}.{name}", path, inside, child


def _wanted(patch: Patch) -> tuple[int, int]:
    """Return how many pre-hooks and forward hooks a patch has."""
    return int(patch.position.runs_before), int(patch.position.runs_after)


def _hooks_of(module: nn.Module) -> Iterator[PatchHook]:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        yield from (hook for hook in hooks.values() if isinstance(hook, PatchHook))


def _hangs(target: nn.Module, patch: Patch, module: nn.Module, copied: bool = False) -> bool:
    """Return whether a module runs a patch, once, and no copy of it.

    Args:
        target: the module.
        patch: the patch.
        module: what is to be called for it.
        copied: take hooks for right that were not put there by tvc.
    """
    counts = []
    for hooks in (target._forward_pre_hooks, target._forward_hooks):
        found = [
            hook
            for hook in hooks.values()
            if isinstance(hook, PatchHook) and hook.patch.home == patch.home
        ]
        # a tool may have copied the module, with its hooks, or moved these to another module
        for hook in found:
            if hook.patch is not patch or hook.module is not module:
                return False
            if not copied and not hook.is_on(target):
                return False
        counts.append(len(found))
    return tuple(counts) == _wanted(patch)


def _not_copied(network: nn.Module, misplaced: list[Hanging]) -> list[Hanging]:
    """Return the patches that have to be moved: not those of a copy of the whole network, which
    hang as in the original, among the hooks of others in the same order.
    """
    hosts: dict[str, set[int]] = {}
    for each in network.modules():
        for hook in _hooks_of(each):
            hosts.setdefault(hook.patch.home, set()).add(id(each))
    moved: list[Hanging] = []
    for home, target, patch, module in misplaced:
        if hosts.get(home) == {id(target)} and _hangs(target, patch, module, copied=True):
            for hook in _hooks_of(target):
                if hook.patch is patch:
                    hook.host = weakref.ref(target)
        else:
            moved.append((home, target, patch, module))
    return moved


def _register(target: nn.Module, patch: Patch, module: nn.Module) -> None:
    hook = PatchHook(patch, module, target)
    before, after = _wanted(patch)
    if before:
        target.register_forward_pre_hook(hook)
    if after:
        target.register_forward_hook(hook)


def _unregister(network: nn.Module, homes: set[str]) -> None:
    """Take away the hooks of patches, and those of copies that another tool made of them."""
    for module in network.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(hook, PatchHook) and hook.patch.home in homes:
                    del hooks[number]


def _container(network: nn.Module) -> tuple[nn.Module, str]:
    for name in CONTAINERS:
        child = network._modules.get(name)
        if isinstance(child, PatchTree):
            return child, name
        if not hasattr(network, name):
            tree = PatchTree()
            network.add_module(name, tree)
            if not isinstance(network, (nn.Sequential, nn.ModuleList)):
                # second: "all children but the last" is how people take a head off, and by the
                # first layer with a weight tools (fastai) find out what images a network takes
                others = [each for each in network._modules.items() if each[0] != name]
                network._modules.clear()
                network._modules.update([*others[:1], (name, tree), *others[1:]])
            return tree, name
    raise AssertionError(f"the network has children of both names {CONTAINERS}")


@contextmanager
def rollback_on_error(network: nn.Module) -> Iterator[None]:
    """Put classes, attributes, children, parameters, hooks and gradient flags back, if what runs
    inside raises.
    """
    # All that a build changes is in dicts of the modules (`_modules`, `_parameters`, `_buffers`,
    # `_forward_hooks`, ...), in their `__dict__` and their classes. So a shallow copy of each dict
    # is all that is needed, and the dicts themselves are filled again: others may hold them, as a
    # hybrid's view does. Values of tensors are not kept: a build puts
    # new tensors in the place of old ones, and writes to none of the network's.
    modules = list(_every_module(network))
    nothing: dict[Any, Any] = {}  # most registries are empty, and a new dict for each costs time
    classes = [(module, type(module)) for module in modules]
    kept: list[tuple[Any, dict[Any, Any]]] = [
        (registry, dict(registry) if registry else nothing)
        for module in modules
        for registry in (
            module.__dict__,
            *(value for value in module.__dict__.values() if isinstance(value, dict)),
        )
    ]
    trainable = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        yield
    except BaseException:
        for module, cls in classes:
            if type(module) is not cls:
                module.__class__ = cls
        for registry, entries in kept:
            registry.clear()
            registry.update(entries)
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
        raise


def _every_module(root: nn.Module) -> Iterator[nn.Module]:
    """Yield all modules, the nodes of the tree of patches included, which `modules()` hides."""
    seen: dict[int, nn.Module] = {id(root): root}
    queue = [root]
    while queue:
        module = queue.pop()
        yield module
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen[id(child)] = child
                queue.append(child)


def add_child(module: nn.Module, name: str, child: nn.Module) -> None:
    """Give a module a child under a name that is free."""
    module.add_module(name, child)


def set_module(network: nn.Module, path: str, module: nn.Module | None) -> None:
    """Put a module, or nothing, in the place of the one at a dotted path, which must exist."""
    parent_path, _, name = path.rpartition(".")
    parent = network.get_submodule(parent_path)
    assert parent._modules.get(name) is not None, path
    parent._modules[name] = module
