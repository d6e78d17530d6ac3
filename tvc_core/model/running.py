"""Run a hybrid's forward: the backbone's own, with what it needs to know around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..surgery import calls
from ..surgery.patches import installed_patches
from .settling import settle
from .state import state_of

__all__ = ["run_forward"]


def run_forward(
    network: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a forward pass of a hybrid, in which its patches know that they are in their model.

    Args:
        network: the hybrid.
        forward: the backbone's own forward, bound.
        args: its arguments.
        kwargs: its keyword arguments.

    Raises:
        PatchError: a patch has no place any more.
    """
    settle(network, state_of(network))
    stack = calls.running()
    length = len(stack)
    try:
        try:
            stack.append(network)
            if any(isinstance(each, torch.fx.Proxy) for each in (*args, *kwargs.values())):
                with _traced_through(network):
                    return forward(*args, **kwargs)
            return forward(*args, **kwargs)
        finally:
            del stack[length:]
    finally:  # an interrupt may come on the line above
        del stack[length:]


@contextmanager
def _traced_through(network: nn.Module) -> Iterator[None]:
    """Let torch.fx trace into patched layers, whose hooks it would not see.

    It takes every module of torch.nn for one step, known by the module that its class is from; an
    attribute of the instance hides that while the trace lasts.
    """
    patched = [network.get_submodule(path) for path, _ in installed_patches(network)]
    marked = [module for module in dict.fromkeys(patched) if "__module__" not in vars(module)]
    try:
        for module in marked:
            module.__dict__["__module__"] = __name__
        yield
    finally:
        for module in marked:
            module.__dict__.pop("__module__", None)
