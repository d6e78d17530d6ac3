"""What a recipe asks for, all of it found and checked before the first step."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tvc_core import (
    HybridModel,
    ParameterError,
    Recipe,
    RecipeError,
    Registry,
    StageError,
    UnknownNameError,
    foreign,
    join_names,
    short_repr,
    what_there_is,
)

from .data import (
    Data,
    DataSettings,
    Transforms,
    inspect_data,
    open_data,
    preprocessing_for,
    steps_in_epoch,
)
from .errors import DataError
from .method import Method
from .phases import Phase, thaw
from .runs import WEIGHTS
from .settings import TrainingSettings

__all__ = ["Plan", "check_figure", "make_plan"]

_FREEZING = ("head", "freeze_patches")
"""What a phase takes of the recipe's `freeze_backbone`."""

_OWN = ("data", "training", "tune")

_FIGURES = {
    "one": ("accuracy", "balanced_accuracy", "f1", "loss"),
    "many": ("accuracy", "f1", "average_precision", "loss"),
}
"""By which epochs and trials are compared, by how many labels an image has."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training, before it has begun.

    Args:
        name: of its runs.
        given: the recipe as it was given.
        recipe: of the model, with the classes of the data and without the sections of a training.
        data_settings: the section `data`.
        training: the section `training`.
        data: the images.
        freezing: what `freeze_backbone` of the recipe says of head and patches.
        notes: about the data: images that were left out, and what else a user should know.
    """

    name: str
    given: Recipe
    recipe: Recipe
    data_settings: DataSettings
    training: TrainingSettings
    data: Data
    freezing: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def check_model(self, model: HybridModel) -> None:
        """Refuse a model that these data cannot train.

        Raises:
            RecipeError: it has several heads, or another number of outputs than there are classes.
        """
        classes = len(self.data.classes)
        if len(model.head_info) != 1:
            raise self.given.place("heads").error(
                "tvc-train trains a model with one head; leave 'heads' out"
            )
        if model.num_classes != classes:
            raise self.given.place("num_classes").error(
                f"the model has {model.num_classes} outputs, and the data have {classes} classes: "
                f"{join_names(self.data.classes)}"
            )

    def check_phase(self, model: HybridModel, phase: Phase) -> None:
        """Refuse a phase that thaws what the model has not.

        Raises:
            RecipeError: there is no such stage.
        """
        place = self.given.where / "training" / "phases"
        if len(phase.thaw) > 1 and "all" in phase.thaw:
            raise place.error("'all' thaws everything: it stands alone")
        if phase.thaw != ("all",):
            try:
                thaw(model, phase.thaw)
            except StageError as error:
                number = self._number_of(phase)
                at = place / number / "thaw" if number is not None else place
                raise at.error(str(error)) from error

    def check_images(
        self, model: HybridModel, transforms: Transforms, phases: Iterable[Phase]
    ) -> None:
        """Refuse images of a size or range that the model does not take.

        Raises:
            RecipeError: it fails with white images, or its outputs are no finite numbers.
        """
        sizes = {transforms.preprocessing.size: self.given.where / "data" / "size"}
        training = self.given.where / "training"
        by_methods = all(phase.size is None for phase in self.training.phases)
        for number, phase in enumerate(phases):
            if phase.size is not None:
                at = training / "methods" if by_methods else training / "phases" / number / "size"
                sizes.setdefault(transforms.resized(phase.size).preprocessing.size, at)
        channels = len(transforms.preprocessing.mean)
        for (height, width), place in sizes.items():
            white = torch.full((1, channels, height, width), 255, dtype=torch.uint8)
            what = f"{model.recipe.backbone} does not take images of {height} x {width} pixels"
            with place.before_errors(), foreign(RecipeError, what):
                outputs = _tried(model, transforms.normalize(white))
            if not bool(outputs.isfinite().all()):
                raise (self.given.where / "data").error(
                    "what the model returns for a white image is no finite number: look at mean "
                    f"({transforms.preprocessing.mean}) and std ({transforms.preprocessing.std})"
                )

    def _number_of(self, phase: Phase) -> int | None:
        found = [i for i, each in enumerate(self.training.phases) if each.thaw == phase.thaw]
        return found[0] if found else None

    def transforms(self, model: HybridModel) -> Transforms:
        """Return how training images are prepared.

        Raises:
            DataError: neither the data nor the model's weights say it.
        """
        with _in_section(self.given):
            prepared = preprocessing_for(model, self.data_settings)
        settings = self.data_settings
        return Transforms(prepared, settings.augment, mirror=settings.mirror)

    def methods(self, registry: Registry) -> dict[str, Method]:
        """Return the methods by name, in their order.

        Raises:
            RecipeError: there is no such method, one is named twice, or it does not take what it is
                given.
        """
        found: dict[str, Method] = {}
        for number, (name, values) in enumerate(self.training.methods):
            place = self.given.where / "training" / "methods" / number
            try:
                offer: Any = registry.resolve("method", name)
                short = offer.spec.name
                if short in found:
                    raise ParameterError(f"the method {short!r} is there twice")
                with foreign(ParameterError, f"method {name!r}"):
                    factory = offer.load()
                    _check_keys(name, values, factory)
                    made = factory(**values)
            except (UnknownNameError, ParameterError) as error:
                raise place.error(str(error)) from error
            if not isinstance(made, Method):
                raise place.error(
                    f"{offer.qualified} makes a {type(made).__name__}, not a tvc_train.Method. "
                    f"This is a fault of the distribution {offer.owner!r}"
                )
            found[short] = made
        return found

    def about(
        self, phases: Iterable[Phase], training: TrainingSettings, world: int
    ) -> Iterator[str]:
        """Say what has less effect than the recipe has it.

        Args:
            phases: as the methods have made them.
            training: with what was found out.
            world: number of processes.
        """
        for phase in phases:
            if phase.stop_early is not None and phase.stop_early >= phase.epochs:
                yield (
                    f"stop_early of phase {phase.title!r} has no effect: it waits for "
                    f"{phase.stop_early} epochs, and there are {phase.epochs}"
                )
        if training.batch_size == "auto":
            return
        least = self.images_of_step(int(training.batch_size)) // world
        if training.accumulate > least:
            yield (
                f"training.accumulate is {training.accumulate}, and a process has {least} images "
                f"of a step, which it runs in {least} parts"
            )

    def images_of_step(self, batch_size: int) -> int:
        """Return how many images the smallest step has: batches of an epoch are made equal."""
        there = len(self.data.train)
        return there // steps_in_epoch(there, batch_size)

    def written(self, chosen: Mapping[str, Any]) -> Recipe:
        """Return the recipe with which the same model is trained again, from any folder that has
        its own file of weights in the folder "weights".

        Args:
            chosen: values that were found out.
        """
        sections = dict(self.given.sections)
        training = {**sections.get("training", {}), **chosen}
        data = dict(sections.get("data") or {})
        if self.data_settings.path is not None:
            data["path"] = self.data_settings.path
        found = {**sections, "data": data, "training": training}
        weights = self.given.weights
        if (own := self.given.own_weights) is not None:
            file, entry = own
            weights = f"{WEIGHTS}/{file.name}" + ("" if entry is None else f"#{entry}")
        sections = {key: each for key, each in found.items() if each}
        return replace(self.given, weights=weights, sections=sections)


def make_plan(recipe: Recipe, registry: Registry, *, data: str | Path | None = None) -> Plan:
    """Return what a recipe asks for, with its data opened.

    Args:
        recipe: which has the sections `data` and `training`, or leaves them to their defaults.
        registry: where names are looked up.
        data: images in the place of the recipe's.

    Raises:
        RecipeError: a section is wrong, the head has other classes than the data, or a block has no
            name that the recipe of a run could have.
        DataError: the data are not there, or are not what the section says.
    """
    for entry in recipe.patches:
        if callable(entry.block):
            name = getattr(entry.block, "__name__", type(entry.block).__name__)
            raise entry.where.error(
                f"the block {name!r} is code of your own, which the recipe of a run cannot name, "
                "so it would not train the same model again. Give it a name: plugin = "
                f"LocalPlugin('mine'), plugin.block({name}), and fit(registry=Registry([plugin]))"
            )
    where = recipe.where
    folder = Path(where.source).parent if where.marks is not None else Path()
    said = dict(recipe.sections.get("data") or {})
    if data is not None:
        said = {k: v for k, v in said.items() if k not in ("source", "name", "download")}
        said["path"] = str(Path(data).resolve())
        recipe = replace(recipe, sections={**recipe.sections, "data": said})
    with (where / "data").before_errors():
        data_settings = DataSettings.from_mapping(said)
        if data_settings.path or data_settings.source == "torchvision":
            whole = str(data_settings.place(folder).resolve())
            data_settings = replace(data_settings, path=whole)
    with (where / "training").before_errors():
        training = TrainingSettings.of(recipe)
    is_wrong = data is None and data_settings.source != "torchvision"
    is_wrong = is_wrong and not Path(data_settings.path or folder).exists()
    with _in_section(recipe, otherwise="path" if is_wrong else None):
        opened = open_data(data_settings, folder=folder, seed=training.seed)
    # everything that is wrong with the data, before the first step; what may be left out is left
    report = inspect_data(opened, data_settings, workers=training.workers)
    opened = report.ensure_fine()
    if not recipe.name:  # its file's may be another where it is trained again
        recipe = replace(recipe, name=_name_of(recipe))
    check_figure(training.best, opened, recipe, "training", "best")
    _check_amounts(recipe, training)
    others = {key: each for key, each in recipe.sections.items() if key not in _OWN}
    freeze = recipe.freeze_backbone
    options = dict(freeze) if isinstance(freeze, Mapping) else {}
    return Plan(
        name=_name_of(recipe),
        given=recipe,
        recipe=replace(_with_classes(recipe, opened, training), sections=others),
        data_settings=data_settings,
        training=training,
        data=opened,
        notes=(
            *_on_digits(data_settings),
            *map(str, (*report.problems, *report.notes)),
            *_not_used(recipe, training, opened),
        ),
        freezing={key: v for key, v in options.items() if key in _FREEZING},
    )


@contextmanager
def _in_section(recipe: Recipe, otherwise: str | None = None) -> Iterator[None]:
    """Put the place of a key of the section `data` before an error that begins with the key, and
    before another that of the key `otherwise`.
    """
    try:
        yield
    except DataError as error:
        named = re.match(r"data\.(\w+): ", str(error))
        key = named[1] if named else otherwise
        if key is None:
            raise
        with (recipe.where / "data" / key).before_errors(in_files_only=True):
            raise


@torch.no_grad()
def _tried(model: HybridModel, image: Tensor) -> Tensor:
    """Return a model's outputs for an image [1, C, H, W], after it took two in training, where
    auxiliary heads run as well; it is as before afterwards, and in eval mode.
    """
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            model.train()(image.expand(2, -1, -1, -1))
    finally:
        model.eval()
        for buffer, value in kept:
            buffer.copy_(value)
    outputs: Tensor = model(image)
    return outputs


def _check_keys(name: str, values: Mapping[str, Any], factory: Any) -> None:
    """Refuse values of a method that it has no parameters for."""
    takes = inspect.signature(factory).parameters
    if any(each.kind is each.VAR_KEYWORD for each in takes.values()):
        return
    for key in values:
        if key not in takes:
            keys = what_there_is(key, list(takes), "The keys are") if takes else " It takes none."
            raise ParameterError(f"method {name!r}: unknown key {short_repr(key)}.{keys}")


def _on_digits(settings: DataSettings) -> tuple[str, ...]:
    """Say where the images are not the user's own, if the section does not."""
    if settings.source is not None or settings.path is not None:
        return ()
    return ("data has no path, so the images are scikit-learn's digits",)


def check_figure(name: str, data: Data, recipe: Recipe, section: str, key: str) -> None:
    """Refuse a figure that an evaluation of such data does not find.

    Args:
        name: of the figure.
        data: what is evaluated.
        recipe: that names it.
        section: where it stands.
        key: in the section.

    Raises:
        RecipeError: there is no such figure; the message lists those that there are.
    """
    names = _FIGURES[data.labels]
    if name not in names:
        raise (recipe.where / section / key).error(
            f"{name} is no figure with labels: {data.labels}. These are: {join_names(names)}"
        )


def _check_amounts(recipe: Recipe, training: TrainingSettings) -> None:
    """Refuse amounts that do not fit into each other."""
    place = recipe.where / "training"
    for number, phase in enumerate(training.phases):
        if phase.warmup > phase.epochs:
            raise (place / "phases" / number / "warmup").error(
                f"a warm-up of {phase.warmup:g} epochs never ends in a phase of {phase.epochs}"
            )
    if training.batch_size != "auto" and training.accumulate > int(training.batch_size):
        raise (place / "accumulate").error(
            f"the {training.batch_size} images of a step are no {training.accumulate} parts"
        )


def _not_used(recipe: Recipe, training: TrainingSettings, data: Data) -> Iterator[str]:
    """Say what of a recipe has no effect on its training."""
    freeze = recipe.freeze_backbone
    frozen = (
        {key: f"freeze_backbone.{key}" for key in freeze} if isinstance(freeze, Mapping) else {}
    )
    said = [name for key, name in frozen.items() if key not in _FREEZING]
    if said := [*said, *(["unfreeze_stages"] if recipe.unfreeze_stages else [])]:
        yield f"the phases of a training say what is thawed, not {join_names(said)}"
    section = recipe.sections.get("training") or {}
    if "momentum" in section and training.optimizer.name != "sgd":
        yield "training.momentum has no effect: only 'optimizer: sgd' has one"
    size, there = training.batch_size, len(data.train)
    if size != "auto" and int(size) > there:
        yield f"training.batch_size is {size}, and there are {there} images, so a step takes all"


def _with_classes(recipe: Recipe, data: Data, training: TrainingSettings) -> Recipe:
    """Return a recipe whose head has the classes of the data, drawn with a seed."""
    if recipe.heads is not None:
        raise recipe.place("heads").error(
            "tvc-train trains a model with one head; leave 'heads' out"
        )
    names, count = recipe.class_names, recipe.num_classes
    if names is not None and tuple(names) != tuple(data.classes):
        missing = [each for each in data.classes if each not in names]
        extra = [each for each in names if each not in data.classes]
        said = f"; only they have {join_names(missing)}" if missing else ""
        said += f"; only the recipe has {join_names(extra)}" if extra else ""
        raise recipe.place("class_names").error(
            f"the data have other classes, or in another order: {join_names(data.classes)}{said}. "
            "Leave class_names out, or give data.classes in this order"
        )
    if count is not None and count != len(data.classes):
        raise recipe.place("num_classes").error(
            f"num_classes is {count}, and the data have {len(data.classes)} classes: "
            f"{join_names(data.classes)}. Leave num_classes out"
        )
    seed = recipe.seed if recipe.seed is not None else training.seed
    return replace(recipe, class_names=tuple(data.classes), num_classes=None, seed=seed)


def _name_of(recipe: Recipe) -> str:
    """Return what a folder of runs is called: the recipe's name, its file's, or its backbone's."""
    file = Path(recipe.where.source).stem if recipe.where.marks is not None else ""
    name = recipe.name or file or recipe.backbone
    found = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-")
    return found or "run"
