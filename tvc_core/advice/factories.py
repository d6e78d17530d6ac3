"""What a factory takes, by its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import short_repr

__all__ = ["no_block", "parameters_of"]


def parameters_of(factory: Callable[..., Any], *, skip: int) -> dict[str, Any] | None:
    """Return a factory's keyword parameters and defaults after the first `skip`; None where it
    takes any keyword.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some callables written in C have no signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    named = [p for p in parameters[skip:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: (... if p.default is p.empty else p.default) for p in named}


def no_block(factory: Callable[..., Any]) -> str:
    """Say why a factory cannot be a block's, whose first parameter gets the number of channels; an
    empty string where it can.

    torch's own classes take other numbers there (GroupNorm its groups, ReLU whether it works in
    place) and would silently accept the channels for them. So their first parameter must have
    a name of channels; of other factories only what cannot be a number of channels is refused.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some callables written in C have no signature
        return ""
    # a module that has no __init__ of its own
    bare = getattr(factory.__init__, "__qualname__", "") == "Module.__init__"  # type: ignore[misc]
    if not bare and any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return ""
    first = next((p for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD), None)
    if first is None:
        what = "it takes no argument"
    else:
        known = [each.name for each in parameters if each.name in _CHANNELS]
        torchs = (getattr(factory, "__module__", None) or "").startswith("torch.")
        counts = first.default is first.empty or type(first.default) is int
        if first.name in known or (counts and not known and not torchs):
            return ""
        what = f"here that is {first}"
    write = f"def block(in_channels): return {getattr(factory, '__name__', 'block')}(...)"
    return (
        f"{short_repr(factory)} is no block: a block gets the number of channels as its first "
        f"argument, and {what}. Give a function that makes it: {write}"
    )


_CHANNELS = (
    "in_channels", "channels", "num_channels", "in_features", "num_features", "in_planes",
    "inplanes", "planes", "dim", "in_dim", "embed_dim", "hidden_dim", "d_model",
    "normalized_shape", "num_parameters", "width", "c",
)  # fmt: skip
"""Names under which modules take the width of the map that they get."""
