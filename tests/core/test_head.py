"""A new head keeps every name and every layer before the last one."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

from tvc_core import BackboneSpec, BlockSpec, HeadError, HybridBuilder, RecipeError, load
from tvc_core.surgery.head import (
    dropout_of,
    find_last_layer,
    last_layer,
    num_classes_of,
    set_dropout,
    set_num_classes,
)


def test_only_the_last_layer_of_resnets_head_is_new(builder: HybridBuilder) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.resnet18()
    torch.manual_seed(0)
    model = builder.from_backbone("resnet18", None, num_classes=5)
    assert (model.fc.in_features, model.fc.out_features, model.num_classes) == (512, 5, 5)
    assert list(model.state_dict()) == list(reference.state_dict())
    changed = [
        key
        for key, value in model.state_dict().items()
        if not torch.equal(value, reference.state_dict()[key])
    ]
    assert changed == ["fc.weight", "fc.bias"]


def test_the_linear_layer_before_mobilenets_last_stays(builder: HybridBuilder) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.mobilenet_v3_small()
    torch.manual_seed(0)
    model = builder.from_backbone("mobilenet_v3_small", None, num_classes=5)
    assert torch.equal(model.classifier[0].weight, reference.classifier[0].weight)
    assert [type(layer) for layer in model.classifier] == [
        type(layer) for layer in reference.classifier
    ]
    assert model.get_classifier() is model.classifier[3] and model.classifier[3].out_features == 5


def test_the_pretrained_number_of_classes_keeps_the_pretrained_head(tiny: Any, plain: Any) -> None:
    for wanted in (None, 7):
        assert torch.equal(tiny(num_classes=wanted).fc.weight, plain().fc.weight)
    assert not torch.equal(tiny(num_classes=6).fc.weight, plain().fc.weight[:6])


def test_dropout_sets_the_heads_own(builder: HybridBuilder) -> None:
    model = builder.from_backbone("mobilenet_v3_small", None, dropout=0.4)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.4]
    assert not model.classifier[3]._forward_pre_hooks


def test_dropout_is_added_without_a_name(tiny: Any, plain: Any) -> None:
    model = tiny(dropout=0.4)
    assert list(model.state_dict()) == list(plain().state_dict())
    assert model.fc.in_features == 32 and "dropout 0.4" in model.explain()


def input_of_fc(model: nn.Module, x: Tensor) -> Tensor:
    """The input of the last layer, solved from its output: an invertible layer is put in."""
    layer = model.get_submodule("fc")
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(*layer.weight.shape))
        layer.bias.zero_()
    return model(x)


@pytest.mark.parametrize("how", ["built", "reset", "pickled", "copied", "reset twice", "saved"])
def test_added_dropout_drops_in_training_and_not_in_evaluation(
    tiny: Any, lab: Any, images: Tensor, how: str, tmp_path: Any
) -> None:
    model = tiny(num_classes=32, dropout=None if "reset" in how else 0.5)
    if "reset" in how:
        model.reset_classifier(32, dropout=0.5)
    if how == "pickled":
        model = pickle.loads(pickle.dumps(model))
    if how == "copied":
        model = copy.deepcopy(model)
    if how == "reset twice":
        model.reset_classifier(32)
    if how == "saved":
        model.save(tmp_path / "m.safetensors")
        model = load(tmp_path / "m.safetensors", registry=lab().registry)
    model.freeze_backbone()  # the backbone's own dropout is off
    model.train()
    torch.manual_seed(0)
    kept = input_of_fc(model, images.repeat(50, 1, 1, 1))
    full = input_of_fc(model.eval(), images.repeat(50, 1, 1, 1))
    zeros = kept == 0
    assert 0.45 < zeros[full != 0].float().mean() < 0.55
    torch.testing.assert_close(kept[~zeros], 2 * full[~zeros])


def test_setting_dropout_again_does_not_add_a_second(tiny: Any) -> None:
    model = tiny(dropout=0.4)
    model.reset_classifier(3, dropout=0.1)
    assert [m.p for m in model.fc.modules() if isinstance(m, nn.Dropout)] == [0.1]
    assert len(model.fc._forward_pre_hooks) == 1


def test_a_convolution_may_be_the_last_layer(lab: Any, images: Tensor) -> None:
    def build(spec: BackboneSpec, *, weights: Any) -> nn.Module:
        network = nn.Sequential()
        network.add_module("stem", nn.Conv2d(3, 8, 3, 2, 1))
        network.add_module("body", nn.Conv2d(8, 8, 3, 2, 1))
        head = nn.Sequential(
            nn.Dropout(), nn.Conv2d(8, 9, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        network.add_module("classifier", head)
        return network

    spec = BackboneSpec(
        name="squeeze", factory=build, stem=("stem",), stages=("body",), head="classifier"
    )
    model = lab(spec).from_backbone("squeeze", None, num_classes=4, dropout=0.1)
    assert model(images).shape == (4, 4) and model.classifier[0].p == 0.1 and model.num_classes == 4


def test_a_new_layer_has_the_old_ones_type_device_mode_and_bias(tiny: Any) -> None:
    model = tiny().to(torch.bfloat16).eval()
    model.fc = nn.Linear(32, 7, bias=False, dtype=torch.bfloat16).eval()
    model.reset_classifier(3)
    assert (
        model.fc.weight.dtype == torch.bfloat16 and model.fc.bias is None and not model.fc.training
    )


@pytest.mark.parametrize("wrong", [-1, True, 2.0, "3"])
def test_a_wrong_number_of_classes_changes_nothing(tiny: Any, wrong: Any) -> None:
    with pytest.raises(RecipeError, match="num_classes"):
        tiny(num_classes=wrong)
    model = tiny(class_names=list("abcdefg"))
    layer = model.fc
    with pytest.raises(HeadError, match="num_classes"):
        model.reset_classifier(wrong, dropout=0.3)
    assert (
        model.fc is layer and not layer._forward_pre_hooks and model.class_names == tuple("abcdefg")
    )


@pytest.mark.parametrize("wrong", [-0.1, 1, 1.0, True, "0.5", float("nan")])
def test_a_wrong_dropout_changes_nothing(tiny: Any, wrong: Any) -> None:
    with pytest.raises(RecipeError, match="dropout"):
        tiny(dropout=wrong)
    model = tiny()
    layer = model.fc
    with pytest.raises(HeadError, match="dropout"):
        model.reset_classifier(3, dropout=wrong)
    assert model.fc is layer and not layer._forward_pre_hooks


def test_a_block_after_the_last_layer_forbids_another_width(tiny: Any) -> None:
    dense = BlockSpec(
        name="dense",
        factory=lambda in_channels: nn.Linear(in_channels, in_channels),
        layouts=("NC",),
    )
    model = tiny({"fc": {"wrap": "dense"}}, dense)
    with pytest.raises(HeadError, match="'fc' was made for 7 outputs"):
        model.reset_classifier(3)
    model.reset_classifier(7)
    with pytest.raises(HeadError, match="'fc' was made for 7 outputs"):
        tiny({"fc": {"wrap": "dense"}}, dense, num_classes=3)


def test_a_block_before_the_last_layer_stays_when_that_is_exchanged(
    tiny: Any, images: Tensor
) -> None:
    dense = BlockSpec(
        name="dense",
        factory=lambda in_channels: nn.Linear(in_channels, in_channels),
        layouts=("NC",),
    )
    model = tiny(
        {"fc": {"inject": {"type": "dense", "position": "before"}}}, dense, num_classes=3
    ).eval()
    model.reset_classifier(5)
    before = model(images)
    with torch.no_grad():
        model.patches.fc.dense.alpha.fill_(1)
    assert before.shape == (4, 5) and not torch.equal(before, model(images))


def test_a_head_without_a_layer_says_so(lab: Any) -> None:
    def build(spec: BackboneSpec, *, weights: Any) -> nn.Module:
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1))
        network.add_module("head", nn.Flatten())
        return network

    spec = BackboneSpec(name="headless", factory=build, stem=("0",), stages=("1",), head="head")
    with pytest.raises(HeadError, match=r"'head'.*Flatten"):
        lab(spec).from_backbone("headless", None, num_classes=3)


# -- dropout is a module that people find ---------------------------------------------------------


@pytest.mark.parametrize("carry", ["built", "reset", "copied", "pickled", "loaded", "no classes"])
def test_added_dropout_is_a_module_of_torchs(
    tiny: Any, lab: Any, images: Tensor, carry: str, tmp_path: Any
) -> None:
    """Monte-Carlo dropout: evaluation, with every nn.Dropout in training mode."""
    model = tiny(dropout=0.5, num_classes=64).eval()
    if carry == "reset":
        model.reset_classifier(32)
    elif carry == "copied":
        model = copy.deepcopy(model)
    elif carry == "pickled":
        model = pickle.loads(pickle.dumps(model))
    elif carry == "no classes":
        model.reset_classifier(0)
    elif carry == "loaded":
        model.save(tmp_path / "m.safetensors")
        model = load(tmp_path / "m.safetensors", registry=lab().registry).eval()
    assert "Dropout(p=0.5" in repr(model.fc) and "fc.dropout" in dict(model.named_modules())
    assert isinstance(model.fc, nn.Linear) or carry == "no classes"
    right = model(images)
    assert torch.equal(right, model(images))
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p == 0.5:
            module.train()
    first, second = model(images), model(images)
    assert not torch.equal(first, second) and first.shape == right.shape
    assert torch.equal(model.eval()(images), right)


def test_added_dropout_is_frozen_with_the_head(tiny: Any) -> None:
    model = tiny(dropout=0.5)
    model.freeze_backbone(head="none")
    assert not model.train().fc.dropout.training
    model.unfreeze_all()
    assert model.train().fc.dropout.training


def test_a_hybrid_with_dropout_compiles_and_exports(tiny: Any, images: Tensor) -> None:
    model = tiny(dropout=0.5).eval()
    right = model(images)
    torch.testing.assert_close(torch.compile(model, backend="eager")(images), right)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), right)


def test_pruning_finds_the_layer_itself(tiny: Any, images: Tensor) -> None:
    model = tiny(dropout=0.5).eval()
    prune.l1_unstructured(model.fc, "weight", 0.5)
    assert (model.fc.weight == 0).sum() == model.fc.weight.numel() // 2
    model(images)
    model.reset_classifier(10)
    assert model(images).shape == (4, 10) and (model.fc.weight != 0).all()
    assert dropout_of(model, "fc") == 0.5
    prune.random_unstructured(model.fc, "bias", 0.2)
    assert (model(images).shape, int((model.fc.bias == 0).sum())) == ((4, 10), 2)


def test_dynamic_quantization_finds_the_layer_itself(tiny: Any, images: Tensor) -> None:
    model = tiny(dropout=0.5).eval()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert type(quantized.fc).__module__.startswith("torch.ao.nn.quantized")
    torch.testing.assert_close(quantized(images), model(images), atol=0.05, rtol=0)
    path, layer = last_layer(quantized, "fc")
    assert (path, layer, num_classes_of(layer)) == ("fc", quantized.fc, 7)
    quantized.reset_classifier(3)
    assert quantized(images).shape == (4, 3)


class Counted(nn.Module):
    """A layer as PEFT wraps it: the layer inside, a smaller one beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.down = layer, nn.Linear(layer.in_features, 2)
        self.up = nn.Linear(2, layer.out_features)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def get_base_layer(self) -> nn.Module:
        return self.base_layer

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def test_a_wrapped_layer_is_one_layer(tiny: Any, images: Tensor) -> None:
    model = tiny()
    model.fc = Counted(model.fc)
    assert find_last_layer(model, "fc") == ("fc", model.fc) and model.num_classes == 7
    model.reset_classifier(4)
    assert type(model.fc) is nn.Linear and model(images).shape == (4, 4)


class Head(nn.Module):
    """Remembers its widths, and is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 32, 5
        self.hidden, self.last = nn.Linear(32, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.hidden(x)))


def test_a_head_that_remembers_its_widths_is_looked_into(tiny: Any, images: Tensor) -> None:
    model = tiny()
    model.fc = Head()
    model.reset_classifier(3)
    assert isinstance(model.fc, Head) and model(images).shape == (4, 3)


def test_a_head_without_a_layer_has_no_classes(tiny: Any) -> None:
    model = tiny()
    model.fc = nn.Identity()
    assert find_last_layer(model, "fc") is None and num_classes_of(None) == 0
    assert dropout_of(model, "fc") is None
    for change in (lambda: set_num_classes(model, "fc", 3), lambda: set_dropout(model, "fc", 0.1)):
        with pytest.raises(HeadError, match=r"'fc' \(Identity\) has no .*model.fc = torch.nn.Lin"):
            change()


def test_hooks_of_others_stay_with_the_layer_that_they_are_on(tiny: Any, images: Tensor) -> None:
    model = tiny({"fc": {"inject": {"type": "dense", "position": "before"}}}, DENSE, dropout=0.3)
    calls: list[str] = []
    old = model.fc
    handles = [
        old.register_forward_hook(lambda *_: calls.append("post")),
        old.register_forward_pre_hook(lambda *_: calls.append("pre")),
    ]
    model.reset_classifier(3)
    model(images)
    assert calls == []
    kinds = [type(hook).__name__ for hook in model.fc._forward_pre_hooks.values()]
    assert kinds == ["PatchHook", "HeadDropout"]
    for handle in handles:
        handle.remove()
    assert model.patch_records[0].paths == ("patches.fc.dense",) and len(old._forward_hooks) == 1


DENSE = BlockSpec(name="dense", factory=lambda n: nn.Linear(n, n), layouts=("NC",))


# -- class names -----------------------------------------------------------------------------------


def test_class_names_fit_the_head_or_are_refused(tiny: Any) -> None:
    model = tiny(num_classes=2, class_names=["cat", "dog"])
    assert model.class_names == ("cat", "dog")
    for wrong in (["cat"], ["a", "b", "c"], [1, 2]):
        with pytest.raises(HeadError, match="class_names"):
            model.class_names = wrong
    assert model.class_names == ("cat", "dog")
    model.reset_classifier(2)
    assert model.class_names is None
