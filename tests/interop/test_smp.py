"""Decoders and heads of segmentation-models-pytorch on hybrids."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torchvision
from planted import CLASSES, intersection_over_union, learn
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from tvc_dense import SmpEncoder, as_smp_encoder, smp_model, unet

from tvc_core import BackboneError, HybridBuilder, HybridModel, ParameterError

smp = pytest.importorskip("segmentation_models_pytorch")
pytestmark = pytest.mark.interop
SWEEP = pytest.mark.sweep

FOUR = {"encoder_depth": 4, "decoder_channels": [64, 32, 16, 16]}
DEEPLAB = {"encoder_depth": 4, "encoder_output_stride": 16, "decoder_aspp_dropout": 0.0}
SE = {"wrap": {"type": "se", "init": "paper"}}


def hybrid(name: str, **arguments: Any) -> HybridModel:
    return HybridBuilder().from_backbone(name, None, **{"num_classes": 0, **arguments})


def spread(network: nn.Module) -> None:
    """Give every normalization statistics of its own."""
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape) + ("var" in name) * 0.5)


# -- the same as smp's own encoders ----------------------------------------------------------------


def same_name(key: str) -> str:
    return key.replace("encoder.", "encoder.body.", 1)


def of_timm(key: str) -> str:
    key = key.replace("encoder.model.", "encoder.body.", 1)
    return key.replace("stages_", "stages.").replace("stem_", "stem.")


@pytest.mark.parametrize(
    ("encoder", "backbone", "options", "rename", "architecture", "arguments"),
    [
        ("resnet18", "resnet18", {}, same_name, smp.FPN, {}),
        ("resnet18", "resnet18", {}, same_name, smp.PSPNet, {}),
        ("resnet18", "resnet18", {}, same_name, smp.DeepLabV3Plus, DEEPLAB),
        ("tu-regnety_002", "timm/regnety_002", {}, of_timm, smp.Unet, {}),
        ("tu-regnety_002", "timm/regnety_002", {}, of_timm, smp.Linknet, {}),
        ("tu-regnety_002", "timm/regnety_002", {}, of_timm, smp.UnetPlusPlus, {}),
        ("tu-regnety_002", "timm/regnety_002", {}, of_timm, smp.MAnet, {}),
        ("tu-test_convnext", "timm/test_convnext", {}, of_timm, smp.Unet, {}),
        ("tu-test_convnext", "timm/test_convnext", {}, of_timm, smp.UPerNet, {}),
        ("tu-test_convnext", "timm/test_convnext", {}, of_timm, smp.Segformer, {}),
        (
            "tu-regnety_002",
            "timm/regnety_002",
            {"output_stride": 16},
            of_timm,
            smp.DeepLabV3Plus,
            {"encoder_output_stride": 16},
        ),
    ],
)
def test_a_model_is_smps(
    encoder: str,
    backbone: str,
    options: dict[str, Any],
    rename: Callable[[str], str],
    architecture: Any,
    arguments: dict[str, Any],
) -> None:
    theirs = architecture(encoder, encoder_weights=None, classes=4, **arguments).eval()
    spread(theirs)
    ours = smp_model(hybrid(backbone, options=options), architecture, classes=4, **arguments).eval()
    assert type(ours) is architecture
    state = {rename(key): value for key, value in theirs.state_dict().items()}
    result = ours.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    # a classifier's normalization, which no decoder reads
    assert all(key.startswith("encoder.body.head.norm.") for key in result.missing_keys)
    x = torch.randn(2, 3, 128, 96)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.shape == (2, 4, 128, 96)
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=0)


def test_our_unet_is_smps() -> None:
    """Block by block, at sizes that every stride divides."""
    theirs = smp.Unet("tu-regnety_002", encoder_weights=None, classes=4).eval()
    spread(theirs)
    model = hybrid("timm/regnety_002")
    ours = unet(model, 4).eval()
    encoder = {
        of_timm(key).removeprefix("encoder.body."): value
        for key, value in theirs.state_dict().items()
        if key.startswith("encoder.")
    }
    model.load_state_dict(encoder)
    decoder = [*theirs.decoder.state_dict().values(), *theirs.segmentation_head.parameters()]
    with torch.no_grad():
        new = [*ours.decoder.state_dict().values(), *ours.head.parameters()]
        for a, b in zip(new, decoder, strict=True):
            a.copy_(b)
        x = torch.randn(2, 3, 96, 64)
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_the_last_maps_of_a_dilated_backbone_share_a_stride() -> None:
    dilation = [False, True, True]
    model = hybrid("resnet50", options={"replace_stride_with_dilation": dilation})
    plain = torchvision.models.resnet50(replace_stride_with_dilation=dilation).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    encoder = as_smp_encoder(model).eval()
    assert encoder.output_stride == 8
    assert encoder.out_channels == [3, 0, 256, 512, 1024, 2048]
    layers = [f"layer{i}" for i in range(1, 5)]
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = create_feature_extractor(plain, layers)(x).values()
        found = encoder(x)
        assert found[0] is x and found[1].shape[1] == 0
        assert all(torch.equal(a, b) for a, b in zip(found[2:], expected, strict=True))
        segmenter = smp_model(model, smp.DeepLabV3Plus, encoder_output_stride=8, encoder_depth=5)
        assert segmenter.eval()(x).shape == (1, 1, 64, 96)


# -- any backbone ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "architecture", "arguments", "size"),
    [
        ("swin_t", smp.UPerNet, {}, (64, 96)),
        ("swin_t", smp.Unet, {}, (67, 90)),
        ("efficientnet_b0", smp.MAnet, {}, (64, 96)),
        ("densenet121", smp.Unet, {}, (75, 50)),
        ("densenet121", smp.PAN, {"encoder_output_stride": 32}, (256, 288)),
        ("squeezenet1_1", smp.Unet, FOUR, (65, 50)),
        ("squeezenet1_1", smp.DeepLabV3, DEEPLAB, (64, 96)),
        ("googlenet", smp.Unet, {}, (64, 96)),
        ("timm/test_vit", smp.Unet, {}, (160, 160)),
    ],
)
def test_it_segments(
    name: str, architecture: Any, arguments: dict[str, Any], size: tuple[int, int]
) -> None:
    segmenter = smp_model(hybrid(name), architecture, classes=5, **arguments).eval()
    with torch.no_grad():
        assert segmenter(torch.randn(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize(
    ("name", "architecture", "arguments", "steps", "rate"),
    [
        ("timm/test_efficientnet", smp.FPN, {"decoder_dropout": 0.0}, 80, 5e-3),
        pytest.param("resnet18", smp.Unet, {}, 60, 3e-3, marks=SWEEP),
        pytest.param("swin_t", smp.FPN, {"decoder_dropout": 0.0}, 80, 2e-3, marks=SWEEP),
        pytest.param("efficientnet_b0", smp.DeepLabV3Plus, DEEPLAB, 120, 3e-3, marks=SWEEP),
    ],
)
def test_it_learns_to_find_shapes(
    name: str, architecture: Any, arguments: dict[str, Any], steps: int, rate: float
) -> None:
    segmenter = smp_model(hybrid(name), architecture, classes=CLASSES, **arguments)
    learn(segmenter, steps, rate, side=64)
    assert intersection_over_union(segmenter, 64, 64) >= 0.9


def test_images_may_have_other_channels() -> None:
    segmenter = smp_model(hybrid("resnet18", in_channels=4), smp.Unet).eval()
    assert segmenter.encoder.out_channels[0] == 4
    assert segmenter(torch.randn(1, 4, 64, 64)).shape == (1, 1, 64, 64)
    with pytest.raises(ParameterError, match="with 4 channels, not 3: build it with in_channels=3"):
        smp_model(hybrid("resnet18", in_channels=4), smp.Unet, in_channels=3)


def test_the_classification_head_of_smp_reads_the_last_map() -> None:
    segmenter = smp_model(hybrid("resnet18"), smp.Unet, aux_params={"classes": 7}).eval()
    masks, labels = segmenter(torch.randn(2, 3, 64, 64))
    assert masks.shape == (2, 1, 64, 64) and labels.shape == (2, 7)


# -- the hybrid inside -----------------------------------------------------------------------------


def moved(segmenter: nn.Module, x: Tensor) -> set[str]:
    before = copy.deepcopy(segmenter.state_dict())
    optimizer = torch.optim.SGD(
        [p for p in segmenter.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    segmenter(x).square().mean().backward()
    assert all(p.grad is not None for p in segmenter.parameters() if p.requires_grad)
    optimizer.step()
    after = segmenter.state_dict().items()
    return {key for key, value in after if not torch.equal(value, before[key])}


def test_patches_learn_and_frozen_stages_stay() -> None:
    model = hybrid(
        "resnet18",
        num_classes=10,
        patches={"layer2": SE},
        freeze_backbone=True,
        unfreeze_stages=[-1],
    )
    segmenter = smp_model(model, smp.FPN, classes=2).train()
    assert segmenter.encoder.body is model
    assert not model.layer2.training and model.layer4.training
    found = moved(segmenter, torch.randn(2, 3, 64, 64))
    inside = {key.removeprefix("encoder.body.") for key in found if key.startswith("encoder.")}
    assert {key.split(".")[0] for key in inside} == {"patches", "layer4"}
    model.unfreeze_all()
    model.reset_classifier(0)
    segmenter.train()
    assert model.layer2.training
    found = moved(segmenter, torch.randn(2, 3, 64, 64))
    assert "encoder.body.layer2.0.conv1.weight" in found


def test_the_hybrid_warns_when_smp_thaws_what_it_holds() -> None:
    model = hybrid("resnet18", freeze_backbone=True, unfreeze_stages=[-1])
    segmenter = smp_model(model, smp.FPN)
    segmenter.freeze_encoder()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    segmenter.unfreeze_encoder()
    with pytest.warns(UserWarning, match="thawed by hand"):
        segmenter.train()


def test_a_twin_loads_its_state() -> None:
    segmenters = [
        smp_model(hybrid("resnet18", patches={"layer2": SE}), smp.FPN).eval() for _ in range(2)
    ]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(*(each(x) for each in segmenters))
        segmenters[1].load_state_dict(segmenters[0].state_dict())
        assert torch.equal(*(each(x) for each in segmenters))


def test_an_encoder_serves_a_decoder_alone() -> None:
    encoder = as_smp_encoder(hybrid("timm/test_convnext")).eval()
    assert isinstance(encoder, SmpEncoder)
    decoder = smp.decoders.fpn.decoder.FPNDecoder(encoder.out_channels)
    with torch.no_grad():
        assert decoder(encoder(torch.randn(1, 3, 64, 64))).shape == (1, 128, 16, 16)


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "architecture", "arguments", "error", "message"),
    [
        (
            "resnet18",
            smp.Unet,
            {"clases": 3},
            ParameterError,
            "Unet on a hybrid has no argument clases: there are .* classes",
        ),
        (
            "resnet18",
            smp.Unet,
            {"encoder_weights": "imagenet"},
            ParameterError,
            "no argument encoder_weights",
        ),
        ("resnet18", "unet", {}, ParameterError, "architecture is a class of .*, not 'unet'"),
        (
            "resnet18",
            smp.DeepLabV3Plus,
            {},
            BackboneError,
            "stride 16, and that of this encoder has 32. encoder_depth=4",
        ),
        (
            "squeezenet1_1",
            smp.Unet,
            {},
            BackboneError,
            "strides 4, 8, 16, and an encoder of depth 5 .* can be 2, 3, 4",
        ),
    ],
)
def test_a_mistake_is_named_and_nothing_has_changed(
    name: str, architecture: Any, arguments: dict[str, Any], error: Any, message: str
) -> None:
    model = hybrid(name)
    state, known = model.freeze_state(), set(smp.encoders.encoders)
    with pytest.raises(error, match=message):
        smp_model(model, architecture, **arguments)
    assert model.freeze_state() == state and set(smp.encoders.encoders) == known


def test_threads_get_their_own_hybrids() -> None:
    known = set(smp.encoders.encoders)
    models = [hybrid("timm/test_convnext") for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda model: smp_model(model, smp.FPN), models))
    assert [each.encoder.body for each in made] == models
    assert set(smp.encoders.encoders) == known
