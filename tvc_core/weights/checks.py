"""Whether enough of a checkpoint fits, and what to do where it does not."""

from __future__ import annotations

from torch import nn

from ..errors import WeightsError, join_names, near_names
from ..surgery.patch import Patch
from .entries import Checkpoint
from .naming import Wishes
from .order import fits_by_order
from .planning import LoadPlan
from .report import printable

__all__ = ["check_plan"]


def check_plan(
    model: nn.Module,
    plan: LoadPlan,
    checkpoint: Checkpoint,
    wishes: Wishes,
    ignore_mismatch: bool,
    min_loaded: float,
) -> None:
    """Raise where too little fits.

    Raises:
        WeightsError: something does not fit, and `ignore_mismatch` is false; nothing is loaded, or
            less than `min_loaded` of the tensors or of their bytes.
    """
    total = len(plan.own)
    if plan.mismatched and not ignore_mismatch:
        raise WeightsError(
            f"Shape mismatch: {len(plan.mismatched)} of {total} tensors: "
            f"{join_names(map(printable, plan.mismatched), most=4)}. Nothing was loaded. "
            f"{_rest(plan, checkpoint, wishes)}{_channels_hint(plan)}"
        )
    if plan.refused and not ignore_mismatch:
        raise WeightsError(
            f"Values that cannot be loaded: {len(plan.refused)} of {total} tensors: "
            f"{join_names(map(printable, plan.refused), most=4)}. Nothing was loaded. Use "
            "ignore_mismatch=True to load the others."
        )
    filled = [*plan.loaded, *(each.key for each in plan.converted)]
    if not plan.values and plan.refused:
        raise WeightsError(
            f"nothing would be loaded: the values of {len(plan.refused)} of the model's {total} "
            f"tensors cannot be right: {join_names(map(printable, plan.refused), most=3)}"
        )
    if not plan.values:
        raise WeightsError(_nothing_loaded(plan, checkpoint, wishes))
    blocks = {id(m) for p in model.modules() if isinstance(p, Patch) for m in p.modules()}
    new_blocks = {key for key in plan.missing if id(plan.own[key].module) in blocks}
    counted = [key for key in plan.own if key not in {*plan.excluded, *new_blocks}]
    sizes = plan.size(filled), plan.size(counted)
    by_count = len(filled) / len(counted)
    by_size = sizes[0] / sizes[1] if sizes[1] else 1.0
    if min(by_count, by_size) < min_loaded:
        least = int(min(by_count, by_size) * 1000) / 1000
        raise WeightsError(
            f"only {len(filled)} of the model's {len(counted)} tensors would be loaded "
            f"({by_count:.1%}, {by_size:.1%} of the bytes), less than min_loaded={min_loaded}. "
            f"Nothing was loaded. {_both_sides(plan, checkpoint)}"
            f"{_order_hint(plan, checkpoint, wishes)} If that is all that you expect, pass "
            f"min_loaded={least}."
        )


def _channels_hint(plan: LoadPlan) -> str:
    for each in plan.mismatched:
        a, b = each.checkpoint, each.model
        if len(a) == len(b) == 4 and a[0] == b[0] and a[2:] == b[2:]:
            return (
                f" For a first convolution of {b[1]} channels from one of {a[1]}, pass "
                "in_channels_policy."
            )
    return ""


def _both_sides(plan: LoadPlan, checkpoint: Checkpoint) -> str:
    first = min(plan.unexpected, default=next(iter(checkpoint.tensors)))
    close = near_names(first, plan.missing, most=2)
    return (
        f"The model misses {join_names(plan.missing, most=3)}; the checkpoint's names that it does "
        f"not have are {join_names(map(printable, plan.unexpected), most=3)}."
        + (f" Near {printable(first)!r}: {join_names(close)}." if close else "")
    )


def _order_hint(plan: LoadPlan, checkpoint: Checkpoint, wishes: Wishes) -> str:
    if wishes.match == "order":
        return ""
    given = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    own = {key: tuple(place.tensor.shape) for key, place in plan.own.items()}
    count = fits_by_order(given, own)
    if not count or 2 * count < len(own):
        return ""
    return f" By order and shape {count} of {len(own)} fit: match='order'."


def _rest(plan: LoadPlan, checkpoint: Checkpoint, wishes: Wishes) -> str:
    """Return what is to be done where some tensors have other shapes."""
    if not plan.values:
        return f"Without them, {_nothing_loaded(plan, checkpoint, wishes)}"
    return (
        "This is normal when changing architectures: use ignore_mismatch=True to load the others."
    )


def _nothing_loaded(plan: LoadPlan, checkpoint: Checkpoint, wishes: Wishes) -> str:
    given, own = checkpoint.tensors, plan.own
    first = next(iter(given))
    close = near_names(first, own, most=2)
    return (
        f"nothing would be loaded: none of the checkpoint's {len(given)} tensors fits one of the "
        f"model's {len(own)}"
        f"{f' ({len(plan.excluded)} are excluded)' if plan.excluded else ''}. The checkpoint's "
        f"first keys are {join_names(map(printable, given), most=3)}; the model's are "
        f"{join_names(own, most=3)}."
        f"{f' Near {printable(first)!r}: {join_names(close)}.' if close else ''}"
        f"{_order_hint(plan, checkpoint, wishes)}"
    )
