"""Patches under torch.fx, which runs a network on values that stand for tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["run_traced"]


def run_traced(module: nn.Module, *maps: Any) -> Any:
    """Run a patch on traced values: step by step where its code can be traced, else as one step.

    What asks a value for its shape to decide something (a list of tokens for its grid, a block for
    the number of axes) has no answer before there is an image. As one step the patch runs as it is,
    which every tool that does not look into blocks takes.

    Args:
        module: the patch, or what another tool has wrapped around it.
        maps: what it gets.
    """
    tracer: Any = next(each for each in maps if isinstance(each, torch.fx.Proxy)).tracer
    before = set(tracer.graph.nodes)
    stack, calls = dict(tracer.module_stack), dict(tracer.num_calls)
    try:
        return module(*maps)
    except Exception:  # a block's code may raise anything for a value that is no tensor
        pass
    # A trace that failed leaves steps that no one reads, and the tracer in the middle of a module.
    # Parameters stay, since the tracer keeps what it has read of them for the next to ask.
    for node in reversed(tracer.graph.nodes):
        if node not in before and node.op != "get_attr":
            tracer.graph.erase_node(node)
    for own, kept in ((tracer.module_stack, stack), (tracer.num_calls, calls)):
        own.clear()
        own.update(kept)
    # the tracer knows what is one step by the module that its class is from; an attribute hides it
    module.__dict__["__module__"] = "torch.nn"
    try:
        return module(*maps)
    finally:
        module.__dict__.pop("__module__", None)
