"""Methods of fine-tuning from papers. Each changes phases before training, adds to the loss, or
changes the weights at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tvc_core import HybridModel, ParameterError, join_names, short_repr

from .devices import local
from .evaluating import Evaluation
from .method import Method, Training
from .phases import Phase
from .scores import best_temperature

__all__ = [
    "FixRes", "GreedySoup", "L2StartingPoint", "LinearProbeFirst", "ProgressiveSizes", "Surgical",
    "Temperature", "WiseFineTuning", "check_order",
]  # fmt: skip


def check_order(methods: Mapping[str, Method], name: str) -> None:
    """Refuse a method that undoes what one before it did at the end, or that one after it undoes.

    Args:
        methods: all, in their order.
        name: which is looked at.

    Raises:
        ParameterError: it has to have another place.
    """
    place = [*methods].index(name)
    before, after = (
        [other for other in part if methods[other].changes_weights]
        for part in ([*methods][:place], [*methods][place + 1 :])
    )
    if isinstance(methods[name], Temperature) and after:
        raise ParameterError(
            f"it calibrates the weights that are there, and {join_names(after)} would change them "
            "afterwards: name it last"
        )
    if isinstance(methods[name], GreedySoup) and before:
        raise ParameterError(
            f"it averages the weights of epochs, so what {join_names(before)} has made of them "
            "would be lost: name it first"
        )


def _number(name: str, value: object, low: float, high: float, kind: str = "number") -> float:
    fits = isinstance(value, int if kind == "whole number" else (int, float))
    if not fits or isinstance(value, bool) or not low <= value <= high:  # type: ignore[operator]
        raise ParameterError(f"{name} is a {kind} from {low} to {high}, not {short_repr(value)}")
    return float(value)  # type: ignore[arg-type]


def _whole(name: str, value: object, low: int, high: int) -> int:
    return int(_number(name, value, low, high, "whole number"))


class LinearProbeFirst(Method):
    """Train the head alone first, then everything.

    Args:
        epochs: of the head alone [epochs].
        factor: the rate of the second part as a share of that of the first.

    Source: Kumar et al. 2022, arXiv:2202.10054, section 4.
    """

    def __init__(self, *, epochs: int | None = None, factor: float = 0.1) -> None:
        super().__init__()
        self.epochs = None if epochs is None else _whole("epochs", epochs, 1, 1_000_000)
        self.factor = _number("factor", factor, 1e-9, 1.0)

    def phases(self, phases: tuple[Phase, ...], *, size: int) -> tuple[Phase, ...]:
        """Return a phase for the head, like the first, and one for all, with the last's warm-up."""
        taken = ("layer_decay", "schedule", "stop_early", "normalization", "size")
        lost = [name for name in taken if len({getattr(each, name) for each in phases}) > 1]
        if lost:
            raise ParameterError(
                f"it makes its two phases from the first one, and the phases differ in "
                f"{join_names(lost)}: write one phase, and name methods that say it afterwards"
            )
        whole = sum(phase.epochs for phase in phases)
        probe = self.epochs or max(1, whole // 3)
        first = phases[0]
        return (
            replace(first, name="linear probe", epochs=probe, thaw=("head",)),
            replace(
                first,
                name="fine-tuning",
                epochs=max(1, whole - probe),
                thaw=("all",),
                rate=float(first.rate) * self.factor,
                warmup=phases[-1].warmup,
            ),
        )


class Surgical(Method):
    """Train only some stages besides the head: the first ones where images look different (blur,
    another camera), those in the middle where what is shown does, the last ones where labels do.

    Args:
        shift: "input", "feature" or "output".

    Source: Lee et al. 2023, arXiv:2210.11466, section 3.
    """

    def __init__(self, *, shift: str = "output") -> None:
        super().__init__()
        if shift not in ("input", "feature", "output"):
            raise ParameterError(
                f"shift is 'input', 'feature' or 'output', not {short_repr(shift)}"
            )
        self.shift = shift

    def phases(self, phases: tuple[Phase, ...], *, size: int) -> tuple[Phase, ...]:
        """Return the phases, of which each that thaws stages thaws those."""
        return tuple(
            phase if phase.thaw == ("head",) else replace(phase, thaw=self._thawed)
            for phase in phases
        )

    def check(self, phases: tuple[Phase, ...]) -> None:
        """Refuse phases of which none thaws those stages."""
        if all(phase.thaw != self._thawed for phase in phases):
            raise ParameterError(
                "it says which stages are thawed, and no phase thaws any, or another method says it"
            )

    @property
    def _thawed(self) -> tuple[int | str, ...]:
        return ({"input": 0, "feature": 1, "output": -1}[self.shift],)


class L2StartingPoint(Method):
    """Pull pretrained weights back to where they started, and new ones to zero.

    Args:
        alpha: of pretrained weights.
        beta: of new ones.

    Source: Li et al. 2018, arXiv:1802.01483, equation 3.
    """

    def __init__(self, *, alpha: float = 0.01, beta: float = 0.01) -> None:
        super().__init__()
        self.alpha = _number("alpha", alpha, 0, 1e6)
        self.beta = _number("beta", beta, 0, 1e6)
        if not (self.alpha or self.beta):
            raise ParameterError("alpha and beta are both 0, with which it pulls nothing")
        self._begin: dict[str, Tensor] = {}

    def start(self, model: HybridModel) -> None:
        """Note the weights, which the recipe builds again when a run goes on."""
        heads = tuple(f"{head.module}." for head in model.head_info)
        new = tuple(
            f"{path}." for record in model.patch_records for path in (*record.paths, *record.new)
        )
        self._begin = {
            name: local(parameter).detach().clone()
            for name, parameter in model.named_parameters()
            if not name.startswith((*heads, *new))
        }

    def penalty(self, model: HybridModel) -> Tensor | None:
        """Return half the squared distances."""
        total: Tensor | None = None
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            value, begin = local(parameter), self._begin.get(name)
            if begin is None:
                term = 0.5 * self.beta * value.square().sum()
            else:
                begin = begin.to(value.device, value.dtype)
                term = 0.5 * self.alpha * (value - begin).square().sum()
            total = term if total is None else total + term
        return total


class WiseFineTuning(Method):
    """Interpolate between the weights at the end of the first phase, which trained the head, and at
    the end.

    Args:
        alpha: the share of the end; None takes the one of 0, 0.1, ..., 1 that does best on the
            held-out images, whose figures are then a little too good.

    Source: Wortsman et al. 2022, arXiv:2109.01903, equation 1.
    """

    changes_weights = True

    def __init__(self, *, alpha: float | None = 0.5) -> None:
        super().__init__()
        self.alpha = None if alpha is None else _number("alpha", alpha, 0, 1)
        if self.alpha == 1:
            raise ParameterError(
                "with alpha: 1 the weights are those at the end, as without it: give less, or none"
            )
        self._last = 0  # part of the first phase

    def check(self, phases: tuple[Phase, ...]) -> None:
        """Refuse a single phase, also one in parts."""
        # parts of one, as `progressive` makes them, differ in the size of their images
        first = [replace(each, name="", epochs=1, warmup=0, size=None) for each in phases]
        self._last = sum(1 for _ in itertools.takewhile(lambda each: each == first[0], first)) - 1
        if self._last == len(phases) - 1:
            raise ParameterError(
                "it interpolates between the ends of the first phase and of the last, and there "
                "is one: write two, or add lp_ft"
            )

    def after_phase(self, training: Training) -> None:
        """Keep the weights of the first phase."""
        if training.position.phase == self._last:
            self.tensors = training.weights()

    def finish(self, training: Training) -> None:
        """Put the interpolated weights in place."""
        end = training.weights()
        shares = [self.alpha] if self.alpha is not None else [step / 10 for step in range(11)]
        best: tuple[float, float] | None = None
        for share in shares:
            if len(shares) == 1:
                best = (0.0, share)
                break
            training.load_weights(_between(self.tensors, end, share))
            figure = training.figure(training.evaluate())
            if best is None or training.settings.better(figure, best[0]):
                best = (figure, share)
        assert best is not None
        training.load_weights(_between(self.tensors, end, best[1]))
        self.facts["alpha"] = best[1]


def _between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    return {
        name: torch.lerp(a[name], end, share) if end.is_floating_point() and name in a else end
        for name, end in b.items()
    }


class GreedySoup(Method):
    """Average the weights of the best epochs of the last phase, each added if the average does
    better with it.

    Args:
        most: epochs that are kept, the best ones.

    Source: Wortsman et al. 2022, arXiv:2203.05482, recipe 1; of the epochs of one run instead of
    several runs.
    """

    changes_weights = True

    def __init__(self, *, most: int = 5) -> None:
        super().__init__()
        self.most = _whole("most", most, 1, 100)

    def check(self, phases: tuple[Phase, ...]) -> None:
        """Refuse a last phase of one epoch."""
        if phases[-1].epochs < 2:
            raise ParameterError(
                f"it averages epochs of the last phase, and {phases[-1].title!r} has one"
            )

    def after_epoch(self, training: Training, evaluation: Evaluation) -> None:
        """Keep the weights, if they are among the best."""
        if training.position.phase < len(training.phases) - 1:
            return
        figures: dict[str, float] = dict(self.facts.get("figures", {}))
        epoch = str(training.position.epochs)
        figures[epoch] = training.figure(evaluation)
        kept = _ranked(figures, training.settings.lower_is_better)[: self.most]
        if epoch in kept:
            new = {f"{epoch}.{name}": tensor for name, tensor in training.weights().items()}
            self.tensors = {**self.tensors, **new}
        self.tensors = {k: t for k, t in self.tensors.items() if k.partition(".")[0] in kept}
        self.facts["figures"] = {each: figures[each] for each in kept}

    def finish(self, training: Training) -> None:
        """Put the average in place."""
        figures = self.facts.get("figures", {})
        soup: list[dict[str, Tensor]] = []
        best: float | None = None
        taken: list[str] = []
        for epoch in _ranked(figures, training.settings.lower_is_better):
            start = f"{epoch}."
            weights = {k[len(start) :]: t for k, t in self.tensors.items() if k.startswith(start)}
            training.load_weights(_mean([*soup, weights]))
            figure = training.figure(training.evaluate())
            if best is None or figure == best or training.settings.better(figure, best):
                soup, best, taken = [*soup, weights], figure, [*taken, epoch]
        if soup:
            training.load_weights(_mean(soup))
        self.facts["epochs"] = [int(epoch) for epoch in taken]
        self.tensors = {}


def _ranked(figures: Mapping[str, float], lower: bool) -> list[str]:
    return sorted(figures, key=lambda e: (figures[e] if lower else -figures[e], -int(e)))


def _mean(weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        # in double, in which the mean of equal floats is that float, so what is frozen stays
        name: torch.stack([each[name] for each in weights]).double().mean(0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in weights[0].items()
    }


class ProgressiveSizes(Method):
    """Begin with small images and end with large ones: each phase is cut into parts, whose sizes
    rise to that of the data.

    Args:
        smallest: share of the size that the first part has.
        parts: how many.

    Source: Tan and Le 2021, arXiv:2104.00298, algorithm 1.
    """

    def __init__(self, *, smallest: float = 0.5, parts: int = 3) -> None:
        super().__init__()
        self.smallest = _number("smallest", smallest, 0.1, 1)
        self.parts = _whole("parts", parts, 2, 100)

    def phases(self, phases: tuple[Phase, ...], *, size: int) -> tuple[Phase, ...]:
        """Return the phases with a size each."""
        _check_sizes(phases)
        found: list[Phase] = []
        whole = sum(phase.epochs for phase in phases)
        if whole < self.parts:
            raise ParameterError(f"{whole} epochs cannot be cut into {self.parts} parts")
        done = 0
        for phase in phases:
            left, warmup = phase.epochs, phase.warmup
            while left:
                part = min(done * self.parts // whole, self.parts - 1)
                end = math.ceil((part + 1) * whole / self.parts)
                epochs = min(left, max(1, end - done))
                share = self.smallest + (1 - self.smallest) * part / (self.parts - 1)
                side = max(8, round(size * share / 8) * 8) if part < self.parts - 1 else size
                name = f"{phase.title}, {side} px"
                found.append(replace(phase, name=name, epochs=epochs, size=side, warmup=warmup))
                left, warmup = left - epochs, 0
                done += epochs
        if found[0].size == size:
            raise ParameterError(f"all parts would have images of {size} pixels")
        return tuple(found)


class FixRes(Method):
    """Train the head again at the end, on images of the size at which the model is evaluated, while
    all before that is trained on smaller ones.

    Args:
        epochs: of the head at the end [epochs].
        share: of the size that training images have before.
        rate: of the head.

    Source: Touvron et al. 2019, arXiv:1906.06423, section 4.
    """

    def __init__(self, *, epochs: int = 1, share: float = 0.875, rate: float = 1e-3) -> None:
        super().__init__()
        self.epochs = _whole("epochs", epochs, 1, 1_000_000)
        self.share = _number("share", share, 0.1, 1)
        self.rate = _number("rate", rate, 1e-9, 1e6)

    def phases(self, phases: tuple[Phase, ...], *, size: int) -> tuple[Phase, ...]:
        """Return the phases on smaller images, and one more."""
        _check_sizes(phases)
        smaller = max(8, round(size * self.share / 8) * 8)
        if smaller == size:
            raise ParameterError(f"the smaller images would have {size} pixels as well")
        before = (replace(phase, size=smaller) for phase in phases)
        return (
            *before,
            Phase(name="fixres", epochs=self.epochs, thaw=("head",), rate=self.rate, size=size),
        )


def _check_sizes(phases: Sequence[Phase]) -> None:
    for phase in phases:
        if phase.size is not None:
            raise ParameterError(
                f"it says how large the images of each phase are, and for {phase.title!r} the "
                f"recipe or another method says it: {phase.size} pixels"
            )


class Temperature(Method):
    """Divide the logits by the number for which the probabilities of the held-out images are most
    likely. It is saved with the model, for `tvc predict`; classes and weights stay.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """

    def finish(self, training: Training) -> None:
        """Find the temperature on the held-out images."""
        found = training.evaluate()
        self.facts["temperature"] = best_temperature(
            found.logits, found.targets, labels=training.labels
        )
