"""What an inserted module is, and the only code that changes a network's modules.

The network's own tree stays as it is. Every inserted module lives under one child of the root, in a
tree that mirrors the targets' paths (`patches.layer3.se.block...`), and the target calls it through
a forward hook that refers to it. So names, state-dict keys and types of the original do not change,
whatever is inserted.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .hooks import TvcHook
from .layouts import Adapter
from .positions import POSITIONS, Combine, Position

__all__ = [
    "CONTAINERS",
    "add_child",
    "Patch",
    "PatchHook",
    "PatchTree",
    "attach",
    "detach",
    "free_name",
    "restore_module",
    "installed_patches",
    "set_module",
    "rollback_on_error",
]

CONTAINERS = ("patches", "tvc_patches")
"""Names of the root's child that holds the patches; the second where the network has a `patches` of
its own.
"""


class Patch(nn.Module):
    """An inserted block and the gate by which it starts as the identity.

    For a gated block, computes x * (1 + a * (gate(x) - 1)), for others x + a * (block(x) - x), with
    `a` (`alpha`, shape [1]) zero at first: exactly x, whatever the block's weights. The optimizer
    moves `a` first, and through it the block. Maps a tensor to the same layout and dtype; the shape
    is kept while there is a gate. A position may combine map and result by another rule, such as
    map + a * block(x) beside the target.

    Args:
        block: the inserted module.
        gated: the block has a method `gate(x)` with block(x) == x * gate(x).
        adapter: shows the block the map in another layout; None where it takes the map as it is.
        position: what the block reads, and what becomes of its result.
    """

    alpha: nn.Parameter | None

    def __init__(
        self,
        block: nn.Module,
        *,
        gated: bool = False,
        adapter: Adapter | None = None,
        position: Position = POSITIONS["after"],
    ) -> None:
        super().__init__()
        self.block = block
        self.gated = gated
        self.adapter = adapter
        self.position = position
        self.neutral = False
        """The block by itself leaves the map unchanged at the start, so that it needs no gate."""
        self.enabled = True
        """The hook runs the block. A plain attribute, which torch.compile guards on."""
        self.num_off = 0
        self.regate()

    def ungate(self) -> None:
        """Drop the gate: from now on this is the block alone, with its published start."""
        self.alpha = None

    def regate(self) -> None:
        """Take the gate back, closed: for tensors that have one."""
        like = next((p for p in self.block.parameters() if p.is_floating_point()), torch.empty(0))
        self.alpha = nn.Parameter(torch.zeros(1, dtype=like.dtype, device=like.device))

    def switch(self, on: bool) -> None:
        """Switch off, or on again; it is on when it was switched on as often as off."""
        self.num_off += -1 if on else 1
        self.enabled = self.num_off == 0

    def forward(self, x: Tensor, output: Tensor | None = None) -> Tensor:
        if self.position.combine is not None:
            return self._combine(self.position.combine, x, x if output is None else output)
        if self.adapter is None:
            return self._mix(x)
        return self.adapter.run(self._mix, x)

    def _mix(self, x: Tensor) -> Tensor:
        if self.alpha is None:
            return self.block(x)
        a = self.alpha.to(x.dtype)  # uncast, a float32 gate turns a bfloat16 map into float32
        if self.gated:
            gate: Tensor = self.block.gate(x)  # type: ignore[operator]
            return x * (1 + a * (gate.to(x.dtype) - 1))
        # a * y - a * x, not a * (y - x): in float16 the difference of two finite maps can overflow,
        # and 0 * inf is nan
        return x + (a * self.block(x).to(x.dtype) - a * x)

    def _combine(self, combine: Combine, x: Tensor, map: Tensor) -> Tensor:
        y = self.block(x) if self.adapter is None else self.adapter.run(self.block, x)
        return combine(
            map, y.to(map.dtype), None if self.alpha is None else self.alpha.to(map.dtype)
        )

    def __getstate__(self) -> dict[str, Any]:
        # nobody would switch a copy on again
        return {**self.__dict__, "enabled": True, "num_off": 0}

    def extra_repr(self) -> str:
        return "" if self.alpha is not None else f"start={'itself' if self.neutral else 'paper'}"


class PatchTree(nn.Module):
    """A node of the tree that mirrors the targets' paths.

    Its forward is the identity, so that a root nn.Sequential, which runs all its children, may hold
    one.
    """

    def forward(self, x: Any) -> Any:
        return x


class PatchHook(TvcHook):
    """What makes a target run a patch: a picklable forward hook or pre-hook, as the position says.

    Where the target's input is kept it is both: the input is copied before the target runs, which
    may overwrite it in place.
    """

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        self.position = patch.position
        self.input: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, *output: Any) -> Any:
        if not self.patch.enabled:
            return None
        if not self.position.runs_after:
            return (self.patch(args[0]), *args[1:])
        if not self.position.keeps_input:
            return self.patch(output[0])
        if not output:
            self.input = args[0].clone()
            return None
        x, self.input = self.input, None
        return self.patch(x, output[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "input": None}  # left there where a forward pass ended early


def attach(network: nn.Module, path: str, name: str, patch: Patch) -> str:
    """Insert a patch at a target, and return the path where it lives.

    Args:
        network: the root.
        path: dotted path of the target.
        name: wanted last part of the patch's path. Where the target has a child of that name, or a
            patch, a number follows.
        patch: the patch; its position says which hooks it needs.
    """
    target = network.get_submodule(path)
    node, node_path = _container(network)
    for part in path.split("."):
        if part not in node._modules:
            node.add_module(part, PatchTree())
        child = node._modules[part]
        assert child is not None
        node, node_path = child, f"{node_path}.{part}"
    leaf = free_name(name, target, node._modules)
    node.add_module(leaf, patch)
    hook = PatchHook(patch)
    if patch.position.runs_before:
        target.register_forward_pre_hook(hook)
    if patch.position.runs_after:
        target.register_forward_hook(hook)
    return f"{node_path}.{leaf}"


def free_name(name: str, target: nn.Module, taken: Container[str]) -> str:
    """Return a name for a patch at a target, with a number where the target has such a child, or
    the name is taken.
    """
    number, leaf, empty = 1, name, PatchTree()
    # an attribute of nn.Module such as `half`
    while leaf in target._modules or leaf in taken or hasattr(empty, leaf):
        number += 1
        leaf = f"{name}_{number}"
    return leaf


def detach(network: nn.Module, home: str) -> None:
    """Take a patch out: its hooks, its module, and the nodes of the tree that are empty then."""
    patch = network.get_submodule(home)
    for module in network.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(hook, PatchHook) and hook.patch is patch:
                    del hooks[number]
    while home:
        home, _, leaf = home.rpartition(".")
        node = network.get_submodule(home)
        del node._modules[leaf]
        if node._modules or not isinstance(node, PatchTree):
            break


def restore_module(network: nn.Module, path: str, original: nn.Module) -> None:
    """Put a replaced module back, with the device, type, mode and hooks that its replacement has
    now.
    """
    replacement = network.get_submodule(path)
    tensors = (*replacement.parameters(), *replacement.buffers(), *network.parameters())
    if (
        like := next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    ) is not None:
        original.to(device=like.device, dtype=like.dtype)
    original.train(network.training)
    for found, wanted in (
        (replacement._forward_pre_hooks, original._forward_pre_hooks),
        (replacement._forward_hooks, original._forward_hooks),
    ):
        wanted.update(
            {number: hook for number, hook in found.items() if not isinstance(hook, PatchHook)}
        )
    set_module(network, path, original)


def _container(network: nn.Module) -> tuple[nn.Module, str]:
    for name in CONTAINERS:
        child = network._modules.get(name)
        if isinstance(child, PatchTree):
            return child, name
        if not hasattr(network, name):
            tree = PatchTree()
            network.add_module(name, tree)
            return tree, name
    raise AssertionError(f"the network has children of both names {CONTAINERS}")


def installed_patches(network: nn.Module) -> Iterator[tuple[str, Patch]]:
    """Yield (target's path, patch) for every patch that runs in a network, in order of the
    targets.
    """
    for path, module in network.named_modules():
        for hook in dict.fromkeys(
            (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        ):
            if isinstance(hook, PatchHook):
                yield path, hook.patch


@contextmanager
def rollback_on_error(network: nn.Module) -> Iterator[None]:
    """Put classes, attributes, children, parameters, hooks and gradient flags back, if what runs
    inside raises.
    """
    modules = list(network.modules())
    classes = [(module, type(module)) for module in modules]
    kept: list[tuple[Any, dict[Any, Any]]] = [
        (registry, dict(registry))
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


def add_child(module: nn.Module, name: str, child: nn.Module) -> None:
    """Give a module a child under a name that is free."""
    module.add_module(name, child)


def set_module(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at a dotted path, which must exist."""
    parent_path, _, name = path.rpartition(".")
    parent = network.get_submodule(parent_path)
    assert parent._modules.get(name) is not None, path
    parent._modules[name] = module
