"""Defective patch operations, all of them variants of inserting a block after the target."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tvc_core import PatchOpSpec, Target

from . import Defect

Make = Callable[[int], nn.Module]


def healthy(target: Target, block: Make, times: int = 1) -> nn.Module:
    for _ in range(times):
        target.after(block(target.out_channels))
    return target.module


def no_block(target: Target) -> nn.Module:
    return target.module


def returns_nothing(target: Target, block: Make) -> None:
    target.after(block(target.out_channels))


def changes_nothing(target: Target, block: Make) -> nn.Module:
    block(target.out_channels)
    return target.module


def images_only(target: Target, block: Make) -> nn.Module:
    return healthy(target, block) if target.site.shape("output")[3] else target.module


class Inside(nn.Module):
    def __init__(self, original: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.original(x))


def renames(target: Target, block: Make) -> nn.Module:
    if target.site.layout("output") != "NCHW":
        raise ValueError("for maps only")
    return Inside(target.module, block(target.out_channels))


class Ignores(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        self.block(x)
        return x


def ignores(target: Target, block: Make) -> nn.Module:
    target.after(Ignores(block(target.out_channels)))
    return target.module


def marks_the_target(target: Target, block: Make) -> nn.Module:
    target.module.patched = True  # type: ignore[assignment]
    return healthy(target, block)


def hooks_the_target(target: Target, block: Make) -> nn.Module:
    target.module.register_forward_hook(passes)
    return healthy(target, block)


def passes(module: nn.Module, args: Any, output: Any) -> None:
    return None


def random_start(target: Target, block: Make) -> nn.Module:
    module = block(target.out_channels)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(random.random())
    target.after(module)
    return target.module


def twice(target: Target, block: Make, times: int = 2) -> nn.Module:
    return healthy(target, block, times)


class Detaches(Ignores):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).detach()


def detaches(target: Target, block: Make) -> nn.Module:
    target.after(Detaches(block(target.out_channels)))
    return target.module


class WithLambda(Ignores):
    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        self.act = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.block(x))


def with_lambda(target: Target, block: Make) -> nn.Module:
    target.after(WithLambda(block(target.out_channels)))
    return target.module


def without_options(target: Target, block: Make) -> nn.Module:
    return healthy(target, block)


_sides = itertools.cycle(("before", "after"))


def alternates(target: Target, block: Make) -> nn.Module:
    return on_a_side(target, block, next(_sides))


def on_a_side(target: Target, block: Make, side: str = "before") -> nn.Module:
    if side == "before":
        target.before(block(target.in_channels))
    else:
        target.after(block(target.out_channels))
    return target.module


def drop(target: Target) -> nn.Module:
    target.after(nn.Dropout(0.1))
    return target.module


def _spec(factory: Any, **fields: Any) -> PatchOpSpec:
    return PatchOpSpec(name="thing", factory=factory, **fields)


HEALTHY = (_spec(healthy, options={"times": 1}), _spec(healthy), _spec(drop, takes_block=False))

DEFECTS = (
    Defect(
        what="takes no block",
        thing=_spec(no_block),
        caught_by="operation_applies",
        says="apply(target, block",
    ),
    Defect(
        what="returns nothing",
        thing=_spec(returns_nothing),
        caught_by="operation_applies",
        says="NoneType",
    ),
    Defect(
        what="changes nothing",
        thing=_spec(changes_nothing),
        caught_by="operation_applies",
        says="changed nothing",
    ),
    Defect(
        what="alternates",
        thing=_spec(alternates),
        caught_by="operation_reproducible",
        says="its gate open",
    ),
    Defect(
        what="another default, of the same names",
        thing=_spec(on_a_side, options={"side": "after"}),
        caught_by="operation_options",
        says="another one",
    ),
    Defect(
        what="ignores the block",
        thing=_spec(ignores),
        caught_by="operation_effect",
        says="the same",
    ),
    Defect(
        what="crashes at tokens",
        thing=_spec(images_only),
        caught_by="operation_layouts",
        says="raise TargetError",
    ),
    Defect(
        what="wraps the target",
        thing=_spec(renames),
        caught_by="operation_keys",
        says="target.after",
    ),
    Defect(
        what="marks the target",
        thing=_spec(marks_the_target),
        caught_by="operation_arguments",
        says="untouched network",
    ),
    Defect(
        what="hooks the target",
        thing=_spec(hooks_the_target),
        caught_by="operation_arguments",
        says="untouched network",
    ),
    Defect(
        what="random start",
        thing=_spec(random_start),
        caught_by="operation_reproducible",
        says="torch's seed",
    ),
    Defect(
        what="an option it does not take",
        thing=_spec(without_options, options={"times": 1}),
        caught_by="operation_options",
        says="'times'",
    ),
    Defect(
        what="another default",
        thing=_spec(twice, options={"times": 1}),
        caught_by="operation_options",
        says="defaults",
    ),
    Defect(
        what="detaches the block",
        thing=_spec(detaches),
        caught_by="operation_gradients",
        says="detach",
    ),
    Defect(
        what="inserts a lambda",
        thing=_spec(with_lambda),
        caught_by="operation_pickle",
        says="lambdas",
    ),
)
