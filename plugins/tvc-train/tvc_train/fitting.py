"""From a recipe to a trained, evaluated and saved model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from tvc_core import (
    HybridBuilder,
    HybridModel,
    ParameterError,
    Recipe,
    RecipeDocument,
    Registry,
    WeightsError,
    foreign,
    join_names,
    load_recipe,
)

from .caching.checking import check_cuts, check_devices
from .caching.feeding import CachedFeed
from .checkpoints import Checkpoint, Checkpoints, read_checkpoint
from .choosing import choose
from .data import check_shares
from .devices import Devices
from .errors import TrainingError
from .evaluating import Evaluation, evaluate
from .faults import Stopping
from .feeding import Feed
from .filling import fill
from .loop import Loop
from .methods import check_order
from .modes import own_modes
from .phases import Phase, PhaseSchedule
from .planning import Plan, make_plan
from .running import Key, check_key, run_folder
from .runs import Run, copy_durably, write_durably, write_text
from .scores import best_temperature, best_thresholds, scores_of
from .settings import TrainingSettings
from .showing import Display, Displays, TensorBoard
from .state import TrainingState
from .trained import Trained

__all__ = ["Fitted", "fit", "preview"]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a training left.

    Args:
        run: its folder.
        model: in eval mode, on the CPU.
        evaluation: of the model on the held-out images: bare logits, and the figures of its
            calibrated probabilities.
        plan: what was trained.
    """

    run: Run
    model: HybridModel
    evaluation: Evaluation
    plan: Plan


@own_modes()
def fit(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    changes: Mapping[str, Any] | None = None,
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "ddp",
    accelerator: str = "auto",
    display: Display | None = None,
    tensorboard: bool = False,
    registry: Registry | None = None,
) -> Fitted:
    """Train the model of a recipe, evaluate it on held-out images, and save it.

    Args:
        recipe: with the sections `data` and `training`: a Recipe, a mapping with the keys of the
            YAML form, or the path of a YAML file.
        data: images in the place of the recipe's: what `data.path` takes.
        out: the folder of the run; by default a new one, runs/NAME.
        resume: go on with the run in `out`, or with the last one of this name; start where there is
            none.
        force: start over in `out`, in the place of what another run or anything else has left there
            under the names of a run's files; with `resume`, where there is no run to go on with.
        changes: values in the place of the recipe's, by their paths, such as {"training.seed": 1}.
        devices: processes on each machine.
        nodes: machines.
        strategy: "ddp" or "fsdp", for several processes.
        accelerator: "auto", "cpu", "cuda" or "mps".
        display: what shows the training; by default nothing does.
        tensorboard: write curves for TensorBoard into the folder of the run.
        registry: where names are looked up; by default what is installed.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: its data are.
        StoppedError: SIGTERM was received; the state is saved.
        TrainingError: the run in `out` is another one, or training failed; what was saved before is
            whole.
        TvcError: the model cannot be built.
    """
    registry = registry or Registry()
    plan = make_plan(as_recipe(recipe, changes, registry), registry, data=data)
    processes = _processes(plan, devices, nodes, strategy, accelerator)
    stopping = Stopping()
    with processes, stopping.listening():
        processes.launch()
        fitting = _Fitting(plan, processes, registry, stopping)
        where = processes.together(lambda: _folder(plan, out, resume=resume, force=force))
        run = Run(folder=Path(processes.agree(where)))
        shown = display if processes.first and display is not None else Display()
        return fitting.train(run, shown, resume=resume, tensorboard=tensorboard and processes.first)


@own_modes()
def preview(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    changes: Mapping[str, Any] | None = None,
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "ddp",
    accelerator: str = "auto",
    registry: Registry | None = None,
) -> dict[str, Any]:
    """Check everything that `fit` checks before its first step, and return what would be trained.

    Args:
        recipe: as for `fit`.
        data: likewise.
        out: likewise.
        resume: likewise.
        force: likewise.
        changes: likewise.
        devices: likewise; one process looks at what so many would train.
        nodes: likewise.
        strategy: likewise.
        accelerator: likewise; "auto" asks nothing of this machine, which may be another one.
        registry: likewise.

    Raises:
        TvcError: as `fit`.
    """
    registry = registry or Registry()
    plan = make_plan(as_recipe(recipe, changes, registry), registry, data=data)
    asked = "cpu" if accelerator == "auto" else accelerator
    processes = _processes(plan, devices, nodes, strategy, asked)
    facts = _Fitting(plan, processes, registry, Stopping()).describe()
    run = Run(folder=Path(_folder(plan, out, resume=resume, force=force)))
    known = run.read_key() if resume else None
    if known is not None:
        check_key(known, plan, run)
    return {**facts, "run": f"{run.folder}{', which goes on' if known is not None else ''}"}


def _folder(plan: Plan, out: str | Path | None, *, resume: bool, force: bool) -> str:
    settings = plan.data_settings  # torchvision looks into folders of its own in `path`
    images = None if settings.source == "torchvision" else settings.path
    return run_folder(out, plan.name, resume=resume, force=force, data=images)


def _processes(plan: Plan, devices: int, nodes: int, strategy: str, accelerator: str) -> Devices:
    """Return the processes of a training, which can share its steps and its cached features."""
    with foreign(TrainingError, f"accelerator {accelerator!r}, which is asked for"):
        processes = Devices(
            devices=devices,
            nodes=nodes,
            strategy=strategy,
            precision=plan.training.precision,
            accelerator=accelerator,
        )
    size, there = plan.training.batch_size, len(plan.data.train)
    check_shares(there, there if size == "auto" else int(size), processes.asked)
    if plan.data_settings.cache:
        check_devices(processes)
    return processes


def as_recipe(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    changes: Mapping[str, Any] | None,
    registry: Registry,
) -> Recipe:
    """Return a recipe of any of its forms, with changes.

    Raises:
        RecipeError: it is wrong.
    """
    if isinstance(recipe, (str, Path)):
        return load_recipe(recipe, changes=changes, registry=registry)
    if isinstance(recipe, Recipe):
        if not changes:
            return recipe
        recipe = recipe.to_mapping()
    document = RecipeDocument(data=recipe, place=Recipe(backbone="-").where)
    document = Recipe.changed_document(document, changes or {}, registry)
    return Recipe.from_document(document, registry=registry)


class _Fitting:
    """One training, from its plan to its files.

    Args:
        plan: what is trained.
        devices: of this process.
        registry: where names are looked up.
        stopping: whether it was asked to end.
    """

    def __init__(
        self, plan: Plan, devices: Devices, registry: Registry, stopping: Stopping
    ) -> None:
        self.plan, self.devices, self.registry, self.stopping = plan, devices, registry, stopping
        self.model = HybridBuilder(registry=registry).build(plan.recipe)
        plan.check_model(self.model)
        self.transforms = plan.transforms(self.model)
        self.methods = plan.methods(registry)
        phases = self.phases(plan.training)
        for phase in phases:
            plan.check_phase(self.model, phase)
        plan.check_images(self.model, self.transforms, phases)
        if plan.data_settings.cache:
            schedule = PhaseSchedule(phases, 1, **plan.freezing)
            where = plan.given.where / "data" / "cache"
            with where.before_errors(in_files_only=True):
                check_cuts(self.model, schedule, self.transforms, compiled=plan.training.compile)

    def phases(self, training: TrainingSettings) -> tuple[Phase, ...]:
        """Return the phases, as the methods want them."""
        size = max(self.transforms.preprocessing.size)
        phases = tuple(  # what is not found out yet stands for any rate
            replace(phase, rate=1.0) if phase.rate == "auto" else phase for phase in training.phases
        )
        for name, method in self.methods.items():
            with self._about(name):
                phases = method.phases(phases, size=size)
                for phase in phases:
                    if phase.warmup > phase.epochs:
                        raise ParameterError(
                            f"it makes {phase.title!r} of {phase.epochs} epochs, whose warm-up of "
                            f"{phase.warmup:g} never ends"
                        )
        for name, method in self.methods.items():
            with self._about(name):
                method.check(phases)
        for name in self.methods:
            with self._about(name):
                check_order(self.methods, name)
        return phases

    @contextmanager
    def _about(self, name: str) -> Iterator[None]:
        """Put the place of a method before what it refuses."""
        try:
            yield
        except ParameterError as error:
            place = self.plan.given.where / "training" / "methods" / [*self.methods].index(name)
            raise place.error(f"method {name!r}: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Return what would be trained."""
        plan, size = self.plan, self.plan.training.batch_size
        is_open = any(phase.rate == "auto" for phase in plan.training.phases)
        phases = self.phases(plan.training)
        notes = (*plan.notes, *plan.about(phases, plan.training, self.devices.asked))
        facts = {
            "backbone": plan.recipe.backbone,
            "classes": join_names(plan.data.classes),
            "images": f"{len(plan.data.train)} to train on, {len(plan.data.val)} held out",
            "size": " x ".join(map(str, self.transforms.preprocessing.size)),
            "batches": f"of {size} images",
            **{
                f"phase {number}": f"{phase.title}: {phase.epochs} epochs, rate "
                + ("auto" if is_open else f"{phase.rate}")
                for number, phase in enumerate(phases, 1)
            },
            "notes": "; ".join(notes),
            "methods": join_names(self.methods) if self.methods else "",
        }
        return {name: said for name, said in facts.items() if said}

    def train(self, run: Run, display: Display, *, resume: bool, tensorboard: bool) -> Fitted:
        """Train to the end, and save."""
        plan, model, devices = self.plan, self.model, self.devices
        known, start = run.read_key() if resume else None, None
        if known is not None:
            key, chosen = check_key(known, plan, run), known["chosen"]
            start = _newest(run, devices)
        else:
            chosen = devices.agree(choose(plan, model, self.transforms, devices))
            key = Key.of(plan, chosen)
        settings = plan.training.with_chosen(chosen)
        check_shares(len(plan.data.train), int(settings.batch_size), devices.world)
        devices.place(model, layout=settings.layout)
        feed_of = (
            partial(CachedFeed, stopping=self.stopping, note=display.note)
            if plan.data_settings.cache
            else Feed
        )
        feed = feed_of(
            plan.data,
            plan.data_settings,
            self.transforms,
            devices=devices,
            batch_size=int(settings.batch_size),
            seed=settings.seed,
            workers=settings.workers,
            layout=settings.layout,
        )
        schedule = PhaseSchedule(
            self.phases(settings), feed.steps, optimizer=settings.optimizer, **plan.freezing
        )
        devices.together(lambda: _begin_run(run, plan, key, chosen, goes_on=known is not None))
        if tensorboard:
            steps = start.content["progress"]["position"]["steps"] if start else 0
            curves = TensorBoard(run.curves, from_step=steps)
            display = Displays([display, curves])
        state = TrainingState(
            model=model,
            feed=feed,
            settings=settings,
            schedule=schedule,
            methods=self.methods,
            devices=devices,
            files=run,
            key=key.values,
            display=display,
            stopping=self.stopping,
        )
        loop = Loop(state)
        for note in (*plan.notes, *plan.about(schedule.phases, settings, devices.world)):
            display.note(note)
        try:
            evaluation = loop.go(start)
        except ValueError as error:  # of torch, about statistics of a single number
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                "normalization layers cannot be trained on one image at a time, whose maps have "
                "one pixel: lower training.accumulate, or set 'normalization: fixed' or larger "
                "images"
            ) from error
        finally:
            display.close()
        return self._saved(run, loop.weights(), evaluation, feed)

    def _saved(
        self, run: Run, weights: Mapping[str, Tensor], evaluation: Evaluation, feed: Feed
    ) -> Fitted:
        plan, model = self.plan, self.model
        if self.devices.strategy == "fsdp":  # what is in shards cannot be saved
            model = HybridBuilder(registry=self.registry).build(plan.recipe)
        model.to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
        fill(model, weights)
        facts = self.methods["temperature"].facts if "temperature" in self.methods else {}
        temperature, thresholds = facts.get("temperature", 1.0), None
        if plan.training.precision != "float32":  # in which the file computes
            evaluation = self._evaluated(model, feed)
            if facts:
                temperature = best_temperature(
                    evaluation.logits, evaluation.targets, labels=plan.data.labels
                )
        logits, targets = evaluation.logits, evaluation.targets
        if plan.data.labels == "many":
            thresholds = tuple(best_thresholds(logits, targets, temperature=temperature))
        scores = scores_of(
            logits,
            targets,
            classes=plan.data.classes,
            labels=plan.data.labels,
            temperature=temperature,
            thresholds=thresholds,
        )
        # those of the file, as `tvc evaluate` finds them; epochs are compared by bare logits
        evaluation = replace(evaluation, figures=scores.figures)
        trained = Trained(
            preprocessing=self.transforms.preprocessing,
            labels=plan.data.labels,
            temperature=temperature,
            thresholds=thresholds,
            figures=evaluation.figures,
        )
        self.devices.together(lambda: _save(run, model, trained, evaluation))
        return Fitted(run=run, model=model.eval(), evaluation=evaluation, plan=plan)

    def _evaluated(self, model: HybridModel, feed: Feed) -> Evaluation:
        """Evaluate a model on images, with the numbers that it has."""
        devices = self.devices
        try:
            return evaluate(
                model.to(devices.device),
                Feed.evaluation_batches(feed),  # not features, which another precision computed
                labels=feed.labels,
                device=devices.device,
                gather=devices.gather,
            )
        finally:
            model.to("cpu")


def _newest(run: Run, devices: Devices) -> Checkpoint | None:
    """Return the newest whole checkpoint of a run, the same one in all processes."""
    found: Any = None

    def look() -> None:
        nonlocal found
        checkpoints = Checkpoints(run.checkpoints)
        checkpoints.clean()
        found = checkpoints.newest()

    devices.together(look)
    name = devices.agree(None if found is None else found[0].name)
    if name is None:
        return None
    if found is None:
        return read_checkpoint(run.checkpoints / name)
    return found[1]


def _begin_run(run: Run, plan: Plan, key: Key, chosen: Mapping[str, Any], *, goes_on: bool) -> None:
    """Write what a run begins with: first its key, which says whose all else in the folder is. One
    that was killed in between gets what is missing when it goes on.
    """
    if not goes_on:
        run.forget()
        text = {"key": key.values, "chosen": chosen, "versions": key.versions}
        write_text(run.key, json.dumps(text, indent=1, default=str) + "\n")
    if (own := plan.given.own_weights) is not None:
        file, copy = own[0], run.weights / own[0].name
        if not (goes_on and copy.exists()):
            copy_durably(file, copy)
    if not (goes_on and run.recipe.exists()):
        write_text(run.recipe, plan.written(chosen).to_yaml())


def _save(run: Run, model: HybridModel, trained: Trained, evaluation: Evaluation) -> None:
    """Save the model and its predictions."""
    try:
        trained.save(model, run.model)
    except WeightsError as error:
        raise TrainingError(str(error)) from error
    tensors = {
        "logits": evaluation.logits.contiguous(),
        "targets": evaluation.targets.contiguous(),
        "indices": evaluation.indices.contiguous(),
    }
    write_durably(run.predictions, [save(tensors)])
