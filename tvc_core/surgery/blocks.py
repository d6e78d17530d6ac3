"""Make blocks, and call any factory with the parameters that a user wrote."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..errors import (
    ParameterError,
    PluginError,
    TvcError,
    describe_error,
    did_you_mean,
    foreign,
    join_names,
)
from ..local import OWN
from ..quarantine.process_state import run_preserved
from ..registry import Named
from ..specs import BlockSpec

__all__ = ["call_factory", "create_block", "parameters_of"]


def parameters_of(factory: Callable[..., Any], *, skip: int) -> dict[str, Any] | None:
    """Return a factory's keyword parameters and defaults after the first `skip`; None where it
    takes any keyword.
    """
    parameters = list(inspect.signature(factory).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    named = [p for p in parameters[skip:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: (... if p.default is p.empty else p.default) for p in named}


def call_factory(named: Named[Any], positional: tuple[Any, ...], params: Mapping[str, Any]) -> Any:
    """Call what a spec's factory points at.

    Raises:
        ParameterError: a parameter that it does not take, a missing one, or one that it refuses.
        PluginError: the factory cannot be loaded, or raises SystemExit or the like.
    """
    factory = named.load()
    what = f"{named.spec.kind} {named.qualified!r}"
    takes = parameters_of(factory, skip=len(positional))
    if takes is not None:
        for name in params:
            if name not in takes:
                raise ParameterError(
                    f"{what}: unknown parameter {name!r}.{did_you_mean(name, takes)} It takes: "
                    f"{join_names(takes)}."
                )
        missing = [name for name, default in takes.items() if default is ... and name not in params]
        if missing:
            raise ParameterError(
                f"{what}: the parameter {join_names(missing)} must be given. It takes: "
                f"{join_names(takes)}."
            )
    fault = "" if named.owner == OWN else f"This is a fault of the distribution {named.owner!r}."
    with foreign(PluginError, f"{what} cannot be made", advice=fault):  # SystemExit or worse
        try:
            return run_preserved(factory, *positional, **params)
        except TvcError:
            raise
        except Exception as error:  # by any exception a factory may refuse a parameter
            given = ", ".join(f"{name}={value!r}" for name, value in params.items())
            raise ParameterError(
                f"{what} cannot be made with {given or 'its defaults'}{_tried(named, positional)}: "
                f"{describe_error(error)}"
            ) from error


def _tried(named: Named[Any], positional: tuple[Any, ...]) -> str:
    """Say how a block of the user's own was called: by what it must take."""
    if named.owner != OWN or named.spec.kind != BlockSpec.kind:
        return ""
    return (
        f" (its first argument was {positional[0]}, the number of channels of the map, as every "
        "block gets it; the others are params)"
    )


def create_block(block: Named[BlockSpec], in_channels: int, params: Mapping[str, Any]) -> nn.Module:
    """Make a block for a map with `in_channels` channels.

    Raises:
        ParameterError: `in_channels` is no positive whole number, or a parameter is wrong.
        PluginError: the factory cannot be loaded, or does not return a module.
    """
    if isinstance(in_channels, bool) or not isinstance(in_channels, int) or in_channels < 1:
        raise ParameterError(
            f"block {block.qualified!r}: in_channels is a whole number of at least 1, not "
            f"{in_channels!r}"
        )
    made = block.spec.factory
    if isinstance(made, nn.Module):
        if params:
            raise ParameterError(
                f"block {block.qualified!r} is a module, made already, and takes no params: hand "
                f"over the class {type(made).__name__} instead, or set them on it"
            )
        return made
    module = call_factory(block, (in_channels,), params)
    if not isinstance(module, nn.Module):
        raise PluginError(
            f"block {block.qualified!r}: its factory returned {type(module).__name__}, not an "
            "nn.Module"
        )
    return module
