"""`tvc tune`: what is searched is checked first; trials are runs of `tvc train`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click import Abort
from click.testing import CliRunner
from PIL import Image
from tvc_train.commands.tune import tune_command
from tvc_train.errors import TrainingError
from tvc_train.planning import make_plan
from tvc_train.tuning.searching import _claim, _key
from tvc_train.tuning.settings import TuneSettings

from tvc_core import Recipe, RecipeError, Registry, TvcError

SPACE = {"training.phases[0].rate": {"loguniform": [1e-3, 1e-2]}}


@pytest.mark.parametrize(
    ("domain", "said"),
    [
        ({"loguniform": [0, 1]}, "begin above 0"),
        ({"uniform": [2, 1]}, "2 is not lower than 1"),
        ({"uniform": [1, 1]}, "1 is not lower than 1"),
        ({"uniform": [1]}, "takes 2 numbers"),
        ({"randint": [1, 2.5]}, "takes 2 whole numbers"),
        ({"quniform": [0, 1, 2]}, "not multiples of the step 2"),
        ({"quniform": [0, 1, 0.3]}, "not multiples of the step 0.3"),
        ({"quniform": [0, 1, 0]}, "not multiples of the step 0"),
        ({"quniform": [0, 1]}, "takes 3 numbers"),
        ({"loguniorm": [1, 2]}, "Did you mean 'loguniform'"),
        ({"choice": []}, "takes a list"),
        ({"choice": [[1]]}, "single values"),
        ({"choice": 3}, "takes a list"),
        ({"choice": [1], "uniform": [0, 1]}, "drawn from one of"),
        ([0, 1], "drawn from one of"),
        (0.5, "drawn from one of"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(domain: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)) as caught:
        TuneSettings(space={"training.clip": domain})
    assert "training.clip" in str(caught.value)


def test_every_choice_and_both_ends_are_tried_before_the_first_trial() -> None:
    space = {
        "a": {"choice": [3, "x", None]}, "b": {"randint": [1, 4]}, "c": {"quniform": [0, 1, 0.5]},
    }  # fmt: skip
    assert TuneSettings(space=space).examples() == [
        {"a": 3, "b": 1, "c": 0}, {"a": "x", "b": 3, "c": 1}, {"a": None, "b": 3, "c": 1},
    ]  # fmt: skip
    assert TuneSettings().examples() == []


def test_whole_numbers_are_drawn_where_three_are_named_and_no_others_pass_for_them() -> None:
    """Of 8 and 32 a batch size may be, and of what is drawn between 8.0 and 32.0 not."""
    for domain, whole in (("quniform", True), ("uniform", False), ("loguniform", False)):
        values = [8, 32, 8] if whole else [8, 32]
        examples = TuneSettings(space={"training.batch_size": {domain: values}}).examples()
        drawn = [each["training.batch_size"] for each in examples]
        assert drawn == [8, 32] and {type(each) for each in drawn} == {int if whole else float}
    ray_tune = pytest.importorskip("ray.tune")
    from tvc_train.tuning.searching import domain_of

    stepped = domain_of({"quniform": [8, 32, 8]})
    assert isinstance(stepped, ray_tune.search.sample.Integer)
    assert {stepped.sample(random_state=n) for n in range(50)} == {8, 16, 24, 32}


def test_each_way_of_drawing_is_known_to_ray_and_optuna() -> None:
    pytest.importorskip("ray")
    pytest.importorskip("optuna")
    from ray.tune.search.optuna import OptunaSearch
    from tvc_train.tune_schema import DOMAINS
    from tvc_train.tuning.searching import domain_of

    space: dict[str, Any] = {
        "choice": [None, 1, "x", True], "uniform": [0, 1], "loguniform": [1e-4, 1],
        "quniform": [0.1, 0.7, 0.2 / 2], "randint": [1, 4], "lograndint": [1, 9],
    }  # fmt: skip
    assert space.keys() == DOMAINS.keys()
    known = TuneSettings(space={name: {name: values} for name, values in space.items()})
    drawn = {path: domain_of(domain) for path, domain in known.space.items()}
    found = OptunaSearch.convert_search_space(drawn)
    ends = known.examples()[:2]
    for name in ("randint", "lograndint", "quniform"):
        assert (found[name].low, found[name].high) == pytest.approx([e[name] for e in ends])
    assert found["choice"].choices == (None, 1, "x", True)
    assert found["loguniform"].log and found["lograndint"].log and not found["uniform"].log


@pytest.fixture
def file(recipe: Any, tmp_path: Path) -> Path:
    """A recipe with a section `tune`."""
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({**recipe(), "tune": {"space": SPACE, "trials": 8}}))
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--space", "training.phases[0].rat={uniform: [0, 1]}"], "rat"),
        (["--space", "training.phases[9].rate={uniform: [0.1, 1]}"], "phases"),
        (["--space", "training.weight_decay={uniform: [0, 1e9]}"], "weight_decay"),
        (["--space", "training.batch_size={choice: [8, many]}"], "batch_size"),
        (["--space", "training.batch_size={uniform: [8, 32]}"], "a whole number"),
        (["--space", "training.clip={normal: [0, 1]}"], "There are"),
        (["--set", "training.clip=2", "--space", "training.clip={uniform: [1, 3]}"], "leave one"),
        (
            ["--space", "backbone.name={choice: [resnet18, resnet81]}"],
            "Unknown backbone 'resnet81'",
        ),
        (
            [
                "--set",
                "training.methods=[l2_sp]",
                "--space",
                "training.methods[0]={choice: [l2_sp, l3_sp]}",
            ],
            "Unknown method 'l3_sp'",
        ),
        (["--by", "average_precision"], "tune.by: average_precision is no figure with labels: one"),
    ],
)
def test_a_space_that_does_not_fit_is_refused_before_anything_starts(
    file: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("optuna")
    out = tmp_path / "out"
    done = CliRunner().invoke(tune_command, [str(file), "--out", str(out), *arguments])
    assert done.exit_code == 1 and said in str(done.exception)
    assert isinstance(done.exception, TvcError) and not out.exists()


def test_another_search_does_not_go_on(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("optuna")
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").touch()
    run = ["tvc", str(file), "--out", str(out)][1:]
    done = CliRunner().invoke(tune_command, run)
    assert isinstance(done.exception, TrainingError) and "no search is in it" in str(done.exception)
    (out / "search.json").write_text('{"by": "loss"}')
    done = CliRunner().invoke(tune_command, run)
    assert "--resume goes on" in str(done.exception)
    done = CliRunner().invoke(tune_command, [*run, "--resume"])
    assert "by: 'accuracy' instead of 'loss'" in str(done.exception)


def test_a_search_goes_on_with_its_own_images_alone(recipe: Any, tmp_path: Path) -> None:
    given = Recipe.from_mapping(recipe())

    def key() -> dict[str, Any]:
        plan = make_plan(given, Registry())
        return _key(given, None, TuneSettings(space=SPACE), "accuracy", plan)

    _claim(tmp_path / "out", key(), resume=False)
    _claim(tmp_path / "out", key(), resume=True)
    first = tmp_path / "photos" / "class0" / "0.png"
    Image.open(first).rotate(180).save(first)
    with pytest.raises(TrainingError, match=r"images: .* instead of"):
        _claim(tmp_path / "out", key(), resume=True)


def test_without_the_extra_the_error_comes_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvc_train import extras

    monkeypatch.setitem(extras.EXTRAS, "tune", ("not_there_at_all",))
    done = CliRunner().invoke(tune_command, [str(tmp_path / "no.yaml")])
    assert "pip install 'tvc-train[tune]'" in str(done.exception)


@pytest.fixture
def unheard() -> Iterator[Callable[..., None]]:
    """Return what fails where nobody else listens to SIGTERM."""

    def fail(*given: object) -> None:
        pytest.fail("nobody listens")

    before = signal.signal(signal.SIGTERM, fail)
    yield fail
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("starts", [True, False])
def test_a_search_that_is_asked_to_end_says_how_it_goes_on(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unheard: Callable[..., None],
    number: int,
    code: int,
    starts: bool,
) -> None:
    ray_tune = pytest.importorskip("ray.tune")
    pytest.importorskip("optuna")
    from tvc_train.tuning import searching

    @contextmanager
    def ray(concurrent: int) -> Iterator[tuple[Path, dict[str, float]]]:
        if starts:
            os.kill(os.getpid(), number)
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("Ray dumps its stack"))
        yield tmp_path, {}

    def go(tuner: Any) -> Any:  # what Ray's loop does with an interrupt
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        return SimpleNamespace(errors=[])

    monkeypatch.setattr(searching, "_ray", ray)
    monkeypatch.setattr(ray_tune.Tuner, "fit", go)
    run = [str(file), "--out", str(tmp_path / "out")]
    if starts and number == signal.SIGINT:  # the command line says it, as of all commands
        with pytest.raises(Abort):
            tune_command.main(run, standalone_mode=False)
    else:
        done = CliRunner().invoke(tune_command, run)
        assert done.exit_code == code and "--resume goes on" in done.stderr, done.stderr
    assert signal.getsignal(signal.SIGTERM) is unheard


HOOK = """
import os, sys

def look(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    elif event in ("socket.sendto", "socket.sendmsg") and isinstance(args[-1], tuple):
        host = args[-1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
        host = "127.0.0.1" if host is None or str(host).replace(".", "").isdigit() else host
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost", b"localhost", b"127.0.0.1"):
        with open(os.environ["SENT"], "a") as file:
            file.write(f"{event} {args!r} {sys.argv}\\n")

sys.addaudithook(look)
open(os.environ["SENT"] + ".seen", "a").write("x")
"""
"""Notes whatever a Python process sends to another machine, or asks of a name server."""


@pytest.mark.sweep  # starts Ray three times
def test_eight_trials_one_killed_and_the_search_killed_and_resumed(
    file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("optuna")
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    sent, out = tmp_path / "sent.txt", tmp_path / "out"
    paths = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "SENT": str(sent)}
    command = [
        sys.executable,
        "-m",
        "tvc_cli",
        "tune",
        str(file),
        "--out",
        str(out),
        "--by",
        "loss",
    ]
    command += ["--json"]

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *more], env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def done() -> int:
        return len([*(out / "trials").glob("*.json")])

    def wait(fits: Any, process: subprocess.Popen[str]) -> None:
        end = time.monotonic() + 240
        while not fits():
            assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
            time.sleep(0.02)

    def running() -> list[Path]:
        folders = [*(out / "trials").glob("*/checkpoints")] if out.exists() else []
        return [f.parent for f in folders if not f.parent.with_suffix(".json").exists()]

    first = start()
    wait(lambda: done() >= 1 and any([*each.glob("checkpoints/*")] for each in running()), first)
    (victim,) = [pid for pid in workers(str(out)) if is_below(pid, first.pid)][:1]
    os.kill(victim, signal.SIGKILL)  # one trial
    wait(lambda: done() >= 3 and running(), first)
    first.kill()  # the search
    first.communicate()
    assert done() < 8
    second = start("--resume")
    said, errors = second.communicate(timeout=400)
    assert second.returncode == 0, errors
    found = json.loads(said)
    assert len(found["trials"]) == 8 and not any(each["error"] for each in found["trials"])
    losses = [each["figures"]["loss"] for each in found["trials"]]
    assert found["best"]["figures"]["loss"] == losses[0] == min(losses)

    # a third time there is nothing left to do, and Ray is not started
    third = start("--resume")
    again, _ = third.communicate(timeout=100)
    assert json.loads(again) == found

    # the trial is what tvc train makes of these values, bit for bit
    values = found["best"]["values"]
    given = [word for path, value in values.items() for word in ("--set", f"{path}={value!r}")]
    run = tmp_path / "run"
    train = [sys.executable, "-m", "tvc_cli", "train", str(file), "--out", str(run), *given]
    subprocess.run(train, check=True, capture_output=True)
    for name in ("model.safetensors", "metrics.csv", "predictions.safetensors"):
        best = Path(found["best"]["folder"]) / name
        assert (run / name).read_bytes() == best.read_bytes(), name

    assert (tmp_path / "sent.txt.seen").stat().st_size > 5  # the hook was in many processes
    assert not sent.exists(), sent.read_text()


def workers(out: str) -> list[int]:
    """Return the processes of trials that are running."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and b"ImplicitFunc" in title:
            found.append(int(folder.name))
    return found


def is_below(pid: int, parent: int) -> bool:
    """Return whether a process descends from another one."""
    while pid > 1:
        if pid == parent:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False
