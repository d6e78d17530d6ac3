"""Compare the weights of two models tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import WeightsError, join_names, short_repr
from .entries import check_state_dict
from .files import read_state_dict

__all__ = ["TensorChange", "WeightsDiff", "diff_weights"]

Weights = nn.Module | Mapping[str, Tensor] | str | Path


@dataclass(frozen=True, kw_only=True)
class TensorChange:
    """A tensor that both sides have with other values.

    Args:
        key: its name.
        max_difference: largest absolute difference of a value; NaN where a value is NaN on one
            side only.
        relative: Euclidean norm of the difference over that of the first side's tensor; infinite
            where that is zero.
        num_changed: values that differ.
        num_values: values that there are.
    """

    key: str
    max_difference: float
    relative: float
    num_changed: int
    num_values: int

    def __str__(self) -> str:
        return (
            f"{self.key}: by at most {self.max_difference:.3g} ({self.relative:.2%} of its norm), "
            f"{self.num_changed} of {self.num_values} values"
        )


@dataclass(frozen=True, kw_only=True)
class WeightsDiff:
    """Which tensors of two models differ; each key of either side is in one of the fields.

    Args:
        changed: on both sides with the same shape and type and other values, the largest relative
            change first.
        equal: on both sides with the same bits.
        unlike: on both sides with another shape or type, and what these are.
        only_in_a: on the first side only.
        only_in_b: on the second side only.
    """

    changed: tuple[TensorChange, ...] = ()
    equal: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    only_in_a: tuple[str, ...] = ()
    only_in_b: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Both sides have the same tensors, bit for bit."""
        return not (self.changed or self.unlike or self.only_in_a or self.only_in_b)

    def summary(self, most: int = 10) -> str:
        """Return a few lines for a person.

        Args:
            most: so many changed tensors at most.
        """
        lines = [f"{len(self.changed)} tensors changed, {len(self.equal)} are equal"]
        lines += [f"  {change}" for change in self.changed[:most]]
        if len(self.changed) > most:
            lines.append(f"  ... ({len(self.changed) - most} more)")
        rows = {
            "another shape or type": self.unlike,
            "only in the first": self.only_in_a,
            "only in the second": self.only_in_b,
        }
        lines += [f"  {what}: {len(k)} ({join_names(k, most=4)})" for what, k in rows.items() if k]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def diff_weights(a: Weights, b: Weights) -> WeightsDiff:
    """Say which parameters and buffers of two models differ, and by how much.

    Args:
        a: a module, a state dict, or the path of a file of weights.
        b: likewise; changes are relative to `a`.

    Raises:
        WeightsError: one of them holds no plain tensors, or cannot be read.
    """
    first, second = _tensors(a, "a"), _tensors(b, "b")
    equal, unlike, changed = [], [], []
    for key, x in first.items():
        if key not in second:
            continue
        y = second[key]
        if x.shape != y.shape or x.dtype != y.dtype:
            kinds = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (x, y))
            unlike.append(f"{key}: {' and '.join(kinds)}")
        elif torch.equal(_bits(x), _bits(y)):
            equal.append(key)
        else:
            changed.append(_change(key, x, y))
    return WeightsDiff(
        changed=tuple(sorted(changed, key=lambda change: -change.relative)),
        equal=tuple(equal),
        unlike=tuple(unlike),
        only_in_a=tuple(key for key in first if key not in second),
        only_in_b=tuple(key for key in second if key not in first),
    )


def _tensors(given: Weights, name: str) -> dict[str, Tensor]:
    if isinstance(given, (str, Path)):
        state: Mapping[str, Tensor] = read_state_dict(given)
    elif isinstance(given, nn.Module):
        state = check_state_dict(given.state_dict(), name)
    elif isinstance(given, Mapping):
        state = check_state_dict(given, name)
    else:
        raise WeightsError(
            f"diff_weights takes modules, state dicts or paths, not {short_repr(given)}"
        )
    return {k: v.detach().cpu().contiguous() for k, v in state.items() if isinstance(v, Tensor)}


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _change(key: str, x: Tensor, y: Tensor) -> TensorChange:
    kind = torch.complex128 if x.is_complex() else torch.float64
    x, y = x.to(kind), y.to(kind)
    same = (x == y) | (x.isnan() & y.isnan())
    difference = torch.where(same, torch.zeros_like(x), x - y).abs()  # equal infinities differ by 0
    norm, size = float(difference.norm()), float(x.abs().norm())
    return TensorChange(
        key=key,
        max_difference=float(difference.max()),
        relative=norm / size if size else (float("inf") if norm else 0.0),
        num_changed=int((~same).sum()),
        num_values=x.numel(),
    )
