"""A file that holds only what differs from another: small, exact, and read with that one only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tvc_core
from tvc_core import HybridBuilder, HybridModel, WeightsError

ROOT = Path(__file__).resolve().parents[2]
PATCHES = {"layer4": {"wrap": "se"}}


def tuned(model: HybridModel) -> HybridModel:
    """Train the head and the inserted blocks for two steps; BatchNorm moves in the last stage."""
    model.freeze_backbone(unfreeze_stages=[3], normalization="frozen")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("patches", "fc")))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        loss = nn.functional.cross_entropy(
            model.train()(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[HybridModel, Path, Path]:
    folder = tmp_path_factory.mktemp("delta")
    builder, base, delta = HybridBuilder(), folder / "base.safetensors", folder / "d.safetensors"
    plain = builder.from_backbone("resnet18", None)
    plain.save(base)
    model = builder.from_backbone("resnet18", None, patches=PATCHES, num_classes=3)
    tvc_core.transfer_weights(plain, model, exclude_patterns=["fc"])
    model = tuned(model)
    model.save(delta, base=base)
    return model, base, delta


@pytest.fixture
def files(made: tuple[HybridModel, Path, Path], tmp_path: Path) -> tuple[HybridModel, Path, Path]:
    """A model, the file that it is based on, and its delta beside that one."""
    model, *paths = made
    base, delta = (Path(shutil.copy(path, tmp_path)) for path in paths)
    return model, base, delta


LOADS = """
import json, sys, torch, tvc_core
model = tvc_core.load(sys.argv[1])
torch.manual_seed(3)
print(json.dumps(model(torch.randn(2, 3, 64, 64)).tolist()))
"""


def test_a_delta_is_small_and_exact_in_a_fresh_process(
    files: tuple[HybridModel, Path, Path],
) -> None:
    model, base, delta = files
    moved = model.layer4[1].bn2.num_batches_tracked
    assert moved > 0 and model.layer1[0].bn1.num_batches_tracked == 0
    assert delta.stat().st_size < 0.1 * base.stat().st_size
    run = [sys.executable, "-c", LOADS, str(delta)]
    said = subprocess.run(run, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    torch.manual_seed(3)
    with torch.no_grad():
        assert torch.equal(torch.tensor(json.loads(said)), model(torch.randn(2, 3, 64, 64)))
    expected, again = model.state_dict(), tvc_core.load(delta)
    assert all(torch.equal(expected[key], value) for key, value in again.state_dict().items())


def test_another_base_is_refused(files: tuple[HybridModel, Path, Path], tmp_path: Path) -> None:
    _, base, delta = files
    other = HybridBuilder().load(base)
    with torch.no_grad():
        other.fc.bias[0] += 1e-6  # of what the delta does not even take
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"not the base"):
        tvc_core.load(delta, base=tmp_path / "other.safetensors")
    other.save(base)
    with pytest.raises(WeightsError, match=r"base\.safetensors.*not the base"):
        tvc_core.load(delta)
    base.unlink()
    with pytest.raises(WeightsError, match=r"base\.safetensors.*not beside it.*base="):
        tvc_core.load(delta)


def test_a_base_may_be_anywhere_and_be_saved_again(
    files: tuple[HybridModel, Path, Path], tmp_path: Path
) -> None:
    model, base, delta = files
    HybridBuilder().load(base).save(base, metadata={"note": "the same tensors"})
    (tmp_path / "there").mkdir()
    moved = base.rename(tmp_path / "there" / "b.safetensors")
    again = HybridBuilder().load(delta, base=moved)
    assert torch.equal(again.fc.weight, model.fc.weight)


def test_what_is_no_base_is_refused(files: tuple[HybridModel, Path, Path], tmp_path: Path) -> None:
    model, base, delta = files
    for wrong in (delta, tmp_path / "absent.safetensors", tmp_path / "new.safetensors"):
        with pytest.raises(WeightsError):
            model.save(tmp_path / "new.safetensors", base=wrong)
    with pytest.raises(WeightsError, match="leave base out"):
        tvc_core.load(base, base=base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_decide(tiny: Any, lab: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    """Minus zero is not zero, NaN is itself, and another type is another tensor."""
    model, base = tiny(), tmp_path / "base.safetensors"
    with torch.no_grad():
        model.fc.bias.zero_()
        model.fc.weight.fill_(float("nan"))
    model.save(base)
    with torch.no_grad():
        model.fc.bias.neg_()
    model = model.to(dtype)
    model.save(tmp_path / "d.safetensors", base=base)
    again = lab().load(tmp_path / "d.safetensors")
    for key, value in model.state_dict().items():
        found = again.state_dict()[key]
        raw = [each.reshape(-1).view(torch.uint8) for each in (found, value)]
        assert found.dtype == value.dtype and torch.equal(*raw), key


def test_pretrained_weights_are_a_base(builder: Any, made_up: Any, tmp_path: Path) -> None:
    """No copy of the official file is needed, and a model that was changed is no base."""
    made_up("mobilenet_v3_small")
    start = builder.from_backbone("mobilenet_v3_small")
    given: Any = {"patches": {"features.3": {"wrap": "se"}}, "num_classes": 3}
    model = builder.from_backbone("mobilenet_v3_small", **given)
    with torch.no_grad():
        model.features[1].block[0][1].running_mean += 0.25
    model.save(tmp_path / "d.safetensors", base=start)
    again = tvc_core.load(tmp_path / "d.safetensors")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model.eval()(x))
    info = tvc_core.describe_file(tmp_path / "d.safetensors")
    assert info.kind == "delta" and str(info.base).endswith("mobilenet_v3_small with IMAGENET1K_V1")
    assert "features.1.block.0.1.running_mean" in info.tensors and len(info.tensors) < 12
    with torch.no_grad():
        start.features[0][0].weight += 1
    model.save(tmp_path / "wrong.safetensors", base=start)
    with pytest.raises(WeightsError, match="not the base"):
        tvc_core.load(tmp_path / "wrong.safetensors")
    for wrong in (model, builder.from_backbone("mobilenet_v3_small", None), nn.Linear(2, 2)):
        with pytest.raises(WeightsError, match="base"):
            model.save(tmp_path / "no.safetensors", base=wrong)


def test_other_readers_refuse_a_delta(files: tuple[HybridModel, Path, Path]) -> None:
    _, _, delta = files
    for read in (tvc_core.read_state_dict, lambda path: tvc_core.diff_weights(path, {})):
        with pytest.raises(WeightsError, match=r"tvc_core\.load"):
            read(delta)
    model = HybridBuilder().from_backbone("resnet18", None, num_classes=3)
    with pytest.raises(WeightsError, match=r"tvc_core\.load"):
        tvc_core.partial_load(model, delta)
    with pytest.raises(WeightsError, match=r"tvc_core\.load"):
        HybridBuilder().from_backbone("resnet18", delta)
