"""What each patch does on some data: whether it is alive, and whether the model needs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ParameterError, PatchError, count_of, join_names, short_repr
from ..surgery.noise import first_float
from ..surgery.patches import placed_patches
from ..surgery.probing import probing
from ..surgery.sites import first_tensor
from .gate_statistics import GateRecorder, GateStatistics
from .heads import joined, named_outputs
from .settling import settle
from .state import HybridState
from .unpatching import switched_off

__all__ = ["PatchEffect", "PatchReport", "patch_report"]


@dataclass(frozen=True, kw_only=True)
class PatchEffect:
    """What one patch does, measured by switching it off.

    Args:
        path: where it lives, such as "patches.layer3.se".
        target: the module that runs it.
        position: where at the target.
        gate: the number that mixes the block in (`alpha`), now; None where it has none.
        gate_values: what the block's own gate is, for a block that multiplies the map with one;
            None for others.
        map_change: norm of the change of the target's map, divided by the map's norm without it.
        logits_change: the same of the logits.
        num_changed: predictions (largest logit) that differ without it.
        loss: mean loss with it; None without targets.
        loss_without: mean loss without it; None without targets.
    """

    path: str
    target: str
    position: str
    gate: float | None
    gate_values: GateStatistics | None
    map_change: float
    logits_change: float
    num_changed: int
    loss: float | None
    loss_without: float | None


@dataclass(frozen=True, kw_only=True)
class PatchReport:
    """What the patches of a model do on some data. Prints as a table.

    Args:
        patches: in the order of the model; replaced modules, which cannot be switched off, are not
            in it.
        num_images: that were looked at [images].
    """

    patches: tuple[PatchEffect, ...]
    num_images: int

    def __str__(self) -> str:
        head = (
            "patch", "alpha", "gate", "spread", "saturated", "map", "logits", "predictions",
            "loss with", "without",
        )  # fmt: skip
        rows = [head, *(self._row(each) for each in self.patches)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        lines.append(f"change without the patch, on {count_of(self.num_images, 'image')}")
        return "\n".join([*lines, *self.warnings])

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each gate that does nothing of use."""
        return tuple(
            f"the gate of {each.path} is dead: {each.gate_values.dead}"
            for each in self.patches
            if each.gate_values is not None and each.gate_values.dead
        )

    def _row(self, effect: PatchEffect) -> tuple[str, ...]:
        losses = (effect.loss, effect.loss_without)
        return (
            effect.path,
            "-" if effect.gate is None else f"{effect.gate:.3g}",
            *(
                ("-", "-", "-")
                if effect.gate_values is None
                else (
                    f"{effect.gate_values.mean:.3g}",
                    f"{effect.gate_values.spread:.2g}",
                    f"{effect.gate_values.saturation:.0%}",
                )
            ),
            f"{effect.map_change:.2%}",
            f"{effect.logits_change:.2%}",
            f"{effect.num_changed} of {self.num_images}",
            *("-" if loss is None else f"{loss:.4g}" for loss in losses),
        )


@dataclass
class _Sums:
    """Sums over batches for one patch: squared norms, and losses."""

    maps: list[float] = field(default_factory=lambda: [0.0, 0.0])
    logits: list[float] = field(default_factory=lambda: [0.0, 0.0])
    changed: int = 0
    loss: float = 0.0


def patch_report(
    network: nn.Module, state: HybridState, data: Any, loss: Callable[..., Tensor] | None
) -> PatchReport:
    """Do the work of `HybridModel.patch_report`."""
    # Each batch is run once with all patches and once for each patch without it. Norms are summed
    # over batches before they are divided, so that the ratio is that of all images together, and a
    # batch of dark images, whose maps are small, counts no more than its share.
    settle(network, state)
    placed = list(placed_patches(network))
    if off := [home for home, _, patch in placed if not patch.enabled]:
        raise PatchError(
            f"patch_report compares with and without each patch, and {join_names(off)} is switched "
            "off: call it outside of without()"
        )
    sums = {home: _Sums() for home, _, _ in placed}
    criterion = loss or nn.functional.cross_entropy
    count, total, has_targets = 0, 0.0, True
    like = first_float(network)
    gates = GateRecorder({home: patch for home, _, patch in placed})
    with probing(network):
        for images, targets in _batches(data, of_any_kind=loss is not None):
            images = images.to(device=like.device, dtype=like.dtype)
            targets = _moved(targets, like.device)
            has_targets = has_targets and targets is not None
            num = len(images)
            count += num
            with gates.recording():
                with_all, maps = _run(network, state, images, [path for _, path, _ in placed])
            if targets is not None:
                if state.head_widths and loss is None:
                    raise ParameterError(
                        "patch_report cannot know the loss of several heads: give loss=..., a "
                        "function of the dict of logits and the targets"
                    )
                total += float(criterion(named_outputs(state, with_all), targets)) * num
            for home, path, patch in placed:
                with switched_off([patch]):
                    logits, without = _run(network, state, images, [path])
                found = sums[home]
                _add(found.maps, maps[path], without[path])
                _add(found.logits, with_all, logits)
                found.changed += _num_changed(state, with_all, logits)
                if targets is not None:
                    found.loss += float(criterion(named_outputs(state, logits), targets)) * num
    if not count:
        raise ParameterError("patch_report needs at least one image; the data is empty")
    effects = tuple(
        PatchEffect(
            path=home,
            target=path,
            position=patch.position.name,
            gate=None if patch.alpha is None else float(patch.alpha.detach()),
            gate_values=gates.sums[home].statistics(count) if home in gates.sums else None,
            map_change=_ratio(sums[home].maps),
            logits_change=_ratio(sums[home].logits),
            num_changed=sums[home].changed,
            loss=total / count if has_targets else None,
            loss_without=sums[home].loss / count if has_targets else None,
        )
        for home, path, patch in placed
    )
    report = PatchReport(patches=effects, num_images=count)
    for warning in report.warnings:
        warnings.warn(warning, UserWarning, stacklevel=3)
    return report


def _batches(data: Any, *, of_any_kind: bool) -> Iterator[tuple[Tensor, Any]]:
    """Yield images and targets, None where there are none. A loss of the user's own may take
    targets of any kind, such as a dict for several heads.
    """
    if isinstance(data, Tensor):
        yield data, None
    elif isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
        if data[0].ndim != 4 or not (of_any_kind or isinstance(data[1], Tensor)):
            raise ParameterError(
                "patch_report takes images [N, C, H, W], a pair of images and class numbers [N], "
                f"or an iterable of these, not a pair {short_repr(data)}; targets of another kind "
                "need loss=..., a function of the model's output and them"
            )
        yield data[0], data[1]
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
        for batch in data:
            yield from _batches(batch, of_any_kind=of_any_kind)
    else:
        raise ParameterError(
            "patch_report takes images [N, C, H, W], a pair of images and class numbers [N], or an "
            f"iterable of these, not {short_repr(data)}"
        )


def _moved(targets: Any, device: torch.device) -> Any:
    """Return targets with their tensors on a device."""
    if isinstance(targets, Mapping):
        return {key: _moved(each, device) for key, each in targets.items()}
    if isinstance(targets, (list, tuple)):
        return [_moved(each, device) for each in targets]
    return targets.to(device) if isinstance(targets, Tensor) else targets


def _run(
    network: nn.Module, state: HybridState, images: Tensor, paths: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits and the maps of some modules."""
    # Hooks run in the order in which they were registered, and those of the patches came first: so
    # these see the maps with the patches, or without them while they are switched off. A clone,
    # since a later layer may overwrite a map in place.
    maps: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        return lambda _, args, output: maps.update({path: first_tensor(output).clone()})

    handles = [
        network.get_submodule(path).register_forward_hook(keep(path))
        for path in dict.fromkeys(paths)
    ]
    try:
        return joined(state, network(images)), maps
    finally:
        for handle in handles:
            handle.remove()


def _num_changed(state: HybridState, before: Tensor, after: Tensor) -> int:
    """Return for how many images a prediction differs, of any head."""
    if not state.head_widths:
        return int((before.argmax(-1) != after.argmax(-1)).sum())
    both = named_outputs(state, before), named_outputs(state, after)
    changed = [both[0][name].argmax(-1) != both[1][name].argmax(-1) for name in both[0]]
    return int(torch.stack(changed).any(0).sum())


def _add(sums: list[float], with_it: Tensor, without: Tensor) -> None:
    sums[0] += float((with_it - without).double().square().sum())
    sums[1] += float(without.double().square().sum())


def _ratio(sums: list[float]) -> float:
    return (sums[0] / sums[1]) ** 0.5 if sums[1] else 0.0
