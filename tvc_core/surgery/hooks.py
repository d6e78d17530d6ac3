"""Which hooks on a network's modules are tvc's own, and how they move to another module."""

from __future__ import annotations

from torch import nn

__all__ = ["TvcHook", "carry_hooks"]


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
