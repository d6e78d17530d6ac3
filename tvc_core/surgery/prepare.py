"""Prepare patches: locate, measure, make and try every one, before anything in the network is
touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import PatchError, PluginError, TvcError, foreign
from ..recipe import PatchPlan, Place
from .blocks import call_factory, create_block, parameters_of
from .branches import branch_of
from .gates import leave_out_gate
from .layouts import Shape, channels_of, layout_of
from .operations import Insertion, Target
from .patch import Patch
from .patches import free_name
from .probing import probing
from .sites import Probe, Site, has_module
from .targets import expand

if TYPE_CHECKING:
    from .anatomy import Anatomy

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A patch that has passed every check and waits to be put in.

    Args:
        plan: what was asked for.
        site: what was measured at the target.
        insertions: the blocks that hooks will run.
        replacement: the module that takes the target's place, or None.
    """

    plan: PatchPlan
    site: Site
    insertions: tuple[Insertion, ...]
    replacement: nn.Module | None

    @property
    def starts_as_identity(self) -> bool:
        """Nothing is replaced, and every block has a gate."""
        return self.replacement is None and all(
            i.patch.alpha is not None or i.patch.neutral for i in self.insertions
        )


def prepare(
    network: nn.Module, patches: Iterable[PatchPlan], anatomy: Anatomy, probe: Probe, name: str
) -> tuple[list[Prepared], torch.Tensor | None]:
    """Return every patch checked and ready, in the order of the plan, and the logits of the network
    without any; None without patches. A pattern becomes one patch for each module.

    Patches are made in that order, and each sees the network as the replacements before it leave
    it.

    Args:
        network: the network; unchanged afterwards.
        patches: the plan.
        anatomy: the network's stages.
        probe: an image that the network accepts.
        name: what errors call the network.

    Raises:
        TargetError: a target is not there, or nothing can be inserted at it.
        PatchError: patches are in conflict, a shape does not fit, or a block's forward pass fails.
        ParameterError: a block does not take its parameters.
    """
    patches = [each for patch in patches for each in _expanded(patch, network, anatomy, name)]
    targets = list(dict.fromkeys(patch.entry.target for patch in patches))
    ends = {
        path: f"{path}.{end}"
        for path in targets
        if (end := branch_of(network.get_submodule(path), anatomy.branches))
    }
    paths = list(
        dict.fromkeys((*targets, *(end for end in ends.values() if has_module(network, end))))
    )
    sites: dict[str, Site] = {}
    before: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    stand_ins: dict[str, nn.Module] = {}
    names: dict[str, set[str]] = {}
    ready: list[Prepared] = []
    for patch in patches:
        with patch.entry.where.before_errors():
            _check_inside(patch, ready)
            path = patch.entry.target
            if not sites:
                sites, logits = probe.sites(network, paths, stand_ins)
                before = logits if before is None else before
            module = stand_ins.get(path, network.get_submodule(path))
            branch_end = sites.get(ends.get(path, "")) if path not in stand_ins else None
            target = Target(
                module,
                sites[path],
                patch.block.spec if patch.block else None,
                branch_end,
                anatomy.branches,
            )
            prepared = _apply(patch, target, probe)
            for insertion in prepared.insertions:
                place = insertion.site.path
                _take_name(
                    patch,
                    place,
                    stand_ins.get(place, network.get_submodule(place)),
                    names.setdefault(place, set()),
                )
            if prepared.replacement is not None:
                assert logits is not None
                _check_replacement(prepared, ready)
                stand_ins[path] = prepared.replacement
                _try_replacement(network, prepared, stand_ins, logits, probe)
                sites = {}
            ready.append(prepared)
    return ready, before


def _expanded(patch: PatchPlan, network: nn.Module, anatomy: Anatomy, name: str) -> list[PatchPlan]:
    """Return the patch once for each module that its target means; errors begin with the pattern
    and the path.
    """
    entry = patch.entry
    with patch.entry.where.before_errors():
        paths = expand(network, entry.target, anatomy, name)
    if paths == [entry.target]:
        return [patch]
    where = f"{entry.where}: {entry.target}, here "
    return [
        replace(patch, entry=replace(entry, target=path, where=Place(f"{where}{path}")))
        for path in paths
    ]


def _take_name(patch: PatchPlan, path: str, module: nn.Module, taken: set[str]) -> None:
    """Reserve the name under which a block will live where its hook goes; one that the user gave is
    never changed.
    """
    given = patch.entry.name
    name = free_name(patch.name, module, taken)
    if given is not None and name != given:
        raise PatchError(
            f"the name {given!r} is taken at {path!r}; choose another, or leave it out"
        )
    taken.add(name)


def _check_inside(patch: PatchPlan, ready: Iterable[Prepared]) -> None:
    """Refuse a target inside a module that an earlier patch replaces."""
    path = patch.entry.target
    for other in ready:
        if other.replacement is not None and path.startswith(f"{other.site.path}."):
            replaced = other.site.path
            raise PatchError(
                f"{path!r} is inside {replaced!r}, which another patch replaces; patch "
                f"{replaced!r} instead"
            )


def _check_replacement(prepared: Prepared, ready: Iterable[Prepared]) -> None:
    """Refuse a replacement that would throw away what an earlier patch did."""
    path = prepared.site.path
    for other in ready:
        earlier = other.site.path
        if earlier == path and other.replacement is not None:
            raise PatchError(f"{path!r} is replaced twice; keep one of the two")
        places = (earlier, *(insertion.site.path for insertion in other.insertions))
        if any(f"{place}.".startswith(f"{path}.") for place in places):
            raise PatchError(
                f"it replaces {path!r} and would lose the earlier patch at {earlier!r}; replace "
                f"first, then patch {path!r}"
            )


def _apply(patch: PatchPlan, target: Target, probe: Probe) -> Prepared:
    """Run the operation, which declares what it wants, and check that."""
    block, site, module = patch.block, target.site, target.module

    def make(in_channels: int) -> nn.Module:
        assert block is not None
        return create_block(block, in_channels, patch.entry.params).to(
            device=probe.image.device, dtype=probe.image.dtype
        )

    positional = (target, make) if patch.op.spec.takes_block else (target,)
    result = call_factory(patch.op, positional, patch.entry.options)
    if not isinstance(result, nn.Module):
        raise PluginError(
            f"patch op {patch.op.qualified!r} returned {type(result).__name__}, not what stands at "
            "the target"
        )
    replacement = None if result is module else result
    if replacement is None and not target.insertions:
        raise PluginError(
            f"patch op {patch.op.qualified!r} changed nothing at {site.path!r}; a patch without "
            "effect is an error"
        )
    if patch.entry.name is not None and not target.insertions:
        raise PatchError(
            f"the name {patch.entry.name!r} is for an inserted block, and {patch.op.qualified} "
            "inserts none here"
        )
    for insertion in target.insertions:
        _initialize(patch, insertion.patch)
        _try_insertion(patch, insertion, probe)
        leave_out_gate(patch, insertion, probe)
    if replacement is not None:
        with _keeping(module):
            _initialize(patch, replacement)
        replacement.train(module.training)
    return Prepared(
        plan=patch, site=site, insertions=tuple(target.insertions), replacement=replacement
    )


def _initialize(patch: PatchPlan, module: nn.Module) -> None:
    if patch.init is None:
        return
    call_factory(patch.init, (module,), {})
    if isinstance(module, Patch) and module.alpha is not None:
        with torch.no_grad():
            # an initializer fills whatever it finds; the gate is not its to fill
            module.alpha.zero_()


@contextmanager
def _keeping(module: nn.Module) -> Iterator[None]:
    """Keep the tensors of a module that may be part of its own replacement: initializers fill new
    ones only.
    """
    kept = [
        (tensor, tensor.detach().clone()) for tensor in (*module.parameters(), *module.buffers())
    ]
    yield
    with torch.no_grad():
        for tensor, before in kept:
            if not torch.equal(tensor, before):
                tensor.copy_(before)


def _try_insertion(patch: PatchPlan, insertion: Insertion, probe: Probe) -> None:
    """Run an inserted block on every measured shape."""
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
    found = _output_shape(insertion.patch.block, seen, probe, f"the block {block!r}")
    if found != wanted:
        raise PatchError(
            f"Shape mismatch: {block} {position.label} {path!r} turns {list(seen)} into "
            f"{list(found)}, and the {position.writes} of {path!r}, with which it is combined, is "
            f"{list(wanted)}.{_what_fits(patch, seen, wanted, probe)}"
        )


def _try_on(shape: Shape, patch: PatchPlan, insertion: Insertion, site: Site, probe: Probe) -> None:
    block = _block_name(patch, insertion.patch.block)
    found = _output_shape(
        insertion.patch.block, _seen_by_block(shape, insertion.patch), probe, f"the block {block!r}"
    )
    fits = (
        found == _seen_by_block(shape, insertion.patch)
        and _output_shape(insertion.patch, shape, probe, f"the block {block!r}") == shape
    )
    if insertion.patch.alpha is not None and not fits:
        fit = _what_fits(patch, shape, shape, probe)
        raise PatchError(
            f"Shape mismatch: {block} turns {list(shape)} into {list(found)} at {site.path!r}, but "
            "a block that starts as the "
            f"identity keeps the shape.{fit} Use 'replace' for a block that changes it."
        )


def _try_replacement(
    network: nn.Module,
    prepared: Prepared,
    stand_ins: Mapping[str, nn.Module],
    logits: torch.Tensor,
    probe: Probe,
) -> None:
    """Run the network once with the replacement answering in the target's place."""
    patch, site = prepared.plan, prepared.site
    assert prepared.replacement is not None
    before, after = site.shape("input"), site.shape("output")
    block = _block_name(patch, prepared.replacement)
    found = _output_shape(prepared.replacement, before, probe, f"the block {block!r}")
    try:
        _, output = probe.sites(network, [], stand_ins)
        problem = (
            ""
            if output.shape == logits.shape
            else f"the output becomes {list(output.shape)} instead of {list(logits.shape)}"
        )
    except Exception as error:  # a network may raise any exception
        problem = " ".join(str(error).split())[:200]
    if problem:
        fit = _what_fits(patch, before, after, probe)
        raise PatchError(
            f"Shape mismatch: {block} in the place of {site.path!r} ({site.type_name}) turns "
            f"{list(before)} into "
            f"{list(found)}; the original gives {list(after)}, and what follows does not accept "
            f"that: {problem}.{fit}"
        )


def _output_shape(
    module: nn.Module, shape: Shape, probe: Probe, name: str, device: str | None = None
) -> Shape:
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
    return patch.adapter.shape(shape) if patch.adapter else shape


def _what_fits(patch: PatchPlan, before: Shape, after: Shape, probe: Probe) -> str:
    """Return a sentence naming the parameters with which the block would give the wanted shape,
    found by trying.
    """
    if patch.block is None:
        return ""
    takes = parameters_of(patch.block.load(), skip=1) or dict.fromkeys(patch.entry.params)
    in_channels, out_channels = (
        channels_of(shape, layout_of(shape, probe.size)) for shape in (before, after)
    )
    counts = [
        name
        for name in takes
        if _is_count(patch.entry.params.get(name, takes[name])) or takes[name] is None
    ]
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
                block = create_block(patch.block, in_channels, params).to(probe.image.dtype)
            fits = _output_shape(block, before, probe, "", "meta") == after
        except TvcError:
            continue
        if fits:
            return (
                f" {' and '.join(f'{name}={value}' for name, value in change.items())} would fit."
            )
    return ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
