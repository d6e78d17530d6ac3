"""The same random numbers at every call of a check; afterwards the state is its owner's again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["torch_seed"]


@contextmanager
def torch_seed(seed: int | None) -> Iterator[None]:
    """Seed torch's own generator of the CPU, from which foreign code draws in its own ways, and put
    its state back. (`weights.seeded` gives a build of ours a generator of its thread.)

    Args:
        seed: None leaves the generator as it is, and moved on.
    """
    # torch.manual_seed also seeds other devices, whose states are not put back; and where CUDA has
    # not begun, it formats the stack for each of them, which takes a millisecond inside pytest
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield
