"""Pruning and quantization of hybrids: kept right, or refused by name."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from case_tools import EVERY_POSITION, difference, gates, ready, steps
from torch import nn

import tvc_core
from tvc_core import TvcError, WeightsError

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


# -- torch-pruning ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patches",
    [
        {"layer3": {"wrap": "se"}},
        {"layer2.0.conv1": {"wrap": "eca"}},
        {"layer1.0": {"wrap": {"type": "se", "position": "branch"}}},
        {path: patch for path, patch in EVERY_POSITION.items() if path != "layer2.1.conv1"},
    ],
    ids=["stage", "convolution", "branch", "every"],
)
def test_torch_pruning_cuts_channels_through_patches(patches: object, tmp_path: Path) -> None:
    """It traces the model with its patches, so their widths follow; a file cannot."""
    pruning = pytest.importorskip("torch_pruning")
    model = ready("resnet18", patches)
    before = model.count_parameters()
    keep = [model.fc]
    try:
        pruner = pruning.pruner.MagnitudePruner(
            model,
            X,
            importance=pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=keep,
        )
        pruner.step()
        found = model.eval()(X)
    except TvcError as error:
        assert re.search(r"layer\d|patches", str(error))
        return
    assert found.shape == (2, 10)
    assert model.count_parameters() < 0.5 * before
    with pytest.raises(WeightsError, match=r"conv1|bn1|layer\d|shape"):
        model.save(tmp_path / "m.safetensors")
    moved = {n: p.detach().clone() for n, p in gates(model).items()}
    steps(model, rate=0.01)
    assert all(not torch.equal(p, moved[n]) for n, p in gates(model).items())
    copied = copy.deepcopy(model).eval()
    assert difference(copied(X), model.eval()(X)) == 0


# -- torchao ---------------------------------------------------------------------------------------


def test_torchao_quantizes_linear_layers(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = ready("timm/test_vit", {"blocks.1": {"wrap": "mlp"}}, image_size=160)
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        right = model(x)
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        found = model.eval()(x)
    assert difference(found, right) < 0.2
    assert model.num_classes == 10
    assert "test_vit" in model.explain()
    try:
        model.save(tmp_path / "m.safetensors")
    except WeightsError as error:
        assert re.search(r"blocks|head|weight", str(error))
    else:
        assert difference(tvc_core.load(tmp_path / "m.safetensors")(x), found) < 1e-5


def test_torchao_prepares_training_that_knows_of_quantization() -> None:
    """Exchanged linear layers inside of a patched module."""
    quantization = pytest.importorskip("torchao.quantization")
    qat = pytest.importorskip("torchao.quantization.qat")
    model = ready("timm/test_vit", {"blocks.0.attn.proj": {"wrap": "mlp"}}, image_size=160)
    x = torch.randn(2, 3, 160, 160)
    patch = model.get_submodule(model.patch_records[0].paths[0])
    seen: list[int] = []
    base = quantization.Int8DynamicActivationIntxWeightConfig()
    quantization.quantize_(model, qat.QATConfig(base, step="prepare"))
    model.train()
    model.get_submodule(model.patch_records[0].paths[0]).register_forward_hook(
        lambda *_: seen.append(1)
    )
    assert type(model.blocks[0].attn.proj) is not nn.Linear
    model(x)
    assert seen == [1]
    assert patch is not None


# -- torch.ao, to the end --------------------------------------------------------------------------


def test_quantized_convolutions_run_their_patches() -> None:
    """From preparation to int8: the patched convolution is another module each time."""
    from torch.ao import quantization

    model = ready("resnet18", {"layer2.0.conv1": {"wrap": "se"}})
    right = model(X).detach()
    model.layer2[0].conv1.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    prepared = quantization.prepare_qat(model.train())
    prepared.apply(quantization.disable_fake_quant)
    assert "qat" in type(prepared.layer2[0].conv1).__module__
    assert difference(prepared.eval()(X), right) < 1e-6
    prepared.apply(quantization.enable_fake_quant)
    prepared.train()
    prepared(X)
    assert difference(prepared.eval()(X), right) < 0.3


def test_a_dynamically_quantized_head() -> None:
    from torch.ao import quantization

    model = ready("resnet18", {"layer3": {"wrap": "se"}})
    right = model(X).detach()
    quantized = quantization.quantize_dynamic(model, {nn.Linear})
    assert quantized.num_classes == 10
    assert difference(quantized(X), right) < 0.2
    quantized.freeze_backbone()
    assert "resnet18" in quantized.explain()
    assert quantized.freeze_report() is not None
