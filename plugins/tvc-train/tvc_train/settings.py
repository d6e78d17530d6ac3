"""The section `training` of a recipe as data with types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tvc_core import Recipe

from .optimizers import OptimizerSettings
from .phases import Phase

__all__ = ["HARMLESS", "TrainingSettings"]

HARMLESS = ("workers", "save_every")
"""What a run that goes on may have otherwise: it has no part in the result."""

_DEFAULT_PHASES = (
    Phase(name="head", epochs=3, rate=1e-2),
    Phase(name="last stages", epochs=7, thaw=(-2, -1), rate=1e-3, warmup=0.5),
)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a model is trained.

    Args:
        seed: of the order, of transforms, dropout and mixup.
        phases: in order; by default the head for 3 epochs, then the last two stages for 7.
        methods: names of methods with the values for each.
        batch_size: images of one step of the optimizer, of all processes together, or "auto"
            [images].
        accumulate: parts that each process runs its images of a step in.
        optimizer: which one.
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016,
            arXiv:1512.00567).
        clip: largest norm of the gradient; None for none.
        ema: share of the old value in a moving average of the weights, which is then what is
            evaluated and saved; None for none.
        normalization: what thawed normalization layers of the backbone do: "fixed" keeps their
            running statistics, "train" trains them, "reestimate" trains them and estimates them
            again before each evaluation (Wu and Johnson 2021, arXiv:2105.07576). None is "fixed"
            for pretrained weights and batches under 64, else "train".
        precision: "float32", "bfloat16" (by autocast) or "float64".
        compile: run the model by torch.compile.
        layout: of images in memory: "contiguous", "channels_last", or "auto", which is timed.
        workers: processes that load images; 0 for none.
        best: the figure by which the best epoch is chosen.
        keep: what is saved at the end, unless a method chooses it: the "best" epoch or the "last".
        save_every: steps between checkpoints within an epoch; None for none.
    """

    seed: int = 0
    phases: tuple[Phase, ...] = _DEFAULT_PHASES
    methods: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    batch_size: int | str = 32
    accumulate: int = 1
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    label_smoothing: float = 0.0
    clip: float | None = None
    ema: float | None = None
    normalization: str | None = None
    precision: str = "float32"
    compile: bool = False
    layout: str = "contiguous"
    workers: int = 0
    best: str = "accuracy"
    keep: str = "best"
    save_every: int | None = None

    @staticmethod
    def of(recipe: Recipe) -> TrainingSettings:
        """Return the settings of a recipe. Where the section has no seed, it is the recipe's."""
        said = dict(recipe.sections.get("training") or {})
        if recipe.seed is not None:
            said.setdefault("seed", recipe.seed)
        return TrainingSettings.from_mapping(said)

    @staticmethod
    def from_mapping(data: Mapping[str, Any]) -> TrainingSettings:
        """Return the settings that the section describes, which fits its schema."""
        found = dict(data)
        if "phases" in found:
            found["phases"] = tuple(map(Phase.from_mapping, found["phases"]))
        found["methods"] = tuple(
            (each, {}) if isinstance(each, str) else (next(iter(each)), next(iter(each.values())))
            for each in found.get("methods", ())
        )
        names = {"optimizer": "name", "weight_decay": "weight_decay", "momentum": "momentum"}
        given = {names[key]: found.pop(key) for key in names if key in found}
        return TrainingSettings(**found, optimizer=OptimizerSettings(**given))

    def with_chosen(self, chosen: Mapping[str, Any]) -> TrainingSettings:
        """Return the settings with values that were found out in the place of "auto"."""
        found = dict(chosen)
        if "phases" in found:
            found["phases"] = tuple(map(Phase.from_mapping, found["phases"]))
        return replace(self, **found)

    @property
    def lower_is_better(self) -> bool:
        """The figure by which the best epoch is chosen is a loss."""
        return self.best == "loss"

    def better(self, new: float, old: float | None) -> bool:
        """Return whether a figure is better than the best before it."""
        return old is None or (new < old if self.lower_is_better else new > old)
