"""A new head keeps every name and every layer before the last one."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tvc_core import BackboneSpec, BlockSpec, HeadError, HybridBuilder, RecipeError


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
        model = lab().load(tmp_path / "m.safetensors")
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
    assert [hook.p for hook in model.fc._forward_pre_hooks.values()] == [0.1]


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


# -- class names -----------------------------------------------------------------------------------


def test_class_names_fit_the_head_or_are_refused(tiny: Any) -> None:
    model = tiny(num_classes=2, class_names=["cat", "dog"])
    assert model.class_names == ("cat", "dog")
    for wrong in (["cat"], ["a", "b", "c"], [1, 2]):
        with pytest.raises(HeadError, match=r"2 outputs|different names"):
            model.class_names = wrong
    assert model.class_names == ("cat", "dog")
    model.reset_classifier(2)
    assert model.class_names is None
