"""Published files have layouts of their time: every door takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from tvc_core import HeadError, HybridBuilder, partial_load, read_state_dict

MadeUp = Callable[..., dict[str, Path]]

LAYOUTS: dict[str, tuple[str, str]] = {
    # what the file has, what the network calls it ("": it lacks it)
    "densenet121": ("denselayer1.norm.1.weight", "denselayer1.norm1.weight"),
    "vit_b_32": ("encoder_layer_0.mlp.linear_1.weight", "encoder_layer_0.mlp.0.weight"),
    "resnet18": ("", "bn1.num_batches_tracked"),
    "googlenet": ("", "aux1.conv.bn.num_batches_tracked"),
    "mnasnet0_5": ("layers.0.weight", "layers.0.weight"),
    "resnet50": ("bn1.num_batches_tracked", "bn1.num_batches_tracked"),
}


def own_state(name: str) -> dict[str, Tensor]:
    return dict(torchvision.models.get_model(name, weights=None).state_dict())


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_doors_take_a_file_in_its_published_layout(name: str, made_up: MadeUp) -> None:
    (path,) = made_up(name).values()
    file, network = LAYOUTS[name]
    state = read_state_dict(path)
    assert any(key.endswith(file) for key in state) if file else True
    if file != network:
        assert not any(key.endswith(network) for key in state)
    # torchvision's own builder is the second derivation
    theirs = torchvision.models.get_model(name, weights="DEFAULT")
    ours = torchvision.models.get_model(name, weights=None, **_options(name))
    report = partial_load(ours, path)
    assert report.load_ratio == 1.0, report.summary()
    a, b = theirs.state_dict(), ours.state_dict()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    built = HybridBuilder().from_backbone(name).state_dict()
    assert [key for key in a if key in built and not torch.equal(a[key], built[key])] == []


def _options(name: str) -> dict[str, bool]:
    return {"aux_logits": False, "transform_input": True} if name == "googlenet" else {}


def test_auxiliary_heads_that_the_network_does_not_have_are_unexpected(made_up: MadeUp) -> None:
    (path,) = made_up("googlenet").values()
    model = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False)
    report = partial_load(model, path)
    assert report.load_ratio == 1.0
    assert {key.partition(".")[0] for key in report.unexpected} == {"aux1", "aux2"}


@pytest.mark.parametrize("classes", [5, pytest.param(1000, marks=pytest.mark.sweep)])
def test_weights_without_a_classifier_are_refused_unless_it_is_a_new_one(
    made_up: MadeUp, classes: int
) -> None:
    made_up("vgg16:IMAGENET1K_FEATURES")
    builder = HybridBuilder()
    with pytest.raises(HeadError, match=r"IMAGENET1K_FEATURES.*no classifier.*num_classes=0"):
        builder.from_torchvision("vgg16", "IMAGENET1K_FEATURES")
    x = torch.randn(1, 3, 64, 64)
    model = builder.from_torchvision("vgg16", "IMAGENET1K_FEATURES", num_classes=classes)
    logits = model.eval()(x)
    assert logits.shape == (1, classes) and bool(torch.isfinite(logits).all())
    assert model.class_names is None


def test_partial_load_refuses_a_classifier_without_values(made_up: MadeUp) -> None:
    (path,) = made_up("vgg16:IMAGENET1K_FEATURES").values()
    model = torchvision.models.vgg16(weights=None, init_weights=False)
    report = partial_load(model, path, ignore_mismatch=True, min_loaded=0.1)
    assert {each.key.partition(".")[0] for each in report.refused} == {"classifier"}
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
