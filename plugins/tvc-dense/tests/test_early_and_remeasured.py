"""Detectors' backbones on hybrids that end early, and on those that were changed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from tvc_dense import as_detection_backbone, as_segmentation_backbone

from tvc_core import HybridBuilder, ParameterError

BUILDER = HybridBuilder()


def test_a_pyramid_of_a_network_that_ends_early_has_its_scales_only() -> None:
    model: Any = BUILDER.from_torchvision("regnet_x_400mf", None, stages=3)
    backbone = as_detection_backbone(model, out_channels=16, extra=None)
    maps = backbone(torch.randn(1, 3, 64, 96))
    shapes = [(1, 16, 16, 24), (1, 16, 8, 12), (1, 16, 4, 6)]
    assert [tuple(found.shape) for found in maps.values()] == shapes
    sum(found.sum() for found in maps.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)
    assert as_segmentation_backbone(model).out_channels == 160


def test_scales_of_which_too_few_are_coarse_are_to_be_named() -> None:
    model: Any = BUILDER.from_torchvision("mobilenet_v3_small", None, stages=1)
    with pytest.raises(ParameterError, match=r"strides 2, 4 only \[4\] .* as in strides=\[2, 4\]"):
        as_detection_backbone(model)
    assert [level.stride for level in as_detection_backbone(model, strides=[2, 4]).levels] == [2, 4]


def test_the_widths_of_a_pyramid_follow_surgery_by_hand() -> None:
    model: Any = BUILDER.from_torchvision("shufflenet_v2_x0_5", None)
    model.conv5 = nn.Conv2d(192, 40, 1)
    model.fc = nn.Linear(40, 2)
    model.remeasure()
    backbone = as_detection_backbone(model, out_channels=8, extra=None)
    widths = [block[0].in_channels for block in backbone.fpn.inner_blocks]  # type: ignore[index]
    assert widths == [24, 48, 96, 40]
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert [found.shape[2] for found in maps.values()] == [16, 8, 4, 2]
