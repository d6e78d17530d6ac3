"""Stem, stages and head: declared by the spec, checked against the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import BackboneError, BackboneSpec, HybridBuilder, StageError
from tvc_core.surgery.anatomy import Anatomy


def spec(**changes: Any) -> BackboneSpec:
    base = BackboneSpec(
        name="tiny",
        factory=nn.Identity,
        stem=("stem",),
        stages=("layer1", "layer2", "layer3"),
        head="fc",
        num_channels=3,
    )
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "classifier"}, r"it has no 'classifier'; its children are stem, layer1"),
        ({"stages": ("layer1", "layer2", "layer4")}, "it has no 'layer4'"),
        ({"stages": ("layer1", "layer2")}, r"lack layer3\.0\.conv\.weight.*more"),
        (
            {"stages": ("layer1", "layer2", "layer3", "layer3.0")},
            r"'layer3\.0' belongs to two parts",
        ),
        ({"stem": ("stem", "layer1")}, "'layer1' belongs to two parts"),
        ({"stem": ()}, "stem is"),
        ({"stages": ()}, "stages is"),
        (
            {"stages": ("layer1", "layer2", ("layer3", "fc.weight"))},
            "belongs to two parts|ends with a module",
        ),
        ({"head": "fc.weight"}, "is not a module|lack"),
    ],
)
def test_a_spec_that_does_not_describe_the_network_is_refused(
    plain: Any, changes: Any, message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        Anatomy.of(plain(), spec(**changes))


def test_a_direct_parameter_may_belong_to_the_stem(plain: Any) -> None:
    network = plain()
    network.token = nn.Parameter(torch.zeros(3))
    with pytest.raises(BackboneError, match="lack token"):
        Anatomy.of(network, spec())
    anatomy = Anatomy.of(network, spec(stem=("token", "stem")))
    assert anatomy.part_of("token") == "stem" and anatomy.part_of("tokenizer") is None


def test_a_path_owns_what_is_below_it_and_nothing_with_a_longer_name(plain: Any) -> None:
    anatomy = Anatomy.of(plain(), spec())
    assert anatomy.part_of("layer3.1.conv.weight") == "stage 2"
    assert anatomy.part_of("layer31.conv.weight") is None
    assert anatomy.part_of("avgpool") is None


@pytest.mark.parametrize(
    ("given", "found"),
    [([2], [2]), ([-1], [2]), ([0, -3], [0]), ([], []), (1, [1]), (range(3), [0, 1, 2])],
)
def test_negative_stages_count_from_the_end(plain: Any, given: Any, found: list[int]) -> None:
    assert Anatomy.of(plain(), spec()).stage_indices(given) == found


@pytest.mark.parametrize("wrong", [9, 3, -4, True, 1.0, "1", None])
def test_a_stage_that_is_not_there_is_an_error_that_lists_them(plain: Any, wrong: Any) -> None:
    with pytest.raises(
        StageError,
        match=r"no stage .*the 3 stages are 0: layer1, 1: layer2, 2: layer3; -1 is the last",
    ):
        Anatomy.of(plain(), spec()).stage_indices([0, wrong])


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"]
)
def test_the_parts_partition_the_parameters(builder: HybridBuilder, name: str) -> None:
    stage = {"resnet18": "layer3"}.get(name, "features.3")
    model = builder.from_backbone(
        name, weights=None, patches={stage: {"wrap": "se"}}, num_classes=3
    )
    parts = model.freeze_report().parts
    assert sum(part.num_parameters for part in parts) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert all(part.num_parameters > 0 for part in parts)
    assert [part.name for part in parts] == [
        "stem",
        *(f"stage {i}" for i in range(len(model.stage_info))),
        "head",
    ]


def test_every_parameter_belongs_to_the_part_that_computes_with_it(builder: HybridBuilder) -> None:
    """A second derivation of the stage table: the gradient of a stage's map reaches exactly what
    comes before its end.
    """
    model = builder.from_backbone("mobilenet_v3_small", None)
    anatomy = model._hybrid.anatomy
    maps = model.eval().get_stage_outputs(torch.randn(1, 3, 64, 64))
    reached: set[str] = set()
    names = dict(model.named_parameters())
    for index, feature in enumerate(maps):
        part = "stem" if index == 0 else f"stage {index - 1}"
        grads = torch.autograd.grad(
            feature.sum(), list(names.values()), retain_graph=True, allow_unused=True
        )
        now = {name for name, grad in zip(names, grads, strict=True) if grad is not None}
        assert now - reached == {name for name in names if anatomy.part_of(name) == part}
        reached = now
    assert {name for name in names if name not in reached} == {
        name for name in names if anatomy.part_of(name) == "head"
    }


class Tied(nn.Module):
    """Two names for one stage, and two for one token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = self.again = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.c = self.b
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.b(self.a(x) + self.token)).mean((2, 3)))


@pytest.mark.parametrize(
    ("stem", "stages", "message"),
    [
        (("token", "a"), ("b", "c"), "'c' is 'b' under a second name"),
        (("token", "a"), ("c",), "'c' is 'b' under a second name"),
        (("token", "a"), ("b.0", "c.1"), "'c.1' is 'b.1' under a second name"),
        (("again", "a"), ("b",), "'again' is 'token' under a second name"),
        (("token", "a"), ("d",), "it has no 'd'; its children are a, b, c, fc"),
    ],
)
def test_a_second_name_of_a_shared_part_is_told_from_a_missing_one(
    stem: tuple[str, ...], stages: tuple[str, ...], message: str
) -> None:
    spec = BackboneSpec(name="tied", factory=Tied, stem=stem, stages=stages, head="fc")
    with pytest.raises(BackboneError, match=message):
        Anatomy.of(Tied(), spec)
    right = BackboneSpec(name="tied", factory=Tied, stem=("token", "a"), stages=("b",), head="fc")
    assert Anatomy.of(Tied(), right).part_of("b.0.weight") == "stage 0"
