"""Load what fits from a checkpoint, and account for every tensor on both sides."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError, join_names, near_names
from ..registry import Registry
from ..specs import InitializerSpec
from ..surgery.blocks import call_factory
from ..surgery.patch import Patch
from .files import check_state_dict, read_state_dict

__all__ = ["LoadReport", "Mismatch", "partial_load", "transfer_weights"]

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "state_dict.", "net.")


@dataclass(frozen=True)
class Mismatch:
    """A tensor that both sides have with different shapes."""

    key: str
    checkpoint: tuple[int, ...]
    model: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.key}: checkpoint {list(self.checkpoint)}, model {list(self.model)}"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every tensor.

    The model's keys are `loaded`, the keys of `mismatched`, `missing` and `excluded`, each key in
    one of them; the checkpoint's others are `unexpected`.

    Args:
        loaded: filled from the checkpoint.
        mismatched: on both sides with different shapes; not loaded.
        missing: not in the checkpoint.
        excluded: left alone because a pattern excludes them.
        unexpected: in the checkpoint (by its own key), not in the model.
        initialized: missing or mismatched parameters and statistics that `init_new_layers` filled.
        uninitialized: missing or mismatched ones that keep the values they had.
        unmatched_patterns: patterns that matched no key.
        prefix: what was taken off the checkpoint's keys, such as "module.".
    """

    loaded: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    missing: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    initialized: tuple[str, ...] = ()
    unmatched_patterns: tuple[str, ...] = ()
    prefix: str = ""

    @property
    def num_tensors(self) -> int:
        """Tensors of the model [tensors]."""
        return len(self.loaded) + len(self.mismatched) + len(self.missing) + len(self.excluded)

    @property
    def load_ratio(self) -> float:
        """Share of the model's tensors that were loaded, 0 to 1."""
        return len(self.loaded) / self.num_tensors if self.num_tensors else 0.0

    @property
    def uninitialized(self) -> tuple[str, ...]:
        """Keys that keep the values they had before."""
        rest = (*self.missing, *(mismatch.key for mismatch in self.mismatched))
        return tuple(key for key in rest if key not in set(self.initialized))

    def summary(self) -> str:
        """Return a few lines for a person."""
        lines = [f"loaded {len(self.loaded)} of {self.num_tensors} tensors ({self.load_ratio:.1%})"]
        if self.prefix:
            lines[0] += f", keys without their prefix {self.prefix!r}"
        rows: list[tuple[str, Iterable[object]]] = [
            ("mismatched", self.mismatched),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("excluded", self.excluded),
            ("initialized", self.initialized),
            (
                "keep their values",
                self.uninitialized if self.initialized or self.missing or self.mismatched else (),
            ),
            ("patterns that matched nothing", self.unmatched_patterns),
        ]
        for title, items in rows:
            texts = [str(item) for item in items]
            if texts:
                lines.append(f"  {title}: {len(texts)} ({join_names(texts, most=4)})")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def partial_load(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | str | Path,
    ignore_mismatch: bool = False,
    init_new_layers: str | None = None,
    exclude_patterns: Iterable[str] = (),
    *,
    registry: Registry | None = None,
) -> LoadReport:
    """Copy every tensor that fits by name and shape, and report on all others. On an error nothing
    has changed.

    Args:
        model: any module; its tensors are filled in place.
        state_dict: a state dict, or the path of a .safetensors file or of one that torch.save
            wrote. A prefix that all keys share, as DistributedDataParallel and torch.compile add
            it, is taken off where that makes keys fit.
        ignore_mismatch: tensors of another shape are reported instead of raising.
        init_new_layers: name of an initializer ("kaiming", "xavier", "zero", "identity") for
            parameters that the checkpoint did not fill; None leaves them as they are. Gates of
            patches are never touched.
        exclude_patterns: keys to leave alone. A pattern of letters, digits, "_" and dots matches
            whole dotted segments ("fc" matches fc.weight, not fc1.weight); any other is a regular
            expression, searched for.
        registry: where `init_new_layers` is looked up; by default what is installed.

    Raises:
        WeightsError: shapes differ and `ignore_mismatch` is false, nothing at all would be loaded,
            or the file is faulty.
        UnknownNameError: no such initializer.
    """
    if isinstance(state_dict, (str, Path)):
        given = read_state_dict(state_dict)
    else:
        given = check_state_dict(state_dict, "the checkpoint")
    initializer = None
    if init_new_layers is not None:
        initializer = (registry or Registry()).resolve(InitializerSpec, init_new_layers)
    own = {
        key: value
        for key, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }
    prefix = _shared_prefix(given, own)
    found = {
        key[len(prefix) :] if key.startswith(prefix) else key: value for key, value in given.items()
    }
    # Without its prefix a key has met another one that never had it. Then nothing is taken off,
    # since one of the two tensors would be lost without a word.
    if len(found) < len(given):
        found, prefix = dict(given), ""
    is_excluded, unmatched = _matcher(exclude_patterns, [*own, *found])
    excluded = [key for key in own if is_excluded(key)]
    open_keys = [key for key in own if key not in set(excluded)]
    loaded = [key for key in open_keys if key in found and found[key].shape == own[key].shape]
    mismatched = [
        Mismatch(key, tuple(found[key].shape), tuple(own[key].shape))
        for key in open_keys
        if key in found and found[key].shape != own[key].shape
    ]
    if mismatched and not ignore_mismatch:
        raise WeightsError(
            f"Shape mismatch: {len(mismatched)} of {len(own)} tensors: "
            f"{join_names(mismatched_texts(mismatched), most=4)}. "
            "Nothing was loaded. This is normal when changing architectures: use "
            "ignore_mismatch=True to load the others."
        )
    if not loaded:
        raise WeightsError(_nothing_loaded(given, own, excluded))
    missing = [key for key in open_keys if key not in found]
    new = [*missing, *(mismatch.key for mismatch in mismatched)]
    with torch.no_grad():
        for key in loaded:
            own[key].copy_(found[key])
    initialized = _initialize(model, new, initializer) if initializer is not None else ()
    back = {key[len(prefix) :] if key.startswith(prefix) else key: key for key in given}
    return LoadReport(
        loaded=tuple(loaded),
        mismatched=tuple(mismatched),
        missing=tuple(missing),
        excluded=tuple(excluded),
        unexpected=tuple(
            back.get(key, key) for key in found if key not in own and isinstance(found[key], Tensor)
        ),
        initialized=tuple(initialized),
        unmatched_patterns=tuple(unmatched),
        prefix=prefix,
    )


def transfer_weights(
    source: nn.Module,
    target: nn.Module,
    exclude_patterns: Iterable[str] = (),
    ignore_mismatch: bool = True,
    init_new_layers: str | None = None,
    *,
    registry: Registry | None = None,
) -> LoadReport:
    """Copy every tensor of one model that another has under the same name and shape.

    Args:
        source: the model to read.
        target: the model to fill in place.
        exclude_patterns, ignore_mismatch, init_new_layers, registry: as for `partial_load`.

    Raises:
        WeightsError: as for `partial_load`.
    """
    return partial_load(
        target,
        source.state_dict(),
        ignore_mismatch,
        init_new_layers,
        exclude_patterns,
        registry=registry,
    )


def mismatched_texts(mismatched: Iterable[Mismatch]) -> list[str]:
    """Return each mismatch as text."""
    return [str(mismatch) for mismatch in mismatched]


def _shared_prefix(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Return the wrapper prefix without which more of the checkpoint's keys are the model's, or an
    empty string.
    """
    # Wrappers nest: `module._orig_mod.` is DistributedDataParallel around torch.compile. Prefixes
    # are taken off one after the other, and the result is kept only where more keys fit than
    # before: a model whose own child is called `model` keeps its names.
    best, prefix, stripped = "", "", given
    fits = sum(key in own for key in given)
    while wrapper := next(
        (w for w in _WRAPPERS if stripped and all(key.startswith(prefix + w) for key in stripped)),
        None,
    ):
        prefix += wrapper
        count = sum(key[len(prefix) :] in own for key in given)
        if count > fits:
            best, fits = prefix, count
    return best


def _matcher(patterns: Iterable[str], keys: list[str]) -> tuple[Any, list[str]]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    compiled = []
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise WeightsError(f"a pattern is a string that is not empty, not {pattern!r}")
        if re.fullmatch(r"[\w.]+", pattern, re.ASCII):
            expression = rf"(?:^|\.){re.escape(pattern.strip('.'))}(?:\.|$)"
        else:
            expression = pattern
        try:
            compiled.append(re.compile(expression))
        except re.error as error:
            raise WeightsError(
                f"the pattern {pattern!r} is no regular expression: {error}"
            ) from error
    unmatched = [
        p
        for p, expression in zip(patterns, compiled, strict=True)
        if not any(map(expression.search, keys))
    ]
    return lambda key: any(expression.search(key) for expression in compiled), unmatched


def _nothing_loaded(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], excluded: list[str]
) -> str:
    first = next(iter(given))
    close = near_names(first, own, most=2)
    return (
        f"nothing would be loaded: none of the checkpoint's {len(given)} tensors fits one of the "
        f"model's {len(own)}"
        f"{f' ({len(excluded)} are excluded)' if excluded else ''}. The checkpoint's first keys "
        f"are {join_names(given, most=3)}; "
        "the model's are "
        f"{join_names(own, most=3)}.{f' Near {first!r}: {join_names(close)}.' if close else ''}"
    )


def _initialize(model: nn.Module, new: list[str], initializer: Any) -> list[str]:
    """Run an initializer on the layers that own the new tensors, one layer at a time, and keep what
    was loaded.
    """
    # An initializer fills everything in the module that it is given, and here only what is new may
    # be filled. So it gets each layer alone, in a shallow copy with the same tensors and without
    # children, and what was loaded in that layer (a weight whose bias did not fit, say) is put back
    # afterwards. Which tensors it wrote to, their version counters tell: an initializer may leave
    # some alone.
    by_owner: dict[str, list[str]] = {}
    for key in new:
        owner, _, name = key.rpartition(".")
        by_owner.setdefault(owner, []).append(name)
    done: list[str] = []
    for owner, names in by_owner.items():
        layer = model.get_submodule(owner)
        if isinstance(layer, Patch):
            continue
        alone = copy.copy(layer)  # the same tensors without the children
        alone.__dict__["_modules"] = {}
        tensors = {**alone._parameters, **alone._buffers}
        kept = {
            name: (t, t.detach().clone())
            for name, t in tensors.items()
            if t is not None and name not in names
        }
        before = {name: t._version for name in names if (t := tensors.get(name)) is not None}
        call_factory(initializer, (alone,), {})
        with torch.no_grad():
            for tensor, value in kept.values():
                tensor.copy_(value)
        prefix = f"{owner}." if owner else ""
        done += [
            f"{prefix}{name}"
            for name, version in before.items()
            if tensors[name]._version != version  # type: ignore[union-attr]
        ]
    return done
