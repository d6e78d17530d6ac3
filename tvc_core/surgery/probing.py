"""Run a network for a look that leaves no trace, in it or in the process.

Nothing of the process is borrowed, since another thread could see it, or give it back twice: what
has to be other than usual during a look is set for this thread alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _pop_mode,
    _push_mode,
)

from . import calls

__all__ = ["ThreadMode", "own_randomness", "probing", "rewinding", "same_kernels"]


class _SameKernels(TorchFunctionMode):
    """Lets torch's attention compute alike with and without hooks.

    Its fused path, for modules without hooks, rounds otherwise. torch takes it only where no
    function mode is active, and a mode is this thread's own.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def same_kernels() -> Iterator[None]:
    """Let attention compute alike with and without hooks, in this thread."""
    with _SameKernels():
        yield


@contextmanager
def own_randomness() -> Iterator[None]:
    """Draw random numbers in this thread from a new generator, the same each time."""
    mode = _OwnRandomness()
    try:
        try:
            mode.__enter__()
            yield
        finally:
            mode.__exit__()
    finally:  # an interrupt may come in the middle of it
        mode.__exit__()


class ThreadMode(TorchDispatchMode):
    """A mode that touches nothing but this thread's own stack of modes.

    Entered as torch does it, a mode also sets flags of the process, and puts back the values that
    it found. Two threads whose modes overlap leave them set for ever, and torch 2.10 then
    compiles nothing more, without a word.
    """

    def __enter__(self) -> ThreadMode:
        _push_mode(self)
        return self

    def __exit__(self, *_: object) -> None:
        if _get_current_dispatch_mode() is self:
            _pop_mode()


class _OwnRandomness(ThreadMode):
    """Draws what a network draws during a look from a generator of its own.

    So the look leaves the process's generators alone, which other threads may be
    drawing from: winding them back would give two threads the same numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Below autograd every random operator comes by here, also those inside of dropout or a
        # user's own layer. Operators like rand have two overloads, of which one takes a generator;
        # that one is called with ours. Meta tensors have no generator, and need none.
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags:
            func = _with_generator(func)
            # from a look inside of this one, or the caller; some operators take it by position
            given = (*args, kwargs.get("generator"))
            if _takes_generator(func) and not any(isinstance(g, torch.Generator) for g in given):
                tensors = (each for each in args if isinstance(each, torch.Tensor))
                device = next(
                    (t.device for t in tensors), torch.device(kwargs.get("device") or "cpu")
                )
                if device.type != "meta":
                    kwargs["generator"] = self._generator(device)
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(0)
        return self.generators[device]


def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def _with_generator(func: Any) -> Any:
    """Return the overload that takes a generator, of a function that has one beside it (rand)."""
    if _takes_generator(func):
        return func
    name = {"default": "generator"}.get(func._overloadname, f"{func._overloadname}_generator")
    return getattr(func.overloadpacket, name, func)


@contextmanager
def rewinding(devices: list[int] | None = None) -> Iterator[None]:
    """Give random numbers back where no other thread can have drawn: in a process of one."""
    # Winding the generator back gives the numbers that were drawn in between to the next one who
    # draws, which is right if that was this thread and wrong if another has drawn as well: two
    # threads would get the same. So with other threads about, the numbers stay used up.
    if threading.active_count() > 1:
        yield
        return
    with torch.random.fork_rng(devices=devices or []):
        yield


@contextmanager
def probing(*networks: nn.Module) -> Iterator[None]:
    """Run networks in eval mode for a look: afterwards their modes and buffers are as before, and
    so are the random generators.
    """
    # Everything that a forward pass may change is written down first: the modes of the modules, and
    # their buffers, by object and by value (statistics move in place, and some layers put another
    # tensor there). Random numbers come from a generator of this thread's alone, unless there is no
    # other thread that could draw from the common one.
    modules = list(dict.fromkeys(module for network in networks for module in network.modules()))
    modes = [(module, module.training) for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]

    def put_back() -> None:
        for module, mode in modes:
            if module.training != mode:  # to set an attribute of a module takes long
                module.training = mode
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer  # a forward pass may have put another tensor there
            if not _same(buffer, before):
                buffer.copy_(before)

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if any(isinstance(module, _ATTENTION) for module in modules):
            stack.enter_context(same_kernels())
        if threading.active_count() > 1:
            stack.enter_context(own_randomness())
        else:
            stack.enter_context(torch.random.fork_rng(devices=_gpus(modules)))
        stack.enter_context(calls.within(calls.running(), *networks))
        # a compiled pass that failed may have left its image; a look has one of its own, or none
        stack.enter_context(calls.within(calls.images(), None))
        try:
            try:
                for module, mode in modes:
                    if mode:
                        module.training = False
                yield
            finally:
                put_back()
        finally:  # an interrupt may come in the middle of it
            put_back()


_ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def _gpus(modules: list[nn.Module]) -> list[int]:
    if not torch.cuda.is_initialized():
        return []
    parameters = (p for module in modules for p in module.parameters(recurse=False))
    return sorted({p.device.index for p in parameters if p.device.type == "cuda"})


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.is_meta or torch.equal(a, b)
