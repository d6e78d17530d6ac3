"""Leave the random numbers of the process to others during a look."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from tvc_core import own_randomness

__all__ = ["random_state_kept"]


@contextmanager
def random_state_kept(*, timed: bool = False) -> Iterator[None]:
    """Draw random numbers inside that no one else misses.

    Args:
        timed: what runs inside is timed, and draws nothing that would be worth a mode, which slows
            it down. Python's own numbers stay used up where other threads are about.
    """
    # Winding back is right if no one else has drawn in between. Otherwise two threads would get the
    # same numbers, so this thread draws from a generator of its own.
    if threading.active_count() > 1:
        with nullcontext() if timed else own_randomness():
            yield
        return
    before = random.getstate()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(before)
