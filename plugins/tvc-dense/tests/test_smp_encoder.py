"""The interface of smp's encoders, which needs no smp."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from tvc_dense import as_smp_encoder, unet

from tvc_core import (
    BackboneError,
    BackboneSpec,
    HybridBuilder,
    HybridModel,
    LocalPlugin,
    ParameterError,
)


def hybrid(name: str) -> HybridModel:
    return HybridBuilder().from_backbone(name, None)


@pytest.mark.parametrize(
    ("name", "depth", "channels", "output_stride"),
    [
        ("resnet18", 5, [3, 0, 64, 128, 256, 512], 32),
        ("resnet18", 3, [3, 0, 64, 128], 8),
        ("timm/test_efficientnet", 5, [3, 16, 24, 32, 48, 256], 32),
        ("squeezenet1_1", 4, [3, 0, 128, 256, 512], 16),
    ],
)
def test_it_returns_the_images_and_a_map_of_every_stride(
    name: str, depth: int, channels: list[int], output_stride: int
) -> None:
    model = hybrid(name)
    encoder = as_smp_encoder(model, depth).eval()
    assert encoder.body is model
    assert (encoder.out_channels, encoder.output_stride) == (channels, output_stride)
    assert not any(p.requires_grad for p in model.get_classifier().parameters())
    for height, width in ((64, 96), (77, 50)):
        x = torch.randn(2, 3, height, width)
        with torch.no_grad():
            found, pyramid = encoder(x), dict(model.pyramid(x))
        assert found[0] is x
        for power, (each, number) in enumerate(zip(found, channels, strict=True)):
            assert each.shape == (2, number, -(-height // 2**power), -(-width // 2**power))
        maps = {level.stride: pyramid[level.name] for level in model.pyramid_info}
        for power in range(1, depth + 1):
            if 2**power in maps and maps[2**power].shape == found[power].shape:
                assert torch.equal(maps[2**power], found[power])


def test_stages_after_the_last_map_do_not_run() -> None:
    model = hybrid("resnet18")
    ran: list[str] = []
    for name in ("layer2", "layer3"):
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    as_smp_encoder(model, 3)(torch.zeros(2, 3, 64, 64))
    assert ran == ["layer2"]


def test_mistakes_are_named_and_nothing_has_changed() -> None:
    model = hybrid("squeezenet1_1")
    state = model.freeze_state()
    with pytest.raises(BackboneError, match="depth 5 ends with one of stride 32: the depth can be"):
        as_smp_encoder(model)
    with pytest.raises(ParameterError, match="depth is a whole number of at least 1, not 0"):
        as_smp_encoder(model, 0)
    with pytest.raises(ParameterError, match="as_smp_encoder takes a model that Hyb"):
        as_smp_encoder(torch.nn.Identity())  # type: ignore[arg-type]
    assert model.freeze_state() == state


def test_what_the_build_has_decided_cannot_be_changed() -> None:
    encoder = as_smp_encoder(hybrid("squeezenet1_1"), 4)
    encoder.set_in_channels(3)
    encoder.make_dilated(16)
    with pytest.raises(ParameterError, match="with 3 channels, not 1: build it with in_channels=1"):
        encoder.set_in_channels(1)
    with pytest.raises(BackboneError, match="stride 8, and that of this encoder has 16"):
        encoder.make_dilated(8)


def test_a_backbone_may_take_one_channel_by_itself() -> None:
    plugin = LocalPlugin("local")

    @plugin.backbone(stem="0", stages=["1"], head="4", num_channels=1)
    def gray(spec: BackboneSpec, *, weights: object = None) -> nn.Module:
        convs = nn.Conv2d(1, 8, 4, 2, 1), nn.Conv2d(8, 12, 2, 2)
        return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))

    model = HybridBuilder(plugins=[plugin]).from_backbone("gray", None)
    encoder = as_smp_encoder(model, 2)
    assert encoder.out_channels == [1, 8, 12]
    assert unet(model, 2).eval()(torch.zeros(1, 1, 9, 7)).shape == (1, 2, 9, 7)
