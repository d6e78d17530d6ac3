"""DenseNet's last stage ends where pooling begins: with torchvision's ReLU, which is a module
here.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet

from tvc_core import HybridBuilder, HybridModel

NAMES = ["densenet121", pytest.param("densenet169", marks=pytest.mark.sweep)]


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side + 32, generator=torch.Generator().manual_seed(0))


def official(name: str) -> DenseNet:
    """Return torchvision's network with statistics of images, so that many values are negative."""
    torch.manual_seed(0)
    network: DenseNet = torchvision.models.get_model(name, weights=None)
    with torch.no_grad():
        network.train()(images())
    return network.eval()


def hybrid(own: nn.Module, name: str, **arguments: object) -> HybridModel:
    model = HybridBuilder().from_torchvision(name, weights=None, **arguments)  # type: ignore[arg-type]
    result = model.load_state_dict(own.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("patches.") for key in result.missing_keys)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_are_after_the_relu_and_logits_and_keys_are_torchvisions(name: str) -> None:
    own, x = official(name), images()
    model = hybrid(own, name)
    expected = torch.relu(own.features(x))
    assert (own.features(x) < 0).any()
    assert torch.equal(model(x), own(x))
    assert torch.equal(model.get_stage_outputs(x)[4], expected)
    assert torch.equal(model.forward_features(x), expected)
    assert torch.equal(model.forward_head(expected), own(x))
    assert torch.equal(list(model.pyramid(x).values())[-1], expected)
    assert list(model.state_dict()) == list(own.state_dict())
    assert isinstance(model, DenseNet)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), own(x))


@torch.no_grad()
def test_a_patch_on_the_last_stage_acts_after_the_relu_and_one_at_norm5_before(
    tmp_path: Path,
) -> None:
    own, x = official("densenet121"), images()
    before = own.features(x)
    pool = nn.functional.adaptive_avg_pool2d
    for target, expected in (
        ("stage:-1", lambda block: block(torch.relu(before))),
        ("features.norm5", lambda block: torch.relu(block(before))),
    ):
        model = hybrid(own, "densenet121", patches={target: {"wrap": "conv_bn_act"}})
        (record,) = model.patch_records
        patch = model.get_submodule(record.paths[0])
        patch.alpha.fill_(1.0)
        for parameter in patch.block.parameters():
            parameter.add_(torch.randn(parameter.shape))
        activation = patch.block.append(nn.SiLU())  # its map has values of both signs
        found = expected(activation)
        assert torch.allclose(
            model(x), own.classifier(pool(found, (1, 1)).flatten(1)), atol=1e-4, rtol=1e-4
        )
    assert (found >= 0).all()


def test_the_gradient_of_a_class_map_is_that_of_the_map_that_is_pooled() -> None:
    """CAM: the classifier's weights times the last map, averaged, are the logit."""
    own, x = official("densenet121"), images()
    model = hybrid(own, "densenet121")
    maps = model.forward_features(x)
    weights = model.classifier.weight[7]
    cam = torch.einsum("c,nchw->nhw", weights, maps)
    assert torch.allclose(cam.mean((1, 2)) + model.classifier.bias[7], own(x)[:, 7], atol=1e-5)


def test_it_trains_frozen_and_with_an_activation_in_front_of_the_relu() -> None:
    model = HybridBuilder().from_torchvision(
        "densenet121", weights=None, num_classes=3, patches={"features.norm5": {"wrap": "se"}}
    )
    model.freeze_backbone(unfreeze_stages=[-1])
    model.train()(images()).square().sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {"features.norm5.weight", "patches.features.norm5.se.alpha"} <= with_gradient
    assert not any("denseblock3" in name for name in with_gradient)
