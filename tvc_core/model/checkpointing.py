"""Gradient checkpointing by stage: activations are computed again in the backward pass instead of
being kept.

Chen et al. 2016, arXiv:1604.06174. Recomputing would move the running statistics of normalizations
a second time, so the second pass works on copies of the buffers of a stage and of the blocks
inserted in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..surgery.patches import installed_patches

__all__ = ["Checkpointed", "CheckpointedRuns", "set_checkpointing"]


class Checkpointed:
    """A picklable stand-in for a module's `forward` that keeps no activations while gradients are
    recorded.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward."""
        return _recomputed(type(self.module).forward, [self.module], self.module, *args, **kwargs)


class CheckpointedRuns:
    """A picklable stand-in for the `forward` of an nn.Sequential that keeps no activations inside
    runs of its layers.

    So a stage that is no module, but some layers of a long sequence (VGG's), is checkpointed as a
    whole.
    """

    def __init__(self, module: nn.Sequential) -> None:
        self.module = module
        self.runs: dict[str, tuple[str, ...]] = {}
        """Names of the children of each run, by its first."""

    def __call__(self, x: Any) -> Any:
        """Run the children in order."""
        done: tuple[str, ...] = ()
        for name, child in self.module._modules.items():
            if name in self.runs:
                done = self.runs[name]
                layers = [self.module.get_submodule(other) for other in done]
                x = _recomputed(_run, layers, layers, x)
            elif name not in done:
                assert child is not None
                x = child(x)
        return x


def _run(layers: Iterable[nn.Module], x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def _recomputed(
    function: Callable[..., Any], modules: list[nn.Module], *args: Any, **kwargs: Any
) -> Any:
    """Call a function that runs some modules; they keep no activations while gradients are
    recorded.

    Where nothing needs a gradient, as in a frozen stem, nothing would be kept anyway, but
    checkpointing keeps the input.
    """
    if not torch.is_grad_enabled() or not _needs_gradients(modules, (*args, *kwargs.values())):
        return function(*args, **kwargs)
    # a compiled second pass writes no buffers, nor what a parallel patch keeps for the end
    if torch.compiler.is_compiling():
        if any(
            patch.position.keeps_input
            for module in modules
            for _, patch in installed_patches(module)
        ):
            return function(*args, **kwargs)
        return checkpoint(function, *args, use_reentrant=False, **kwargs)
    return checkpoint(
        function,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _spare_buffers(modules)),
        **kwargs,
    )


def _needs_gradients(modules: list[nn.Module], given: tuple[Any, ...]) -> bool:
    tensors = (tensor for tensor in given if isinstance(tensor, Tensor))
    parameters = (
        parameter
        for module in _all_modules(modules)
        for parameter in module.parameters(recurse=False)
    )
    return any(tensor.requires_grad for tensor in (*tensors, *parameters))


def _all_modules(roots: list[nn.Module]) -> list[nn.Module]:
    """Return modules with all that they contain, and the blocks that their hooks run."""
    inserted = [
        module
        for root in roots
        for _, patch in installed_patches(root)
        for module in patch.modules()
    ]
    return [*(module for root in roots for module in root.modules()), *inserted]


@contextmanager
def _spare_buffers(roots: list[nn.Module]) -> Iterator[None]:
    kept = [(module, dict(module._buffers)) for module in _all_modules(roots) if module._buffers]
    try:
        for module, buffers in kept:
            for name, buffer in buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)


def set_checkpointing(network: nn.Module, paths: Iterable[str], enable: bool) -> None:
    """Switch checkpointing of one part on or off. Names, keys and hooks stay.

    A module with children is checkpointed alone. Layers of one nn.Sequential that follow each other
    are checkpointed together. A layer alone needs its input for the backward pass either way, so it
    is left out; so is one in front of a run that overwrites its input in place, since the input is
    what the second pass starts from.

    Args:
        network: the root.
        paths: of the part's modules, in order of execution; names that are no modules are passed
            over.
        enable: on or off.
    """
    modules = dict(network.named_modules())
    single: list[str] = []
    for path in paths:
        if path not in modules:
            continue
        if modules[path]._modules:
            _switch(modules[path], Checkpointed(modules[path]) if enable else None)
        else:
            single.append(path)
    for parent, run in _runs(modules, single):
        forward = parent.__dict__.get("forward")
        if not isinstance(forward, CheckpointedRuns):
            forward = CheckpointedRuns(parent)
        forward.runs.pop(run[0], None)
        if enable:
            forward.runs[run[0]] = run
        _switch(parent, forward if forward.runs else None)


def _switch(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    module.__dict__.pop("forward", None)
    if forward is not None:
        module.__dict__["forward"] = forward


def _runs(
    modules: dict[str, nn.Module], single: list[str]
) -> Iterator[tuple[nn.Sequential, tuple[str, ...]]]:
    """Yield (parent, names of children) for layers that follow each other in an nn.Sequential."""
    for parent_path, paths in groupby(single, key=lambda path: path.rpartition(".")[0]):
        parent = modules[parent_path]
        if (
            not parent_path
            or not isinstance(parent, nn.Sequential)
            or type(parent).forward is not nn.Sequential.forward
        ):
            continue
        order = list(parent._modules)
        names = [path.rpartition(".")[2] for path in paths]
        for _, group in groupby(
            enumerate(names), key=lambda entry: order.index(entry[1]) - entry[0]
        ):
            run = [name for _, name in group]
            while run and getattr(parent._modules[run[0]], "inplace", False):
                run.pop(0)
            if len(run) > 1:
                yield parent, tuple(run)
