"""Find the modules that a target means: one by its path, or all that fit a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import nn

from ..errors import StageError, TargetError, did_you_mean, join_names, near_names
from .anatomy import Anatomy
from .inner_blocks import inner_blocks
from .marks import LeftOut
from .patch import PatchTree
from .sites import find_module, has_module, locate

__all__ = ["expand", "is_pattern"]

_STAGE, _TYPE = "stage:", "type:"
_FROM_END = re.compile(r"-[1-9][0-9]{0,3}")

Found = dict[str, nn.Module]
"""Modules by their dotted paths from the root, which itself has the path ""."""


def expand(network: nn.Module, target: str, anatomy: Anatomy, name: str) -> list[str]:
    """Return the paths of the modules that a target means, each once, in order of the network.

    A path means its module. In a pattern, parts of the path may be:

    - a name with `*`, `?` or `[...]`: every child whose name matches
    - `**`: any number of parts, also none
    - `-1`: the last child by order, `-2` the one before it
    - `type:Bottleneck`: every module of this class within, but not those inside another one of them
    - first, `stage:2`: the last path of this stage, whose output is the stage's map. Negative
      numbers count from the end; `stage:*` is each stage, and each must give a module.
    - after it, `stage:2.0` and `stage:2.-1`: the first and the last of the blocks that the stage
      is made of (see `inner_blocks`); a name with `*`: those whose last part matches; `type:Conv2d`
      and `**`: all that is in the stage

    Args:
        network: the network.
        target: what the user wrote.
        anatomy: its stages.
        name: what errors call the network.

    Raises:
        TargetError: the path is not there, or nothing matches the pattern.
    """
    if not is_pattern(target) or has_module(network, target):
        locate(network, target, name=name)
        return [target]
    # Part by part, as a shell expands a path: each part turns the modules found so far into those
    # that it means within them. The first part that gives nothing is the one that the error is
    # about. Stages are not modules of the tree, so `stage:` and the part after it are resolved
    # together, before the rest.
    parts = target.split(".")
    starts: list[Found] = [{"": network}]
    if parts[0].startswith(_STAGE):
        starts = _stages(network, target, anatomy, name)
        parts = parts[2:]
    found: Found = {}
    for start in starts:
        for part in parts:
            within = {
                _join(path, sub): module
                for path, base in start.items()
                for sub, module in _within(base, part)
            }
            if not within:
                raise _nothing(network, target, start, part, name)
            start = within
        found |= start
    found.pop("", None)
    # Shared modules have several paths, and named_modules gives the first of them. All paths are
    # walked here, so that a pattern which fits the second name only also finds the module.
    once: dict[int, str] = {}  # a module with two names would run its patch twice
    for path, module in network.named_modules(remove_duplicate=False):
        if path in found:
            once.setdefault(id(module), path)
    return list(once.values())


def is_pattern(target: str) -> bool:
    """Return whether a target can mean other modules than the one at this path."""
    return any(
        part.startswith((_STAGE, _TYPE))
        or _FROM_END.fullmatch(part)
        or any(letter in part for letter in "*?[")
        for part in target.split(".")
    )


def _within(base: nn.Module, part: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) of what one part of a pattern means in a module."""
    children = _children(base)
    if part in children:
        yield part, children[part]
    elif part == "**":
        yield from _everything(base)
    elif part.startswith(_TYPE):
        yield from _outermost(children, part.removeprefix(_TYPE))
    elif _FROM_END.fullmatch(part):
        yield from list(children.items())[::-1][-int(part) - 1 : -int(part)]
    else:
        yield from (
            (child, module) for child, module in children.items() if fnmatchcase(child, part)
        )


def _everything(base: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield "", base
    for child, module in _children(base).items():
        yield from ((_join(child, path), inner) for path, inner in _everything(module))


def _outermost(modules: Found, type_name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) of a class among modules and what they contain, but not those inside
    another one of them.
    """
    for path, module in modules.items():
        if fnmatchcase(type(module).__name__, type_name):
            yield path, module
        else:
            yield from (
                (_join(path, sub), inner) for sub, inner in _outermost(_children(module), type_name)
            )


def _stages(network: nn.Module, target: str, anatomy: Anatomy, name: str) -> list[Found]:
    """Return for each stage that a target names the modules that its first two parts mean."""
    first, *others = target.split(".")
    number = first.removeprefix(_STAGE)
    try:
        given = (
            range(len(anatomy.stages))
            if number == "*"
            else int(number)
            if re.fullmatch("-?[0-9]{1,4}", number)
            else number
        )
        indices = anatomy.stage_indices(given)
    except StageError as error:
        raise TargetError(
            f"Target not found: {target!r} means no module of {name}: {error}; 'stage:*' is each"
        ) from error
    starts: list[Found] = []
    for index in indices:
        modules = {
            path: module
            for path in anatomy.stages[index]
            if (module := find_module(network, path)) is not None
        }
        blocks = inner_blocks(modules, anatomy.branches)
        start = (
            dict(_in_stage(modules, blocks, others[0]))
            if others
            else dict([list(modules.items())[-1]])
        )
        if not start:
            raise _nothing(
                network,
                target,
                modules,
                others[0],
                name,
                f"among the blocks of stage {index}, {join_names(blocks)}.",
            )
        starts.append(start)
    return starts


def _in_stage(modules: Found, blocks: Found, part: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) of what the part after `stage:2` means."""
    if re.fullmatch("[0-9]{1,4}", part) or _FROM_END.fullmatch(part):
        if -len(blocks) <= int(part) < len(blocks):
            yield list(blocks.items())[int(part)]
    elif part == "**":
        for path, module in modules.items():
            yield from ((_join(path, sub), inner) for sub, inner in _everything(module))
    elif part.startswith(_TYPE):
        yield from _outermost(modules, part.removeprefix(_TYPE))
    else:
        yield from (
            (path, block)
            for path, block in blocks.items()
            if fnmatchcase(path.rpartition(".")[2], part)
        )


def _nothing(
    network: nn.Module, target: str, start: Found, part: str, name: str, among: str | None = None
) -> TargetError:
    """Say from where on nothing matched, and what there is."""
    where = join_names((path or name for path in start), most=3)
    if part.startswith(_TYPE):
        wanted = part.removeprefix(_TYPE)
        types = sorted(
            {
                type(module).__name__
                for base in start.values()
                for module in list(base.modules())[1:]
            }
        )
        # 'type:nn.Conv2d' asks for a child Conv2d of a module whose type is nn
        last = target.rpartition(".")[2]
        hint = did_you_mean(wanted, types)
        if not hint and last in types:
            hint = f" A type is written without where it is from: 'type:{last}'."
        reason = (
            f"no module in {where} is a {wanted}.{hint} The types there are "
            f"{join_names(types, most=30)}."
        )
    else:
        children = dict.fromkeys(child for base in start.values() for child in _children(base))
        reason = (
            f"there is no {part!r} {among}"
            if among
            else f"there is no child {part!r} in {where}, only {join_names(children)}."
        )
    close = near_names(target, (path for path, _ in network.named_modules() if path))
    hint = f" Near paths: {', '.join(close)}." if close else ""
    return TargetError(
        f"Target not found: {target!r} matches no module of {name}: {reason}{hint} "
        "model.named_modules() and "
        f"'tvc show {name}' list all."
    )


def _children(module: nn.Module) -> Found:
    """Return a module's children by name, without the patches that a hybrid has, and without what
    an early end has left out.
    """
    return {
        child: found
        for child, found in module._modules.items()
        if found is not None and not isinstance(found, (PatchTree, LeftOut))
    }


def _join(path: str, sub: str) -> str:
    return f"{path}.{sub}" if path and sub else path or sub
