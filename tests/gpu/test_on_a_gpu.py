"""What tests on a CPU cannot see: hybrids that live on a GPU, through verbs, training and commands.

`make test-gpu` runs them where there is a CUDA device; they take a few minutes.
"""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import tvc_dense
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from tvc_cli.group import tvc
from tvc_export import export_model, verify
from tvc_train import fit

import tvc_core
from tvc_core import HybridBuilder, HybridModel, fold_patches, partial_load
from tvc_core.testing.seeding import torch_seed

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

PATCHES: dict[str, Any] = {
    "layer1": {"wrap": "se"},
    "layer3": {"inject": "cbam_block"},
    "layer4": {"wrap": "coord_attention"},
}


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Compute in all of float32, and by the same algorithms each time."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = False, False, True
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = before


def images(num: int = 4, size: int = 64) -> Tensor:
    with torch_seed(3):
        return torch.randn(num, 3, size, size)


def hybrid(**given: Any) -> HybridModel:
    """Return a patched ResNet-18 with random weights."""
    arguments = {"patches": PATCHES, "num_classes": 5, "seed": 0, **given}
    return HybridBuilder().from_torchvision("resnet18", None, **arguments)


def opened(model: HybridModel) -> HybridModel:
    """Open all gates."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.fill_(0.7)
    return model


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    """Compare values, wherever they are."""
    scale = float(wanted.detach().abs().max())
    # in float64, or what differs less than float32 tells would be as far apart as its numbers
    a, b = (each.detach().double().cpu() for each in (found, wanted))
    difference = float((a - b).abs().max())
    assert difference <= tolerance * max(scale, 1e-6), f"{difference} of {scale}"


def same(found: HybridModel, wanted: HybridModel) -> None:
    """Compare tensors bit for bit, wherever they are."""
    there = wanted.state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor.cpu(), there[name].cpu()), name
    assert len(there) == len(found.state_dict())


def where(model: HybridModel) -> set[str]:
    """Return the types of devices that a model is on."""
    return {each.device.type for each in (*model.parameters(), *model.buffers())}


# -- hybrids ---------------------------------------------------------------------------------------


def test_a_network_on_the_gpu_is_patched_there_and_starts_as_it_was() -> None:
    with torch_seed(0):
        plain = torchvision.models.resnet18().to(DEVICE).eval()
    model = HybridBuilder().from_module(
        copy.deepcopy(plain), ["conv1", "bn1"], ["layer1", "layer2", "layer3", "layer4"], "fc",
        patches=PATCHES,
    ).eval()  # fmt: skip
    assert where(model) == {DEVICE}
    x = images().to(DEVICE)
    assert torch.equal(model(x), plain(x))


def test_builds_on_the_default_device() -> None:
    with torch.device(DEVICE):
        model = hybrid()
        model.unpatch("layer1")
        model.remeasure()
        assert model.patch_report(images()).patches
    assert where(model) == {DEVICE}
    wanted = hybrid()
    wanted.unpatch("layer1")
    same(model, wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_computes_what_a_cpu_computes(layout: str) -> None:
    here = opened(hybrid()).double().eval()  # in which the ways of summing do not matter
    there = copy.deepcopy(here).to(DEVICE)
    x, y = images().double(), images().double().to(DEVICE)
    if layout == "channels_last":
        there, y = (each.to(memory_format=torch.channels_last) for each in (there, y))
    close(there(y), here(x), 1e-9)
    maps = zip(there.get_stage_outputs(y), here.get_stage_outputs(x), strict=True)
    for found, wanted in maps:
        close(found, wanted, 1e-9)
    here.train()(x).square().mean().backward()
    there.train()(y).square().mean().backward()
    for (name, a), (_, b) in zip(there.named_parameters(), here.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, name
        close(a.grad, b.grad, 1e-6)


def test_verbs_leave_a_model_where_it_is() -> None:
    model = opened(hybrid()).to(DEVICE)
    x = images().to(DEVICE)
    model.reset_classifier(7)
    model.remeasure()
    report = model.patch_report((x, torch.arange(4)))
    assert all(each.map_change > 0 for each in report.patches)
    with model.without():
        assert model(x).shape == (4, 7)
    model.unpatch("layer1")
    model.freeze_backbone(unfreeze_stages=["layer4"])
    model.set_grad_checkpointing(True)
    model.train()(x).sum().backward()
    assert model.feature_extractor(["layer2"])(x)
    optimizer = torch.optim.SGD(tvc_core.param_groups(model, lr=0.1), lr=0.1)
    assert str(tvc_core.audit(model, optimizer))
    assert where(model) == {DEVICE}


def test_files_cross_devices(tmp_path: Path) -> None:
    model = opened(hybrid()).to(DEVICE)
    model.save(tmp_path / "hybrid.safetensors")
    same(tvc_core.load(tmp_path / "hybrid.safetensors"), model)
    target = hybrid().to(DEVICE)
    partial_load(target, tmp_path / "hybrid.safetensors")
    same(target, model)
    assert where(target) == {DEVICE}
    torch.save({"state_dict": model.state_dict()}, tmp_path / "there.pt")  # tensors of a GPU
    target = hybrid()
    partial_load(target, tmp_path / "there.pt", entry="state_dict")
    same(target, model)
    assert where(target) == {"cpu"}
    assert not tvc_core.diff_weights(model, target).changed


def test_delta_files_cross_devices(tmp_path: Path, made_up: Callable[..., dict[str, Path]]) -> None:
    made_up("resnet18")
    base = HybridBuilder().from_backbone("resnet18", "DEFAULT")
    model = HybridBuilder().from_backbone("resnet18", "DEFAULT", patches=PATCHES, num_classes=5)
    opened(model).to(DEVICE).save(tmp_path / "delta.safetensors", base=base)
    with torch.device(DEVICE):
        found = tvc_core.load(tmp_path / "delta.safetensors")
    assert where(found) == {DEVICE}
    same(found, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    model = opened(hybrid()).to(DEVICE).train()
    x = images().to(DEVICE)
    with torch.autocast(DEVICE, dtype):
        found = model(x)
    found.float().square().mean().backward()
    assert all(torch.isfinite(each.grad).all() for each in model.parameters())
    close(found, model(x), 0.1)


def test_compiles_whole() -> None:
    model = opened(hybrid()).to(DEVICE).eval()
    x = images().to(DEVICE)
    close(torch.compile(model, fullgraph=True)(x), model(x), 1e-3)


def test_a_graph_of_cuda_records_a_pass() -> None:
    model = opened(hybrid()).to(DEVICE).eval()
    x = images().to(DEVICE)
    with torch.no_grad():
        with torch.cuda.stream(torch.cuda.Stream()):
            model(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = model(x)
        x.copy_(images().flip(0))
        graph.replay()
        torch.cuda.synchronize()
        close(found, model(x))


def test_unet_and_folding() -> None:
    unet = tvc_dense.unet(hybrid(num_classes=0).to(DEVICE), 3).to(DEVICE)
    assert unet(images().to(DEVICE)).shape == (4, 3, 64, 64)
    patches = {"layer2": {"wrap": "ssf"}, "layer3.0.conv1": {"wrap": "lora"}}
    model = hybrid(patches=patches).to(DEVICE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    x = images().to(DEVICE)
    before = model(x)
    fold_patches(model)
    close(model(x), before)
    assert where(model) == {DEVICE}


@pytest.mark.parametrize("name", HybridBuilder.list_blocks(category="attention"))
def test_attention_computes_what_a_cpu_computes(name: str) -> None:
    """On small maps, and on one large enough for the functions of our own."""
    # in float64: in less, a few of a million activations have other signs there, and gradients
    # that nothing can be said of
    model = opened(hybrid(patches={"layer1": {"wrap": name}})).double().eval()
    moved = copy.deepcopy(model).to(DEVICE)
    here, there = model.get_submodule("layer1"), moved.get_submodule("layer1")
    shapes = [(3, 64, 9, 9), (3, 64, 9, 7)]
    if name != "non_local":  # which compares every position with every other
        shapes.append((24, 64, 112, 112))
    for shape in shapes:
        with torch_seed(2):
            x = torch.randn(shape, dtype=torch.float64)
        y = x.to(DEVICE)
        x.requires_grad_(), y.requires_grad_()
        a, b = here(x), there(y)
        close(b, a, 1e-9)
        a.square().mean().backward()
        b.square().mean().backward()
        assert x.grad is not None and y.grad is not None
        close(y.grad, x.grad, 1e-7)


# -- training --------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with 24 pictures in three classes, each of another color."""
    draw = np.random.default_rng(0)
    for number in range(3):
        home = tmp_path / "photos" / f"class{number}"
        home.mkdir(parents=True)
        for index in range(8):
            pixels = draw.integers(0, 90, (36, 40, 3))
            pixels[..., number] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(home / f"{index}.png")
    return tmp_path / "photos"


def recipe(photos: Path, *, data: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    phases = [{"epochs": 1, "rate": 3e-3}, {"epochs": 2, "rate": 1e-3, "thaw": [-1], "warmup": 0.5}]
    return {
        "name": "toy",
        "backbone": {"name": "resnet18", "weights": None, "patches": {"layer4": {"wrap": "se"}}},
        "head": {"dropout": 0.2},
        "data": {"path": str(photos), "size": 64, "augment": "light", **(data or {})},
        "training": {"batch_size": 8, "phases": phases, **training},
    }


TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"precision": "bfloat16", "layout": "channels_last", "ema": 0.9},
    "auto": {"layout": "auto", "clip": 1.0, "accumulate": 2},
    "compiled": {"compile": True, "precision": "bfloat16"},
    "cached": {"data": {"cache": True, "augment": "none"}},
    "mixed": {"data": {"mixup": 0.2, "cutmix": 1.0}, "workers": 2},
    "sgd": {"optimizer": "sgd", "normalization": "reestimate", "methods": ["l2_sp"]},
    "soup": {"methods": ["wise_ft"], "normalization": "train"},
    "float64": {"precision": "float64"},
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_trains(tmp_path: Path, photos: Path, kind: str) -> None:
    found = fit(recipe(photos, **TRAININGS[kind]), out=tmp_path / "run", accelerator=DEVICE)
    assert found.evaluation.figures["accuracy"] >= 1 / 3
    loaded = tvc_core.load(found.run.model)
    same(loaded, found.model)


KILLED = """
import json, os, signal, sys, torch
from tvc_train import fit
from tvc_train.showing import Display

class At(Display):
    left = int(sys.argv[3])

    def step(self, step, **given):
        At.left -= 1
        if At.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

torch.backends.cudnn.deterministic = True
given = json.load(open(sys.argv[1]))
fit(given, out=sys.argv[2], resume=True, display=At(), accelerator=sys.argv[4])
"""


@pytest.mark.parametrize("kind", ["plain", "bfloat16", "mixed"])
def test_goes_on_bit_for_bit(tmp_path: Path, photos: Path, kind: str) -> None:
    (tmp_path / "recipe.json").write_text(
        json.dumps(recipe(photos, save_every=1, **TRAININGS[kind]))
    )

    def run(out: str, at: int) -> int:
        command = [sys.executable, "-c", KILLED, "recipe.json", out, str(at), DEVICE]
        return subprocess.run(command, cwd=tmp_path, check=False).returncode

    assert run("whole", -1) == 0
    assert run("killed", 4) == -signal.SIGKILL
    assert run("killed", -1) == 0
    files = sorted((tmp_path / "whole").rglob("*.safetensors"))
    assert len(files) > 2
    for file in files:
        other = load_file(tmp_path / "killed" / file.relative_to(tmp_path / "whole"))
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, other.pop(name)), f"{file.name}: {name}"
        assert not other


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_of_torchrun(tmp_path: Path, photos: Path, strategy: str) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(photos)))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1",
        "-m", "tvc_cli", "train", "recipe.yaml", "--strategy", strategy, "--out", "run",
        "--accelerator", DEVICE,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def said(*words: object) -> str:
    """Return what a command of tvc prints."""
    done = CliRunner().invoke(tvc, [str(each) for each in words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.stdout


def test_commands(tmp_path: Path, photos: Path) -> None:
    found = fit(recipe(photos), out=tmp_path / "run", accelerator=DEVICE)
    file = found.run.model
    rows = {}
    for device in ("cpu", DEVICE):
        figures = json.loads(said("evaluate", file, photos, "--device", device, "--json"))
        assert figures["accuracy"] >= 1 / 3
        rows[device] = said("predict", file, photos, "--device", device).splitlines()
    assert len(rows["cpu"]) == len(rows[DEVICE]) == 25


def test_exports_from_the_gpu(tmp_path: Path) -> None:
    model = opened(hybrid()).to(DEVICE).eval()
    for kind in ("onnx", "pt2"):
        certificate = export_model(model, kind, tmp_path / f"model.{kind}")
        assert certificate.trials
        assert verify(tmp_path / f"model.{kind}", model=model)
    assert where(model) == {DEVICE}
