"""Compare a file of a model with what its recipe gives, by names, types and shapes: the header of
the file says enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import WeightsError, join_names, short_repr
from ..recipe import Plan
from ..surgery.patches import CONTAINERS
from ..surgery.targets import is_pattern
from .ownfile import OwnFile

__all__ = ["Entries", "compare", "compare_backbone", "compare_inserted", "entries_of"]

Entries = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Types and shapes of tensors, by their names."""


def entries_of(file: OwnFile, base: Mapping[str, Tensor]) -> Entries:
    """Return what a file and its base hold together."""
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in base.items()}
    return found | {name: (each.dtype, each.shape) for name, each in file.entries.items()}


def compare_backbone(path: Path, network: nn.Module, plan: Plan, entries: Entries) -> None:
    """Refuse tensors that are not those of an unpatched backbone, which has no values yet. What the
    recipe changes in it is left for the comparison of the whole model.
    """
    spec, recipe = plan.backbone.spec, plan.recipe
    changed = ["patches", "tvc_patches", spec.head, *spec.neck, *spec.auxiliary]
    for patch in plan.patches:
        if patch.op.qualified not in ("tvc-core:wrap", "tvc-core:inject"):
            parts = patch.entry.target.split(".")
            plain = list(itertools.takewhile(lambda part: not is_pattern(part), parts))
            if not plain:
                return
            changed.append(".".join(plain))
    if recipe.in_channels is not None or not spec.head:
        return

    def stays(key: str) -> bool:
        return not any(f"{key}.".startswith(f"{path}.") for path in changed)

    own = {k: t for k, t in network.state_dict(keep_vars=True).items() if stays(k)}
    if recipe.stages is not None:  # later ones are left out
        own = {key: tensor for key, tensor in own.items() if key in entries}
    compare(path, own, {key: entry for key, entry in entries.items() if stays(key)})


def compare_inserted(place: str, module: nn.Module, names: Container[str]) -> None:
    """Refuse a module that is to be inserted at a place, if the file lacks its tensors: a small
    file can ask for hundreds, of which each takes time to try.
    """
    for key in module.state_dict(keep_vars=True):
        homes = [f"{container}.{place}.{key}" for container in CONTAINERS]
        if not any(home in names for home in homes):
            raise WeightsError(f"the file does not fit its own recipe: it lacks {homes[0]}")


def compare(path: Path, own: Mapping[str, Tensor], entries: Entries) -> None:
    """Refuse tensors that are not those of the model, by their types and shapes."""
    if own.keys() != entries.keys():
        lost, extra = [k for k in own if k not in entries], [k for k in entries if k not in own]
        raise WeightsError(
            f"{path}: does not fit its own recipe: lacks {join_names(lost, most=4)}; has also "
            f"{join_names([short_repr(name) for name in extra[:4]])}"
            + (f", ... ({len(extra) - 4} more)" if len(extra) > 4 else "")
        )
    for name, tensor in own.items():
        dtype, shape = entries[name]
        if tuple(tensor.shape) != shape:
            raise WeightsError(
                f"{path}: {name} has the shape {list(shape)}, its recipe gives {list(tensor.shape)}"
            )
        floats = tensor.is_floating_point() and dtype.is_floating_point
        if tensor.dtype != dtype and not floats:
            raise WeightsError(f"{path}: {name} is of {dtype}, its recipe gives {tensor.dtype}")
