"""The build arguments: what `from_backbone`, `from_torchvision` and `from_module` take alike.

A new one is three edits:

1. its name and the type that may be given, in `BuildArguments` here, where type checkers and
   editors read it;
2. a field of `Recipe`, with its default, its rule and its documentation;
3. the code that acts on it, such as `assemble`.

Signatures, `help()`, the YAML form, its reference page and every check follow from these.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypedDict, TypeVar

from ..advice import words
from ..errors import RecipeError, what_there_is
from .schema import Patches, Recipe, Weights

__all__ = ["BuildArguments", "ModuleArguments", "changed", "recipe_of", "takes"]

F = TypeVar("F", bound=Callable[..., Any])
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


class ModuleArguments(TypedDict, total=False):
    """What `from_module` takes besides the description of the network."""

    patches: Patches | None
    num_classes: int | None
    dropout: float | None
    freeze_backbone: bool | Mapping[str, Any]
    unfreeze_stages: Sequence[int | str] | int | str | None
    grad_checkpointing: bool | Sequence[int | str]
    seed: int | None
    class_names: Sequence[str] | None
    hidden: Sequence[int] | int | None
    activation: str | None
    heads: Mapping[str, int | Sequence[str] | Mapping[str, Any]] | None
    in_channels: int | None
    in_channels_policy: str | Sequence[str | int] | None


class BuildArguments(ModuleArguments, total=False):
    """What `from_backbone` and `from_torchvision` take besides name and weights."""

    options: Mapping[str, Any] | None
    stages: int | str | Sequence[int | str] | None
    image_size: int | Sequence[int] | None


_NAMES: dict[str, list[str]] = {}
"""All arguments of each function. Its signature says less where a subclass or a tool wraps it."""


def takes(arguments: type) -> Callable[[F], F]:
    """Give a function of `**arguments` the signature and the documentation of each of them.

    Type checkers read `Unpack[BuildArguments]`; `inspect.signature`, `help()` and editors at run
    time would see only `**arguments`.

    Args:
        arguments: one of the classes above. In the function's docstring the documentation of each
            takes the place of "{arguments}".
    """
    written = arguments.__annotations__
    names = {name: getattr(hint, "__forward_arg__", hint) for name, hint in written.items()}
    defaults = {entry.name: entry.default for entry in fields(Recipe)}
    documented = inspect.getdoc(Recipe) or ""  # python -OO leaves no docstrings
    entries = re.split(r"\n    (?=\w+: )", documented.partition("\nArgs:")[2].partition("\n\n")[0])
    lines = [f"    {entry}" for entry in entries if entry.partition(":")[0] in names]

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        *parameters, keywords = own.parameters.values()
        parameters += [
            keywords.replace(name=name, kind=KEYWORD_ONLY, default=defaults[name], annotation=each)
            for name, each in names.items()
        ]
        _NAMES[function.__name__] = [each.name for each in parameters[1:]]
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        del function.__annotations__[keywords.name]
        function.__annotations__ |= names
        text = inspect.getdoc(function) or ""
        function.__doc__ = text.replace("    {arguments}", "\n".join(lines))
        return function

    return decorate


def recipe_of(
    function: str, backbone: str, weights: Weights, arguments: Mapping[str, Any]
) -> Recipe:
    """Return the recipe for what one of the three functions was given.

    Raises:
        RecipeError: an argument that the function does not take, or a value that is not right.
    """
    _check_names(function, arguments, _NAMES[function])
    return Recipe(backbone=backbone, weights=weights, **arguments)


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with some arguments in the place of its own.

    Raises:
        RecipeError: there is no such argument, or a value is not right.
    """
    if not changes:
        return recipe
    _check_names("build", changes, [entry.name for entry in fields(Recipe) if entry.metadata])
    return replace(recipe, **changes, by_code=recipe.by_code | {*changes})


def _check_names(function: str, arguments: Iterable[str], known: list[str]) -> None:
    for name in arguments:
        if name not in known:
            known_elsewhere = words.ARGUMENTS.get(name)
            hint = f" {known_elsewhere}" if known_elsewhere else what_there_is(name, known)
            raise RecipeError(f"Unknown argument {name!r} of {function}.{hint}")
