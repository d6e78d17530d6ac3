"""Hybrids inside torchvision's detectors and segmenters: they train and infer, and are what
torchvision builds itself.
"""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.segmentation import FCN, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from tvc_dense import (
    as_detection_backbone,
    as_segmentation_backbone,
    as_smp_encoder,
    smp_model,
    unet,
)

from tvc_core import BackboneError, HybridBuilder, HybridModel, ParameterError, StageError

SIDE = 64
SMALL: dict[str, Any] = {"min_size": SIDE, "max_size": SIDE}
RCNN: dict[str, Any] = {**SMALL, "rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 10}
DETECTORS: dict[str, Callable[[HybridModel], nn.Module]] = {
    "faster_rcnn": lambda model: FasterRCNN(as_detection_backbone(model, 32), 3, **RCNN),
    "mask_rcnn": lambda model: MaskRCNN(as_detection_backbone(model, 32), 3, **RCNN),
    "retinanet": lambda model: RetinaNet(
        as_detection_backbone(model, 32, extra="p6p7"), 3, **SMALL
    ),
    "fcos": lambda model: FCOS(as_detection_backbone(model, 32, extra="p6p7"), 3, **SMALL),
}
SEGMENTERS: dict[str, tuple[type[nn.Module], Callable[[int, int], nn.Module]]] = {
    "deeplabv3": (DeepLabV3, DeepLabHead),
    "fcn": (FCN, FCNHead),
}
# the stage that is patched and thawed, of each family the last
FAMILIES = {
    "resnet18": "layer4",
    "mobilenet_v3_small": "features.12",
    "efficientnet_b0": "features.8",
    "convnext_tiny": "features.7",
    "densenet121": "features.relu5",
    "swin_t": "norm",
    "regnet_x_400mf": "trunk_output.block4",
}
DIAGONAL = set(
    zip(
        (*DETECTORS, *SEGMENTERS),
        (
            "swin_t",
            "resnet18",
            "mobilenet_v3_small",
            "regnet_x_400mf",
            "efficientnet_b0",
            "densenet121",
        ),
        strict=True,
    )
)
CASES = [
    pytest.param(
        kind,
        name,
        marks=()
        if (kind, name) in DIAGONAL | {("faster_rcnn", "convnext_tiny")}
        else pytest.mark.sweep,
    )
    for kind in (*DETECTORS, *SEGMENTERS)
    for name in FAMILIES
]


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(0)


def hybrid(name: str, **arguments: Any) -> HybridModel:
    return HybridBuilder().from_torchvision(name, None, **arguments)


def targets(masks: bool) -> list[dict[str, Tensor]]:
    found = []
    for shift in (0.0, 8.0):
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 50.0, 48.0]]) + shift
        target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
        if masks:
            target["masks"] = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
            for mask, (left, top, right, bottom) in zip(
                target["masks"], boxes.int().tolist(), strict=True
            ):
                mask[top:bottom, left:right] = 1
        found.append(target)
    return found


def loss_of(network: nn.Module, kind: str, x: Tensor) -> Tensor:
    if kind in DETECTORS:
        return sum(network(list(x), targets(kind == "mask_rcnn")).values())
    output = network(x)
    assert list(output) == ["out", "aux"] and all(
        each.shape == (2, 3, SIDE, SIDE) for each in output.values()
    )
    labels = torch.randint(3, (2, SIDE, SIDE))
    return sum(nn.functional.cross_entropy(each, labels) for each in output.values())


def assemble(kind: str, model: HybridModel) -> nn.Module:
    if kind in DETECTORS:
        return DETECTORS[kind](model)
    network, head = SEGMENTERS[kind]
    backbone = as_segmentation_backbone(model)
    return network(backbone, head(backbone.out_channels, 3), FCNHead(backbone.aux_channels, 3))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_network_trains_one_step_and_infers(kind: str, name: str) -> None:
    model = hybrid(
        name, patches={FAMILIES[name]: {"wrap": "se"}}, freeze_backbone=True, unfreeze_stages=[-1]
    )
    network = assemble(kind, model).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1
    )
    x = torch.rand(2, 3, SIDE, SIDE)
    loss = loss_of(network, kind, x)
    assert math.isfinite(loss.item())
    loss.backward()
    missing = [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, "DistributedDataParallel refuses parameters without gradient"
    optimizer.step()
    after = network.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    held = {f"backbone.body.{key}" for key, p in model.named_parameters() if not p.requires_grad}
    assert held and not moved & held
    thawed = tuple(f"backbone.body.{path}." for path in model.stage_info[-1].paths)
    buffers = {f"backbone.body.{key}" for key, _ in model.named_buffers()}
    assert all(key.startswith((*thawed, "backbone.body.patches.")) for key in moved & buffers)
    assert any(key.startswith(thawed) for key in moved)
    assert f"backbone.body.patches.{FAMILIES[name]}.se.alpha" in moved
    if kind in DETECTORS:
        assert any(key.startswith("backbone.fpn.") for key in moved)

    network.eval()
    with torch.no_grad():
        found = network(list(x) if kind in DETECTORS else x)
    if kind in DETECTORS:
        assert len(found) == 2 and all({"boxes", "labels", "scores"} <= set(each) for each in found)
        assert ("masks" in found[0]) is (kind == "mask_rcnn")
        assert all(torch.isfinite(each["boxes"]).all() for each in found)
    else:
        assert torch.isfinite(found["out"]).all()


# -- the same as torchvision's own -----------------------------------------------------------------


def same_but_for_the_classifier(ours: nn.Module, theirs: dict[str, Tensor]) -> None:
    result = ours.load_state_dict(theirs, strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == ["backbone.body.fc.weight", "backbone.body.fc.bias"]


@pytest.mark.parametrize(
    ("name", "make", "extra"),
    [
        ("fasterrcnn_resnet50_fpn", FasterRCNN, "pool"),
        ("retinanet_resnet50_fpn", RetinaNet, "p6p7"),
        ("fcos_resnet50_fpn", FCOS, "p6p7"),
    ],
)
def test_a_detector_is_torchvisions(name: str, make: Callable[..., nn.Module], extra: str) -> None:
    theirs = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=3, **SMALL
    ).eval()
    ours = make(as_detection_backbone(hybrid("resnet50"), extra=extra), 3, **SMALL).eval()
    same_but_for_the_classifier(ours, theirs.state_dict())
    x = [torch.rand(3, 64, 48), torch.rand(3, 40, 64)]
    with torch.no_grad():
        for a, b in zip(ours(x), theirs(x), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in ("boxes", "labels", "scores"))
        image = theirs.transform(x)[0].tensors
        expected = theirs.backbone(image)
        assert list(ours.backbone(image)) == list(expected)
        assert all(torch.equal(each, expected[key]) for key, each in ours.backbone(image).items())


@pytest.mark.parametrize(
    ("name", "kind"), [("deeplabv3_resnet50", "deeplabv3"), ("fcn_resnet50", "fcn")]
)
def test_a_segmenter_is_torchvisions(name: str, kind: str) -> None:
    theirs = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=3, aux_loss=True
    ).eval()
    network, head = SEGMENTERS[kind]
    model = hybrid("resnet50", options={"replace_stride_with_dilation": [False, True, True]})
    backbone = as_segmentation_backbone(model, aux=2)
    assert (backbone.out_channels, backbone.aux_channels) == (2048, 1024)
    ours = network(backbone, head(2048, 3), FCNHead(1024, 3)).eval()
    state = {
        key.replace("backbone.", "backbone.body."): value
        for key, value in theirs.state_dict().items()
    }
    same_but_for_the_classifier(ours, state)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = theirs(x), ours(x)
    assert list(found) == list(expected) and all(
        torch.equal(found[key], expected[key]) for key in expected
    )


# -- what a backbone is ----------------------------------------------------------------------------


def test_a_backbone_is_the_hybrid_and_a_pyramid() -> None:
    model = hybrid("resnet18", patches={"layer3": {"wrap": "se"}})
    keys = list(model.state_dict())
    backbone = as_detection_backbone(model, 16)
    assert backbone.body is model and backbone.out_channels == 16
    found = list(backbone.state_dict())
    assert [key for key in found if key.startswith("body.")] == [f"body.{key}" for key in keys]
    assert all(key.startswith(("body.", "fpn.")) for key in found)
    maps = backbone.eval()(torch.zeros(1, 3, 64, 96))
    shapes = {"0": (16, 24), "1": (8, 12), "2": (4, 6), "3": (2, 3), "pool": (1, 2)}
    assert {key: tuple(each.shape) for key, each in maps.items()} == {
        key: (1, 16, *size) for key, size in shapes.items()
    }
    assert as_segmentation_backbone(model).body is model


@pytest.mark.parametrize(
    ("name", "extra", "strides", "expected"),
    [
        ("mobilenet_v3_small", "pool", None, [4, 8, 16, 32]),
        ("mobilenet_v3_small", None, None, [4, 8, 16, 32]),
        ("mobilenet_v3_small", "p6p7", None, [8, 16, 32]),
        ("mobilenet_v3_small", "pool", [16, 2], [2, 16]),
        ("squeezenet1_1", "pool", None, [4, 8, 16]),
    ],
)
def test_scales_are_the_papers_or_the_ones_asked_for(
    name: str, extra: str | None, strides: Any, expected: list[int]
) -> None:
    model = hybrid(name)
    backbone = as_detection_backbone(model, 8, extra=extra, strides=strides).eval()
    maps = backbone(torch.zeros(1, 3, 128, 128))
    names = {"pool": ["pool"], "p6p7": ["p6", "p7"], None: []}[extra]
    assert list(maps) == [*(str(index) for index in range(len(expected))), *names]
    inputs = [conv[0].in_channels for conv in backbone.fpn.inner_blocks]
    assert inputs == [level.channels for level in model.pyramid_info if level.stride in expected]
    if name != "squeezenet1_1":  # which cuts borders off
        assert [128 // maps[str(index)].shape[2] for index in range(len(expected))] == expected


def test_stages_that_are_not_needed_do_not_run() -> None:
    model = hybrid("resnet18").eval()
    backbone = as_detection_backbone(model, 8, extra=None, strides=[4, 8]).eval()
    ran: list[str] = []
    for name in ("layer2", "layer3", "fc"):
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    backbone(torch.zeros(1, 3, 64, 64))
    assert ran == ["layer2"]


def test_another_number_of_scales_works_with_anchors_for_it() -> None:
    backbone = as_detection_backbone(hybrid("squeezenet1_1"), 16)
    sizes = tuple((size,) for size in (16, 32, 64, 128))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    network = FasterRCNN(backbone, 3, rpn_anchor_generator=anchors, **RCNN)
    assert math.isfinite(loss_of(network, "faster_rcnn", torch.rand(2, 3, SIDE, SIDE)).item())


def test_a_single_scale_is_named_for_a_pyramid_and_enough_to_segment() -> None:
    model = hybrid("vit_b_32")
    state = model.freeze_state()
    with pytest.raises(
        BackboneError,
        match=r"HybridVisionTransformer has a single scale \(stride 32\).*as_segmentation_backbone",
    ):
        as_detection_backbone(model)
    assert model.freeze_state() == state
    backbone = as_segmentation_backbone(model)
    assert (backbone.out_channels, backbone.aux_channels, backbone.aux) == (768, None, None)
    network = FCN(backbone, FCNHead(768, 3)).eval()
    with torch.no_grad():
        found = network(torch.zeros(1, 3, 224, 224))
    assert list(found) == ["out"] and found["out"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_channels": 0}, "out_channels is a whole number of at least 1, not 0"),
        ({"out_channels": True}, "not True"),
        ({"extra": "p5"}, "extra is 'pool', 'p6p7' or None, not 'p5'"),
        ({"strides": [4, 5]}, r"different ones of 4, 8, 16, 32, not \[4, 5\]"),
        ({"strides": [4]}, "at least two"),
        ({"strides": [4, 4]}, "different"),
        ({"strides": []}, "at least two"),
        ({"strides": 8}, r"at least two different ones of 4, 8, 16, 32, not \[8\]"),
        ({"strides": [8.0, 16.0]}, r"not \[8.0, 16.0\]"),
        ({"strides": [[8], [16]]}, r"not \[\[8\], \[16\]\]"),
        ({"norm_layer": "bn"}, "norm_layer is a class or a function .* None; not 'bn'"),
        ({"norm_layer": nn.BatchNorm2d(8)}, "norm_layer is a class or a function"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_has_changed(
    arguments: dict[str, Any], message: str
) -> None:
    model = hybrid("resnet18")
    state = model.freeze_state()
    with pytest.raises(ParameterError, match=message):
        as_detection_backbone(model, **arguments)
    assert model.freeze_state() == state


@pytest.mark.parametrize(
    ("adapt", "idle"),
    [
        (lambda model: as_detection_backbone(model, 8), "avgpool, fc"),
        (lambda model: as_detection_backbone(model, 8, strides=[4, 8]), "layer4, avgpool, fc"),
        (as_segmentation_backbone, "avgpool, fc"),
        (lambda model: unet(model, 2), "avgpool, fc"),
        (lambda model: as_smp_encoder(model, 4), "layer4, avgpool, fc"),
    ],
)
def test_patches_that_will_not_run_are_named(
    adapt: Callable[[HybridModel], nn.Module], idle: str
) -> None:
    """What is used ends before them: they would have no effect, and no gradient."""
    patches = {
        "layer1": {"wrap": "se"},
        "layer2.1.conv2": {"inject": "lora"},
        "layer4": {"wrap": "se"},
        "avgpool": {"replace": "gem"},
        "fc": {"inject": "lora"},
    }
    model = HybridBuilder().from_torchvision("resnet18", None, patches=patches).train()
    with pytest.warns(UserWarning, match=f"no effect: {idle}. What is used ends before"):
        adapt(model)
    assert model.layer2.training
    model.unpatch("fc")
    model.unpatch("avgpool")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_segmentation_backbone(model)


@pytest.mark.parametrize("aux", [4, -5, True, "stem"])
def test_a_wrong_stage_for_aux_is_named(aux: Any) -> None:
    with pytest.raises(
        StageError, match=r"there is no stage .* for aux: the 4 stages are 0: layer1"
    ):
        as_segmentation_backbone(hybrid("resnet18"), aux=aux)


def test_a_plain_network_is_refused() -> None:
    for adapt in (as_detection_backbone, as_segmentation_backbone):
        said = rf"^{adapt.__name__} takes a model that HybridBuilder made, not ResNet"
        with pytest.raises(ParameterError, match=said):
            adapt(torchvision.models.resnet18())  # type: ignore[arg-type]


def test_the_name_of_an_architecture_is_told_to_be_a_class_without_smp_too() -> None:
    with pytest.raises(ParameterError, match=r"segmentation_models_pytorch\.Unet, not 'Unet'"):
        smp_model(hybrid("resnet18"), "Unet")  # type: ignore[arg-type]


def test_the_classifier_is_frozen_and_everything_else_as_it_was() -> None:
    model = hybrid("resnet18", freeze_backbone=True, unfreeze_stages=[1])
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    as_detection_backbone(model, 8)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (before[name] and not name.startswith("fc."))


@pytest.mark.parametrize("adapt", [as_detection_backbone, as_segmentation_backbone])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "convnext_tiny"])
def test_what_others_set_by_hand_stays(adapt: Callable[..., nn.Module], name: str) -> None:
    """A dense backbone changes the flags of the head's own parameters and the modes of its modules,
    and nothing else, whoever set it; a second one changes nothing.
    """
    model = hybrid(name, patches={"stage:1": {"wrap": "se"}}).train()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.requires_grad_(bool(torch.rand((), generator=generator) < 0.5))
    for module in model.modules():
        module.training = module is model or bool(torch.rand((), generator=generator) < 0.5)

    def seen() -> dict[str, bool]:
        return {
            **{path: module.training for path, module in model.named_modules()},
            **{path: parameter.requires_grad for path, parameter in model.named_parameters()},
        }

    before = seen()
    for _ in range(2):
        adapt(model)
        for path, value in seen().items():
            inside = f"{path}.".startswith("classifier.")
            assert value is (before[path] and not inside), path
    assert model.freeze_state()["head"] == "none"
    assert not model.train().classifier.training


@pytest.mark.parametrize("kind", ["faster_rcnn", pytest.param("fcn", marks=pytest.mark.sweep)])
def test_four_threads_share_a_dense_backbone(kind: str) -> None:
    """Each gets what the same call gives alone."""
    beside = {"type": "conv_bn_act", "position": "parallel", "params": {"channels": 128}}
    model = hybrid("resnet18", patches={"layer2.1": {"inject": beside}}).eval()
    with torch.no_grad():
        for parameter in model.get_submodule("patches").parameters():
            parameter.add_(torch.rand(parameter.shape))
    backbone = assemble(kind, model).eval().get_submodule("backbone")
    images = [torch.randn(1, 3, 64, 64 + 32 * (i % 3)) * (i + 1) for i in range(6)]
    with torch.no_grad():
        expected = [backbone(image) for image in images]

    def serve(offset: int) -> list[str]:
        wrong = []
        for step in range(30):
            i = (step + offset) % len(images)
            try:
                with torch.no_grad():
                    found = backbone(images[i])
            except Exception as error:  # whatever it is, it counts
                wrong.append(type(error).__name__)
                continue
            for key, value in expected[i].items():
                same = found[key].shape == value.shape and torch.equal(found[key], value)
                if not same:
                    wrong.append(f"{key} of image {i}")
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert [each for wrong in pool.map(serve, range(4)) for each in wrong] == []


def test_modes_follow_the_freezing_inside_a_detector() -> None:
    model = hybrid("resnet18", freeze_backbone=True, unfreeze_stages=[-1])
    network = DETECTORS["faster_rcnn"](model)
    network.eval()
    network.train()
    assert not model.layer3.training and not model.bn1.training and model.layer4.training
    model.unfreeze_all()
    network.train()
    assert model.layer3.training
    assert all(p.requires_grad for p in model.parameters())


def test_backbones_are_copied_and_pickled() -> None:
    x = torch.rand(1, 3, 64, 64)
    for adapt in (as_detection_backbone, as_segmentation_backbone):
        backbone = adapt(
            hybrid("mobilenet_v3_small", patches={"features.12": {"wrap": "se"}})
        ).eval()
        expected = backbone(x)
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            found = twin(x)
            assert list(found) == list(expected) and all(
                torch.equal(found[key], expected[key]) for key in expected
            )


@pytest.mark.parametrize(
    "adapt",
    [as_detection_backbone, pytest.param(as_segmentation_backbone, marks=pytest.mark.sweep)],
)
def test_backbones_compile_and_export(adapt: Callable[..., nn.Module]) -> None:
    torch._dynamo.reset()
    backbone = adapt(hybrid("resnet18", patches={"layer3": {"wrap": "se"}})).eval()
    x = torch.rand(1, 3, 64, 64)
    expected = backbone(x)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    program = torch.export.export(backbone, (x,))
    for found in (compiled(x), program.module()(x)):
        assert list(found) == list(expected)
        for key in expected:
            torch.testing.assert_close(found[key], expected[key])


def test_importing_imports_no_torch() -> None:
    code = (
        "import tvc_dense, sys; print('torch' in sys.modules, set(tvc_dense.__all__) <= "
        "set(dir(tvc_dense)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == ["False", "True"]
