"""Maps of stem and stages from the live network, safe from what runs after them."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tvc_core import BackboneError, BackboneSpec, HybridBuilder
from tvc_core.surgery import calls

FAMILIES = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny")


def x64(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Overwrites(nn.Module):
    """An in-place ReLU follows every stage, as in VGG and DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.stage = nn.Conv2d(8, 16, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stage(self.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


def overwrites(spec: BackboneSpec, *, weights: Any) -> nn.Module:
    return Overwrites()


OVERWRITES = BackboneSpec(
    name="overwrites", factory=overwrites, stem=("stem",), stages=("stage",), head="head"
)


def test_features_are_what_the_stage_returned_not_what_became_of_it(
    lab: Any, images: Tensor
) -> None:
    model = lab(OVERWRITES).from_backbone("overwrites", None).eval()
    stem = model.stem(images)
    stage = model.stage(stem.clamp(min=0))
    found = model.get_stage_outputs(images)
    assert (stem < 0).any() and (stage < 0).any()
    assert torch.equal(found[0], stem) and torch.equal(found[1], stage)
    assert torch.equal(model.forward_features(images), stage)


def test_a_way_to_the_head_with_a_relu_on_it_is_found(lab: Any, images: Tensor) -> None:
    def densenet_like(spec: BackboneSpec, *, weights: Any) -> nn.Module:
        class Net(Overwrites):
            def forward(self, x: Tensor) -> Tensor:
                x = nn.functional.relu(self.stage(self.stem(x)), inplace=True)
                return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, (1, 1)), 1))

        return Net()

    spec = BackboneSpec(
        name="dense", factory=densenet_like, stem=("relu", "stem"), stages=("stage",), head="head"
    )
    model = lab(spec).from_backbone("dense", None).eval()
    assert torch.equal(model.forward_head(model.forward_features(images)), model(images))


def test_an_unknown_way_to_the_head_is_an_error_not_a_wrong_result(
    lab: Any, images: Tensor
) -> None:
    class Maximum(Overwrites):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.relu(self.stage(self.stem(x))).amax((2, 3)))

    spec = replace(OVERWRITES, factory=lambda spec, weights: Maximum())
    model = lab(spec).from_backbone("overwrites", None).eval()
    assert model(images).shape == (4, 4)
    with pytest.raises(BackboneError, match="'stage' to 'head' is unknown"):
        model.forward_head(model.forward_features(images))


@pytest.mark.parametrize(
    "packed", [lambda x: SimpleNamespace(map=x), lambda x: {"map": x}, lambda x: x]
)
def test_whatever_a_head_raises_for_a_plain_map_the_network_is_built(
    lab: Any, images: Tensor, packed: Any
) -> None:
    class Reads(nn.Linear):
        def forward(self, given: Any) -> Any:
            if isinstance(given, Tensor):
                return (super().forward(given.amax((2, 3))),)
            assert isinstance(given, (dict, SimpleNamespace))
            return super().forward(
                (given["map"] if isinstance(given, dict) else given.map).mean((2, 3))
            )

    class Packs(Overwrites):
        def __init__(self) -> None:
            super().__init__()
            self.head = Reads(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(packed(self.stage(self.stem(x))))

    spec = replace(OVERWRITES, factory=lambda spec, weights: Packs())
    model = lab(spec).from_backbone("overwrites", None).eval()
    assert model.forward_features(images).shape == (4, 16, 8, 8)
    with pytest.raises(BackboneError, match="'stage' to 'head' is unknown"):
        model.forward_head(model.forward_features(images))


def test_features_come_in_order_with_the_stem_first(builder: HybridBuilder) -> None:
    model = builder.from_backbone("resnet18", None).eval()
    x = x64()
    reference = torchvision.models.resnet18()
    reference.load_state_dict(model.state_dict())
    reference.eval()
    expected = [reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))]
    for stage in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
        expected.append(stage(expected[-1]))
    found = model.get_stage_outputs(x)
    assert len(found) == 5 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(model.forward_features(x), expected[-1])
    assert [f.shape[1] for f in found[1:]] == [stage.channels for stage in model.stage_info]


@pytest.mark.parametrize("name", FAMILIES)
def test_features_and_head_together_are_the_forward_pass(builder: HybridBuilder, name: str) -> None:
    model = builder.from_backbone(name, None, num_classes=3, dropout=0.5).eval()
    assert torch.equal(model.forward_head(model.forward_features(x64())), model(x64()))


def open_gates(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".alpha"):
                parameter.fill_(0.7)


@pytest.mark.parametrize(
    ("name", "patches"),
    [
        ("resnet18", {"layer4": {"wrap": "se"}, "avgpool": {"wrap": "se"}}),
        (
            "mobilenet_v3_small",
            {"features": {"wrap": "cbam_block"}, "features.12": {"wrap": "eca"}},
        ),
        ("mobilenet_v2", {"features": [{"wrap": "se"}, {"inject": "spatial_attention"}]}),
        (
            "convnext_tiny",
            {
                "features": {"wrap": "se"},
                "features.7": {"wrap": "se"},
                "features.7.2": {"wrap": "se"},
            },
        ),
    ],
)
def test_features_and_head_include_patches_that_have_learned(
    builder: HybridBuilder, name: str, patches: Any
) -> None:
    model = builder.from_backbone(name, weights=None, patches=patches).eval()
    before = model(x64())
    open_gates(model)
    assert not torch.equal(before, model(x64()))
    assert torch.equal(model.forward_head(model.forward_features(x64())), model(x64()))


def test_a_patch_that_the_way_would_miss_makes_it_unknown(lab: Any) -> None:
    class Nested(nn.Module):
        """The head is inside another module, before which a block runs."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.stage = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
            self.tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(self.stage(self.stem(x)))

    spec = BackboneSpec(
        name="nested",
        factory=lambda spec, weights: Nested(),
        stem=("stem",),
        stages=("stage",),
        head="tail.2",
    )
    patches = {"tail": {"inject": {"type": "gate", "position": "before"}}}
    plain, patched = (
        lab(spec).from_backbone("nested", None),
        lab(spec).from_backbone("nested", weights=None, patches=patches),
    )
    x = x64()
    assert torch.equal(plain.forward_head(plain.forward_features(x)), plain(x))
    with pytest.raises(BackboneError, match=r"'stage' to 'tail\.2' is unknown"):
        patched.forward_head(patched.forward_features(x))


def test_looking_for_the_way_to_the_head_leaves_the_gates_closed(tiny: Any) -> None:
    model = tiny({"layer3": {"wrap": "gate"}, "avgpool": {"wrap": "conv"}})
    assert {p.item() for name, p in model.named_parameters() if name.endswith("alpha")} == {0.0}


def test_features_include_the_patches_of_their_stage(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer2": {"wrap": "gate"}}).eval()
    before = model.get_stage_outputs(images)
    open_gates(model)
    after = model.get_stage_outputs(images)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
        True,
        True,
        False,
        False,
    ]


def test_features_carry_gradients_when_gradients_are_on(tiny: Any, images: Tensor) -> None:
    model = tiny().eval()
    model.get_stage_outputs(images)[2].sum().backward()
    reached = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"stem", "layer1", "layer2"}
    with torch.no_grad():
        assert not any(f.requires_grad for f in model.get_stage_outputs(images))


def test_no_map_is_kept_alive(tiny: Any, images: Tensor) -> None:
    model = tiny().eval()
    seen = [weakref.ref(feature) for feature in model.get_stage_outputs(images)]
    seen.append(weakref.ref(model.forward_features(images)))
    model(images)
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)
    assert calls.collections() == []


def test_a_pass_that_fails_leaves_nothing_behind(tiny: Any, images: Tensor) -> None:
    model = tiny().eval()
    handle = model.layer3.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.get_stage_outputs(images)
    handle.remove()
    assert calls.collections() == []
    model(images)
    assert calls.collections() == []


def test_a_stage_that_returns_no_tensor_is_refused(lab: Any) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x,)

    class Net(Overwrites):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stage(self.pair(self.stem(x))[0]).mean((2, 3)))

    stem = ("relu", "stem", "pair")
    spec = BackboneSpec(
        name="net", factory=lambda spec, weights: Net(), stem=stem, stages=("stage",), head="head"
    )
    with pytest.raises(BackboneError, match=r"'pair' returned no tensor"):
        lab(spec).from_backbone("net", None)


@pytest.mark.parametrize("grad", [True, False])
def test_features_compile_in_one_graph(tiny: Any, images: Tensor, grad: bool) -> None:
    torch._dynamo.reset()
    model = tiny({"layer2": {"wrap": "gate"}}).eval()
    open_gates(model)
    with torch.set_grad_enabled(grad):
        compiled = torch.compile(
            lambda x: model.get_stage_outputs(x), fullgraph=True, backend="aot_eager"
        )
        for _ in range(2):
            found = compiled(images)
            for a, b in zip(found, model.get_stage_outputs(images), strict=True):
                torch.testing.assert_close(a, b)
        features = torch.compile(
            lambda x: model.forward_head(model.forward_features(x)),
            fullgraph=True,
            backend="aot_eager",
        )
        torch.testing.assert_close(features(images), model(images))


class Features(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.get_stage_outputs(x)


def test_features_export(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer2": {"wrap": "gate"}}).eval()
    open_gates(model)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Features(model), (images,), dynamic_shapes=({0: batch},))
    more = torch.cat([images, images[:1]])
    for a, b in zip(program.module()(more), model.get_stage_outputs(more), strict=True):
        torch.testing.assert_close(a, b)
