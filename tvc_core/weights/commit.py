"""Change a model, all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..surgery.patches import set_module
from .draft import Place

__all__ = ["Transaction"]


class Transaction:
    """Changes that are undone unless `done` is called: on an error, or an interrupt at any line.

    What undoes a change is noted before the change is made; doing it twice, or without the change,
    does no harm. Two nested `finally` undo, the second for an interrupt in the first.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def done(self) -> None:
        """Keep the changes."""
        self._undo = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._rollback()
        finally:
            self._rollback()

    def _rollback(self) -> None:
        # From the last change to the first, and each is taken off the list only after it was
        # undone. So an interrupt in the middle leaves the rest on the list, for the second
        # `finally`, and at most one change is undone twice, which does no harm.
        while self._undo:
            with suppress(Exception), torch.no_grad():  # the others are undone all the same
                self._undo[-1]()
            self._undo.pop()

    def write(self, place: Place, value: Tensor) -> None:
        """Give a tensor of the model new values: in place, so that optimizers and aliases have
        them, or, where it has no values (meta) or another shape, by a new tensor.
        """
        old = place.tensor
        if is_lazy(old):
            self._materialize(old, value)
        elif old.is_meta or old.shape != value.shape:
            self._replace(place, old, value)
            return
        else:
            kept = old.detach().clone()
            self._undo.append(lambda: old.detach().copy_(kept))
        with torch.no_grad():
            old.copy_(value)

    def _materialize(self, old: Any, value: Tensor) -> None:
        kind, data = type(old), old.data

        def undo() -> None:
            old.data = data
            old.__class__ = kind

        self._undo.append(undo)
        old.materialize(value.shape)

    def _replace(self, place: Place, old: Tensor, value: Tensor) -> None:
        store: dict[str, Any] = (
            place.module._parameters if place.is_parameter else place.module._buffers
        )
        self._undo.append(lambda: store.__setitem__(place.name, old))
        fresh = value.detach().clone()
        store[place.name] = (
            nn.Parameter(fresh, requires_grad=old.requires_grad) if place.is_parameter else fresh
        )

    def alias(self, place: Place, other: Place) -> None:
        """Let a tensor be the one that stands at another place."""
        store: dict[str, Any] = (
            place.module._parameters if place.is_parameter else place.module._buffers
        )
        old = store[place.name]
        self._undo.append(lambda: store.__setitem__(place.name, old))
        store[place.name] = other.tensor

    def set_child(self, module: nn.Module, name: str, child: nn.Module) -> None:
        """Exchange a child module."""
        old = module.get_submodule(name)
        self.call(lambda: set_module(module, name, child), lambda: set_module(module, name, old))

    def set_field(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of a module, past its own `__setattr__`."""
        fields, absent = module.__dict__, object()
        old = fields.get(name, absent)

        def undo() -> None:
            fields.pop(name, None) if old is absent else fields.__setitem__(name, old)

        self._undo.append(undo)
        fields[name] = value

    def call(self, do: Callable[[], object], undo: Callable[[], object]) -> None:
        """Make another change."""
        self._undo.append(undo)
        do()
