"""Compute as a recipe says: torch's modes are part of no recipe, so what a script has set of them
around a call decides nothing inside of it. And leave the modes of a model as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import nn

__all__ = ["each_in_own_modes", "modes_kept", "own_modes"]

_T = TypeVar("_T")
_AUTOCAST = ("cpu", "cuda", "mps")


@contextmanager
def own_modes() -> Iterator[None]:
    """Compute with torch's modes as they are when it starts: numbers of 32 bits and tensors on the
    CPU where nothing else is said, gradients, no autocast. A training seeds torch's generator in
    each step, so that is put back as well: or whoever draws values between two trainings would
    draw the same ones each time.
    """
    dtype = torch.get_default_dtype()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with ExitStack() as modes:
        modes.enter_context(torch.random.fork_rng(gpus))
        modes.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards each module is in the mode, training or evaluation, in which it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def each_in_own_modes(items: Iterator[_T]) -> Iterator[_T]:
    """Yield items, each of which is made in `own_modes`, while the caller keeps its modes."""
    while True:
        with own_modes():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
