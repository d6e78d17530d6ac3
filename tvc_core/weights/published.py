"""Checkpoints in the layout in which a network was published, read by what its plugin knows.

A library that offers other people's networks often gives their layers other names, and renames,
merges and resamples the tensors of the published files when it loads them. That is the library's
knowledge, so it comes from the plugin: `BackboneSpec.migrate`. It is asked only where names alone
do not fill the network, and counts only where it fills more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import Named
from ..specs import BackboneSpec

__all__ = ["Layouts", "Migrated", "layouts_of"]

_WRAPPERS = 4
"""Segments before the published names that are tried."""


@dataclass(frozen=True, kw_only=True)
class Migrated:
    """A checkpoint as a plugin has rewritten it.

    Args:
        tensors: by their new names.
        keys: of the tensors that the checkpoint has, its names.
        reshaped: names of those that have another shape now, and both shapes in words.
        made: names of those that were computed.
        gone: the checkpoint's names of tensors that it has no more.
        front: what the checkpoint's names began with before the published ones.
    """

    tensors: dict[str, Tensor]
    keys: dict[str, str]
    reshaped: dict[str, str]
    made: set[str]
    gone: set[str]
    front: str


@dataclass(frozen=True)
class Layouts:
    """The published layouts of a backbone.

    Args:
        backbone: with `migrate` in its spec.
        network: the backbone as built, or a hybrid of it.
    """

    backbone: Named[BackboneSpec]
    network: nn.Module

    def read(self, tensors: Mapping[str, Tensor]) -> Iterator[Migrated]:
        """Yield what the plugin makes of a checkpoint's tensors, as they are called and without
        what most names begin with; nothing where it knows no such layout.
        """
        migrate: Callable[..., Any] = self.backbone.load("migrate")
        names, front = {name: name for name in tensors}, ""
        for _ in range(_WRAPPERS):
            given = {name: tensors[key] for name, key in names.items()}
            try:
                with torch.no_grad():
                    found = migrate(self.backbone.spec, self.network, dict(given))
            except Exception:  # such code looks for the names of its layout, and finds others
                found = None
            if isinstance(found, Mapping) and not _is_same(found, given):
                yield _migrated(found, given, names, front)
            firsts = Counter(name.partition(".")[0] for name in names if "." in name)
            if not firsts:
                return
            first, count = firsts.most_common(1)[0]
            if 2 * count <= len(names):
                return
            front += f"{first}."
            names = {
                name.partition(".")[2]: key
                for name, key in names.items()
                if name.startswith(f"{first}.")
            }


def layouts_of(model: nn.Module) -> Layouts | None:
    """Return the published layouts of the hybrid that a model is, or wraps; None where there is
    none, or its plugin knows no layouts.
    """
    for module in model.modules():
        hybrid: Any = module.__dict__.get("_hybrid")
        if hybrid is not None:
            # the plugin's code expects its own network, whose methods a hybrid may hide
            network = getattr(module, "_hybrid_view", module)
            backbone = hybrid.plan.backbone
            return Layouts(backbone, network) if backbone.spec.migrate else None
    return None


def _is_same(found: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    return found.keys() == given.keys() and all(found[name] is given[name] for name in given)


def _migrated(
    found: Mapping[str, Any], given: Mapping[str, Tensor], names: Mapping[str, str], front: str
) -> Migrated:
    origin = {_memory(tensor): name for name, tensor in given.items()}
    new = Migrated(tensors={}, keys={}, reshaped={}, made=set(), gone=set(), front=front)
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            continue
        new.tensors[name] = tensor = tensor.detach()
        old = origin.get(_memory(tensor))
        before = given[old] if old is not None else None
        if old is None or before is None or not _is_in_order(tensor, before):
            new.made.add(name)
            old = name if name in given else None  # the same tensor at another size
        elif tensor.shape != before.shape:
            shapes = f"from {list(before.shape)} to {list(tensor.shape)}"
            new.reshaped[name] = f"reshaped {shapes}"
        if old is not None:
            new.keys[name] = names[old]
    new.gone.update(set(names.values()) - set(new.keys.values()))
    return new


def _memory(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.numel()


def _is_in_order(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one memory have the same numbers in the same order."""
    same = one.shape == other.shape and one.stride() == other.stride()
    return one.dtype == other.dtype and (same or (one.is_contiguous() and other.is_contiguous()))
