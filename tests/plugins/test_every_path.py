"""Squeeze-excite at every module path of a backbone: it works, or the build refuses and names the path and what it saw."""

from __future__ import annotations

import re

import pytest
import torch

from tvc_core import BackboneSpec, HybridBuilder, PatchError, Registry, TargetError

QUICK = ("resnet18", "squeezenet1_1")
SWEPT = (
    *("alexnet", "vgg11", "densenet121", "googlenet", "inception_v3", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_x_400mf"),
    *("regnet_y_400mf", "efficientnet_b0", "convnext_tiny", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("resnet50", "resnext50_32x4d", "vit_b_32", "swin_t", "maxvit_t"),
)
CASES = [*QUICK, *(pytest.param(name, marks=[pytest.mark.sweep, pytest.mark.timeout(3600)]) for name in SWEPT)]
REASONS = r"never called|not a single tensor|different|has the shape \[|\(NC\)|are no grid|\[1, \d+"


@pytest.mark.parametrize("name", CASES)
def test_se_works_at_a_path_or_the_build_says_why_not(name: str) -> None:
    registry = Registry()
    builder = HybridBuilder(registry=registry)
    options = {"init_weights": False} if "init_weights" in registry.resolve(BackboneSpec, name).spec.options else None
    torch.manual_seed(0)
    plain = builder.from_backbone(name, None, options=options).eval()
    shape = plain._tvc.probe_shape
    x = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(1))
    paths = [path for path, _ in plain.named_modules() if path]
    with torch.no_grad():
        expected = plain(x)
    worked = 0
    for path in paths:
        torch.manual_seed(0)
        try:
            model = builder.from_backbone(name, None, patches={path: {"wrap": "se"}}, options=options)
        except (TargetError, PatchError) as error:
            assert repr(path) in str(error) and re.search(REASONS, str(error)), f"{path}: {error}"
            continue
        with torch.no_grad():
            assert torch.equal(model.eval()(x), expected), path
        worked += 1
    assert worked > len(paths) / 3, "a backbone where most paths are refused is not supported"
