"""Low-rank adapters of peft at patches and beside them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from case_tools import EVERY_POSITION, difference, gates, ready, steps
from torch import nn

import tvc_core
from tvc_core import HybridBuilder, WeightsError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.interop

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
SE = {"wrap": {"type": "se", "init": "paper"}}


def resnet18(patches: Any) -> Any:
    builder = HybridBuilder()
    return builder.from_torchvision("resnet18", None, patches=patches, num_classes=10).eval()


def lora(model: nn.Module, **arguments: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(r=4, **arguments)).eval()


@pytest.mark.parametrize("targets", [["conv2"], ["conv1", "conv2"], ["0.conv2"], ["fc"], ["bn1"]])
def test_f13_names_find_the_layers_of_the_backbone_only(targets: list[str]) -> None:
    patches = {"layer3.0.conv2": SE, "layer1.0": SE, "bn1": SE}
    wanted = {
        path
        for path, module in torchvision.models.resnet18().named_modules()
        if any(path == t or path.endswith(f".{t}") for t in targets)
    }
    if targets == ["bn1"]:
        with pytest.raises(ValueError, match="BatchNorm2d"):  # as of a plain network
            lora(resnet18(patches), target_modules=targets)
        return
    model = lora(resnet18(patches), target_modules=targets)
    found = {
        path.removeprefix("base_model.model.")
        for path, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    }
    assert found == wanted


def test_f13_merged_is_what_ran() -> None:
    model = resnet18({"layer4.1.conv2": SE})
    adapted = lora(model, target_modules=r"layer4\.1\.conv2", init_lora_weights=False)
    with torch.no_grad():
        before = adapted(X)
        merged = adapted.merge_and_unload().eval()
        assert difference(merged(X), before) < 1e-5


@pytest.mark.parametrize("scale", [False, True], ids=["random", "zero"])
def test_patches_in_every_position(scale: bool, tmp_path: Path) -> None:
    """Adapters on all convolutions of the backbone: before the patch that hangs at the same path,
    and merged as well.
    """
    model = ready("resnet18", EVERY_POSITION)
    convs = [
        path
        for path, module in torchvision.models.resnet18().named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        right = model(X)
        torch.manual_seed(1)
        adapted = lora(
            copy.deepcopy(model),
            target_modules="|".join(convs).replace(".", r"\."),
            init_lora_weights=scale,
        )
        before = adapted(X)
        if scale:  # peft's start is the identity
            assert difference(before, right) < 1e-6
        # second derivation: the merged weights in a model that no tool has touched
        merged = copy.deepcopy(adapted).merge_and_unload().eval()
        reference = copy.deepcopy(model)
        for path in convs:
            layer = adapted.get_submodule(f"base_model.model.{path}")
            weight = layer.base_layer.weight + layer.get_delta_weight("default")
            reference.get_submodule(path).weight.copy_(weight)
        assert difference(before, reference(X)) < 1e-5
        assert difference(merged(X), reference(X)) < 1e-5
        path = tmp_path / "merged.safetensors"
        merged.save(path)
        assert difference(tvc_core.load(path)(X), merged(X)) < 1e-6


def test_only_adapters_learn_and_the_patches_that_are_asked_for(tmp_path: Path) -> None:
    model = ready("resnet18", {"layer3.0.conv2": {"wrap": "se"}})
    adapted = lora(model, target_modules=["conv1"], modules_to_save=["se"])
    frozen = {
        name: p.detach().clone()
        for name, p in adapted.named_parameters()
        if "lora_" not in name and "modules_to_save" not in name
    }
    gate = [n for n in gates(adapted) if "modules_to_save" in n]
    assert len(gate) == 1
    before = dict(adapted.named_parameters())[gate[0]].detach().clone()
    steps(adapted)
    after = dict(adapted.named_parameters())
    assert [name for name in frozen if not torch.equal(after[name], frozen[name])] == []
    assert not torch.equal(after[gate[0]], before)


def test_what_peft_froze_stays_frozen() -> None:
    model = ready("resnet18", {"layer3.0.conv2": {"wrap": "se"}})
    adapted = lora(model, target_modules=["conv1"])
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    adapted.train()
    model.set_grad_checkpointing()
    model.set_grad_checkpointing(False)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == trainable
    model.unpatch()
    left = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert left == {name for name in trainable if "patches" not in name}
    model.reset_classifier(3)
    now = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert now - left == {"base_model.model.fc.weight", "base_model.model.fc.bias"}


def test_it_takes_none_of_our_adapters_for_its_own() -> None:
    """Two of ours at one layer, so that the second one has a number in its name."""
    ours = [{"inject": "lora"}, {"inject": {"type": "lora", "params": {"rank": 2}}}]
    model = ready("resnet18", {"layer3.0.conv2": ours, "layer2.0.conv1": {"inject": "lora"}})
    with torch.no_grad():
        for record in model.patch_records:
            model.get_submodule(record.paths[0]).block.up.weight.normal_(0, 0.01)
        right = model(X)
        adapted = lora(model, target_modules=["layer3.0.conv2"])
        assert difference(adapted(X), right) < 1e-6  # peft's start is the identity
        names = {name for name, p in adapted.named_parameters() if p.requires_grad}
        assert names == {
            f"base_model.model.layer3.0.conv2.lora_{each}.default.weight" for each in "AB"
        }
        with pytest.warns(UserWarning, match=r"conv2\.lora \(it takes a Conv2d"):
            report = tvc_core.fold_patches(model)
        assert report.folded == ("patches.layer2.0.conv1.lora",) and len(report.left) == 2
        assert difference(adapted(X), right) < 1e-5
        merged = adapted.merge_and_unload().eval()
        assert not tvc_core.fold_patches(merged).left
        assert difference(merged(X), right) < 1e-5


def test_an_adapted_model_is_saved_by_peft_or_refused(tmp_path: Path) -> None:
    model = ready("resnet18", {"layer3.0.conv2": {"wrap": "se"}})
    adapted = lora(model, target_modules=["conv2"], init_lora_weights=False)
    with pytest.raises(WeightsError, match=r"conv2"):
        model.save(tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = ready("resnet18", {"layer3.0.conv2": {"wrap": "se"}})
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert difference(again(X), adapted(X)) < 1e-6


def test_a_network_of_timm() -> None:
    pytest.importorskip("timm")
    model = ready("timm/test_vit", {"blocks.0.attn": {"wrap": "mlp"}}, image_size=160)
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        right = model(x)
        adapted = lora(model, target_modules=["qkv", "attn.proj"])
        assert difference(adapted(x), right) < 1e-6
        assert difference(adapted.merge_and_unload().eval()(x), right) < 1e-5


def test_lora_in_a_block_of_a_patch() -> None:
    """The blocks' own layers may be found: their names are in the recipe's hands."""
    model = ready("resnet18", {"layer3": {"wrap": "se"}, "layer2.0.conv1": {"wrap": "se"}})
    with torch.no_grad():
        right = model(X)
        adapted = lora(model, target_modules=["fc1"])
        assert difference(adapted(X), right) < 1e-6
    found = [n for n, _ in adapted.named_parameters() if "lora_A" in n]
    assert len(found) == 2
