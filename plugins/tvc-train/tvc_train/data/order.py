"""Everything random as a function of numbers that say where in a run it is, without any state.

What an image looks like depends on (seed, epoch, image), the order on (seed, epoch), what mixes a
batch on (seed, epoch, step, rank). So a run can go on at any step, whatever the number of workers,
and the step number is all that has to be kept.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

__all__ = ["epoch_order", "own_generator", "seed_of", "shares"]

NDArray = np.ndarray


def seed_of(purpose: str, *numbers: int) -> int:
    """Return 64 bits that depend on all of the arguments."""
    key = purpose.encode()[:16]
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8, person=key).digest(), "little")


def epoch_order(num: int, *, seed: int, epoch: int, weights: NDArray | None = None) -> NDArray:
    """Return the order of an epoch as int64 [num]: each image once, or drawn by weight.

    Args:
        num: images.
        seed: of the run.
        epoch: counted from 0 over the whole run.
        weights: float64 [num], how often each image is drawn compared with the others; images are
            then drawn with replacement.
    """
    # raw words of Philox are the same in every version of numpy; its permutations need not be
    raw = np.random.Philox(seed_of("order", seed, epoch)).random_raw(num)
    if weights is None:
        return np.argsort(raw, kind="stable")
    limits = np.cumsum(weights, dtype=np.float64)
    drawn = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53 * limits[-1]
    return np.minimum(np.searchsorted(limits, drawn, side="right"), num - 1)


def shares(num: int, parts: int) -> list[tuple[int, int]]:
    """Return where each of `parts` parts of `num` begins and ends; their sizes differ by one at
    most, and the larger ones come first.
    """
    size, more = divmod(num, parts)
    ends = np.cumsum([size + (part < more) for part in range(parts)])
    return [(int(end) - size - (part < more), int(end)) for part, end in enumerate(ends)]


@contextmanager
def own_generator() -> Iterator[torch.Generator]:
    """Lend torch's default generator, which torchvision's transforms draw from, and put it back as
    it was. Seeding it this way takes 2 microseconds; `torch.manual_seed` takes 170, since it seeds
    every device. What is drawn does not depend on torch's default device and type of numbers.
    """
    generator = torch.default_generator
    state, dtype = generator.get_state(), torch.get_default_dtype()
    is_here = torch.get_default_device().type == "cpu"
    try:
        torch.set_default_dtype(torch.float32)
        with nullcontext() if is_here else torch.device("cpu"):
            yield generator
    finally:
        torch.set_default_dtype(dtype)
        generator.set_state(state)
