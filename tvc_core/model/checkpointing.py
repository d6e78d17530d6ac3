"""Gradient checkpointing by stage: activations are computed again in the backward pass instead of
being kept.

Chen et al. 2016, arXiv:1604.06174. Recomputing would move the running statistics of normalizations
a second time, so the second pass works on copies of the buffers of a stage and of the blocks
inserted in it.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..surgery import calls
from ..surgery.patches import installed_patches

__all__ = ["Checkpointed", "CheckpointedRuns", "set_checkpointing"]


class Checkpointed:
    """A picklable stand-in for a module's `forward` that keeps no activations while gradients are
    recorded.

    It runs the forward that the module had before: its class's, or one that was assigned to it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.inner: Callable[..., Any] | None = module.__dict__.get("forward")
        self.enabled = True
        """Another tool may hold this object for the module's forward, and goes on to call it."""
        # no cycle: a model that is dropped is freed at once
        self._module = weakref.ref(module)

    @property
    def module(self) -> nn.Module:
        """The module whose forward this is."""
        found = self._module()
        assert found is not None
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward."""
        module = self.module
        if not self.enabled:
            return self._run(module, *args, **kwargs)
        return _recomputed(self._run, [module], module, *args, **kwargs)

    def _run(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.inner is not None:
            return self.inner(*args, **kwargs)
        return type(module).forward(module, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = type(self)(copy.deepcopy(self.module, memo))
        copied.__dict__.update(self._state(copy.deepcopy(self.inner, memo)))
        return copied

    def __reduce__(self) -> Any:
        return type(self), (self.module,), self._state(self.inner)

    def _state(self, inner: Any) -> dict[str, Any]:
        return {"inner": inner, "enabled": self.enabled}


class CheckpointedRuns(Checkpointed):
    """The same for an nn.Sequential of which runs of layers keep no activations inside.

    So a stage that is not a module, but some layers of a long sequence (VGG's), is checkpointed as
    a whole.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.runs: dict[str, tuple[str, ...]] = {}
        """Names of the children of each run, by its first."""

    def __call__(self, x: Any) -> Any:  # type: ignore[override]
        """Run the children in order."""
        if not self.enabled or self.inner is not None:
            return super().__call__(x)
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

    def _state(self, inner: Any) -> dict[str, Any]:
        return {**super()._state(inner), "runs": dict(self.runs)}


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
    # The backward pass runs the modules a second time, to get the activations that were not kept.
    # Two things would go wrong by themselves. Statistics would move twice, so the second pass works
    # on copies of the buffers. And it runs in a thread of autograd's, where the stacks of `calls`
    # are empty: a patch would warn that it runs outside of its model, and a block on tokens would
    # not know the image. So what this thread has on its stacks now is put there again.
    # a compiled second pass writes no buffers, nor what a parallel patch keeps for the end
    if torch.compiler.is_compiling():
        if any(
            patch.position.keeps_input
            for module in modules
            for _, patch in installed_patches(module)
        ):
            return function(*args, **kwargs)
        return checkpoint(function, *args, use_reentrant=False, **kwargs)
    # what this thread has of its own now, the thread of the backward pass must have again
    stacks = (calls.running(), calls.switched_off(), calls.images())
    own = [list(stack) for stack in stacks]
    return checkpoint(
        function,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _second_pass(modules, own)),
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
def _second_pass(roots: list[nn.Module], own: list[list[Any]]) -> Iterator[None]:
    with ExitStack() as known:
        stacks = (calls.running(), calls.switched_off(), calls.images())
        for stack, entries in zip(stacks, own, strict=True):
            known.enter_context(calls.within(stack, *entries))
        known.enter_context(_spare_buffers(roots))
        yield


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
    is left out; so is one before a run that overwrites its input in place, since the input is
    what the second pass starts from.

    Args:
        network: the root.
        paths: of the part's modules, in order of execution; names that are not modules are passed
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
        forward = _ours(parent.__dict__.get("forward"))
        if not isinstance(forward, CheckpointedRuns):
            if not enable:
                continue
            forward = CheckpointedRuns(parent)
            _switch(parent, forward)
        forward.runs.pop(run[0], None)
        if enable:
            forward.runs[run[0]] = run
        if not forward.runs:
            _switch(parent, None)


def _switch(module: nn.Module, forward: Checkpointed | None) -> None:
    """Put a forward of ours in the place of the one that is there, or take it away again.

    One that the user assigned stays: inside ours, or around it, where it is only switched off.
    """
    # Others also assign `forward`: accelerate and torch.amp wrap the one that they find. So there
    # are four cases: nothing is assigned; ours is; a foreign one is, which ours then holds inside;
    # or a foreign one has been put around ours, which is found in its closure and can only be
    # switched off there.
    found = module.__dict__.get("forward")
    ours = _ours(found)
    if ours is not None:
        ours.enabled = forward is not None
        if forward is None and found is ours:
            inner = module.__dict__.pop("forward").inner
            if inner is not None:
                module.__dict__["forward"] = inner
    elif forward is not None:
        module.__dict__["forward"] = forward


def _ours(forward: object) -> Checkpointed | None:
    """Return the stand-in that a forward is, or that it holds, as an assigned function does."""
    if isinstance(forward, Checkpointed):
        return forward
    cells = getattr(forward, "__closure__", None) or ()
    held = (cell.cell_contents for cell in cells)
    return next((each for each in held if isinstance(each, Checkpointed)), None)


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
