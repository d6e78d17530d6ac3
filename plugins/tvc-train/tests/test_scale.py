"""Several processes train and evaluate what one does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from tvc_train import fit
from tvc_train.caching.feeding import CachedFeed
from tvc_train.devices import Devices, local, own
from tvc_train.errors import TrainingError
from tvc_train.faults import StoppedError
from tvc_train.methods import L2StartingPoint
from tvc_train.watching import check_gradients, first_step

from tvc_core import HybridBuilder, HybridModel

pytestmark = pytest.mark.usefixtures("imported")

Make = Callable[..., dict[str, Any]]


def several(world: int, act: Callable[[], Any]) -> None:
    """Act in as many forks of this process, which are a group as torchrun makes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.environ |= {
                "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
                "GROUP_RANK": "0", "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            }  # fmt: skip
            try:
                act()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world


def child_of_rank(rank: int, parent: int) -> int:
    """Return the process with a rank that torchrun has started; 0 where there is none yet."""
    for found in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            said = found.joinpath("environ").read_bytes().split(b"\0")
            above = int(found.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if above == parent and f"RANK={rank}".encode() in said:
                return int(found.name)
    return 0


@pytest.mark.sweep
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="this system does not list processes there")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_after_a_killed_rank_torchrun_starts_again_and_ends_alike(
    recipe: Make, tmp_path: Path, strategy: str
) -> None:
    given = recipe(save_every=1, ema=0.9)
    given["backbone"] = {"name": "shufflenet_v2_x0_5", "weights": None}
    given["training"]["phases"][1]["epochs"] = 3
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    several(2, lambda: fit(given, out=tmp_path / "whole", strategy=strategy))
    run = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
            "--max-restarts=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
            "-m", "tvc_cli", "train", "recipe.yaml", "--out", "killed", "--resume",
            "--strategy", strategy, "--accelerator", "cpu",
        ],
        cwd=tmp_path, env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not [*(tmp_path / "killed" / "checkpoints").glob("step-*4.safetensors")]:
        assert run.poll() is None
        time.sleep(0.01)
    os.kill(child_of_rank(1, run.pid), signal.SIGKILL)
    assert run.stderr is not None
    said = run.stderr.read()
    assert run.wait() == 0, said
    for name in ("model.safetensors", "predictions.safetensors", "metrics.csv"):
        found = [(tmp_path / out / name).read_bytes() for out in ("whole", "killed")]
        assert found[0] == found[1], name


def toy(seed: int = 0) -> HybridModel:
    return HybridBuilder().from_backbone("shufflenet_v2_x0_5", None, num_classes=3, seed=seed)


@pytest.mark.parametrize(
    ("strategy", "workers", "others"),
    [
        ("ddp", 0, ()),
        pytest.param("ddp", 1, (1, 3), marks=pytest.mark.sweep),
        pytest.param("fsdp", 1, (1, 3), marks=pytest.mark.sweep),
    ],
)
def test_two_processes_train_as_one_and_others_go_on(
    recipe: Make, tmp_path: Path, strategy: str, workers: int, others: tuple[int, ...]
) -> None:
    exact = {"precision": "float64", "normalization": "fixed", "keep": "last", "clip": 1.0}
    given = recipe(**exact, workers=workers)
    given["training"]["phases"].append({"epochs": 1, "rate": 1e-3})  # frozen again
    given["backbone"] = {"name": "shufflenet_v2_x0_5", "weights": None}  # has no dropout

    def train(out: str, world: int) -> dict[str, Any]:
        folder = tmp_path / out
        several(world, lambda: fit(given, out=folder, resume=True, strategy=strategy))
        newest = max((folder / "checkpoints").glob("step-*"))
        return {**load_file(newest), **load_file(folder / "predictions.safetensors")}

    one, two = train("one", 1), train("two", 2)
    for world in others:
        shutil.copytree(tmp_path / "two", tmp_path / str(world))
        max((tmp_path / str(world) / "checkpoints").glob("step-*")).unlink()
    for found in (two, *(train(str(world), world) for world in others)):
        assert found.keys() == one.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "world", "held_out"),
    [
        ("ddp", 3, 2),
        ("fsdp", 2, 101),
        *(
            pytest.param(*each, marks=pytest.mark.sweep)
            for each in (("ddp", 2, 101), ("ddp", 3, 101), ("fsdp", 3, 101), ("fsdp", 3, 2))
        ),
    ],
)
def test_figures_are_those_of_one_process(
    tmp_path: Path, strategy: str, world: int, held_out: int
) -> None:
    """Also where one has a batch more than another, or no image at all."""
    photos, draw = tmp_path / "photos", np.random.default_rng(0)
    for part, count in (("train", 10), ("val", held_out)):
        for number in range(count):
            path = photos / part / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    given = {
        "backbone": {"name": "shufflenet_v2_x0_5", "weights": None},
        "data": {"path": str(photos), "size": 32, "augment": "none"},
        "training": {"batch_size": 10, "precision": "float64", "phases": [{"epochs": 1}]},
    }  # fmt: skip
    fit(given, out=tmp_path / "one")
    several(world, lambda: fit(given, out=tmp_path / "more", strategy=strategy))
    one, more = (load_file(tmp_path / out / "predictions.safetensors") for out in ("one", "more"))
    assert len(one["targets"]) == held_out
    assert one["indices"].equal(more["indices"]) and one["targets"].equal(more["targets"])
    torch.testing.assert_close(one["logits"], more["logits"], rtol=0, atol=1e-6)
    rows = [(tmp_path / out / "metrics.csv").read_text().splitlines() for out in ("one", "more")]
    for name, a, b in zip(
        *(each.split(",") for each in (rows[0][0], rows[0][1], rows[1][1])), strict=True
    ):
        assert a == b or float(a) == pytest.approx(float(b), abs=1e-6), name


@pytest.fixture
def cached(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a recipe of features in several chunks."""
    monkeypatch.setattr("tvc_train.caching.feeding._CHUNK", 5)
    given = recipe(precision="float64", keep="last", batch_size=7, normalization="fixed")
    given["backbone"] = {"name": "shufflenet_v2_x0_5", "weights": None}
    given["data"] |= {"cache": True, "augment": "none", "split": 0.3}
    given["training"]["phases"] = [{"epochs": 1}, {"epochs": 1, "thaw": [-1]}]
    return given


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.sweep)])
def test_features_of_several_processes_are_those_of_one(
    cached: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    for out, processes in (("one", 1), ("more", world)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{out}"))
        several(processes, lambda out=out: fit(cached, out=tmp_path / out))  # type: ignore[misc]
    caches = [tmp_path / f"cache-{out}" / "tvc" / "features" for out in ("one", "more")]
    one, more = ({f.parent.name: f.read_bytes() for f in c.glob("*/*.bin")} for c in caches)
    assert len(one) == 4 and one == more
    tensors = [load_file(tmp_path / out / "predictions.safetensors") for out in ("one", "more")]
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, rtol=0, atol=1e-6)


def test_a_signal_to_one_process_ends_building_in_all(
    cached: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = CachedFeed._below

    def signaled(self: CachedFeed, *args: Any) -> Any:
        if self.devices.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    def act() -> None:
        with pytest.raises(StoppedError, match="None of them are kept"):
            fit(cached, out=tmp_path / "run")

    monkeypatch.setattr(CachedFeed, "_below", signaled)
    several(2, act)
    assert not [*(tmp_path / "cache").glob("**/*.bin")]
    monkeypatch.undo()


@pytest.mark.sweep
def test_what_the_first_process_cannot_keep_ends_all(
    cached: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def act(said: str, **options: Any) -> None:
        with pytest.raises(TrainingError, match=said):
            fit(cached, out=tmp_path / said[-8:], **options)

    cached["data"]["max_cache"] = 1e-9
    several(2, lambda: act("data.cache: the features take"))
    several(2, lambda: act("data.cache: with the strategy fsdp", strategy="fsdp"))


def test_replicas_keep_their_buffers_and_torch_warns_of_nothing() -> None:
    def wrap() -> None:
        devices = Devices(devices=2, accelerator="cpu")
        devices.launch()
        model = toy()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run = devices.wrap(model)
        norm = next(each for each in model.modules() if isinstance(each, nn.BatchNorm2d))
        assert norm.running_mean is not None
        norm.running_mean.fill_(devices.rank)
        model.eval()
        run(torch.randn(2, 3, 32, 32))
        assert bool((norm.running_mean == devices.rank).all())
        devices.close()

    several(2, wrap)


def test_what_is_thawed_under_its_wrapper_is_found() -> None:
    def naive() -> None:
        devices = Devices(devices=2, accelerator="cpu")
        devices.launch()
        model = toy()
        model.freeze_backbone()
        run = devices.wrap(model)
        model.stage4.requires_grad_(True)  # the naive thaw
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(devices.rank))
        run(images).square().sum().backward()
        with pytest.raises(TrainingError, match=r"gradients.*stage4"):
            check_gradients(model, devices)
        devices.close()

    several(2, naive)


def test_what_moves_though_it_is_frozen_is_found_in_shards() -> None:
    def moving() -> None:
        devices = Devices(devices=2, strategy="fsdp", accelerator="cpu")
        devices.launch()
        model = toy()
        model.freeze_backbone()
        run = devices.wrap(model)
        model.train()
        weight, mean = "stage3.0.branch2.0.weight", "stage4.0.branch2.1.running_mean"
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learning[:1], lr=0.1)
        watched = first_step(model, optimizer, devices, "head")
        with pytest.raises(TrainingError) as caught, watched:
            run(torch.ones(2, 3, 32, 32)).square().sum().backward()
            optimizer.step()
            devices.settle(model)
            with torch.no_grad():
                model.get_parameter(weight).mul_(2)
            model.get_buffer(mean).add_(1)
        said = str(caught.value)
        assert f"frozen and moved: 2 ({weight}, {mean})" in said
        assert "not in the optimizer: 1 (fc.bias) of 2" in said
        optimizer = torch.optim.SGD(learning, lr=0.1)
        with first_step(model, optimizer, devices, "head"):  # nothing is wrong
            run(torch.ones(2, 3, 32, 32)).square().sum().backward()
            optimizer.step()
        devices.close()

    several(2, moving)


def test_a_process_that_fails_alone_does_not_let_the_others_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tvc_train.devices._PATIENCE", 0.1)

    def lonely() -> None:
        devices = Devices(devices=2, accelerator="cpu")
        if os.environ["RANK"] == "1":
            with pytest.raises(ZeroDivisionError), devices:
                devices.launch()
                raise ZeroDivisionError
        else:
            with pytest.raises(TrainingError, match="process 0 of 2 has lost another"), devices:
                devices.launch()
                for _ in range(1000):
                    devices.total(1.0)

    several(2, lonely)


def test_a_penalty_of_shards_has_the_gradient_of_the_whole() -> None:
    def penalized() -> None:
        devices = Devices(devices=2, strategy="fsdp", accelerator="cpu")
        with devices:
            devices.launch()
            model = toy()
            run = devices.wrap(model)
            method = L2StartingPoint(alpha=0.5, beta=0.25)
            method.start(model)
            with torch.no_grad():
                for each in model.parameters():
                    local(each).add_(2)
            run(torch.ones(2, 3, 32, 32))  # leaves the root's parameters whole
            devices.settle(model)
            penalty = method.penalty(model)
            assert penalty is not None
            penalty.backward()
            for name, each in model.named_parameters():
                assert each.grad is not None
                wanted = 0.25 * own(each) if name.startswith("fc.") else torch.ones_like(own(each))
                torch.testing.assert_close(own(each.grad), wanted)

    several(2, penalized)
