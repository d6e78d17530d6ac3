"""captum and Grad-CAM see what the patched model computes."""

from __future__ import annotations

import pytest
import torch
from case_tools import EVERY_POSITION, difference, ready

pytestmark = [
    pytest.mark.interop,
    # tvc must not warn: nothing is taken out of the model
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def test_captum_sees_the_map_behind_a_patch() -> None:
    captum = pytest.importorskip("captum.attr")
    model = ready("resnet18", EVERY_POSITION)
    found = captum.LayerActivation(model, model.layer3).attribute(X)
    assert difference(found, model.get_stage_outputs(X, [2])[0]) < 1e-6
    cam = captum.LayerGradCam(model, model.layer4).attribute(X, target=3)
    maps = model.forward_features(X).detach().requires_grad_()
    model.forward_head(maps)[:, 3].sum().backward()
    weights = maps.grad.mean((2, 3), keepdim=True)
    assert difference(cam, (weights * maps).sum(1, keepdim=True)) < 1e-4


def test_captum_integrated_gradients_and_deeplift_are_complete() -> None:
    """Integrated gradients sum up to the difference of the outputs (completeness)."""
    captum = pytest.importorskip("captum.attr")
    model = ready("resnet18", {"layer3": {"wrap": "se"}, "layer4.1": {"inject": "eca"}})
    base = torch.zeros_like(X)
    integrated = captum.IntegratedGradients(model)
    found = integrated.attribute(X, base, target=1, n_steps=200, internal_batch_size=40)
    change = (model(X) - model(base))[:, 1]
    assert difference(found.sum((1, 2, 3)), change) < 0.1


def test_captum_perturbs_features_in_a_layer_of_a_patch() -> None:
    captum = pytest.importorskip("captum.attr")
    model = ready("resnet18", {"layer3": {"wrap": "se"}})
    patch = model.get_submodule("patches.layer3.se")
    found = captum.LayerActivation(model, patch).attribute(X)
    assert difference(found, model.get_stage_outputs(X, [2])[0]) < 1e-6


@pytest.mark.parametrize("method", ["GradCAM", "EigenCAM", "LayerCAM"])
@pytest.mark.filterwarnings("error::UserWarning:tvc_core")
def test_grad_cam(method: str) -> None:
    cam = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model = ready("resnet18", {"layer4": {"wrap": "se"}, "layer3": {"inject": "eca"}})
    made = getattr(cam, method)(model=model, target_layers=[model.layer4])
    with made:
        found = torch.from_numpy(
            made(input_tensor=X, targets=[targets.ClassifierOutputTarget(3)] * 2)
        )
    assert found.shape == (2, 64, 64)
    if method == "GradCAM":
        maps = model.forward_features(X).detach().requires_grad_()
        model.forward_head(maps)[:, 3].sum().backward()
        right = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1).clamp(min=0).detach()
        right = torch.nn.functional.interpolate(right[:, None], (64, 64), mode="bilinear")[:, 0]
        low = right.amin((1, 2), keepdim=True)
        right = (right - low) / (right.amax((1, 2), keepdim=True) - low + 1e-7)
        assert float((found - right).abs().mean()) < 0.1
    assert not model.layer4._backward_hooks
