"""Run trainings with values that Optuna draws, as processes that Ray starts.

All of it lies in one folder, as plain text: `study.log` (Optuna's journal of JSON lines), and for
each trial the folder of its run, which is named by its values, so that a trial that was killed goes
on there. What Ray itself writes, with pickle, is thrown away and never read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tvc_core import (
    HybridBuilder,
    RecipeError,
    Registry,
    TvcError,
    join_names,
    load_recipe,
    short_repr,
)

from ..errors import TrainingError
from ..extras import require_extra
from ..faults import StoppedError, Stopping
from ..fitting import as_recipe, fit
from ..planning import Plan, check_figure, make_plan
from ..running import Key
from ..runs import Run, write_text
from .settings import TuneSettings, is_whole

__all__ = ["Trial", "Tuned", "tune"]

_RETRIES = 3
"""Times that a trial goes on whose process was killed."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a search.

    Args:
        folder: of its run.
        values: by their paths in the recipe.
        figures: of its model on the held-out images; empty where it failed.
        error: why it failed; "" where it did not.
    """

    folder: Path
    values: Mapping[str, Any]
    figures: Mapping[str, float]
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a search found.

    Args:
        folder: of the search.
        best: the best trial.
        trials: all that ended, the best first and those that failed last.
        by: the figure that decided.
    """

    folder: Path
    best: Trial
    trials: tuple[Trial, ...]
    by: str


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a trial's process needs to know: plain data, since it is sent there."""

    recipe: str
    data: str | None
    changes: dict[str, Any]
    folder: str
    by: str
    threads: int


def tune(
    recipe: str | Path,
    *,
    data: str | Path | None = None,
    out: str | Path,
    changes: Mapping[str, Any] | None = None,
    settings: TuneSettings | None = None,
    resume: bool = False,
    on_trial: Callable[[Trial, int], None] | None = None,
) -> Tuned:
    """Train a recipe with several values, and return which were best.

    Each trial is what `fit` trains with these values in `changes`, bit for bit.

    Args:
        recipe: a YAML file.
        data: images in the place of the recipe's.
        out: the folder of the search.
        changes: values in the place of the recipe's, the same in all trials.
        settings: in the place of the recipe's section `tune`.
        resume: go on with the search in `out`, or start where there is none.
        on_trial: called after each trial with it and the number of trials that have ended.

    Raises:
        RecipeError: the recipe is wrong, or has no values to search.
        DataError: its data are.
        StoppedError: SIGTERM or Ctrl-C was received; what the trials have saved is whole.
        TrainingError: the extra `tune` is not installed, `out` holds another search, or no trial
            came to its end.
    """
    require_extra("tune", "a search")
    registry = Registry()
    given = as_recipe(recipe, changes, registry)
    known = settings or TuneSettings.from_mapping(given.sections.get("tune") or {})
    if not known.space:
        raise (given.where / "tune").error(
            "there is nothing to search: say from what values are drawn, such as space: "
            "{training.weight_decay: {loguniform: [0.0001, 0.1]}}, or --space"
        )
    if twice := [path for path in changes or {} if path in known.space]:
        raise RecipeError(
            f"tune.space: {twice[0]} is searched, and a change (--set) says that it is "
            f"{short_repr((changes or {})[twice[0]])}: leave one of them out"
        )
    # all that is wrong with any values and the data, before the first process starts
    by = known.by
    for each in known.examples():
        values = {**(changes or {}), **each}
        plan = make_plan(as_recipe(recipe, values, registry), registry, data=data)
        by = by or plan.training.best
        check_figure(by, plan.data, given, "tune", "by")
        HybridBuilder(registry=registry).resolve(plan.recipe)  # its names
        plan.methods(registry)
    assert by is not None
    folder = Path(out).resolve()
    _claim(folder, _key(given, data, known, by, plan), resume=resume)
    import torch

    job = _Job(
        recipe=str(Path(recipe).resolve()),
        data=None if data is None else str(Path(data).resolve()),
        changes=dict(changes or {}),
        folder=str(folder / "trials"),
        by=by,
        threads=torch.get_num_threads(),
    )
    _search(job, known, folder, on_trial)
    return _found(folder, by)


def _key(
    recipe: Any, data: str | Path | None, settings: TuneSettings, by: str, plan: Plan
) -> dict[str, Any]:  # fmt: skip
    """Return what has to be equal to go on with a search: all but how much of it is done."""
    said = {k: v for k, v in recipe.to_mapping().items() if k != "tune"}
    known = Key.of(plan, {}).values
    return {
        "images": known["images"],
        "weights": known["model"]["backbone"].get("weights"),
        "recipe": said,
        "data": None if data is None else str(Path(data).resolve()),
        "space": {path: dict(domain) for path, domain in settings.space.items()},
        "by": by,
    }


def _claim(folder: Path, key: Mapping[str, Any], *, resume: bool) -> None:
    """Make the folder of a search, or look whether the one that is there is this one."""
    file = folder / "search.json"
    text = json.dumps(key, indent=1, sort_keys=True, default=str) + "\n"
    if not folder.exists() or not any(folder.iterdir()):
        write_text(file, text)
        return
    if not file.is_file():
        raise TrainingError(f"{folder} is there, and no search is in it: choose another --out")
    if not resume:
        raise TrainingError(f"{folder} holds a search: --resume goes on, or choose another --out")
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{file} cannot be read: {error}") from error
    now = json.loads(text)
    if before != now:
        keys = [
            name for name in now if not isinstance(before, dict) or before.get(name) != now[name]
        ]
        said = [f"{name}: {short_repr(now[name])} instead of {short_repr(before.get(name))}"
                for name in keys] if isinstance(before, dict) else ["it is damaged"]  # fmt: skip
        raise TrainingError(
            f"{folder} holds another search, so this one cannot go on with it: {join_names(said)}"
        )


def _search(
    job: _Job, settings: TuneSettings, folder: Path, on_trial: Callable[[Trial, int], None] | None
) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from ray import tune as ray_tune
    from ray.tune.search.optuna import OptunaSearch

    lower = job.by == "loss"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = JournalFileBackend(str(folder / "study.log"))
    storage = optuna.storages.JournalStorage(journal)
    study = optuna.create_study(
        study_name="tvc",
        storage=storage,
        direction="minimize" if lower else "maximize",
        load_if_exists=True,
    )
    states = optuna.trial.TrialState
    cut = [each for each in study.trials if each.state == states.RUNNING]
    for each in cut:  # whatever ran them is gone; they are drawn again, and go on in their folders
        study.tell(each.number, state=states.FAIL)
    again = [each.params for each in cut if set(each.params) == set(settings.space)]
    done = sum(each.state == states.COMPLETE for each in study.trials)
    if done >= settings.trials:
        return
    # not the seed alone: a search that goes on would draw the same values a second time
    seed = settings.seed + len(study.trials)
    samplers: dict[str, Callable[..., Any]] = {
        "tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler,
    }  # fmt: skip
    mode = "min" if lower else "max"
    search = OptunaSearch(
        metric=job.by, mode=mode, storage=storage, study_name="tvc",
        sampler=samplers[settings.search](seed=seed), points_to_evaluate=again or None,
    )  # fmt: skip
    stopping = Stopping(interrupts=True)
    with (
        _ended_by(stopping),
        stopping.listening(),
        _ray(settings.concurrent) as (scratch, resources),
        stopping.listening(),  # again: Ray answers SIGTERM with a dump of its stack
    ):
        trainable = ray_tune.with_resources(
            ray_tune.with_parameters(_train, job=asdict(job)), resources
        )
        found = ray_tune.Tuner(
            trainable,
            param_space={path: domain_of(domain) for path, domain in settings.space.items()},
            tune_config=ray_tune.TuneConfig(
                metric=job.by,
                mode=mode,
                search_alg=search,
                num_samples=settings.trials - done,
                max_concurrent_trials=settings.concurrent,
            ),
            run_config=ray_tune.RunConfig(
                name="search",
                storage_path=str(scratch),
                failure_config=ray_tune.FailureConfig(max_failures=_RETRIES),
                callbacks=[_callback(job, done, on_trial)],
                verbose=0,
            ),
        ).fit()
        if found.errors:
            raise TrainingError(
                f"{len(found.errors)} trials were lost, such as by {str(found.errors[0])[-400:]}"
            )
    ended = sum(each.state == states.COMPLETE for each in study.trials)
    if ended < settings.trials:  # Ray takes Ctrl-C for the end, and says so only in a log
        raise StoppedError(
            f"the search was stopped after {ended} of {settings.trials} trials: --resume goes on",
            code=143 if stopping.asked else 130,
        )


@contextmanager
def _ended_by(stopping: Stopping) -> Iterator[None]:
    """Say that SIGTERM ended what it interrupts."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not stopping.asked:
            raise
        raise StoppedError("the search was stopped while it started: --resume goes on") from error


def domain_of(domain: Mapping[str, Any]) -> Any:
    """Return what Ray Tune draws a value from."""
    from ray import tune as ray_tune

    ((name, values),) = domain.items()
    if name == "quniform" and is_whole(values):
        name = "qrandint"  # the other one draws 16.0
    draw: Callable[..., Any] = getattr(ray_tune, name)  # one of DOMAINS, which was checked
    return draw(list(values)) if name == "choice" else draw(*values)


def _callback(job: _Job, done: int, on_trial: Callable[[Trial, int], None] | None) -> Any:
    from ray import tune as ray_tune

    class Telling(ray_tune.Callback):  # type: ignore[misc]
        """Tells of each trial when it has ended."""

        def __init__(self) -> None:
            self.done = done

        def on_trial_complete(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            self.done += 1
            if on_trial is not None:
                on_trial(_read(_place(job.folder, trial.config)), self.done)

    return Telling()


@contextmanager
def _ray(concurrent: int) -> Iterator[tuple[Path, dict[str, float]]]:
    """Start Ray on this machine alone, in a folder that goes away with it; give that folder and
    what a trial may use.
    """
    import ray
    import torch

    scratch = Path(tempfile.mkdtemp(prefix="tvc-tune-"))
    # Ray asks the metadata servers of three clouds where it runs, also with its statistics off.
    # They speak plain HTTP, which this sends to a port of this machine at which nothing listens.
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "http_proxy": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1,localhost",
    }
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    gpus = torch.cuda.device_count()
    try:
        ray.init(
            address="local",
            num_cpus=concurrent,
            num_gpus=gpus,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(scratch / "ray"),
            object_store_memory=80 * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        share = gpus // concurrent if gpus >= concurrent else gpus / concurrent
        yield scratch, {"cpu": 1.0, "gpu": float(share)}
    finally:
        ray.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(scratch, ignore_errors=True)


def _train(config: Mapping[str, Any], *, job: Mapping[str, Any]) -> None:
    """Train with some values, in a process that Ray has started."""
    import torch
    from filelock import FileLock
    from ray import tune as ray_tune

    known = _Job(**job)
    # Ray gives each process one thread, and another number of threads adds up in another order
    torch.set_num_threads(known.threads)
    place = _place(known.folder, config)
    place.parent.mkdir(parents=True, exist_ok=True)
    # two trials may draw the same values: the second finds the first one's run, and reads it
    with FileLock(f"{place}.lock"):
        if not (place.with_suffix(".json")).is_file():
            trial = Trial(folder=place, values=dict(config), figures={})
            try:
                found = fit(
                    known.recipe,
                    data=known.data,
                    out=place,
                    resume=True,
                    changes={**known.changes, **config},
                )
                trial = replace(trial, figures=found.evaluation.figures)
            except TvcError as error:  # such as a rate with which the loss is no number
                trial = replace(trial, error=str(error))
            _write(trial)
        trial = _read(place)
    worst = math.inf if known.by == "loss" else -math.inf
    value = trial.figures.get(known.by, worst)
    ray_tune.report({known.by: value if math.isfinite(value) else worst})


def _place(folder: str, values: Mapping[str, Any]) -> Path:
    """Return the folder of the run with some values."""
    text = json.dumps(dict(values), sort_keys=True)
    return Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:12]


def _write(trial: Trial) -> None:
    figures = {k: v if math.isfinite(v) else None for k, v in trial.figures.items()}
    data = {"values": dict(trial.values), "figures": figures, "error": trial.error}
    write_text(trial.folder.with_suffix(".json"), json.dumps(data, indent=1) + "\n")


def _read(place: Path) -> Trial:
    data = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    figures = {k: math.nan if v is None else v for k, v in data["figures"].items()}
    return Trial(folder=place, values=data["values"], figures=figures, error=data["error"])


def _found(folder: Path, by: str) -> Tuned:
    trials = [_read(file.with_suffix("")) for file in sorted((folder / "trials").glob("*.json"))]
    sign = 1 if by == "loss" else -1

    def rank(trial: Trial) -> float:
        value = trial.figures.get(by, math.nan)
        return sign * value if math.isfinite(value) else math.inf

    trials.sort(key=rank)
    if not trials or not math.isfinite(rank(trials[0])):
        said = f": {trials[0].error}" if trials else ""
        raise TrainingError(f"no trial came to its end{said}")
    found = Tuned(folder=folder, best=trials[0], trials=tuple(trials), by=by)
    rows = [
        {"trial": each.folder.name, **each.values, **each.figures, "error": each.error}
        for each in trials
    ]
    Run(folder=folder).write_rows(folder / "trials.csv", rows)
    best = found.best.folder / "recipe.yaml"
    with suppress(OSError):
        load_recipe(best)
        write_text(folder / "best.yaml", best.read_text(encoding="utf-8"))
    return found
