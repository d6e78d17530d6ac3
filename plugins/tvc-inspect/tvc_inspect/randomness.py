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
        timed: what runs inside is timed, and may not be slowed down by a mode. With other threads
            about, numbers that it draws stay used up.
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
