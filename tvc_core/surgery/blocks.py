"""Make blocks, and call any factory with the parameters that a user wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..advice.factories import parameters_of
from ..errors import (
    ParameterError,
    PluginError,
    TvcError,
    describe_error,
    did_you_mean,
    foreign,
    join_names,
)
from ..quarantine.process_state import run_preserved
from ..registry import Named
from ..specs import OWN, BlockSpec

__all__ = ["call_factory", "create_block", "create_for_target", "create_in_place_of"]


def call_factory(
    named: Named[Any],
    positional: tuple[Any, ...],
    params: Mapping[str, Any],
    entry: str = "factory",
) -> Any:
    """Call what a spec's factory points at, or what another entry of it does.

    Raises:
        ParameterError: a parameter that it does not take, a missing one, or one that it refuses.
        PluginError: the factory cannot be loaded, or raises SystemExit or the like.
    """
    # Names of parameters are compared with the factory's signature first, since the TypeError of a
    # call does not tell whose it is: a misspelt name of the user's, or a bug some calls further
    # down in the plugin. After that, whatever the factory raises is taken for its way to refuse a
    # value (the user's), and SystemExit and the like for a fault of the distribution.
    factory = named.load(entry)
    what = f"{named.spec.kind} {named.qualified!r}"
    takes = parameters_of(factory, skip=len(positional))
    if takes is not None:
        for name in params:
            if name not in takes:
                error = ParameterError(
                    f"{what}: unknown parameter {name!r}.{did_you_mean(name, takes)} It takes: "
                    f"{join_names(takes)}."
                )
                error.below = ("params", name)
                raise error
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
    return _module(block, call_factory(block, (in_channels,), params))


def create_in_place_of(
    block: Named[BlockSpec], original: nn.Module | None, in_channels: int, params: Mapping[str, Any]
) -> tuple[nn.Module, bool]:
    """Make a block that keeps weights of the module whose place it takes, where its spec has a way
    to; else one with a start of its own. Return it, and whether it keeps any.

    Raises:
        ParameterError: a parameter is wrong, or the block refuses the module.
        PluginError: the factory cannot be loaded, or does not return a module.
    """
    if original is not None and block.spec.in_place_of:
        made = call_factory(block, (original, in_channels), params, "in_place_of")
        if made is not None:
            return _module(block, made), True
    return create_block(block, in_channels, params), False


def create_for_target(
    block: Named[BlockSpec], target: Any, in_channels: int, params: Mapping[str, Any]
) -> nn.Module:
    """Make a block for the place where it is inserted, if its spec has a way to; else one that
    knows the width alone.

    Raises:
        ParameterError: a parameter is wrong, or the block refuses the target.
        PluginError: the factory cannot be loaded, or does not return a module.
    """
    if block.spec.for_target:
        made = call_factory(block, (target, in_channels), params, "for_target")
        if made is not None:
            return _module(block, made)
    return create_block(block, in_channels, params)


def _module(block: Named[BlockSpec], made: Any) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise PluginError(
            f"block {block.qualified!r}: its factory returned {type(made).__name__}, not an "
            "nn.Module"
        )
    return made
