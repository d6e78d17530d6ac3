"""The state of one call, which belongs to the thread that makes it and never to the model.

A model may be called by any number of threads at once, so nothing that a call needs on its way may
stand on the model, its hooks or its patches. It stands here, in stacks that every thread has of its
own. A stack is cut back to the length that it had, so that nothing of an interrupted call stays.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["collections", "image_of", "images", "running", "switched_off", "within"]

Image = tuple[int, int] | None
"""Height and width of the images of a call [pixels]; None where it got no images."""


class _Stacks(threading.local):
    def __init__(self) -> None:
        self.running: list[Any] = []
        self.images: list[Image] = []
        self.collections: list[Any] = []
        self.switched_off: list[Any] = []


_THREAD = _Stacks()


def running() -> list[Any]:
    """Return the networks whose forward runs in this thread, the outermost first."""
    return _THREAD.running


def images() -> list[Image]:
    """Return the sizes of the images that hybrids in this thread are running on, the outermost
    first.
    """
    return _THREAD.images


def image_of(args: Iterable[Any]) -> Image:
    """Return the size of the images among the arguments of a forward."""
    first = next(iter(args), None)
    if not isinstance(first, torch.Tensor) or first.dim() != 4:
        return None
    return first.shape[2], first.shape[3]


def collections() -> list[Any]:
    """Return the collections of maps that are under way in this thread, the outermost first."""
    return _THREAD.collections


def switched_off() -> list[Any]:
    """Return a token for each `without` that this thread is in; patches know theirs."""
    return _THREAD.switched_off


@contextmanager
def within(stack: list[Any], *entries: Any) -> Iterator[None]:
    """Put entries on one of the stacks while the context lasts."""
    length = len(stack)
    try:
        try:
            stack.extend(entries)
            yield
        finally:
            del stack[length:]
    finally:  # an interrupt may come on the line above
        del stack[length:]
