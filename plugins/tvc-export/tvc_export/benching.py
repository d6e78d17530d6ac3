"""How long models and exported files take for an image, measured in turn."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tvc_core import BackboneError, HybridModel, ParameterError, check_hybrid, foreign

from .verifying import ExportedModel

__all__ = ["Timing", "bench"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long something takes for a batch.

    Args:
        name: of it.
        runtime: in which it ran.
        median: of all runs [ms].
        p90: what nine of ten runs do not exceed [ms].
        spread: between the fastest and the slowest tenth of runs; a difference of two medians that
            is smaller says nothing [ms].
        patches: how much each patch adds to the median, by its target: the median without it,
            measured in the same rounds, taken off [ms].
    """

    name: str
    runtime: str
    median: float
    p90: float
    spread: float
    patches: Mapping[str, float]


def bench(
    subjects: Mapping[str, HybridModel | ExportedModel],
    *,
    shape: tuple[int, int, int, int],
    rounds: int = 30,
    without: bool = True,
) -> list[Timing]:
    """Measure models and exported files. Each round runs all of them once, in another order, so
    that what slows the machine for a while slows all alike. On the CPU, in one thread.

    Args:
        subjects: by what to call them.
        shape: of the images [N, C, H, W].
        rounds: how often each runs, 10 at least.
        without: measure models also without each of their patches.

    Raises:
        ParameterError: too few rounds, a model that is not a hybrid, or a shape that an exported
            file was not proved for.
        BackboneError: a model does not take such images; the message names both.
    """
    if rounds < 10:
        raise ParameterError(f"rounds={rounds}: at least 10 are needed for a spread")
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    before = torch.get_num_threads()
    with ExitStack() as stack, torch.no_grad():
        torch.set_num_threads(1)
        stack.callback(torch.set_num_threads, before)
        for name, subject in subjects.items():
            if isinstance(subject, ExportedModel):
                runs[name, ""] = lambda run=subject: run(images)  # type: ignore[misc]
                continue
            check_hybrid(subject, "bench")
            for module in subject.modules():  # not all of a model need be in the same mode
                stack.callback(setattr, module, "training", module.training)
            subject.eval()
            runs[name, ""] = _runner(subject, images)
            for target in _targets(subject) if without else ():
                runs[name, target] = _runner(subject, images, target)
        for (name, target), run in runs.items():
            without_it = f" without the patch at {target}" if target else ""
            with foreign(BackboneError, f"{name}{without_it} does not take images {list(shape)}"):
                run()
        times = _measure(runs, rounds)
    found = []
    for name, subject in subjects.items():
        own = times[name, ""]
        median, parts = statistics.median(own), statistics.quantiles(own, n=10)
        found.append(
            Timing(
                name=name,
                runtime=subject.runtime
                if isinstance(subject, ExportedModel)
                else f"torch {torch.__version__}",
                median=median,
                p90=parts[-1],
                spread=parts[-1] - parts[0],
                patches={
                    target: median - statistics.median(each)
                    for (other, target), each in times.items()
                    if other == name and target
                },
            )
        )
    return found


def _targets(model: HybridModel) -> list[str]:
    """Return what is patched and can be switched off."""
    kept = dict.fromkeys(record.target for record in model.patch_records)
    replaced = {record.target for record in model.patch_records if record.replaced is not None}
    return [target for target in kept if target not in replaced]


def _runner(model: HybridModel, images: Any, target: str | None = None) -> Callable[[], Any]:
    batch = torch.from_numpy(images)
    like = next(model.parameters())
    batch = batch.to(device=like.device, dtype=like.dtype)

    def run() -> Any:
        return model(batch)

    def run_without() -> Any:
        with model.without(target):
            start = time.perf_counter()
            model(batch)
            return time.perf_counter() - start

    return run if target is None else run_without


def _measure(
    runs: Mapping[tuple[str, str], Callable[[], Any]], rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Return times of each [ms], after two rounds that are not counted."""
    chance, order = random.Random(0), list(runs)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for number in range(rounds + 2):
        chance.shuffle(order)
        for key in order:
            start = time.perf_counter()
            inner = runs[key]()
            taken = time.perf_counter() - start
            if number >= 2:  # switching a patch off takes time itself, which is not the model's
                times[key].append(1000 * (inner if isinstance(inner, float) else taken))
    return times
