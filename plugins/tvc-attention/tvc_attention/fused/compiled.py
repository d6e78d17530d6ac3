"""When loops that numba compiles run, and how: on the CPU, where numba is installed."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_array", "as_number", "compiles", "run"]

LEAST = 1 << 18
"""Size of a map from which loops run [elements]; below, loading them takes longer."""
PARTS = 4
"""Parts of a batch for each thread. Threads take them when they have time, since those of torch
keep processors busy while they wait for more work.
"""


def compiles(x: Tensor, trial: Callable[[torch.dtype], object]) -> bool:
    """Return whether loops take a map that `fuses` takes: large enough and of a type that they
    know, with images enough for the threads, on a machine where a trial of theirs runs.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() >= LEAST
        and 2 * len(x) >= torch.get_num_threads()  # which share images
        and not torch.is_autocast_enabled("cpu")
        and _works(trial, x.dtype)
    )


@functools.cache
def _works(trial: Callable[[torch.dtype], object], dtype: torch.dtype) -> bool:
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            trial(dtype)
        except Exception as error:
            errors.append(error)

    thread = Thread(target=attempt)  # which modes, hooks and devices of the caller do not reach
    thread.start()
    thread.join()
    for error in errors:
        if not (isinstance(error, ModuleNotFoundError) and error.name == "numba"):
            warnings.warn(
                f"numba is installed and cannot be used: {error}. Attention blocks run without it, "
                "and some take twice the time; mend that, or uninstall numba",
                stacklevel=2,
            )
    return not errors


def run(loop: Callable[..., object], count: int, *arguments: Any) -> None:
    """Call a loop as loop(start, stop, *arguments) for parts of a count, which the threads share
    that torch may use.
    """
    threads = min(torch.get_num_threads(), count)
    step = count if threads == 1 else -(-count // (PARTS * threads))
    starts = iter(range(0, count, step))

    def work() -> None:
        for start in starts:
            loop(start, min(start + step, count), *arguments)

    others = []
    with suppress(RuntimeError):  # the interpreter ends, and this thread does all of the work
        for _ in range(1, threads):
            others.append(_pool(threads).submit(work))
    work()
    for other in others:
        other.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="tvc-attention")


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def as_array(x: Tensor) -> Any:
    """Return an array without gaps: for others the loops would be compiled once more."""
    return x.detach().contiguous().numpy()


def as_number(factor: Tensor | None, x: Tensor) -> Any:
    """Return a factor, 0 for None, as a number of a map's type; with one of Python's the loops
    would compute in float64.
    """
    factor = x.new_zeros(()) if factor is None else factor.detach().to(x.dtype).reshape(())
    return factor.numpy()[()]
