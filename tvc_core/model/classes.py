"""Make a network a hybrid: the same object, with a class that also is a HybridModel.

A hybrid's class is made at run time from `HybridModel` and the network's own class, so that
`isinstance(model, ResNet)` holds, children and keys are the backbone's, and its forward is used as
it is. `object.__class__` can be assigned since both classes are plain Python ones of one layout.

The network's own forward must never reach a method of the hybrid: timm's models call
`self.forward_features` in it. Where a name of the hybrid's is also one of the network's, forward
runs on a view instead: an object of the network's own class that shares the model's `__dict__`. It
has the same children and parameters, and only its own methods. The view stands in a slot, not in
that `__dict__`: there it would close a circle, and a dropped model would live until the garbage
collector comes.

A pickle or a copy names the network's class, and `_new_hybrid` makes the hybrid's again.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .heads import named_outputs
from .hybrid import HybridModel
from .running import run_compiled, run_forward
from .state import HybridState

__all__ = ["become_hybrid"]

_PUBLIC = frozenset(n for n in vars(HybridModel) if not n.startswith("_")) - set(dir(nn.Module))
"""Names of the hybrid's own, which a network's forward must not reach."""
_CLASSES: weakref.WeakValueDictionary[tuple[int, bool], type[HybridModel]] = (
    weakref.WeakValueDictionary()
)
"""Made classes by the identity of the network's, which lives as long as they do."""


def become_hybrid(network: nn.Module, state: HybridState) -> HybridModel:
    """Turn a network into a hybrid, in place where its names allow it."""
    base = type(network)
    names = {*network.__dict__, *network._modules, *network._parameters, *network._buffers}
    own = (cls for cls in base.__mro__ if cls not in nn.Module.__mro__)
    names |= {name for cls in own for name in vars(cls)}
    # In place if it can be done: then everything that refers to the network (an optimizer, a parent
    # module, a variable of the user's) refers to the hybrid. Where names of the two meet, forward
    # needs a view, and its slot changes the layout of the object, between which Python assigns no
    # `__class__`. Then a new object takes over the attributes, and with them all children and
    # tensors.
    network.__dict__["_hybrid"] = state
    if names & _PUBLIC:
        return _new_hybrid(base, True, network.__dict__)
    network.__class__ = _hybrid_class(base, False)
    assert isinstance(network, HybridModel)
    return network


def _new_hybrid(
    base: type[nn.Module], views: bool, attributes: dict[str, Any] | None = None
) -> HybridModel:
    # Also the constructor of pickles and copies, which hand over the attributes afterwards
    # (`__setstate__`), so nothing is initialized here. The `__dict__` is set by `object`, since
    # nn.Module's own `__setattr__` would look for a parameter or a child in it. The view shares
    # this very dict: whatever is set on the model later is also set on the view.
    cls: Any = _hybrid_class(base, views)
    model: HybridModel = cls.__new__(cls)
    if attributes is not None:
        object.__setattr__(model, "__dict__", attributes)
    if views:
        view = base.__new__(base)
        object.__setattr__(view, "__dict__", model.__dict__)
        cls._hybrid_view.__set__(model, view)
    return model


def _hybrid_class(base: type[nn.Module], views: bool) -> type[HybridModel]:
    # One class for each network class, since pickle, isinstance and the guards of compiled graphs
    # compare classes by identity. The table holds them weakly: a class that a notebook cell defines
    # again can go. An id may then belong to another class, so the base is compared as well.
    found = _CLASSES.get((id(base), views))
    if found is None or found._hybrid_base is not base:  # type: ignore[attr-defined]
        found = _CLASSES[id(base), views] = _make_class(base, views)
    return found


def _make_class(base: type[nn.Module], views: bool) -> type[HybridModel]:
    body: dict[str, Any] = {
        "__module__": HybridModel.__module__,
        "__doc__": HybridModel.__doc__,
        "_hybrid_base": base,
        "forward": _forward_of(base, views),
        "__setattr__": _set_attribute,
        "__reduce_ex__": _reduce_ex,
    }
    if views:
        body["__slots__"] = ("_hybrid_view",)
    return type(f"Hybrid{base.__name__}", (HybridModel, base), body)


def _set_attribute(self: HybridModel, name: str, value: Any) -> None:
    base: type[nn.Module] = type(self)._hybrid_base  # type: ignore[attr-defined]
    if name == "forward" and getattr(value, "__func__", None) is base.forward:
        # accelerate's unwrap_model follows `__wrapped__` down to the network's own forward; the
        # hybrid's runs it, and its patches stay in their model
        self.__dict__.pop("forward", None)
    else:
        base.__setattr__(self, name, value)


def _reduce_ex(self: HybridModel, protocol: Any) -> Any:
    reduced: Any = nn.Module.__reduce_ex__(self, max(int(protocol), 2))
    _, _, state, *rest = reduced
    if isinstance(state, tuple):  # (attributes, slots): the slot is filled again by _new_hybrid
        state = state[0]
    views = hasattr(type(self), "_hybrid_view")
    return (_new_hybrid, (type(self)._hybrid_base, views), state, *rest)  # type: ignore[attr-defined]


def _forward_of(base: type[nn.Module], views: bool) -> Callable[..., Any]:
    """Return the forward of a hybrid's class: the base's, run on the model or on its view."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = functools.partial(base.forward, self._hybrid_view if views else self)
        if torch.compiler.is_compiling():
            return named_outputs(self._hybrid, run_compiled(bound, args, kwargs))
        return named_outputs(self._hybrid, run_forward(self, bound, args, kwargs))

    # what reads a signature (torch.export, torch.fx, IDEs) finds the network's own
    forward.__wrapped__ = base.forward  # type: ignore[attr-defined]
    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
    # Dynamo counts compilations by code object: those of unlike networks should not count together
    forward.__code__ = forward.__code__.replace(co_name=f"forward_of_{base.__name__}")
    forward.__qualname__, forward.__doc__ = f"{base.__name__}.forward", base.forward.__doc__
    return forward
