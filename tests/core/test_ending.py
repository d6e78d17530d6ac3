"""Backbones that end early: the first stages, their maps and keys, and a head of the new width."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import tvc_core
from tvc_core import BackboneError, BackboneSpec, HeadError, HybridBuilder, StageError, TargetError
from tvc_core.weights.partial import partial_load

BUILDER = HybridBuilder()

EVERY_FAMILY = {
    "alexnet": 1,
    "convnext_tiny": 2,
    "densenet121": 3,
    "efficientnet_b0": 4,
    "googlenet": 1,
    "inception_v3": 1,
    "maxvit_t": 1,
    "mnasnet0_5": 4,
    "mobilenet_v3_large": 3,
    "regnet_x_400mf": 2,
    "resnext50_32x4d": 3,
    "shufflenet_v2_x0_5": 2,
    "squeezenet1_0": 2,
    "swin_v2_t": 2,
    "vgg13_bn": 2,
    "vit_b_32": 2,
}
QUICK = ("shufflenet_v2_x0_5", "regnet_x_400mf", "squeezenet1_0")
NETWORKS = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.sweep) for name in EVERY_FAMILY
]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_stays_is_torchvisions_and_what_goes_is_named(name: str) -> None:
    count = EVERY_FAMILY[name]
    torch.manual_seed(0)
    whole: Any = BUILDER.from_torchvision(name, None).eval()
    model: Any = BUILDER.from_torchvision(name, None, stages=count).eval()
    own = model.state_dict()  # updated, since MNASNet wants its metadata
    own.update({key: value for key, value in whole.state_dict().items() if key in own})
    model.load_state_dict(own)
    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    every = torchvision.models.get_model(name, **slow)
    gone, kept = set(model._hybrid.left_out.tensors), set(model.state_dict())
    assert gone | kept == set(every.state_dict()) and not gone & kept
    lost = sum(tensor.numel() for key, tensor in every.named_parameters() if key in gone)
    assert lost == model._hybrid.left_out.parameters
    assert lost == whole.count_parameters() - model.count_parameters()
    side = whole._hybrid.probe_shape[2]
    image = torch.randn(2, 3, side, side)
    with torch.no_grad():
        for ours, theirs in zip(
            model.get_stage_outputs(image), whole.get_stage_outputs(image), strict=False
        ):
            assert torch.equal(ours, theirs)
        assert len(model.stage_info) == len(model.get_stage_outputs(image)) - 1 == count
        pooled = model(image)
        assert pooled.shape[0] == 2 and pooled.dim() == 2 and model.num_classes == 0
        assert torch.equal(model.forward_head(model.forward_features(image)), pooled)
    model.reset_classifier(3)
    assert model(image).shape == (2, 3) and model.num_classes == 3


def test_the_model_is_the_network_that_one_would_write_by_hand(x: Tensor) -> None:
    model: Any = BUILDER.from_torchvision("shufflenet_v2_x0_5", None, stages=2, num_classes=5)
    net: Any = torchvision.models.shufflenet_v2_x0_5()
    hand = nn.Sequential(net.conv1, net.maxpool, net.stage2, net.stage3)
    fc = nn.Linear(96, 5)
    names = ("conv1", "maxpool", "stage2", "stage3")
    hand.load_state_dict(
        {
            f"{names.index(key.partition('.')[0])}.{key.partition('.')[2]}": value
            for key, value in model.state_dict().items()
            if not key.startswith("fc.")
        }
    )
    fc.load_state_dict(model.fc.state_dict())
    for mode in (True, False):
        model.train(mode), hand.train(mode)
        assert torch.equal(model(x), fc(hand(x).mean([2, 3])))
    loss = model.train()(x).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_pretrained_weights_stay_and_the_report_says_which_do_not() -> None:
    whole: Any = BUILDER.from_backbone("efficientnet_lite0").eval()
    model: Any = BUILDER.from_backbone("efficientnet_lite0", stages="features.4").eval()
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(model.get_stage_outputs(x)[-1], whole.get_stage_outputs(x)[-4])
    assert torch.equal(model(x), whole.get_stage_outputs(x)[-4].mean((2, 3)))
    assert model.class_names is None and model.num_classes == 0
    line = next(line for line in model.explain().splitlines() if line.startswith("left out"))
    parameters = whole.count_parameters() - model.count_parameters()
    assert "features.5" in line and "classifier" in line and f"{parameters:,} parameters" in line
    report = partial_load(model, whole.state_dict())
    assert report.load_ratio == 1 and set(report.unexpected) == set(model._hybrid.left_out.tensors)


@pytest.mark.parametrize("given", [3, "layer3", ["layer1", 1, 2], range(3)], ids=str)
def test_stages_are_a_number_the_last_path_or_the_first_ones(given: Any) -> None:
    model: Any = BUILDER.from_torchvision("resnet18", None, stages=given)
    assert [stage.stride for stage in model.stage_info] == [4, 8, 16]
    assert (model.stage_info[-1].module, len(model.pyramid_info)) == ("layer3", 3)


def test_all_stages_are_the_whole_network(x: Tensor) -> None:
    model: Any = BUILDER.from_torchvision("resnet18", None, stages=4).eval()
    assert model.num_classes == 1000 and "left out" not in model.explain()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0, "how many of the 4 stages are kept, from 1 to 4"),
        (5, "0: layer1, 1: layer2, 2: layer3, 3: layer4"),
        (-1, "from 1 to 4"),
        ([0, 2], "without a gap: give their number, such as stages=3"),
        ([1], "the first ones are kept"),
        ([0, 9], "there is no stage 9"),
        ("layer5", "there is no stage 'layer5'"),
        ("layer3.0", "'layer3.0' is in stage 2, which is named as a whole"),
        ("layr3", "Did you mean 'layer3'"),
        ("conv1", "'conv1' is in stem, which is no stage"),
        ("fc", "'fc' is in head, which is no stage"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused(given: Any, said: str) -> None:
    with pytest.raises(StageError) as caught:
        BUILDER.from_torchvision("resnet18", None, stages=given)
    assert said in str(caught.value)


def test_patches_freezing_files_and_a_later_head_work_as_on_a_whole_network(
    x: Tensor, tmp_path: Path
) -> None:
    recipe = {
        "backbone": {
            "name": "mobilenet_v3_small",
            "weights": None,
            "stages": 3,
            "patches": {"stage:*.-1": {"wrap": {"type": "se", "init": "paper"}}},
        },
        "head": {"num_classes": 4, "dropout": 0.25},
        "freeze_backbone": True,
        "unfreeze_stages": ["features.4"],
    }
    model: Any = BUILDER.build(recipe).eval()
    assert [record.target for record in model.patch_records] == [
        f"features.{index}" for index in (1, 3, 6)
    ]
    learn = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert learn == {"features", "4", "5", "6", "3"}  # patches.features, stage 2, classifier.3
    assert model.classifier[2].p == 0.25
    path = tmp_path / "early.safetensors"
    model.save(path)
    again: Any = tvc_core.load(path)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert again.freeze_report().parts == model.freeze_report().parts
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    model.unpatch()
    model.reset_classifier(0)
    assert model(x).shape == (2, 40)
    model.save(path)
    assert torch.equal(tvc_core.load(path)(x), model(x))
    with pytest.raises(tvc_core.FreezeError, match="3 stages"):
        whole = BUILDER.from_torchvision("mobilenet_v3_small", None)
        whole.load_freeze_state(model.freeze_state())


@pytest.mark.parametrize("target", ["layer4", "layer4.0.conv1", "layer3.0.conv9"])
def test_nothing_can_be_patched_or_read_at_what_is_left_out(target: str) -> None:
    with pytest.raises(TargetError, match=r"layer4.*was left out.*ends before|layer3.0.conv9"):
        BUILDER.from_torchvision("resnet18", None, patches={target: {"wrap": "se"}}, stages=3)
    model = BUILDER.from_torchvision("resnet18", None, stages=3)
    with pytest.raises(StageError, match=r"left out|no module"):
        model.feature_extractor([target])


def test_a_pattern_means_what_is_there() -> None:
    patches = {"layer*": {"wrap": "se"}}
    model = BUILDER.from_torchvision("resnet18", None, patches=patches, stages=2)
    assert [record.target for record in model.patch_records] == ["layer1", "layer2"]


@pytest.mark.sweep
def test_an_auxiliary_head_of_a_later_stage_goes_as_torchvision_takes_it_away(x: Tensor) -> None:
    options = {"aux_logits": True, "init_weights": False}
    model: Any = BUILDER.from_torchvision(
        "googlenet", None, stages=1, num_classes=2, options=options
    ).train()
    assert model.aux1 is None and model.aux2 is None and not model.aux_logits
    assert model(x).shape == (2, 2)
    model = BUILDER.from_torchvision("googlenet", None, stages=2, num_classes=2, options=options)
    assert [tuple(out.shape) for out in model.train()(x)] == [(2, 2)] * 3


class Averaged(nn.Module):
    """Its own forward adds a parameter of the last stage to what that stage returns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.shift, self.fc = nn.Parameter(torch.ones(4, 1, 1)), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(self.stem(x))) + self.shift
        return self.fc(x.mean((2, 3)))


class Blind(Averaged):
    """Its head reads the stem, whatever the stages give."""

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        skip = self.b(self.a(stem))
        return self.fc(stem.mean((2, 3)) + 0 * skip.mean((2, 3)))


def test_a_network_that_cannot_do_without_its_end_is_refused(lab: Any) -> None:
    spec = BackboneSpec(
        name="net",
        factory=lambda spec, *, weights: Averaged(),
        stem=("stem",),
        stages=("a", ("shift", "b")),
        head="fc",
    )
    said = r"cannot end after its stage 0 \('a'\): its own forward uses shift"
    with pytest.raises(BackboneError, match=said):
        lab(spec).from_backbone("net", None, stages=1)


def test_a_head_that_does_not_read_the_last_stage_is_no_head_of_it(lab: Any) -> None:
    spec = BackboneSpec(
        name="net",
        factory=lambda spec, *, weights: Blind(),
        stem=("shift", "stem"),
        stages=("a", "b"),
        head="fc",
    )
    with pytest.raises(BackboneError, match="does not depend on that stage"):
        lab(spec).from_backbone("net", None, stages=1)


def test_classes_of_the_head_that_goes_are_not_dropped_in_silence(lab: Any) -> None:
    spec = BackboneSpec(
        name="net",
        factory=lambda spec, *, weights, num_classes=7: torchvision.models.resnet18(
            num_classes=num_classes
        ),
        stem=("conv1", "bn1"),
        stages=("layer1", "layer2", "layer3", "layer4"),
        head="fc",
        options={"num_classes": 7},
    )
    with pytest.raises(HeadError, match="give num_classes beside stages"):
        lab(spec).from_backbone("net", None, stages=2, options={"num_classes": 3})
