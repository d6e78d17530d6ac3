"""Recipes with damaged sections `data`, `training` and `tune`, each given to `tvc train`: it is
refused before the first step, with one message that names a line of the recipe or a file of the
data, or it trains.

The whole run is one command, which prints what it found and ends with 1 where that is anything:

    python tests/train_mutants.py --count 200 --seed 0
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

VALID = [
    """\
backbone: {name: mobilenet_v3_small, weights: null}
data:
  path: photos
  size: 32
  fit: pad
  interpolation: bicubic
  mean: [0.5, 0.4, 0.3]
  std: [0.2, 0.3, 0.4]
  augment: strong
  mirror: false
  mixup: 0.2
  cutmix: 1.0
  balance: loss
  split: 0.25
  formats: [png, jpeg]
  max_bad: 1
  max_pixels: 10000
training:
  seed: 3
  batch_size: 8
  accumulate: 2
  optimizer: sgd
  weight_decay: 1e-4
  momentum: 0.8
  clip: 1.0
  ema: 0.9
  label_smoothing: 0.1
  best: f1
  keep: last
  save_every: 2
  phases:
    - {name: head, epochs: 1, rate: 0.01, warmup: 0.5, schedule: linear}
    - {epochs: 2, thaw: [-2, features.12], rate: 1e-3, layer_decay: 0.5, stop_early: 1, size: 40}
  methods: [{l2_sp: {alpha: 0.01}}, {wise_ft: {alpha: 0.5}}, temperature]
""",
    """\
backbone: {name: mobilenet_v3_small, weights: null, patches: {features.11: {wrap: se}}}
data:
  source: csv
  path: table.csv
  columns: {path: file, label: kind}
  labels: many
  separator: "|"
  classes: [red, green]
  size: [32, 24]
  augment: none
  cache: true
  max_cache: 0.5
training:
  batch_size: 4
  best: average_precision
  normalization: reestimate
  phases: [{epochs: 1, rate: 0.01}]
tune:
  trials: 2
  by: f1
  search: random
  seed: 1
  concurrent: 1
  space:
    training.phases[0].rate: {loguniform: [0.0001, 0.1]}
    training.batch_size: {choice: [4, 8]}
    data.size: {randint: [24, 40]}
""",
    """\
backbone: {name: mobilenet_v3_small, weights: null}
data: {path: photos, size: 32, balance: sample, check: headers, views: 2, cache: true}
training:
  methods: [{fixres: {epochs: 2, share: 0.75}}, soup]
  batch_size: 8
  phases:
    - {epochs: 1, thaw: all, rate: 0.001, normalization: fixed}
""",
    """\
backbone: {name: mobilenet_v3_small, weights: null}
data: {size: 32}
training: {phases: [{epochs: 1, rate: 0.01}]}
""",
]
"""What is damaged. Two keys are not there, since they ask for other processes: workers and
compile."""

WRONG: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 2**63, 10**30, -0.5, 0.5, 1.5, 1e-300, 1e308, float("inf"),
    float("nan"), "", " ", "auto", "none", "all", "head", "x" * 3000, "\x1b[2J", "crop", "bicubic",
    "0.01", "1e-3", "nobody.csv", "photos/red", "photos/red/0.png", "../photos", "/dev/zero",
    "/etc/passwd", "/dev/null", "mutant.yaml", "os:system", "antigravity", "tvc_train.fitting",
    "file:///etc/passwd", "torchvision", "digits", "folder", "shards", "layer9", "features.*",
    "re:(a+)+$", [], [[]], [0], [1, 2], [0.1, 0.2, 0.3], ["temperature"], ["temperatur"],
    [{"l2_sp": {"alhpa": 1}}], [{"wise_ft": {"alpha": "x"}}], [{"soup": None}], {}, {"a": {"b": 1}},
    {"epochs": 1}, {"choice": []}, {"uniform": [2, 1]}, {"temperature": {}}, ["se"] * 30,
    ["red", "blue"], ["blue", "red", "green"], "accuracy", "loss", "f1", "many", "one", "sample",
]  # fmt: skip
KEYS = [
    "path", "size", "fit", "epochs", "epoch", "rate", "lr", "phases", "methods", "thaw", "unfreeze",
    "batchsize", "batch_size", "augmnt", "classes", "labels", "source", "seed", "", "a.b",
    "x" * 500, "\x1b[0m", "name", "space", "trials", "uniform", "normalisation", "views",
]  # fmt: skip
_SECTIONS = ("data", "training", "tune")
_SEEN = ("subprocess", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.connect", "pty")


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(
        data if isinstance(data, list) else ()
    )  # fmt: skip
    for key, value in items:
        yield from _places(value, (*path, key))


def _damaged(rng: random.Random, data: dict[str, Any]) -> None:
    """Change one thing inside of the sections."""
    inside = [path for path in _places(data) if path and path[0] in _SECTIONS]
    path, kind = rng.choice(inside), rng.randrange(10)
    above = data
    for key in path[:-1]:
        above = above[key]
    key = path[-1]
    other: Any = data
    for each in rng.choice(inside):
        other = other[each]
    if kind == 0:
        del above[key]
    elif kind == 1 and isinstance(above, dict):
        above[rng.choice(KEYS)] = above.pop(key)
    elif kind == 2 and isinstance(above, dict):
        above[rng.choice(KEYS)] = rng.choice(WRONG)
    elif kind == 3:
        above[key] = copy.deepcopy(other)
    elif kind == 4 and isinstance(above[key], (int, float)):
        above[key] *= rng.choice([-1, 0, 1e-9, 0.5, 3, 1e9])
    elif kind == 5 and isinstance(above[key], str):
        above[key] = above[key][1:] + above[key][:1]
    else:
        like = [each for each in WRONG if type(each) is type(above[key])]
        above[key] = rng.choice(like if like and kind > 6 else WRONG)


def mutant(seed: int) -> str:
    """Return a recipe in which one to three things are changed; some are right all the same."""
    rng = random.Random(seed)
    data = yaml.safe_load(rng.choice(VALID))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if any(path and path[0] in _SECTIONS for path in _places(data)):
            _damaged(rng, data)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def write_data(folder: Path) -> None:
    """Write what recipes are about: 24 pictures in two folders, and a table of them."""
    draw, rows = np.random.default_rng(0), ["file,kind"]
    for name, channel in (("red", 0), ("green", 1)):
        home = folder / "photos" / name
        home.mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 90, (36, 40, 3))
            pixels[..., channel] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(home / f"{number}.png")
            rows.append(f"photos/{name}/{number}.png,{name if number % 3 else 'red|green'}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


@dataclass
class Found:
    """What one recipe did.

    Args:
        code: with which `tvc train` ended: 0, 1, or 143 after its first step, when we stop it.
        said: on stdout and stderr.
        steps: of an optimizer.
        effects: what was imported, started or connected to.
    """

    code: int
    said: str
    steps: int
    effects: list[Any] = field(default_factory=list)

    def problem(self, path: Path) -> str:
        """Say what is wrong with that; "" for nothing."""
        if self.effects:
            return f"it did {self.effects}"
        if self.code in (0, 143):
            return "" if self.steps else "it ended without a step"
        if self.code != 1:
            return f"it ended with {self.code}"
        if self.steps:
            return f"it was refused after {self.steps} steps"
        errors = [line for line in self.said.splitlines() if line.startswith("error: ")]
        if len(errors) != 1 or "Traceback" in self.said:
            return "not one message"
        told = re.search(rf"{re.escape(str(path))}(:\d+:\d+)?: |photos|table\.csv", self.said)
        return "" if told else "neither a line nor a file is named"


class Watch:
    """Notes what happens to the process, and stops a training after its first step."""

    def __init__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.steps, self.events, self.active = 0, list[Any](), False
        register_optimizer_step_post_hook(self._stepped)
        sys.addaudithook(self._noted)  # stays for the life of the process

    def _stepped(self, *_: Any) -> None:
        self.steps += 1
        os.kill(os.getpid(), signal.SIGTERM)

    def _noted(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event.startswith(_SEEN):
            self.events.append((event, str(arguments)[:200]))

    def train(self, path: Path, out: Path) -> Found:
        """Give a recipe to `tvc train`."""
        from click.testing import CliRunner
        from tvc_cli.group import tvc

        self.steps, self.events = 0, []
        before = {name.partition(".")[0] for name in sys.modules}
        kept = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what comes after the run has ended
        self.active = True
        try:
            done = CliRunner().invoke(tvc, ["train", str(path), "--out", str(out)])
        finally:
            self.active = False
            signal.signal(signal.SIGTERM, kept)
        after = {name.partition(".")[0] for name in sys.modules}
        effects = [*self.events, *(f"import {name}" for name in sorted(after - before))]
        said = done.output
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            said += f"\nTraceback {done.exception!r}"
        return Found(code=done.exit_code, said=said, steps=self.steps, effects=effects)


def run(folder: Path, seeds: range, show: bool = False) -> tuple[dict[int, int], list[str]]:
    """Return how often `tvc train` ended with each code, and what is wrong."""
    write_data(folder)
    path, watch = folder / "mutant.yaml", Watch()
    for number, text in enumerate(VALID):  # which imports what training needs
        path.write_text(text)
        found = watch.train(path, folder / "runs" / f"valid-{number}")
        assert found.code == 143 and found.steps, found.said
    codes: dict[int, int] = {}
    wrong = []
    for seed in seeds:
        path.write_text(mutant(seed))
        found = watch.train(path, folder / "runs" / str(seed))
        codes[found.code] = codes.get(found.code, 0) + 1
        if show:
            print(seed, found.code, found.said.strip().splitlines()[-1:], flush=True)
        if problem := found.problem(path):
            wrong.append(f"seed {seed}: {problem}\n{path.read_text()}\n{found.said[-3000:]}")
    return codes, wrong


def main() -> int:
    """Run the command of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="Print the last line of each.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        seeds = range(given.seed, given.seed + given.count)
        codes, wrong = run(Path(folder), seeds, given.show)
    for each in wrong[:20]:
        print(each)
    ended = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items()))
    print(f"{given.count} mutants ended: {ended}; {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
