"""Which hooks on a network's modules are tvc's own, how they move to another module, and whether
anyone waits for a module to be called.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as _module

__all__ = ["TvcHook", "carry_hooks", "is_watched"]


class TvcHook:
    """Base of the hooks that tvc puts on a network's modules: they belong to a place in the
    network. Where tvc puts another module there, they move on to it, and no one else's do.
    """


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let a module run the hooks that tvc has put on the one whose place it takes, in their
    order.
    """
    for pre in old._forward_pre_hooks.values():
        if isinstance(pre, TvcHook):
            new.register_forward_pre_hook(pre)
    for post in old._forward_hooks.values():
        if isinstance(post, TvcHook):
            new.register_forward_hook(post)


def is_watched(module: nn.Module) -> bool:
    """Return whether calling a module does more than its methods do: it has hooks, or a tool has
    assigned its forward (offloading) or compiled it.

    torch.compile traces what runs without it.
    """
    if torch.compiler.is_compiling():
        return False
    return (
        "forward" in module.__dict__
        or module.__dict__.get("_compiled_call_impl") is not None
        or bool(
            module._forward_pre_hooks
            or module._forward_hooks
            or module._backward_pre_hooks
            or module._backward_hooks
            or _module._global_forward_pre_hooks
            or _module._global_forward_hooks
            or _module._global_backward_pre_hooks
            or _module._global_backward_hooks
        )
    )
