"""Fold patches into the weights of the backbone, so that the plain network computes the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PatchError, TvcError, count_of, describe_error, foreign, join_names
from ..quarantine.process_state import run_preserved
from ..surgery.marks import check_hybrid
from ..surgery.noise import image_for
from ..surgery.patch import Patch
from ..surgery.patches import placed_patches
from ..surgery.positions import add
from ..surgery.probing import probing
from ..surgery.sites import find_module, first_tensor
from . import freezing
from .settling import place
from .state import HybridState, Installed, state_of
from .unpatching import chosen_patches, take_out

__all__ = ["FoldReport", "fold_patches"]

_FOLDED = "removed"
"""The token that switches a folded patch off; one that every thread obeys."""


@dataclass(frozen=True, kw_only=True)
class FoldReport:
    """What `fold_patches` did.

    Args:
        folded: where the patches lived that are in the weights now; the targets of those that
            inserted nothing.
        left: why the others are still patches, by where they live.
        difference: largest absolute difference of a logit, on the image of the build.
    """

    folded: tuple[str, ...]
    left: Mapping[str, str]
    difference: float

    def __str__(self) -> str:
        lines = [f"folded: {len(self.folded)}, largest logit difference {self.difference:.3g}"]
        lines += [f"  {home}" for home in self.folded]
        lines += [f"left: {len(self.left)}"] * bool(self.left)
        return "\n".join([*lines, *(f"  {home}: {why}" for home, why in self.left.items())])


def fold_patches(model: nn.Module, target: str | None = None) -> FoldReport:
    """Fold what patches compute into the weights beside them, and take them out: where all can be,
    the model is its plain backbone, with its keys, and computes what it did in eval mode.

    A block folds by a method `fold(target)` (LoRA beside a layer, a scale after one); blocks that
    are not linear, and those with a gate, stay patches, and a UserWarning names each with the
    reason. A shift after a convolution without a bias goes into the running mean of the batch
    normalization that follows. What is left stays unchanged.

    Args:
        model: a hybrid.
        target: what was patched, as the recipe has it or as a pattern; None for all patches.

    Returns:
        Which patches are in the weights now, and why others are not.

    Raises:
        ParameterError: `model` is not a hybrid.
        TargetError: nothing is patched at `target`.
        PatchError: the folded network computes something else; nothing has changed.
        FreezeError: the model is wrapped in DistributedDataParallel.
    """
    check_hybrid(model, "fold_patches")
    report: FoldReport = run_preserved(_fold_patches, model, state_of(model), target)
    if report.left:
        told = "; ".join(f"{home} ({why})" for home, why in report.left.items())
        warnings.warn(
            f"{count_of(len(report.left), 'patch')} not folded, to run as before: {told}",
            UserWarning,
            stacklevel=2,
        )
    return report


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A patch and the module into which it would fold."""

    home: str
    path: str
    patch: Patch
    module: nn.Module


@dataclass
class _Seen:
    """What the patched network did at a target: its calls, and the maps that came out, each with a
    copy.
    """

    calls: list[tuple[Any, Any]] = field(default_factory=list)
    outputs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One pass of the patched network: its logits, its targets, and which of their maps the batch
    normalizations got, by number.
    """

    logits: Tensor
    seen: dict[nn.Module, _Seen]
    read: dict[nn.Module, list[int]]

    def norm_after(self, module: nn.Module) -> nn.Module | None:
        """Return the batch normalization that gets a target's maps and nothing else."""
        maps = [id(output) for output, _ in self.seen[module].outputs]
        for norm, read in self.read.items():
            if read == maps and norm._buffers.get("running_mean") is not None:
                return norm
        return None


@dataclass
class _Done:
    """What was changed, so that it can be undone.

    Args:
        kept: tensors as they were: the dict that each is in, its name, the tensor, its values.
        off: the patches that are folded, and switched off.
        norms: layers that have a bias now, the normalization that is to take it, and whose shift
            it is.
    """

    kept: list[tuple[dict[str, Any], str, Any, Any]] = field(default_factory=list)
    off: list[Patch] = field(default_factory=list)
    norms: dict[nn.Module, tuple[nn.Module, _Place]] = field(default_factory=dict)

    def put_back(self, mark: int = 0) -> None:
        """Give tensors back what they were before the entry with this number."""
        with torch.no_grad():
            for tensors, name, tensor, values in reversed(self.kept[mark:]):
                tensors[name] = tensor
                if tensor is not None:
                    tensor.copy_(values)
        del self.kept[mark:]

    def undo(self) -> None:
        """Make everything as before."""
        self.put_back()
        for patch in self.off:
            patch.switch(_FOLDED, True)

    def move_biases(self) -> None:
        """Move biases that the plain network has not into the batch normalization that reads the
        map: BN(y + b) with the mean m is BN(y) with the mean m - b, in both modes.
        """
        for layer, (norm, _) in self.norms.items():
            bias, mean = layer._parameters["bias"], norm._buffers["running_mean"]
            assert bias is not None and mean is not None
            self.kept.append((norm._buffers, "running_mean", mean, mean.clone()))
            with torch.no_grad():
                mean.copy_((mean.double() - bias.double()).to(mean.dtype))
            layer._parameters["bias"] = None


# In four steps. (1) What can be told from the patches alone: a gate, a position, no `fold`. (2) One
# pass of the patched network, in which the calls of the targets are kept. (3) Each patch is folded
# in place and switched off, and its target runs again on what it got in that pass: what comes out
# must be what came out before. So a block that folds wrongly, or a layer whose class does more than
# it seems to, is found and named where it stands, and its tensors are put back. (4) The network as
# a whole must give the logits of before; then the folded patches leave the model by the way of
# `unpatch`. Values are kept until then, as everything or nothing is to happen.
def _fold_patches(network: nn.Module, state: HybridState, target: str | None) -> FoldReport:
    place(network, state)
    chosen = chosen_patches(network, state, target)
    changes = [name for each in chosen for name in (*each.record.paths, *each.record.thawed)]
    freezing.refuse_under_ddp(network, changes, "would wait for gradients of what is gone")
    left: dict[str, str] = {}
    places: dict[str, _Place] = {}
    for each in chosen:
        for home in each.record.paths:
            found = _place_of(network, each, home)
            if isinstance(found, str):
                left[home] = found
            else:
                places[home] = found
    image = image_for(network, state.probe_shape)
    look, done = _look(network, image, places), _Done()
    try:
        blocked = _fold_each(network, places, look, done)
        while met := {
            each.home: why for _, each in done.norms.values() if (why := _met(network, each, done))
        }:
            # what was folded after them was folded into their result, so all is done again
            done.undo()
            left |= met
            places, done = {home: places[home] for home in places if home not in left}, _Done()
            blocked = _fold_each(network, places, look, done)
        left |= blocked
        done.move_biases()
        with probing(network):
            logits = first_tensor(network(image))
        if not _close(look.logits, logits):
            raise PatchError(
                "the folded network computes something else: its logits differ by "
                f"{_difference(look.logits, logits):.3g}. Some other module reads the weights or "
                f"the maps of {join_names(each.path for each in places.values())}; nothing has "
                "changed. Fold others by target=..."
            )
        folded = [each for each in chosen if not any(home in left for home in each.record.paths)]
        if folded:
            take_out(network, state, folded)
    except BaseException:
        done.undo()
        raise
    gone = [home for each in folded for home in each.record.paths or (each.record.target,)]
    return FoldReport(folded=tuple(gone), left=left, difference=_difference(look.logits, logits))


def _place_of(network: nn.Module, installed: Installed, home: str) -> _Place | str:
    """Return where a patch folds, or why it does not."""
    record, block = installed.record, installed.plan.block
    placed = {home: (path, patch) for home, path, patch in placed_patches(network)}
    if record.replaced is not None:
        return f"it stands in the place of a {record.replaced}"
    if home not in placed:
        return "it is no longer in the model"
    path, patch = placed[home]
    module = find_module(network, path)
    if module is None:
        return f"there is no module {path!r} any more"
    if len(record.paths) > 1:
        return f"{record.op} inserts {len(record.paths)} blocks that belong together"
    if network.get_submodule(home) is not patch:
        return "another tool has wrapped it"
    if not patch.enabled:
        return "it is switched off"
    kind = type(patch.block).__name__
    if not callable(getattr(patch.block, "fold", None)):
        return f"a {kind} is not linear, or has no fold"
    if patch.alpha is not None:
        return "it has a gate"
    position, beside = patch.position, block is not None and block.spec.starts_as == "zero"
    in_series = position.combine is None and position.reads == "output"
    in_parallel = position.combine is add and position.reads == "input"
    if not (in_parallel if beside else in_series):
        return f"a {kind} does not fold at the position {position.name!r}"
    if tied := _tied(network, module):
        return f"{path!r} shares tensors with {join_names(tied, most=2)}"
    return _Place(home=home, path=path, patch=patch, module=module)


def _tied(network: nn.Module, module: nn.Module) -> list[str]:
    """Return the modules outside that have a tensor of a module's."""
    inside = set(module.modules())
    own = {id(each) for each in (*module.parameters(), *module.buffers())}
    return [
        path
        for path, other in network.named_modules()
        if other not in inside
        and any(id(t) in own for t in (*other._parameters.values(), *other._buffers.values()))
    ]


def _look(network: nn.Module, image: Tensor, places: Mapping[str, _Place]) -> _Look:
    """Run the patched network, and keep what its targets got and gave."""
    seen = {each.module: _Seen() for each in places.values()}
    reads: dict[nn.Module, list[int]] = {}
    held: set[int] = set()

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen[module].calls.append((_copied(args), _copied(kwargs)))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        # the map itself tells what reads it next, and its copy what it was: it may be overwritten
        seen[module].outputs.append((output, _copied(output)))
        held.add(id(output))

    def read(module: nn.Module, args: Any) -> None:
        # maps of targets are held, so that no other tensor can have the id of one
        found = id(args[0]) if args else 0
        reads.setdefault(module, []).append(found if found in held else 0)

    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(read) for norm in norms]
    for module in seen:
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after))
    try:
        with probing(network), foreign(PatchError, "the network fails before anything is folded"):
            return _Look(logits=first_tensor(network(image)).clone(), seen=seen, read=reads)
    finally:
        for hook in hooks:
            hook.remove()


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    return tuple(map(_copied, value)) if isinstance(value, (list, tuple)) else value


def _in_order(network: nn.Module, places: Iterable[_Place]) -> list[_Place]:
    """Return places with what is inside first: a container's last layer may take its block."""
    order = {home: number for number, (home, _, _) in enumerate(placed_patches(network))}
    return sorted(places, key=lambda each: (-each.path.count("."), order[each.home]))


def _fold_each(
    network: nn.Module, places: Mapping[str, _Place], look: _Look, done: _Done
) -> dict[str, str]:
    """Fold patches in place, and return why others are not."""
    return {
        spot.home: why
        for spot in _in_order(network, places.values())
        if (why := _blocked(network, spot, done.off) or _fold(network, spot, look, done))
    }


def _met(network: nn.Module, place: _Place, done: _Done) -> str:
    """Say which patch that is not folded a shift meets on its way to the batch normalization, if
    there is one that does more than add to the map. Those before it at the layer are folded.
    """
    for home, path, other in placed_patches(network):
        stays = path == place.path and other not in done.off and other.position.runs_after
        if stays and other.position.combine is not add:
            return f"{home} comes between its shift and the batch normalization, and is not folded"
    return ""


def _blocked(network: nn.Module, place: _Place, off: list[Patch]) -> str:
    """Say which patch that is not folded stands between a target and a block, if one does."""
    for home, path, other in placed_patches(network):
        if other is place.patch:
            break
        if path == place.path and other not in off and other.position.runs_after:
            return f"{home} comes between it and {place.path!r}, and is not folded"
    for home, path, other in placed_patches(network):
        if other is place.patch or other in off:
            continue
        if path.startswith(f"{place.path}."):
            return f"{home} is inside of {place.path!r}, and is not folded"
        changes = path == place.path and not other.position.runs_after
        if changes and place.patch.position.reads == "input":
            return f"{home} changes what {place.path!r} gets, and is not folded"
    return ""


def _fold(network: nn.Module, place: _Place, look: _Look, done: _Done) -> str:
    """Fold a patch and switch it off; return why not, with everything as before."""
    module, mark = place.module, len(done.kept)
    done.kept += _values(module)
    bare = [each for each in module.modules() if each._parameters.get("bias", 0) is None]
    norms: dict[nn.Module, tuple[nn.Module, _Place]] = {}
    try:
        with foreign(PatchError, "fold fails"):
            place.patch.block.fold(module)  # type: ignore[operator]
        place.patch.switch(_FOLDED, False)
        why = _differs(network, place, look.seen[module])
        for layer in bare:
            if layer._parameters["bias"] is not None:
                norm = look.norm_after(module)
                if norm is None or _runs_before(network, norm):
                    why = why or (
                        f"{place.path!r} has no bias to take the shift, and no batch "
                        "normalization with running statistics follows it directly"
                    )
                else:
                    norms[layer] = norm, place
    except TvcError as error:
        cause = error.__cause__
        why = str(cause) if isinstance(cause, ValueError) else describe_error(error)
    if why:
        done.put_back(mark)
        place.patch.switch(_FOLDED, True)
    else:
        done.off.append(place.patch)
        done.norms |= norms
    return why


def _values(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Any, Any]]:
    """Yield what gives a module its tensors back: where each is, the tensor, and its values."""
    for each in module.modules():
        for tensors in (each._parameters, each._buffers):
            for name, tensor in tensors.items():
                yield tensors, name, tensor, None if tensor is None else tensor.detach().clone()


def _differs(network: nn.Module, place: _Place, seen: _Seen) -> str:
    """Run a target without the patch on what it got with it, and say how the results differ."""
    patches = [patch for _, path, patch in placed_patches(network) if path == place.path]
    for (args, kwargs), (_, before) in zip(seen.calls, seen.outputs, strict=True):
        with probing(place.module, *patches):
            after = place.module(*_copied(args), **_copied(kwargs))
        if not _close(before, after):
            return (
                f"folded, {type(place.module).__name__} gives something else: it differs by "
                f"{_difference(before, after):.3g}"
            )
    return ""


def _runs_before(network: nn.Module, module: nn.Module) -> bool:
    """Return whether a patch reads what a module gets."""
    return any(
        find_module(network, path) is module and patch.position.runs_before
        for _, path, patch in placed_patches(network)
    )


def _difference(a: Any, b: Any) -> float:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return 0.0 if a is b else float("inf")
    if a.is_meta or not a.numel():
        return 0.0
    differs = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(differs.any()):
        return 0.0
    return float((a.double() - b.double())[differs].abs().nan_to_num(float("inf")).max())


def _close(a: Any, b: Any) -> bool:
    """Return whether two maps are the same up to rounding, by the type of their numbers."""
    if not isinstance(a, Tensor) or not a.is_floating_point() or a.is_meta or not a.numel():
        return True
    size = max(1.0, float(a.double().abs().nan_to_num(0.0, 0.0, 0.0).max()))
    return _difference(a, b) <= 1000 * torch.finfo(a.dtype).eps * size
