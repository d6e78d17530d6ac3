"""Draw the random numbers of one thread from a seed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["seeded"]

_DRAWS = {
    getattr(home, name)
    for home, names in (
        (Tensor, "bernoulli_ cauchy_ exponential_ geometric_ log_normal_ normal_ random_ uniform_"),
        (torch, "bernoulli multinomial normal poisson rand randint randn randperm"),
    )
    for name in names.split()
}


class seeded(TorchFunctionMode):  # noqa: N801  read as a verb
    """A context in which what draws random numbers draws them from one generator.

    Other threads draw from torch's generator at the same time, which this thread leaves alone.

    Args:
        seed: where the generator starts.
    """

    # Seeding torch's own generator for the time of a build, and putting it back, would hand the
    # same numbers to every other thread that draws in between, and theirs to the build. A mode sees
    # the calls of this thread only, and each call that draws takes a generator. So do most of
    # torch.nn.init's functions, which such a mode sees whole, not what they call.

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _draws(func) and kwargs.get("generator") is None and _on_cpu(args, kwargs):
            kwargs = {**kwargs, "generator": self.generator}
        return func(*args, **kwargs)


@functools.cache
def _draws(func: Callable[..., Any]) -> bool:
    if func in _DRAWS:
        return True
    if getattr(func, "__module__", None) != torch.nn.init.__name__:
        return False
    return "generator" in inspect.signature(func).parameters


def _on_cpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    first = args[0] if args else kwargs.get("tensor")
    device = first.device if isinstance(first, Tensor) else kwargs.get("device") or "cpu"
    return torch.device(device).type == "cpu"
