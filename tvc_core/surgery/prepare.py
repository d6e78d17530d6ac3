"""Prepare patches: locate, measure, make and try every one, before anything in the network is
touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import PatchError, PluginError
from ..recipe import PatchPlan
from .blocks import call_factory, create_for_target, create_in_place_of
from .branches import branch_of
from .gates import leave_out_gate
from .kept import keeping, kept_weights
from .layouts import Shape
from .measured import measured_sites
from .operations import Insertion, Target
from .patch import Patch
from .patches import free_name, set_module
from .sites import Probe, Site, has_module
from .targets import expand
from .trials import check_modules, output_shape, replacement_misfit, try_insertion, try_replacement

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
        kept: names of the target's tensors that the replacement has with the same values.
        changed: those that it has under the same name with other values, such as a kernel of
            another size.
        lost: those that it has not.
        thawed: names, below the target, of parameters that learn though their part is frozen.
    """

    plan: PatchPlan
    site: Site
    insertions: tuple[Insertion, ...]
    replacement: nn.Module | None
    kept: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    thawed: tuple[str, ...] = ()

    @property
    def starts_as_identity(self) -> bool:
        """Nothing is replaced, and every block has a gate."""
        return self.replacement is None and all(
            i.patch.alpha is not None or i.patch.neutral for i in self.insertions
        )


Sites = dict[str, Site]


def prepare(
    network: nn.Module,
    patches: Iterable[PatchPlan],
    anatomy: Anatomy,
    probe: Probe,
    name: str,
    key: str = "",
    check: Callable[[str, nn.Module], None] | None = None,
) -> tuple[list[Prepared], torch.Tensor | None]:
    """Return every patch checked and ready, in the order of the plan, and the logits of the network
    without any; None where it did not have to run. A pattern becomes one patch for each module.

    Patches are made in that order, and each sees the network as the replacements leave it.

    Args:
        network: the network; unchanged afterwards.
        patches: the plan.
        anatomy: the network's stages.
        probe: an image that the network accepts.
        name: what errors call the network.
        key: as for `measured_sites`.
        check: gets what is to be inserted, and below the root's child of patches where, and may
            refuse it; the patches after it are not made then.

    Raises:
        TargetError: a target is not there, or nothing can be inserted at it.
        PatchError: patches are in conflict, a shape does not fit, or a block's forward pass fails.
        ParameterError: a block does not take its parameters.
    """
    patches = [each for patch in patches for each in _expanded(patch, network, anatomy, name)]
    if not patches:
        return [], None
    check_modules(network, patches)
    targets = list(dict.fromkeys(patch.entry.target for patch in patches))
    ends = {
        path: f"{path}.{end}"
        for path in targets
        if (end := branch_of(network.get_submodule(path), anatomy.branches))
    }
    paths = dict.fromkeys((*targets, *(end for end in ends.values() if has_module(network, end))))
    sites, before = measured_sites(network, paths, probe, key)
    # Running the network for each of N patches would cost N passes, so all are made from one look
    # at it, and a second look with all replacements in proves them together. Mostly nothing moves:
    # a replacement keeps the shapes, or changes sizes that no other patch depends on. Where one
    # changes what another gets, all are made again from what was seen, until what they were made
    # for is what they get; each round settles at least the next patch in the order of execution.
    for _ in range(len(patches) + 1):
        ready, expected = _make_all(network, patches, sites, ends, anatomy, probe, check)
        if all(each.replacement is None for each in ready):
            return ready, before
        before = probe.run(network) if before is None else before
        seen, problem = _look(network, ready, expected, probe, before)
        moved = _moved(network, ready, sites, seen, probe)
        if not moved:
            break
        sites = {**sites, **moved}
    else:
        problem = problem or "the shapes there change with every build of the blocks"
    if problem and before is not None:
        culprit, problem = _culprit(network, ready, expected, problem, probe, before)
        assert culprit.replacement is not None
        with culprit.plan.entry.before_errors():
            raise replacement_misfit(
                culprit.plan,
                culprit.site,
                None if culprit.plan.init else network.get_submodule(culprit.site.path),
                culprit.replacement,
                problem,
                probe,
            )
    return ready, before


def _make_all(
    network: nn.Module,
    patches: Iterable[PatchPlan],
    sites: Mapping[str, Site],
    ends: Mapping[str, str],
    anatomy: Anatomy,
    probe: Probe,
    check: Callable[[str, nn.Module], None] | None,
) -> tuple[list[Prepared], Sites]:
    """Make every patch for what was measured, and return the sites as replacements leave them."""
    # Nothing is in the network yet, so what an earlier patch of the plan changes for a later one is
    # kept beside it: `stand_ins` has the module that will be at a path, `expected` the shapes
    # there, and `names` the names that blocks at one place have taken already. The order of the
    # plan matters, and is the user's: a patch on top of a replacement comes after it.
    expected = dict(sites)
    stand_ins: dict[str, nn.Module] = {}
    names: dict[str, set[str]] = {}
    ready: list[Prepared] = []
    for patch in patches:
        with patch.entry.before_errors():
            _check_inside(patch, ready)
            path = patch.entry.target
            target = Target(
                stand_ins.get(path, network.get_submodule(path)),
                expected[path],
                patch.block.spec if patch.block else None,
                expected.get(ends.get(path, "")) if path not in stand_ins else None,
                anatomy.branches,
            )
            prepared = _apply(patch, target, probe)
            for insertion in prepared.insertions:
                place = insertion.site.path
                module = stand_ins.get(place, network.get_submodule(place))
                leaf = _take_name(patch, place, module, names.setdefault(place, set()))
                if check is not None:
                    check(f"{place}.{leaf}", insertion.patch)
            if prepared.replacement is not None:
                _check_replacement(prepared, ready)
                stand_ins[path] = prepared.replacement
                expected[path] = try_replacement(patch, expected[path], prepared.replacement, probe)
            ready.append(prepared)
    return ready, expected


@contextmanager
def _replaced(network: nn.Module, ready: Iterable[Prepared]) -> Iterator[None]:
    """Put replacements in their places while the context lasts."""
    swapped = [each for each in ready if each.replacement is not None]
    originals = [network.get_submodule(each.site.path) for each in swapped]

    def put_back() -> None:
        for each, original in zip(swapped, originals, strict=True):
            set_module(network, each.site.path, original)

    try:
        try:
            for each in swapped:
                assert each.replacement is not None
                set_module(network, each.site.path, each.replacement)
            yield
        finally:
            put_back()
    finally:  # an interrupt may come in the middle of it
        put_back()


def _look(
    network: nn.Module,
    ready: Iterable[Prepared],
    paths: Iterable[str],
    probe: Probe,
    logits: torch.Tensor,
) -> tuple[Sites, str]:
    """Run the network with replacements in; return what was seen, and why it does not work."""
    with _replaced(network, ready):
        seen, output = probe.look(network, [path for path in paths if has_module(network, path)])
    if isinstance(output, Exception):
        return seen, " ".join(str(output).split())[:200] or type(output).__name__
    if output.shape != logits.shape:
        return seen, f"the output becomes {list(output.shape)} instead of {list(logits.shape)}"
    return seen, ""


def _moved(
    network: nn.Module,
    ready: Iterable[Prepared],
    sites: Mapping[str, Site],
    seen: Mapping[str, Site],
    probe: Probe,
) -> Sites:
    """Return the sites where something else arrives than the patches were made for.

    Of a pass that failed, what has run counts, and the input of the replacement in which it failed:
    that may have been made for another width.
    """
    # Compared call by call, since a module may run several times. At a path that is not replaced,
    # what was seen now is what counts. At a replaced one the output is the replacement's own: there
    # only the input is news, and what the original would make of it stands for the output that the
    # patch was made for.
    replaced = {each.site.path for each in ready if each.replacement is not None}
    moved: Sites = {}
    for path, site in seen.items():
        calls = list(sites[path].calls)
        for index, (call, known) in enumerate(zip(site.calls, calls, strict=False)):
            if path not in replaced:
                calls[index] = known if call.output is None else call
            elif call.input is not None and call.input != known.input:
                output = _output_of(network.get_submodule(path), call.input, probe)
                calls[index] = replace(known, input=call.input, output=output or known.output)
        if tuple(calls) != sites[path].calls:
            moved[path] = replace(sites[path], calls=tuple(calls))
    return moved


def _output_of(original: nn.Module, shape: Shape, probe: Probe) -> Shape | None:
    """Return what a replaced module would give for a shape; None where it does not take it."""
    try:
        return output_shape(original, shape, probe, type(original).__name__)
    except PatchError:
        return None


def _culprit(
    network: nn.Module,
    ready: list[Prepared],
    expected: Mapping[str, Site],
    problem: str,
    probe: Probe,
    logits: torch.Tensor,
) -> tuple[Prepared, str]:
    """Return which replacement the network does not work with, and why: the one without which it
    does, or else the first that alone is too much.
    """

    def fails(patches: Iterable[Prepared]) -> str:
        return _look(network, patches, (), probe, logits)[1]

    # All replacements were tried together, and the error of the pass names a layer of the network,
    # not a patch. If the network works without one of them, it is that one. If there is none,
    # several are wrong, and each is tried alone. Only replacements that change a shape are
    # suspects, unless none does. This costs passes, but only when the build fails anyway.
    replaced = [each for each in ready if each.replacement is not None]
    changed = [each for each in replaced if expected[each.site.path].calls != each.site.calls]
    suspects = changed or replaced
    if len(suspects) == 1:
        return suspects[0], problem
    for each in suspects:
        if not fails(other for other in ready if other is not each):
            return each, fails([each]) or problem
    for each in suspects:
        if found := fails([each]):
            return each, found
    return suspects[-1], problem


def _expanded(patch: PatchPlan, network: nn.Module, anatomy: Anatomy, name: str) -> list[PatchPlan]:
    """Return the patch once for each module that its target means; errors begin with the pattern
    and the path.
    """
    entry = patch.entry
    with patch.entry.before_errors():
        paths = expand(network, entry.target, anatomy, name)
    if paths == [entry.target]:
        return [patch]
    places = {path: replace(entry.where, note=f"{entry.target}, here {path}") for path in paths}
    return [
        replace(patch, entry=replace(entry, target=path, where=place))
        for path, place in places.items()
    ]


def _take_name(patch: PatchPlan, path: str, module: nn.Module, taken: set[str]) -> str:
    """Reserve and return the name under which a block will live where its hook goes; one that the
    user gave is never changed.
    """
    given = patch.entry.name
    name = free_name(patch.name, module, taken)
    if given is not None and name != given:
        raise PatchError(
            f"the name {given!r} is taken at {path!r}; choose another, or leave it out"
        )
    taken.add(name)
    return name


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

    # The operation is a plugin's code and gets a function that makes the user's block, on the
    # device and in the type of the network. Whether the block took weights over from what it
    # replaces is noted on the way, since only the block can tell: the operation just hands it on.
    # An `init` asks for another start, so then nothing is taken over.
    took_over: list[bool] = []

    def make(in_channels: int, original: nn.Module | None = None) -> nn.Module:
        assert block is not None
        params = patch.entry.params
        if original is None:
            made, keeps = create_for_target(block, target, in_channels, params), False
        else:
            old = original if patch.init is None else None  # an `init` gives another start
            made, keeps = create_in_place_of(block, old, in_channels, params)
        took_over.append(keeps)
        return made.to(device=probe.image.device, dtype=probe.image.dtype)

    positional = (target, make) if patch.op.spec.takes_block else (target,)
    result = call_factory(patch.op, positional, patch.entry.options)
    if not isinstance(result, nn.Module):
        raise PluginError(
            f"patch op {patch.op.qualified!r} returned {type(result).__name__}, not what stands at "
            "the target"
        )
    replacement = None if result is module else result
    if replacement is None and not target.insertions and not target.thawed:
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
        try_insertion(patch, insertion, probe)
        leave_out_gate(patch, insertion, probe)
    if replacement is not None:
        with keeping(module):
            _initialize(patch, replacement)
        replacement.train(module.training)
    kept = ((),) * 3 if replacement is None else kept_weights(module, replacement, any(took_over))
    return Prepared(
        plan=patch,
        site=site,
        insertions=tuple(target.insertions),
        replacement=replacement,
        kept=kept[0],
        changed=kept[1],
        lost=kept[2],
        thawed=tuple(target.thawed),
    )


def _initialize(patch: PatchPlan, module: nn.Module) -> None:
    if patch.init is None:
        return
    call_factory(patch.init, (module,), {})
    if isinstance(module, Patch) and module.alpha is not None:
        with torch.no_grad():
            # an initializer fills whatever it finds; the gate is not its to fill
            module.alpha.zero_()
