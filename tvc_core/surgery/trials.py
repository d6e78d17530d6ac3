"""Try a new module alone, on the shapes that were measured where it will run."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..advice.factories import parameters_of
from ..errors import PatchError, TvcError, foreign
from ..recipe import PatchPlan
from .blocks import create_in_place_of
from .layouts import Shape, channels_of, layout_of
from .operations import Insertion
from .patch import Patch
from .probing import probing
from .sites import Probe, Site

__all__ = [
    "check_modules",
    "output_shape",
    "replacement_misfit",
    "try_insertion",
    "try_replacement",
]


def check_modules(network: nn.Module, patches: Iterable[PatchPlan]) -> None:
    """Refuse a module of the user's own that would stand at two places.

    One module has one set of weights and one path in the model. Copying it silently would
    leave the user with a module that is not in the model; sharing it, a file could not say.
    """
    network_places = {id(module): path or "the network" for path, module in network.named_modules()}
    places: dict[int, str] = {}
    for patch in patches:
        made = patch.block.spec.factory if patch.block else None
        if not isinstance(made, nn.Module):
            continue
        kind = type(made).__name__
        # Only the module itself must not be the network's: it may hold the one that it replaces.
        taken = {id(made): network_places[id(made)]} if id(made) in network_places else places
        for each in made.modules():
            if id(each) in taken:
                what = kind if each is made else f"{kind} has a {type(each).__name__} that"
                raise PatchError(
                    f"{patch.entry.where}: this {what} stands at {taken[id(each)]} already, and a "
                    f"module has one place: give the class {kind}, which is made for each target, "
                    "or a copy (copy.deepcopy) for each"
                )
        places |= {id(each): patch.entry.target for each in made.modules()}


def try_insertion(patch: PatchPlan, insertion: Insertion, probe: Probe) -> None:
    """Run an inserted block on every measured shape."""
    # The whole network runs with the patches only once all of them are made (see `prepare`), and an
    # error there would say little about whose it is. So each block first runs alone, on zeros of
    # every shape that was measured at its target. A block whose result takes the map's place must
    # return the shape that it got. One that reads one map and writes to another must return the
    # shape of the second: the module may run several times in a pass, so the shapes are compared
    # call by call, each pair once.
    site = insertion.site
    position = insertion.position
    if position.combine is None:
        for shape in site.shapes(position.reads):
            _try_on(shape, patch, insertion, site, probe)
    else:
        both = zip(site.every(position.reads), site.every(position.writes), strict=True)
        for before, after in dict.fromkeys(both):
            _try_beside(before, after, patch, insertion, probe)


def _try_beside(
    before: Shape, after: Shape, patch: PatchPlan, insertion: Insertion, probe: Probe
) -> None:
    path, position = insertion.site.path, insertion.position
    block = _block_name(patch, insertion.patch.block)
    seen, wanted = _seen_by_block(before, insertion.patch), _seen_by_block(after, insertion.patch)
    found = output_shape(insertion.patch.block, seen, probe, f"the block {block!r}")
    if found != wanted:
        raise PatchError(
            f"Shape mismatch: {block} {position.label} {path!r} turns {list(seen)} into "
            f"{list(found)}, and the {position.writes} of {path!r}, with which it is combined, is "
            f"{list(wanted)}.{_what_fits(patch, seen, wanted, probe)}"
        )


def _try_on(shape: Shape, patch: PatchPlan, insertion: Insertion, site: Site, probe: Probe) -> None:
    block = _block_name(patch, insertion.patch.block)
    found = output_shape(
        insertion.patch.block, _seen_by_block(shape, insertion.patch), probe, f"the block {block!r}"
    )
    fits = (
        found == _seen_by_block(shape, insertion.patch)
        and output_shape(insertion.patch, shape, probe, f"the block {block!r}") == shape
    )
    if insertion.patch.alpha is not None and not fits:
        fit = _what_fits(patch, shape, shape, probe)
        raise PatchError(
            f"Shape mismatch: {block} turns {list(shape)} into {list(found)} at {site.path!r}, but "
            "a block that starts as the "
            f"identity keeps the shape.{fit} Use 'replace' for a block that changes it."
        )


def try_replacement(patch: PatchPlan, site: Site, replacement: nn.Module, probe: Probe) -> Site:
    """Run a replacement on every shape that its target gets, and return the site as it will be.

    Where the target sees several widths, every shape must stay: a layer after it has one width.
    """
    # The replacement is not in the network yet, but patches that come later in the plan may stand
    # at the same target. So the site is returned with the replacement's own outputs in the place of
    # the measured ones, and later blocks are made for these.
    block = _block_name(patch, replacement)
    found = {
        shape: output_shape(replacement, shape, probe, f"the block {block!r}")
        for shape in dict.fromkeys(site.seen("input"))
    }
    calls = tuple(
        replace(call, output=found[shape], output_kind="Tensor")
        for call, shape in zip(site.calls, site.seen("input"), strict=True)
    )
    changed = [
        f"{list(before.input or ())} becomes {list(after.output or ())}"
        for before, after in zip(site.calls, calls, strict=True)
        if before.output != after.output
    ]
    if changed and len(site.widths("input")) > 1:
        raise PatchError(
            f"Shape mismatch: {block} in the place of {site.path!r} ({site.type_name}), which runs "
            f"{len(calls)} times with different widths, has to keep every shape, and "
            f"{'; '.join(dict.fromkeys(changed))}."
        )
    return replace(site, type_name=type(replacement).__name__, calls=calls)


def replacement_misfit(
    patch: PatchPlan,
    site: Site,
    original: nn.Module | None,
    replacement: nn.Module,
    problem: str,
    probe: Probe,
) -> PatchError:
    """Return the error for a replacement that the rest of the network does not accept."""
    before, after = site.seen("input")[0], site.seen("output")[0]
    block = _block_name(patch, replacement)
    found = output_shape(replacement, before, probe, f"the block {block!r}")
    fits = _what_fits(patch, before, after, probe, original)
    if not fits and len(after) == 2:
        fits = " A network without its classifier is built by num_classes=0."
    return PatchError(
        f"Shape mismatch: {block} in the place of {site.path!r} ({site.type_name}) turns "
        f"{list(before)} into {list(found)}; the original gives {list(after)}, and what follows "
        f"does not accept that: {problem}.{fits}"
    )


def output_shape(
    module: nn.Module, shape: Shape, probe: Probe, name: str, device: str | None = None
) -> Shape:
    """Return the shape of what a module makes of zeros of a shape.

    Raises:
        PatchError: it fails, or returns no tensor.
    """
    x = torch.zeros(shape, dtype=probe.image.dtype, device=device or probe.image.device)
    with foreign(PatchError, f"{name} fails on {list(shape)}"), probing(module):
        output = module(x)
    if not isinstance(output, torch.Tensor):
        raise PatchError(f"{name} returns a {type(output).__name__}, not a tensor")
    return tuple(output.shape)


def _block_name(patch: PatchPlan, block: nn.Module) -> str:
    """Return what errors call a block: an operation may make one without the user naming any."""
    return patch.block.qualified if patch.block else type(block).__name__


def _seen_by_block(shape: Shape, patch: Patch) -> Shape:
    return patch.view.shape(shape) if patch.view else shape


def _what_fits(
    patch: PatchPlan, before: Shape, after: Shape, probe: Probe, original: nn.Module | None = None
) -> str:
    """Return a sentence naming the parameters with which the block would give the wanted shape,
    found by trying.
    """
    if patch.block is None or (original is None and patch.block.spec.for_target):
        return ""  # what is made for its target has its shapes, where the parameters let it
    # An error that says only that shapes differ leaves the search to the user, so the search is
    # done here. Which parameter sets the output's width is not known: any that holds a whole
    # number, or None, may be it. So each of them is set to the width that is wanted, `stride` to
    # the factor by which the map has to shrink, and then both together. A guess is shown only if a
    # block that was made with it returns the wanted shape. All of this runs on the meta device,
    # where tensors have shapes and no memory.
    takes = parameters_of(patch.block.load(), skip=1) or dict.fromkeys(patch.entry.params)
    in_channels, out_channels = (
        channels_of(shape, layout_of(shape, probe.size)) for shape in (before, after)
    )
    counts = [
        name
        for name in takes
        if _is_count(patch.entry.params.get(name, takes[name])) or takes[name] is None
    ]
    original = None if original is None else _without_memory(original)
    changes: list[dict[str, Any]] = [{name: out_channels} for name in counts]
    if len(after) == 4 and after[2] and before[2] // after[2] != 1 and "stride" in takes:
        stride = {"stride": before[2] // after[2]}
        changes += [stride, *({**change, **stride} for change in list(changes))]
    for change in changes:
        params = {**patch.entry.params, **change}
        if params == dict(patch.entry.params):
            continue
        try:
            with torch.device("meta"):  # a wrong guess may be a kernel of a gigabyte
                block, _ = create_in_place_of(patch.block, original, in_channels, params)
                block = block.to(probe.image.dtype)
            fits = output_shape(block, before, probe, "", "meta") == after
        except TvcError:
            continue
        if fits:
            return (
                f" {' and '.join(f'{name}={value}' for name, value in change.items())} would fit."
            )
    return ""


def _without_memory(module: nn.Module) -> nn.Module | None:
    try:
        return copy.deepcopy(module).to("meta")
    except Exception:  # not every module lets itself be copied
        return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
