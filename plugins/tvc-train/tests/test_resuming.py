"""A run that was killed goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tvc_train import Method, MethodSpec, TrainingError, fit
from tvc_train.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from tvc_train.devices import Devices
from tvc_train.faults import StoppedError
from tvc_train.showing import Display

from tvc_core import LocalPlugin, Registry

Make = Callable[..., dict[str, Any]]


class At(Display):
    """Send this process a signal at the n-th event of a kind."""

    def __init__(self, what: str, count: int, number: int) -> None:
        self.what, self.left, self.number = what, count, number

    def _event(self, what: str) -> None:
        if what == self.what:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)

    def epoch(self, number: int, *, steps: int, what: str = "train") -> None:
        self._event(what)

    def step(self, step: int, *, images: int, figures: Any = None) -> None:
        self._event("step")

    def phase(self, name: str, facts: Any) -> None:
        self._event("phase")

    def row(self, row: Any, speed: Any) -> None:
        self._event("row")


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, shared_photos: Path
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return a recipe that saves after each step, and what its run leaves."""
    given = {
        "backbone": {"name": "mobilenet_v3_small", "weights": None},
        "data": {"path": str(shared_photos), "size": 32, "augment": "light"},
        "training": {
            "batch_size": 8, "save_every": 1, "ema": 0.9,
            "phases": [{"epochs": 1}, {"epochs": 1, "thaw": [-1], "warmup": 0.5}],
        },
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("whole")
    fit(given, out=folder)
    return given, files(folder)


Whole = tuple[dict[str, Any], dict[str, bytes]]


def killed(recipe: dict[str, Any], out: Path, what: str, count: int, workers: int) -> None:
    """Train in a fork of this process, which is killed."""
    child = os.fork()
    if child == 0:
        changes = {"training.workers": workers}
        show = At(what, count, signal.SIGKILL)
        fit(recipe, out=out, resume=True, changes=changes, display=show)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def files(folder: Path) -> dict[str, bytes]:
    """Return what may not depend on how often a run was killed."""
    names = ["model.safetensors", "predictions.safetensors", "metrics.csv"]
    found = [*(folder / "checkpoints").iterdir(), *(folder / name for name in names)]
    return {path.name: path.read_bytes() for path in found}


def test_sigterm_saves_and_the_run_goes_on(whole: Whole, tmp_path: Path) -> None:
    given, wanted = whole
    for where in (("step", 1), ("evaluate", 1)):
        with pytest.raises(StoppedError, match=r"SIGTERM.*--resume"):
            fit(given, out=tmp_path, resume=True, display=At(*where, signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    fit(given, out=tmp_path, resume=True)
    assert files(tmp_path) == wanted


@pytest.mark.parametrize("cache", [False, True])
def test_statistics_are_estimated_alike_where_a_run_goes_on_after_an_epoch(
    cache: bool, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    phases = [{"epochs": 1, "thaw": [-2, -1]}]
    given = recipe(normalization="reestimate", phases=phases)
    given["data"] |= {"cache": cache, "augment": "none"}
    given["backbone"]["patches"] = {"features.10": {"wrap": "drop_block"}}  # random, before a norm
    fit(given, out=tmp_path / "whole")
    with pytest.raises(StoppedError):
        fit(given, out=tmp_path / "run", display=At("step", 3, signal.SIGTERM))  # the last one
    torch.manual_seed(1)
    fit(given, out=tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_another_run_is_refused_with_the_difference(recipe: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(recipe(), out=out)
    with pytest.raises(TrainingError, match="has a run already: --resume"):
        fit(recipe(), out=out)
    with pytest.raises(TrainingError, match=r"seed was 0, and is 1"):
        fit(recipe(seed=1), out=out, resume=True)
    with pytest.raises(TrainingError, match=r"training.clip was absent, and is 1.0"):
        fit(recipe(clip=1.0), out=out, resume=True)
    given = recipe()
    photo = next((tmp_path / "photos" / "class1").iterdir())
    kept = photo.read_bytes()
    photo.write_bytes((tmp_path / "photos" / "class0" / "1.png").read_bytes())
    with pytest.raises(TrainingError, match=r"another run|same image|different classes"):
        fit(given, out=out, resume=True, changes={"data.max_bad": 2})
    photo.write_bytes(kept)
    wanted = files(out)
    (out / "recipe.yaml").unlink()  # as if it had been killed as it began
    fit(given, out=out, resume=True, changes={"training.workers": 1})  # which is no difference
    assert files(out) == wanted and (out / "recipe.yaml").exists()


def test_a_run_starts_over_where_it_is_forced_to(recipe: Make, tmp_path: Path) -> None:
    out, own = tmp_path / "run", tmp_path / "run" / "notes.txt"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "step-000000999.safetensors").write_text("of another run")
    (out / "report.html").write_text("of another run")
    own.write_text("no file of a run")
    with pytest.raises(TrainingError, match=r"report\.html already, and no run to go on with"):
        fit(recipe(), out=out, resume=True)
    fit(recipe(phases=[{"epochs": 1}]), out=out, resume=True, force=True)
    assert not (out / "report.html").exists() and own.exists()
    steps = {path.name for path in (out / "checkpoints").glob("step-*")}
    assert steps == {"step-000000003.safetensors"}
    fit(recipe(seed=1, phases=[{"epochs": 1}]), out=out, force=True)
    assert "seed: 1" in (out / "recipe.yaml").read_text()


def test_a_broken_newest_checkpoint_is_said_and_the_one_before_is_used(
    whole: Whole, tmp_path: Path
) -> None:
    given, wanted = whole
    killed(given, tmp_path, "row", 1, 0)
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="is damaged.*goes on from the one before"):
        fit(given, out=tmp_path, resume=True)
    assert files(tmp_path) == wanted


def test_a_network_whose_modules_have_versions_goes_on(recipe: Make, tmp_path: Path) -> None:
    given = recipe(save_every=1, phases=[{"epochs": 1}])
    given["backbone"]["name"] = "mnasnet0_5"  # which refuses tensors without their versions
    with pytest.raises(StoppedError):
        fit(given, out=tmp_path / "run", display=At("step", 1, signal.SIGTERM))
    fit(given, out=tmp_path / "run", resume=True)


def test_no_mutated_checkpoint_is_read(tmp_path: Path) -> None:
    import random

    import torch

    path = tmp_path / "step-000000001.safetensors"
    tensors = {"model.a": torch.arange(40.0), "ema.a": torch.ones(3, 4)}
    write_checkpoint(path, Checkpoint(content={"progress": {"x": 1}}, tensors=tensors))
    assert read_checkpoint(path).content == {"progress": {"x": 1}}
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        place, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
        changed = bytearray(whole)
        changed[place] ^= bit
        path.write_bytes(changed[: draw.randrange(len(whole))] if draw.random() < 0.2 else changed)
        try:
            found = read_checkpoint(path)
        except TrainingError as error:
            assert path.name in str(error)
        else:  # a bit of the format itself, such as padding, that changes nothing
            assert found.content == {"progress": {"x": 1}}
            assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)


def test_what_cannot_be_written_leaves_the_one_before(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tvc_train.checkpoints as module

    real, calls = module.save_file, []

    def full(tensors: Any, path: Any, *more: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, *more)

    monkeypatch.setattr(module, "save_file", full)
    (given, wanted), out = whole, tmp_path / "run"
    with pytest.raises(TrainingError, match=r"No space left on device.*--resume"):
        fit(given, out=out)
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["step-000000001.safetensors", "step-000000002.safetensors"]
    monkeypatch.undo()
    fit(given, out=out, resume=True)
    assert files(out) == wanted


def test_a_nan_stops_at_its_step_and_names_the_parameter(recipe: Make, tmp_path: Path) -> None:
    given = recipe()
    given["training"]["phases"][0].update(rate=1e9, schedule="constant")
    with pytest.raises(TrainingError, match=r"at step \d, the loss is .* '[a-z]+\.[\w.]+'"):
        fit(given, out=tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


class Steep(Method):
    """Has an infinite slope at the third step, as a distance of zero has."""

    steps = 0

    def penalty(self, model: Any) -> Any:
        self.steps += 1
        weight = model.get_classifier().weight
        away = (weight - weight.detach()).square().sum()
        return away.sqrt() if self.steps == 3 else None


def test_a_gradient_that_is_no_number_stops_its_own_step(recipe: Make, tmp_path: Path) -> None:
    plugin = LocalPlugin("acme-methods")
    plugin.add(MethodSpec(name="steep", factory=Steep))
    given, out = recipe(save_every=1, methods=["steep"], clip=1.0), tmp_path / "run"
    said = (
        r"at step 3, the gradient of 'classifier\.3\.weight' has .*; the loss is \d\.\d+\. Nothing"
    )
    with pytest.raises(TrainingError, match=said):
        fit(given, out=out, registry=Registry([plugin]))
    newest = max((out / "checkpoints").glob("step-*"))
    assert newest.name == "step-000000002.safetensors"
    found = read_checkpoint(newest).below("model")
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


def test_what_a_checkpoint_gives_an_optimizer_lies_as_its_parameters_do(tmp_path: Path) -> None:
    """Torch's fused optimizers go through memory, and mix up what lies otherwise."""

    def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> Tensor:
        parameter.grad = torch.sin(parameter.detach() * 3)
        optimizer.step()
        return parameter.detach().clone()

    start = torch.arange(108.0).reshape(4, 3, 3, 3).to(memory_format=torch.channels_last)
    parameter = nn.Parameter(start)
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    middle = step(parameter, optimizer)
    tensors = {key: each.clone() for key, each in optimizer.state[parameter].items()}
    write_checkpoint(tmp_path / "c.safetensors", Checkpoint(content={}, tensors=tensors))
    wanted = step(parameter, optimizer)
    parameter = nn.Parameter(middle)
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    found = read_checkpoint(tmp_path / "c.safetensors").tensors
    assert found["exp_avg"].is_contiguous()
    devices = Devices(accelerator="cpu")
    optimizer.state[parameter] = {key: devices.like(found[key], parameter) for key in found}
    assert torch.equal(step(parameter, optimizer), wanted)
