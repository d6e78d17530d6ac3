"""Trainings by tvc-train beside loops written by hand, as ratios of runs in turn.

`python tests/bench/training.py [PART ...] [--runs 3]` runs these parts, or all of them:

- `cached`: a head on a frozen network for 20 epochs, with cached features, without, and by a plain
  loop that sets `requires_grad = False`;
- `uncached`: the same for an epoch at 224 pixels, in float32 and bfloat16;
- `loop`: what a step takes beside that of a loop by hand and of Lightning's Trainer;
- `digits`: examples/digits.yaml on three seeds, with normalization fixed and trained.

Prints tables and asserts nothing.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tvc_train import fit
from tvc_train.data import DataSettings, Samples, open_data
from tvc_train.showing import Display, Displays, Terminal

from tvc_core import HybridBuilder, HybridModel

DIGITS = Path(__file__).parents[2] / "examples" / "digits.yaml"
NETWORKS: dict[str, str | None] = {"resnet18": None, "efficientnet_lite0": "DEFAULT"}
"""With the weights that come with a package; a head learns on random features as well."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@contextmanager
def quiet() -> Any:
    """Keep what others print out of the tables."""
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Took:
    """How long something took, on the wall and of the processor [s]."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.result: Any = None

    @staticmethod
    def of(act: Callable[[], Any]) -> Took:
        """Act, and measure it."""
        took, wall, cpu = Took(), time.perf_counter(), time.process_time()
        with quiet():
            took.result = act()
        took.wall, took.cpu = time.perf_counter() - wall, time.process_time() - cpu
        return took


def in_turn(acts: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[Took]]:
    """Return what each takes, in rounds, every other one backwards."""
    found: dict[str, list[Took]] = {name: [] for name in acts}
    for number in range(runs):
        for name in list(acts)[:: -1 if number % 2 else 1]:
            found[name].append(Took.of(acts[name]))
    return found


def ratio(above: Sequence[Took], below: Sequence[Took], clock: str = "cpu") -> str:
    """Return the median of paired ratios, and the smallest and the largest."""
    found = [getattr(a, clock) / getattr(b, clock) for a, b in zip(above, below, strict=True)]
    return f"{statistics.median(found):.3g} ({min(found):.3g} to {max(found):.3g})"


# -- loops by hand ---------------------------------------------------------------------------------


class Plain(Dataset[tuple[Tensor, int]]):
    """Images as a loop by hand reads them."""

    def __init__(self, samples: Samples, size: int) -> None:
        self.images = [samples.read(index) for index in range(len(samples))]
        self.targets = samples.targets
        self.prepare = v2.Compose([
            v2.Resize((size, size)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.prepare(self.images[index]), int(self.targets[index])


def digits(settings: Mapping[str, Any]) -> tuple[Samples, Samples]:
    """Return the digits to train on and those held out, as `fit` takes them."""
    found = open_data(DataSettings.from_mapping(settings), folder=Path(), seed=0)
    return found.train, found.val


def network(name: str) -> HybridModel:
    """Return a network with a new head for digits, all of it thawed."""
    with quiet():
        return HybridBuilder().from_backbone(name, NETWORKS.get(name), num_classes=10, seed=0)


def with_frozen_body(name: str) -> HybridModel:
    """Return a network of which only the head requires gradients, as a plain loop sets it."""
    model = network(name)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in model.get_classifier().parameters():
        parameter.requires_grad = True
    return model


def by_hand(
    model: nn.Module,
    data: tuple[Samples, Samples],
    *,
    size: int,
    epochs: int,
    batch_size: int = 32,
    file: Path | None = None,
    clock: Callable[[], None] = lambda: None,
) -> float:
    """Train as many write it, evaluate after each epoch, and return the last accuracy.

    Args:
        model: whose parameters that require gradients are trained.
        data: to train on, and held out.
        size: of images, a side [pixels].
        epochs: how many.
        batch_size: images of a step.
        file: where the state goes after each epoch.
        clock: called after each step.
    """
    train, held_out = (Plain(samples, size) for samples in data)
    loader = DataLoader(train, batch_size, shuffle=True)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    correct = 0
    for _ in range(epochs):
        model.train()
        for images, targets in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            loss.item()
            clock()
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, targets in DataLoader(held_out, batch_size):
                correct += int((model(images).argmax(1) == targets).sum())
        if file is not None:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    return correct / len(held_out)


def recipe(name: str, data: Mapping[str, Any], epochs: int, **training: Any) -> dict[str, Any]:
    """Return the recipe of the same training."""
    phase = {"epochs": epochs, "rate": 1e-2, **training.pop("phase", {})}
    return {
        "backbone": {"name": name, "weights": NETWORKS.get(name)},
        "data": {"source": "digits", "augment": "none", **data},
        "training": {"keep": "last", "phases": [phase], **training},
    }


def fitted(given: Mapping[str, Any], display: Display | None = None) -> float:
    """Train a recipe in a folder that is gone afterwards, and return the accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        found = fit(given, out=Path(folder) / "run", display=display)
        return found.evaluation.figures["accuracy"]


@contextmanager
def empty_cache() -> Any:
    """Let features be kept in a new folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


# -- parts -----------------------------------------------------------------------------------------


def cached(console: Console, *, runs: int, size: int, epochs: int) -> None:
    """A head on a frozen network, with features that are computed once."""
    table = Table(
        "network", "plain [s]", "uncached [s]", "cached [s]", "cpu: plain / cached", "wall",
        "cpu: plain / uncached", "accuracy: plain, uncached, cached",
        title=f"a head for {epochs} epochs at {size} pixels (goal: cached 10 times less cpu)",
    )  # fmt: skip
    for name in NETWORKS:
        said = {"size": size, "mean": list(MEAN), "std": list(STD), "fit": "squash"}
        data = digits(said)

        def ours(cache: bool, name: str = name, said: dict[str, Any] = said) -> float:
            with empty_cache():
                return fitted(recipe(name, {**said, "cache": cache}, epochs))

        acts = {
            "plain": lambda name=name, data=data: by_hand(
                with_frozen_body(name), data, size=size, epochs=epochs
            ),
            "uncached": lambda ours=ours: ours(False),
            "cached": lambda ours=ours: ours(True),
        }
        took = in_turn(acts, runs)
        seconds = [f"{statistics.median(each.cpu for each in took[kind]):.3g}" for kind in acts]
        accuracies = ", ".join(f"{took[kind][0].result:.1%}" for kind in acts)
        plain, without, quick = took.values()
        table.add_row(
            name, *seconds, ratio(plain, quick), ratio(plain, quick, "wall"),
            ratio(plain, without), accuracies,
        )  # fmt: skip
    console.print(table)


def uncached(console: Console, *, runs: int, images: int) -> None:
    """A head on a frozen network at 224 pixels, nothing kept."""
    supported = (
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    # not "auto", which finds so few steps not worth to time
    other = {"layout": "channels_last"}
    kinds: dict[str, dict[str, Any]] = {"as it is": {}, "channels_last": other}
    if supported:
        kinds["bfloat16 as well"] = {**other, "precision": "bfloat16"}
    table = Table(
        "network", "plain [cpu ms an image]", *(f"plain / {kind}" for kind in kinds),
        title="a head at 224 pixels, steps alone (goal: 1.15 times, 2 with bfloat16)",
    )  # fmt: skip
    for name in NETWORKS:
        said = {"size": 224, "mean": list(MEAN), "std": list(STD), "fit": "squash"}
        train, held_out = digits(said)
        part = (train.take(np.arange(images)), held_out.take(np.arange(8)))

        def plain(name: str = name, part: Any = part) -> list[float]:
            clock = Clock()
            by_hand(with_frozen_body(name), part, size=224, epochs=1, clock=clock.tick)
            return clock.steps()

        def ours(training: dict[str, Any], name: str = name, said: Any = said) -> list[float]:
            clock = Clock(until=images // 32)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    fit(recipe(name, said, 1, **training), out=Path(folder) / "run", display=clock)
                except Clock.OverError:
                    return clock.steps()
            return clock.steps()

        acts: dict[str, Callable[[], Any]] = {"plain": plain}
        acts |= {kind: lambda each=each, ours=ours: ours(each) for kind, each in kinds.items()}
        took = {
            kind: statistics.median(step for each in found for step in each.result)
            for kind, found in in_turn(acts, runs).items()
        }
        row = (f"{took['plain'] / took[kind]:.3g}" for kind in kinds)
        table.add_row(name, f"{took['plain'] / 32 * 1e3:.3g}", *row)
    console.print(table)
    if not supported:
        console.print("bfloat16 was not measured: this processor does not compute in it")


class Clock(Display):
    """Notes the processor's time when each step has ended, and may end a training.

    Args:
        until: so many steps.
    """

    class OverError(Exception):
        """Enough was measured."""

    def __init__(self, *, until: int | None = None) -> None:
        self.until, self.times, self.what = until, [time.process_time()], ""

    def epoch(self, number: int, *, steps: int, what: str = "train") -> None:
        """Begin a pass over images."""
        self.what = what
        self.times.append(float("nan"))  # what lies between is no step

    def step(self, step: int, *, images: int, figures: Mapping[str, float] | None = None) -> None:
        """Note a step."""
        if self.what == "train":
            self.tick()
            if self.until is not None and step >= self.until:
                raise Clock.OverError

    def tick(self) -> None:
        """Note the time."""
        self.times.append(time.process_time())

    def steps(self) -> list[float]:
        """Return what each step but the first of an epoch took [s]."""
        found = np.diff(self.times)
        return [float(each) for each in found if each == each]


def loop(console: Console, *, runs: int, batch_size: int) -> None:
    """What a step takes beside that of other loops."""
    name, epochs, size = "shufflenet_v2_x0_5", 2, 64
    said = {"size": size, "mean": list(MEAN), "std": list(STD), "fit": "squash"}
    data = digits(said)
    given = recipe(name, said, epochs, batch_size=batch_size, phase={"thaw": ["all"]})

    def hand() -> list[float]:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            by_hand(
                network(name), data, size=size, epochs=epochs, batch_size=batch_size,
                file=Path(folder) / "state.pt", clock=clock.tick,
            )  # fmt: skip
        return clock.steps()

    def ours() -> list[float]:
        clock = Clock()
        fitted(given, Displays([Terminal(io.StringIO()), clock]))
        return clock.steps()

    acts: dict[str, Callable[[], Any]] = {"by hand": hand, "tvc-train": ours}
    lightning = _lightning()
    if lightning is not None:
        acts["Lightning"] = lambda: with_lightning(
            lightning, network(name), data, size=size, epochs=epochs, batch_size=batch_size
        )
    found = in_turn(acts, runs)
    table = Table(
        "loop", "step [cpu ms]", "/ by hand (goal: 1.1)", "above by hand [cpu ms]",
        "whole training: cpu / by hand",
        title=f"steps of {name}, all of it trained, {batch_size} images of {size} pixels",
    )  # fmt: skip
    steps = {
        kind: [statistics.median(took.result) for took in each] for kind, each in found.items()
    }
    for kind, each in steps.items():
        pairs = list(zip(each, steps["by hand"], strict=True))
        table.add_row(
            kind,
            f"{statistics.median(each) * 1e3:.4g}",
            f"{statistics.median(a / b for a, b in pairs):.3f}",
            f"{statistics.median(a - b for a, b in pairs) * 1e3:.3g}",
            ratio(found[kind], found["by hand"]),
        )
    console.print(table)
    if lightning is None:
        console.print("Lightning is not installed (group interop), so its Trainer was not measured")


def _lightning() -> Any:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def with_lightning(
    lightning: Any, model: nn.Module, data: tuple[Samples, Samples], *, size: int, epochs: int,
    batch_size: int,
) -> list[float]:  # fmt: skip
    """Train by Lightning's Trainer with a log and a bar, and return what steps take [s]."""
    clock = Clock()

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, number: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
            self.log("loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, number: int) -> None:
            correct = (self.model(batch[0]).argmax(1) == batch[1]).float().mean()
            self.log("accuracy", correct)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            steps = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    class Ticks(lightning.Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, *args: Any) -> None:
            clock.epoch(0, steps=0)

        def on_train_batch_end(self, *args: Any) -> None:
            clock.tick()

    train, held_out = (Plain(samples, size) for samples in data)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, default_root_dir=folder,
            callbacks=[Ticks()], logger=lightning.loggers.CSVLogger(folder),
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(
            Module(), DataLoader(train, batch_size, shuffle=True), DataLoader(held_out, batch_size)
        )
    return clock.steps()


def several_seeds(console: Console, *, seeds: int) -> None:
    """The digits of `make demo` on some seeds, with both normalizations."""
    table = Table("normalization", *(f"seed {seed}" for seed in range(seeds)), "mean", "minutes")
    for mode in ("fixed", "train"):
        took = [
            Took.of(lambda seed=seed, mode=mode: _digits(seed, mode))  # type: ignore[misc]
            for seed in range(seeds)
        ]
        found = [each.result for each in took]
        minutes = statistics.mean(each.wall for each in took) / 60
        shown = [*found, statistics.mean(found)]
        table.add_row(mode, *(f"{each:.1%}" for each in shown), f"{minutes:.1f}")
    console.print(table)


def _digits(seed: int, mode: str) -> float:
    changes = {"training.seed": seed, "training.normalization": mode}
    with tempfile.TemporaryDirectory() as folder:
        found = fit(DIGITS, out=Path(folder) / "run", changes=changes)
        return found.evaluation.figures["accuracy"]


PARTS = ("cached", "uncached", "loop", "digits")


def main(given: argparse.Namespace) -> None:
    """Measure and print."""
    console = Console(width=150)
    for part in given.parts or PARTS:
        begin = time.perf_counter()
        if part == "cached":
            cached(console, runs=given.runs, size=given.size, epochs=given.epochs)
        elif part == "uncached":
            uncached(console, runs=given.runs, images=given.images)
        elif part == "loop":
            loop(console, runs=given.runs, batch_size=given.batch_size)
        else:
            several_seeds(console, seeds=given.seeds)
        print(f"{part}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    console.print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="of images, in the part cached")
    parser.add_argument("--epochs", type=int, default=20, help="in the part cached")
    parser.add_argument("--images", type=int, default=160, help="in the part uncached")
    parser.add_argument("--batch-size", type=int, default=16, help="in the part loop")
    parser.add_argument("--seeds", type=int, default=3, help="in the part digits")
    main(parser.parse_args())
