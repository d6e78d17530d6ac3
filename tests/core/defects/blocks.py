"""Defective blocks: subclasses of a healthy one."""

from __future__ import annotations

import logging
import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvc_core import BlockSpec, Target

from . import Defect


class Healthy(nn.Module):
    """x * sigmoid(fc2(relu(fc1(mean(x)))))."""

    def __init__(self, in_channels: int, reduction: int = 4) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"reduction is at least 1, not {reduction}")
        hidden = max(in_channels // reduction, 2)
        self.fc1 = nn.Conv2d(in_channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, in_channels, 1)

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class NeedsChannels(nn.Module):
    """Takes a width that has no default: healthy with params, and nobody can try it without."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class KeywordWidth(Healthy):
    def __init__(self, *, in_channels: int) -> None:
        super().__init__(in_channels)


_ONE: dict[int, nn.Module] = {}


def the_same_one(in_channels: int) -> nn.Module:
    return _ONE.setdefault(in_channels, Healthy(in_channels))


def no_module(in_channels: int) -> Any:
    return torch.relu


class TwoMaps(Healthy):
    def forward(self, x: Tensor) -> Any:
        return x, self.gate(x)


class CutsOddSizes(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        pairs = x.reshape(n, c, h // 2, 2, w // 2, 2)
        return super().forward(pairs.reshape(n, c, h, w))


class Halves(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, ::2, ::2]


class DividesByWidth(Healthy):
    def __init__(self, in_channels: int) -> None:
        hidden = in_channels // 16
        super().__init__(in_channels, reduction=in_channels // hidden)


class Unused(Healthy):
    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.unused = nn.Parameter(torch.zeros(in_channels))


class Detached(Healthy):
    def gate(self, x: Tensor) -> Tensor:
        return super().gate(x).detach()


class DetachedInput(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class Infinite(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill(x > 1.5, math.inf)


class OtherGate(Healthy):
    def gate(self, x: Tensor) -> Tensor:
        return 2 * super().gate(x)

    def forward(self, x: Tensor) -> Tensor:
        return x * super().gate(x)


class NoGate(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Widens(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float() if x.dtype is torch.bfloat16 else super().forward(x)


class CpuConstant(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.zeros(x.shape, dtype=x.dtype)


class AlwaysDrops(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


class Counts(Healthy):
    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class BatchMean(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean((0, 2, 3), keepdim=True))


class InPlace(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        with torch.no_grad():
            x.mul_(0.5)
        return x * gate


class Unregistered(Healthy):
    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.scale = float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class NotPersistent(Healthy):
    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.register_buffer("mixing", torch.rand(1, in_channels, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.mixing


class Lambda(Healthy):
    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.act = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class SharedDefault(Healthy):
    def __init__(self, in_channels: int, act: nn.Module = nn.PReLU()) -> None:  # noqa: B008  the defect
        super().__init__(in_channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class ClassState(Healthy):
    shift = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            type(self).shift.copy_(x.detach().mean())
        return super().forward(x) + type(self).shift


class Views(Healthy):
    def gate(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        mean = x.view(n, c * h * w).reshape(n, c, h * w).mean(2)[:, :, None, None]
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(mean))))


class Logs(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        logging.getLogger("acme").debug("a map of %s", x.shape)
        return super().forward(x)


class OneSize(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if x.shape[2] == 8 else 1.0)


class SwallowsKeywords(Healthy):
    def __init__(self, in_channels: int, **others: Any) -> None:
        super().__init__(in_channels)


class PythonRandom(Healthy):
    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        nn.init.constant_(self.fc1.bias, random.random())  # type: ignore[arg-type]


class SetsSeed(Healthy):
    def __init__(self, in_channels: int) -> None:
        torch.manual_seed(0)
        super().__init__(in_channels)


class SetsSeedWhenRun(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().forward(x)


class Lazy(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class RootOfVariance(Healthy):
    def gate(self, x: Tensor) -> Tensor:
        return super().gate(x * (1 + x.var((2, 3), keepdim=True, unbiased=False).sqrt()))


def _takes_over(original: nn.Module, in_channels: int, reduction: int = 4) -> nn.Module | None:
    if not isinstance(original, nn.Conv2d) or original.kernel_size != (3, 3):
        return None
    made = Healthy(in_channels, reduction)
    with torch.no_grad():
        made.fc2.bias.copy_(original.weight.mean((1, 2, 3)))  # type: ignore[union-attr]
    return made


def _shares(original: nn.Module, in_channels: int, reduction: int = 4) -> nn.Module | None:
    made = _takes_over(original, in_channels, reduction)
    if made is not None:
        made.kept = original.weight
    return made


def _spoils(original: nn.Module, in_channels: int, reduction: int = 4) -> nn.Module | None:
    made = _takes_over(original, in_channels, reduction)
    if made is not None:
        with torch.no_grad():
            original.weight.zero_()  # type: ignore[union-attr, operator]
    return made


def _other_parameters(original: nn.Module, in_channels: int) -> nn.Module | None:
    return _takes_over(original, in_channels)


def _asks_what_is_not_there(
    original: Any, in_channels: int, reduction: int = 4
) -> nn.Module | None:
    return nn.GroupNorm(1, in_channels if original.num_features else 1)


def _for_target(target: Target, in_channels: int, reduction: int = 4) -> nn.Module:
    return Healthy(in_channels, reduction)


def _shares_with_target(target: Target, in_channels: int, reduction: int = 4) -> nn.Module:
    made = Healthy(in_channels, reduction)
    made.kept = getattr(target.module, "weight", None)
    return made


def _spoils_target(target: Target, in_channels: int, reduction: int = 4) -> nn.Module:
    if isinstance(target.module, nn.Conv2d):
        with torch.no_grad():
            target.module.weight.zero_()
    return Healthy(in_channels, reduction)


def _other_for_target(target: Target, in_channels: int) -> nn.Module:
    return Healthy(in_channels)


class Scales(Healthy):
    """A block that is linear, and folds."""

    times = 1.0

    def __init__(self, in_channels: int, reduction: int = 4) -> None:
        super().__init__(in_channels, reduction)
        self.fc1, self.fc2 = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.factor = nn.Parameter(torch.ones(1))

    def gate(self, x: Tensor) -> Tensor:
        return self.factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def fold(self, target: nn.Module) -> None:
        if not isinstance(target, (nn.Conv2d, nn.Linear)):
            raise ValueError("it folds into a convolution or a linear layer")
        with torch.no_grad():
            for each in target.parameters():
                each.mul_(self.factor * self.times)


class FoldsTwice(Scales):
    times = 2.0


class FoldsNowhere(Scales):
    def fold(self, target: nn.Module) -> None:
        raise ValueError("not into this one")


class FoldsAndForgets(Scales):
    def fold(self, target: nn.Module) -> None:
        super().fold(target)
        with torch.no_grad():
            self.factor.fill_(1.0)


def _spec(factory: Any, **fields: Any) -> BlockSpec:
    return BlockSpec(name="thing", factory=factory, **fields)


HEALTHY = (
    _spec(Healthy, gated=True),
    _spec(Healthy),
    _spec(Healthy, in_place_of=_takes_over),
    _spec(Healthy, for_target=_for_target),
    _spec(Scales, starts_as="identity", positions=("after",)),
)

DEFECTS = (
    Defect(
        what="width as a keyword",
        thing=_spec(KeywordWidth),
        caught_by="block_made",
        says="its first argument",
    ),
    Defect(
        what="needs a parameter",
        thing=_spec(NeedsChannels),
        caught_by="block_made",
        says="params=...",
    ),
    Defect(
        what="one instance for all",
        thing=_spec(the_same_one),
        caught_by="block_made",
        says="same module twice",
    ),
    Defect(
        what="no module", thing=_spec(no_module), caught_by="block_made", says="not an nn.Module"
    ),
    Defect(what="returns a tuple", thing=_spec(TwoMaps), caught_by="block_layouts", says="a tuple"),
    Defect(
        what="a layout it cannot take",
        thing=_spec(Healthy, layouts=("NCHW", "NLC")),
        caught_by="block_layouts",
        says="(NLC",
    ),
    Defect(
        what="even sizes only", thing=_spec(CutsOddSizes), caught_by="block_shapes", says="7, 5]"
    ),
    Defect(
        what="changes the shape",
        thing=_spec(Halves),
        caught_by="block_shapes",
        says="preserves_shape=False",
    ),
    Defect(
        what="crashes at a width",
        thing=_spec(DividesByWidth),
        caught_by="block_shapes",
        says="ZeroDivisionError",
    ),
    Defect(
        what="writes into its input",
        thing=_spec(InPlace),
        caught_by="block_input_unchanged",
        says="in-place",
    ),
    Defect(
        what="dropout in eval mode",
        thing=_spec(AlwaysDrops),
        caught_by="block_deterministic",
        says="self.training",
    ),
    Defect(
        what="moves a buffer in eval mode",
        thing=_spec(Counts),
        caught_by="block_deterministic",
        says="calls",
    ),
    Defect(
        what="a parameter nobody uses",
        thing=_spec(Unused),
        caught_by="block_gradients",
        says="none at unused",
    ),
    Defect(
        what="detaches its gate",
        thing=_spec(Detached),
        caught_by="block_gradients",
        says="fc1.weight",
    ),
    Defect(
        what="detaches its input",
        thing=_spec(DetachedInput),
        caught_by="block_gradients",
        says="at the input",
    ),
    Defect(
        what="puts out infinity",
        thing=_spec(Infinite),
        caught_by="block_identity_start",
        says="not finite",
    ),
    Defect(
        what="another gate",
        thing=_spec(OtherGate, gated=True),
        caught_by="block_gated",
        says="a difference of",
    ),
    Defect(
        what="no gate",
        thing=_spec(NoGate, gated=True),
        caught_by="block_gated",
        says="a method gate(x)",
    ),
    Defect(
        what="shares the weights of what it replaces",
        thing=_spec(Healthy, in_place_of=_shares),
        caught_by="block_in_place_of",
        says="shared kept",
    ),
    Defect(
        what="changes what it replaces",
        thing=_spec(Healthy, in_place_of=_spoils),
        caught_by="block_in_place_of",
        says="changes of weight",
    ),
    Defect(
        what="takes other parameters in the place of another",
        thing=_spec(Healthy, in_place_of=_other_parameters),
        caught_by="block_in_place_of",
        says="reduction",
    ),
    Defect(
        what="fails in the place of another kind",
        thing=_spec(Healthy, in_place_of=_asks_what_is_not_there),
        caught_by="block_in_place_of",
        says="num_features",
    ),
    *(
        Defect(
            what=what,
            thing=_spec(Healthy, for_target=made),
            caught_by="block_for_target",
            says=says,
        )
        for what, made, says in (
            ("shares the weights of its target", _shares_with_target, "shared kept"),
            ("changes its target", _spoils_target, "changes of weight"),
            ("takes other parameters for its target", _other_for_target, "reduction"),
        )
    ),
    *(
        Defect(
            what=what, thing=_spec(made, starts_as="identity"), caught_by="block_folds", says=says
        )
        for what, made, says in (
            ("folds twice as much", FoldsTwice, "something else"),
            ("folds nowhere", FoldsNowhere, "some layer of the kit"),
            ("forgets when it folds", FoldsAndForgets, "changes of factor"),
        )
    ),
    Defect(
        what="converts to float32", thing=_spec(Widens), caught_by="block_dtype", says="bfloat16"
    ),
    Defect(
        what="a constant on the CPU",
        thing=_spec(CpuConstant),
        caught_by="block_device",
        says="device=x.device",
    ),
    Defect(
        what="statistics of the batch",
        thing=_spec(BatchMean),
        caught_by="block_batch_independent",
        says="alone",
    ),
    Defect(
        what="an attribute decides",
        thing=_spec(Unregistered),
        caught_by="block_state_dict",
        says="buffers",
    ),
    Defect(
        what="a buffer outside of the state dict",
        thing=_spec(NotPersistent),
        caught_by="block_state_dict",
    ),
    Defect(what="a lambda", thing=_spec(Lambda), caught_by="block_pickle", says="lambdas"),
    Defect(
        what="a shared default",
        thing=_spec(SharedDefault),
        caught_by="block_independent",
        says="act",
    ),
    Defect(
        what="state in the class",
        thing=_spec(ClassState),
        caught_by="block_no_hidden_state",
        says="another's result",
    ),
    Defect(what="a view", thing=_spec(Views), caught_by="block_channels_last", says="reshape"),
    Defect(
        what="logging in forward", thing=_spec(Logs), caught_by="block_compiles", says="fullgraph"
    ),
    Defect(
        what="a branch on the size", thing=_spec(OneSize), caught_by="block_exports", says="dynamic"
    ),
    Defect(
        what="swallows keywords",
        thing=_spec(SwallowsKeywords),
        caught_by="block_parameters",
        says="misspelt_parameter",
    ),
    Defect(
        what="Python's random numbers",
        thing=_spec(PythonRandom),
        caught_by="block_seeded",
        says="fc1.bias",
    ),
    Defect(
        what="sets the seed",
        thing=_spec(SetsSeed),
        caught_by="block_seeded",
        says="torch.manual_seed",
    ),
    Defect(
        what="sets the seed when run",
        thing=_spec(SetsSeedWhenRun),
        caught_by="block_seeded",
        says="a forward pass",
    ),
    Defect(
        what="a lazy layer",
        thing=_spec(Lazy),
        caught_by="block_made",
        says="in_channels is the width",
    ),
    Defect(
        what="a root of zero",
        thing=_spec(RootOfVariance),
        caught_by="block_gradients",
        says="for a map of zeros",
    ),
)
