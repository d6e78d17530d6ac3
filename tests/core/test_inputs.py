"""Other channels and sizes of images: what the pretrained network computes stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

import tvc_core
from tvc_core import (
    BackboneError,
    BackboneSpec,
    HybridBuilder,
    HybridModel,
    LocalPlugin,
    ParameterError,
    RecipeError,
    Registry,
    TvcError,
)
from tvc_core.recipe import Recipe
from tvc_core.surgery.input import mixing
from tvc_core.weights.torchvision import set_image_size

RNG = torch.Generator().manual_seed(0)


def gray(channels: int, size: int = 64) -> Tensor:
    return torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(1)).expand(
        -1, channels, -1, -1
    )


def seeded(builder: HybridBuilder, name: str, **arguments: Any) -> HybridModel:
    """A model with the same random weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return builder.from_backbone(name, None, **arguments).eval()


# -- policies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("policy", ["mean", "repeat"])
def test_equal_channels_give_what_three_gave(tiny: Any, policy: str, channels: int) -> None:
    want = tiny().eval()(gray(3))
    model = tiny(in_channels=channels, in_channels_policy=policy).eval()
    assert (
        model.stem.conv.weight.shape == (8, channels, 3, 3)
        and model.stem.conv.in_channels == channels
    )
    torch.testing.assert_close(model(gray(channels)), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "policy",
    [["r", "g", "b", "mean"], ["b", "g", "r", "zero"], [0, 1, 2, 2], ["mean", "mean", "r", 1]],
)
def test_one_rule_a_channel(tiny: Any, policy: list[Any]) -> None:
    model = tiny(in_channels=4, in_channels_policy=policy).eval()
    torch.testing.assert_close(model(gray(4)), tiny().eval()(gray(3)), rtol=0, atol=1e-5)


def test_rules_place_the_channels(tiny: Any, images: Tensor) -> None:
    plain = tiny().eval()
    model = tiny(in_channels=4, in_channels_policy=["b", "zero", "g", "r"]).eval()
    shuffled = torch.stack([images[:, 2], torch.randn(4, 32, 32), images[:, 1], images[:, 0]], 1)
    torch.testing.assert_close(model(shuffled), plain(images), rtol=0, atol=1e-5)


def test_the_mean_and_the_rules_by_hand(tiny: Any) -> None:
    weight = tiny().stem.conv.weight
    found = tiny(in_channels=5).stem.conv.weight
    torch.testing.assert_close(found, weight.mean(1, keepdim=True).expand(-1, 5, -1, -1) * 3 / 5)
    found = tiny(in_channels=4, in_channels_policy=["r", "g", "b", "mean"]).stem.conv.weight
    torch.testing.assert_close(found[:, :3], weight * 3 / 4)
    torch.testing.assert_close(found[:, 3], weight.mean(1) * 3 / 4)


@pytest.mark.parametrize("channels", [1, 3, 6, 9])
def test_repeat_is_what_timm_does_where_the_counts_divide(tiny: Any, channels: int) -> None:
    weight = tiny().stem.conv.weight.detach()
    found = tiny(in_channels=channels, in_channels_policy="repeat").stem.conv.weight
    torch.testing.assert_close(
        found.detach(), timm.models.adapt_input_conv(channels, weight.clone())
    )


@pytest.mark.parametrize("channels", [4, 6, 7])
def test_repeated_rgb_gives_the_same_for_any_image(
    tiny: Any, images: Tensor, channels: int
) -> None:
    model = tiny(in_channels=channels, in_channels_policy="repeat").eval()
    repeated = images[:, [index % 3 for index in range(channels)]]
    torch.testing.assert_close(model(repeated), tiny().eval()(images), rtol=0, atol=1e-5)


def test_zero_ignores_the_new_channels(tiny: Any, images: Tensor) -> None:
    model = tiny(in_channels=5, in_channels_policy="zero").eval()
    torch.testing.assert_close(
        model(torch.cat([images, torch.randn(4, 2, 32, 32)], 1)),
        tiny().eval()(images),
        rtol=0,
        atol=1e-5,
    )


def test_a_backbone_with_another_number_of_channels(lab: Any) -> None:
    def build(spec: BackboneSpec, *, weights: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        )

    four = BackboneSpec(
        name="four", factory=build, stem=("0",), stages=("1",), head="4", num_channels=4
    )
    want = lab(four).from_backbone("four", None).eval()(gray(4))
    for channels, policy in [(1, "mean"), (2, "repeat"), (6, "repeat"), (5, [0, 1, 2, 3, "mean"])]:
        model = (
            lab(four)
            .from_backbone("four", None, in_channels=channels, in_channels_policy=policy)
            .eval()
        )
        torch.testing.assert_close(model(gray(channels)), want, rtol=0, atol=1e-5)
    with pytest.raises(ParameterError, match="rule 'r'; the pretrained network takes 4 channels"):
        lab(four).from_backbone("four", None, in_channels=4, in_channels_policy=["r", "g", "b", 3])


def test_the_same_count_without_a_policy_changes_nothing(tiny: Any) -> None:
    assert torch.equal(tiny(in_channels=3).stem.conv.weight, tiny().stem.conv.weight)
    assert not torch.equal(
        tiny(in_channels=3, in_channels_policy="mean").stem.conv.weight, tiny().stem.conv.weight
    )


def test_columns_of_the_mixing_matrix_sum_to_one() -> None:
    for policy in ("mean", "repeat"):
        for channels in range(1, 9):
            for before in range(1, 6):
                torch.testing.assert_close(
                    mixing(policy, channels, before).sum(0), torch.ones(before, dtype=torch.float64)
                )


# -- with everything else --------------------------------------------------------------------------


def test_patches_start_as_the_identity_of_the_changed_network(tiny: Any, images: Tensor) -> None:
    x = torch.cat([images, images[:, :1]], 1)
    model = tiny({"stem": {"wrap": "gate"}, "stem.conv": {"wrap": "conv"}}, in_channels=4).eval()
    assert torch.equal(model(x), tiny(in_channels=4).eval()(x)) and model.step0_difference == 0
    line = "input: 4 channels at stem.conv, whose weights follow from those for 3 by mean"
    assert line in model.explain().splitlines() and "1x4x" in model.explain()
    assert [tuple(m.shape[:2]) for m in model.get_stage_outputs(x)] == [
        (4, 8),
        (4, 8),
        (4, 16),
        (4, 32),
    ]


def test_a_model_with_other_channels_survives_files_recipes_and_copies(
    lab: Any, tiny: Any, tmp_path: Path
) -> None:
    model = tiny(
        {"layer2": {"wrap": "gate"}},
        in_channels=4,
        in_channels_policy=["r", "g", "b", "mean"],
        freeze_backbone=True,
    )
    x = torch.randn(2, 4, 32, 32)
    with torch.no_grad():
        model.stem.conv.weight.add_(0.1)
    want = model.eval()(x)
    model.save(tmp_path / "m.safetensors")
    again = lab().load(tmp_path / "m.safetensors").eval()
    assert torch.equal(again(x), want) and torch.equal(copy.deepcopy(model)(x), want)
    assert (
        again.recipe.in_channels_policy == ("r", "g", "b", "mean")
        and not again.stem.conv.weight.requires_grad
    )
    recipe = tmp_path / "m.yaml"
    recipe.write_text(model.recipe.to_yaml())
    assert (
        lab().build(recipe).recipe == model.recipe == Recipe.from_mapping(model.recipe.to_mapping())
    )


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"in_channels": 0}, RecipeError, "in_channels is a whole number from 1"),
        ({"in_channels": True}, RecipeError, "in_channels is a whole number"),
        (
            {"in_channels": 4, "in_channels_policy": "men"},
            RecipeError,
            "in_channels_policy is 'mean', 'repeat', 'zero'",
        ),
        (
            {"in_channels": 4, "in_channels_policy": ["r", "x", "b", "g"]},
            RecipeError,
            "in_channels_policy is",
        ),
        (
            {"in_channels": 4, "in_channels_policy": ["r", "g", "b"]},
            RecipeError,
            "3 rules for in_channels 4",
        ),
        ({"in_channels_policy": "mean"}, RecipeError, "without in_channels"),
        (
            {"in_channels": 1, "in_channels_policy": "zero"},
            ParameterError,
            "uses the pretrained channel g, b nowhere",
        ),
        ({"in_channels": 2, "in_channels_policy": ["r", "zero"]}, ParameterError, "g, b nowhere"),
        (
            {"in_channels": 2, "in_channels_policy": ["mean", 3]},
            ParameterError,
            "rule 3; .* 0 to 2",
        ),
        (
            {"image_size": 64},
            ParameterError,
            "not needed: lab:tiny takes images of any size from 8 pixels",
        ),
        ({"image_size": 0}, RecipeError, "image_size is a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny: Any, arguments: Any, error: type[TvcError], text: str
) -> None:
    with pytest.raises(error, match=text):
        tiny(**arguments)


class Odd(nn.Module):
    """Networks whose first layer cannot change."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 6, 3, groups=3 if kind == "grouped" else 1)
        self.other = nn.Conv2d(3, 6, 3)
        self.stage = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "scaled":
            x = x / 2
        if self.kind == "norm":
            x = self.norm(x)
        y = self.conv(x)
        if self.kind == "two":
            y = y + self.other(x)
        if self.kind == "brightness":
            y = y + x.sum((1, 2, 3), keepdim=True)
        return self.fc(self.stage(y).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("grouped", "not a convolution over all of its 3 channels"),
        ("norm", "'norm', is BatchNorm2d"),
        ("two", "several layers: conv, other"),
        ("scaled", "changes the image before its first layer with weights, 'conv'"),
        ("brightness", "does more with the channels than the convolution 'conv'"),
    ],
)
def test_a_network_that_cannot_change_is_refused_and_left_alone(
    builder: HybridBuilder, kind: str, text: str
) -> None:
    network = Odd(kind)
    before = {name: (tensor.clone(), id(tensor)) for name, tensor in network.named_parameters()}
    with pytest.raises(BackboneError, match=text):
        builder.from_module(
            network, stem=["norm", "other", "conv"], stages=["stage"], head="fc", in_channels=4
        )
    after = dict(network.named_parameters())
    assert list(after) == list(before) and type(network) is Odd and network.conv.in_channels == 3
    assert all(
        torch.equal(after[name], tensor) and id(after[name]) == mark
        for name, (tensor, mark) in before.items()
    )


# -- torchvision's ---------------------------------------------------------------------------------

SMALL = [
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "squeezenet1_1",
    "densenet121",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "swin_t",
]


RULES = ["r", "g", "b", "mean"]


def check_family(builder: HybridBuilder, name: str, *policies: tuple[int, Any]) -> None:
    spec = builder.registry.resolve(BackboneSpec, name).spec
    size = spec.min_size if spec.fixed_size else max(64, spec.min_size)
    options = (
        {"transform_input": False, "init_weights": True}
        if "transform_input" in spec.options
        else None
    )
    plain = seeded(builder, name, options=options)
    with torch.no_grad():  # the last map, since ViT's head starts at zero
        want = plain.forward_features(gray(3, size))
    scale = max(1.0, float(want.abs().max()))  # maps of random weights may be large
    assert float(want.std()) > 0
    keys = list(plain.state_dict())
    del plain  # the largest has 2.6 GB
    for channels, policy in policies:
        model = seeded(
            builder, name, options=options, in_channels=channels, in_channels_policy=policy
        )
        assert list(model.state_dict()) == keys
        with torch.no_grad():
            found = model.forward_features(gray(channels, size))
        torch.testing.assert_close(found / scale, want / scale, rtol=0, atol=1e-5)
        del model


@pytest.mark.parametrize("name", SMALL)
def test_a_small_member_of_each_family(builder: HybridBuilder, name: str) -> None:
    check_family(builder, name, (1, "mean"), (4, RULES), (6, "repeat"))


@pytest.mark.sweep
@pytest.mark.parametrize(
    "name", sorted(set(torchvision.models.list_models(module=torchvision.models)) - set(SMALL))
)
def test_every_other_classifier(builder: HybridBuilder, name: str) -> None:
    check_family(builder, name, (4, RULES))


def test_googlenet_says_how_it_can_take_other_channels(
    builder: HybridBuilder, made_up: Callable[..., Any]
) -> None:
    made_up("googlenet")
    with pytest.raises(
        BackboneError, match=r"transform_input.*options=\{'transform_input': False\}"
    ):
        builder.from_torchvision("googlenet", in_channels=4)
    model = builder.from_torchvision("googlenet", in_channels=4, options={"transform_input": False})
    assert model.conv1.conv.weight.shape[1] == 4


def test_the_preprocessing_for_other_channels_is_nobodys_guess(builder: HybridBuilder) -> None:
    model = builder.from_torchvision("resnet18", None, in_channels=4)
    with (
        pytest.raises(BackboneError, match=r"takes 4 channels.*mean \(0.485"),
        pytest.warns(UserWarning),
    ):
        model.transforms()


# -- image size ------------------------------------------------------------------------------------


def test_torchvisions_vits_take_square_images(builder: HybridBuilder) -> None:
    with pytest.raises(ParameterError, match="image_size is one number, such as 96, not"):
        builder.from_torchvision("vit_b_32", None, image_size=[64, 96], stages=1)


def small_vit(size: int) -> VisionTransformer:
    return VisionTransformer(size, 16, 2, 2, 32, 64, num_classes=5).eval()


@pytest.mark.parametrize("size", [32, 64, 80, 96])
def test_positions_are_resampled_as_torchvision_does(size: int) -> None:
    vit = small_vit(64)
    nn.init.normal_(vit.encoder.pos_embedding, generator=RNG)
    with torch.no_grad():
        vit.heads[-1].weight.normal_(generator=RNG)
    want = small_vit(size)
    want.load_state_dict(interpolate_embeddings(size, 16, copy.deepcopy(vit.state_dict())))
    set_image_size(vit, size)
    x = torch.randn(2, 3, size, size, generator=RNG)
    assert torch.equal(vit(x), want(x)) and list(vit.state_dict()) == list(want.state_dict())
    assert (
        isinstance(vit.encoder.pos_embedding, nn.Parameter)
        and vit.encoder.pos_embedding.requires_grad
    )


@pytest.mark.parametrize(("size", "text"), [(40, "32 and 48 do"), (8, "16 and 16 do")])
def test_patches_must_divide_the_size(size: int, text: str) -> None:
    with pytest.raises(BackboneError, match=text):
        set_image_size(small_vit(64), size)


def test_a_pretrained_vit_takes_another_size(
    builder: HybridBuilder, made_up: Callable[..., Any], tmp_path: Path
) -> None:
    made_up("vit_b_32")
    plain = torchvision.models.vit_b_32(weights="DEFAULT")
    model = builder.from_torchvision(
        "vit_b_32", patches={"encoder.layers": {"wrap": "se"}}, image_size=96, in_channels=1
    )
    want = interpolate_embeddings(96, 32, plain.state_dict())["encoder.pos_embedding"]
    assert torch.equal(model.encoder.pos_embedding, want) and model.step0_difference == 0
    x = torch.randn(1, 1, 96, 96)
    assert model.eval()(x).shape == (1, 1000) and model.get_stage_outputs(x)[1].shape == (
        1,
        768,
        3,
        3,
    )
    assert model.recipe.image_size == 96 and "image_size=96" in model.explain()
    model.save(tmp_path / "vit.safetensors")
    again = tvc_core.load(tmp_path / "vit.safetensors").eval()
    assert (
        torch.equal(again(x), model(x))
        and again.recipe.image_size == 96
        and again.recipe.in_channels == 1
    )


def test_the_preprocessing_follows_the_size(builder: HybridBuilder) -> None:
    model = builder.from_torchvision("vit_b_32", None, image_size=128)
    with pytest.warns(UserWarning):
        prepare = model.transforms()
    assert prepare.crop_size == [128] and prepare.resize_size == [146]
    assert Recipe.from_mapping(model.recipe.to_mapping()) == model.recipe


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("vit_b_32", {"image_size": 100}, "does not divide into patches of 32.*96 and 128 do"),
        ("vit_b_32", {"image_size": 96, "options": {"image_size": 64}}, "give one of them"),
        ("maxvit_t", {"image_size": 192}, "multiple of 224 pixels, such as 224, .*not 192 x 192"),
        ("swin_t", {"image_size": 192}, "not needed.*any size from 32 pixels"),
        ("inception_v3", {"image_size": 299}, "not needed.*any size from 75 pixels"),
    ],
)
def test_others_say_what_they_accept(
    builder: HybridBuilder, name: str, arguments: Any, text: str
) -> None:
    with pytest.raises(TvcError, match=text):
        builder.from_torchvision(name, None, **arguments)


def test_a_backbone_of_one_size_takes_that_one() -> None:
    spec = Registry().resolve(BackboneSpec, "resnet18").spec
    plugin = LocalPlugin("mine")
    plugin.add(replace(spec, name="fixed18", family="mine", fixed_size=True))
    builder = HybridBuilder(plugins=[plugin])
    for size in (224, (224, 224)):
        recipe = Recipe(backbone="fixed18", weights=None, image_size=size)
        assert builder.resolve(recipe).image_size == 224
    with pytest.raises(TvcError, match="takes images of 224 pixels only"):
        builder.resolve(Recipe(backbone="fixed18", weights=None, image_size=256))


@pytest.mark.parametrize("backbone", ["resnet18", "swin_t"])
def test_channels_change_where_there_are_no_values(backbone: str) -> None:
    """A network on meta is looked at for its shapes, before the memory for it is there."""
    with torch.device("meta"):
        model = HybridBuilder().from_backbone(
            backbone, None, patches={"stage:-1": {"wrap": "se"}}, in_channels=5
        )
    assert "gate now on meta" in str(model.explain())
    assert model(torch.empty(2, 5, 64, 64, device="meta")).shape == (2, 1000)
    first = next(each for each in model.modules() if isinstance(each, torch.nn.Conv2d))
    assert first.weight.is_meta and first.in_channels == 5
