"""A run that is killed anywhere goes on and ends with the bits of one that was not.

`make figures SEED=1` draws other steps.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tvc_train import fit
from tvc_train.caching.feeding import CachedFeed
from tvc_train.showing import Display

SEED = int(os.environ.get("SEED", "0"))
FIGURE = [pytest.mark.sweep, pytest.mark.figure, pytest.mark.timeout(3600)]

pytestmark = pytest.mark.usefixtures("imported")

Make = Callable[..., dict[str, Any]]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(Display):
    """Kill this process at a step of the whole run, or at the n-th pass or phase of this start."""

    def __init__(self, *, step: int = 0, what: str = "", count: int = 1, batch: int = 0) -> None:
        self.at, self.what, self.left, self.batch = step, what, count, batch
        self.inside, self.batches = "", 0

    def phase(self, name: str, facts: Any) -> None:
        self._event("phase")

    def epoch(self, number: int, *, steps: int, what: str = "train") -> None:
        self.inside, self.batches = what, 0
        if not self.batch:
            self._event(what)

    def step(self, step: int, *, images: int, figures: Any = None) -> None:
        self.batches += 1
        if self.inside == "train" and step == self.at:
            die()
        if self.batch and self.batches == self.batch:
            self._event(self.inside)

    def _event(self, what: str) -> None:
        if what == self.what:
            self.left -= 1
            if self.left == 0:
                die()


def start(act: Callable[[], Any]) -> bool:
    """Act in a fork of this process, and return whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def state(folder: Path) -> dict[str, bytes]:
    """Return all that may not depend on how often a run was killed."""
    names = ["model.safetensors", "predictions.safetensors", "metrics.csv"]
    found = [*(folder / "checkpoints").iterdir(), *(folder / name for name in names)]
    return {path.name: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, shared_photos: Path
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return a recipe with everything that has a state, and what its run leaves: 20 steps."""
    phases = [
        {"epochs": 2, "rate": 3e-3},
        {"epochs": 2, "rate": 1e-3, "thaw": [-1], "warmup": 0.5, "layer_decay": 0.7},
    ]
    given = {
        "name": "whole",  # a recipe without one is called after its file, where it has one
        "backbone": {"name": "mobilenet_v3_small", "weights": None},
        "data": {
            "path": str(shared_photos), "size": 32, "augment": "strong",
            "mixup": 0.2, "cutmix": 0.5,
        },
        "training": {
            "ema": 0.9, "clip": 1.0, "normalization": "train", "save_every": 2, "batch_size": 4,
            "methods": ["wise_ft", "temperature"], "phases": phases,
        },
    }  # fmt: skip
    return given, end_of(given, tmp_path_factory.mktemp("whole") / "run")


def end_of(given: dict[str, Any], folder: Path, workers: int = 0) -> dict[str, bytes]:
    """Train to the end in another process, as all others do, and return what that leaves."""
    assert not start(lambda: go_on(given, folder, workers, None))
    return state(folder)


def go_on(given: dict[str, Any], folder: Path, workers: int, display: Display | None) -> None:
    changes = {"training.workers": workers}
    fit(given, out=folder, resume=True, changes=changes, display=display)


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=FIGURE)])
def test_killed_at_random_steps(
    count: int, whole: tuple[dict[str, Any], dict[str, bytes]], tmp_path: Path
) -> None:
    given, wanted = whole
    folder, draw, kills = tmp_path / "killed", random.Random(SEED), 0
    steps = sorted(draw.choices(range(1, 21), k=count))
    for number, step in enumerate(steps):
        kills += start(lambda step=step, n=number: go_on(given, folder, n % 3, Kill(step=step)))  # type: ignore[misc]
    assert kills >= len(set(steps)) - 1  # a checkpoint may be of the very step
    assert end_of(given, folder) == wanted


PLACES: dict[str, Callable[[], Display]] = {
    "the last step of an epoch": lambda: Kill(step=5),
    "the last step of a phase": lambda: Kill(step=10),
    "a phase's beginning": lambda: Kill(what="phase", count=2),
    "the first step of a phase": lambda: Kill(step=11),
    "an epoch's beginning": lambda: Kill(what="train", count=2),
    "an evaluation's beginning": lambda: Kill(what="evaluate", count=1),
    "inside of an evaluation": lambda: Kill(what="evaluate", count=3, batch=2),
    "the last evaluation": lambda: Kill(what="evaluate", count=5, batch=1),
}


@pytest.mark.parametrize(
    ("place", "workers"), [(place, number % 3) for number, place in enumerate(PLACES)]
)
@pytest.mark.sweep
@pytest.mark.figure
def test_killed_at_a_certain_place(
    place: str, workers: int, whole: tuple[dict[str, Any], dict[str, bytes]], tmp_path: Path
) -> None:
    given, wanted = whole
    folder = tmp_path / "killed"
    assert start(lambda: go_on(given, folder, workers, PLACES[place]()))
    assert end_of(given, folder, (workers + 1) % 3) == wanted


def in_a_save(number: int, when: str) -> None:
    """Kill this process in the n-th time that it puts a file in its place."""
    real, left = os.replace, [number]

    def replace(source: Any, target: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] == 0 and when == "half":
            content = Path(source).read_bytes()
            Path(source).write_bytes(content[: len(content) // 2])
        if left[0] == 0 and when != "after":
            die()
        real(source, target, **options)
        if left[0] == 0:
            die()

    os.replace = replace
    Path.replace = lambda self, target: replace(self, target)  # type: ignore[method-assign,assignment,misc]


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=FIGURE)])
def test_killed_in_saves(
    count: int, whole: tuple[dict[str, Any], dict[str, bytes]], tmp_path: Path
) -> None:
    """Again and again in one run: before a file is in its place, half of it there, and after."""
    given, wanted = whole
    folder, draw = tmp_path / "killed", random.Random(SEED + 1)

    def act(number: int, when: str) -> None:
        in_a_save(number, when)
        go_on(given, folder, number % 3, None)

    kills = 0
    for _ in range(count):
        number, when = draw.randint(1, 6), draw.choice(["half", "before", "after"])
        kills += start(lambda number=number, when=when: act(number, when))  # type: ignore[misc]
    assert kills
    assert end_of(given, folder) == wanted


@pytest.mark.parametrize(
    ("chunk", "workers"), [pytest.param(n, n % 3, marks=FIGURE) for n in range(2, 9)]
)
def test_killed_while_features_are_computed(
    chunk: int, workers: int, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = recipe(phases=[{"epochs": 1}, {"epochs": 1, "thaw": [-1]}], normalization="fixed")
    given["data"] |= {"cache": True, "views": 2}
    monkeypatch.setattr("tvc_train.caching.feeding._CHUNK", 8)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-whole"))
    wanted = end_of(given, tmp_path / "whole")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = CachedFeed._computed

    def killing(self: CachedFeed, *args: Any) -> Iterator[Any]:
        nonlocal chunk
        for part in real(self, *args):
            yield part
            chunk -= 1
            if chunk == 0:
                die()

    def act() -> None:
        monkeypatch.setattr(CachedFeed, "_computed", killing)
        go_on(given, tmp_path / "killed", workers, None)

    assert start(act)
    assert end_of(given, tmp_path / "killed") == wanted
    caches = [tmp_path / name / "tvc" / "features" for name in ("cache", "cache-whole")]
    found, kept = ({f.parent.name: f.read_bytes() for f in c.glob("*/*.bin")} for c in caches)
    assert found == kept and len(found) == 4


@pytest.mark.parametrize("delay", [pytest.param(n, marks=FIGURE) for n in range(3)])
def test_sigterm_at_any_time_saves_and_exits_143(
    delay: int, whole: tuple[dict[str, Any], dict[str, bytes]], tmp_path: Path
) -> None:
    given, wanted = whole
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    command = [sys.executable, "-m", "tvc_cli", "train", "recipe.yaml", "--out", "ended"]
    run = subprocess.Popen([*command, "--resume"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    while "phase" not in run.stderr.readline():
        assert run.poll() is None
    time.sleep(random.Random(SEED + delay).random())
    run.send_signal(signal.SIGTERM)
    said = run.stderr.read()
    assert run.wait() == 143, said
    assert "SIGTERM" in said and "Traceback" not in said
    subprocess.run([*command, "--resume"], cwd=tmp_path, check=True)
    assert state(tmp_path / "ended") == wanted
