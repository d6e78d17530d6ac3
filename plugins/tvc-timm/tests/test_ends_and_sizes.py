"""timm's networks that end early, see images of several sizes, and average the image's tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from tvc_core import BackboneError, HybridBuilder, ParameterError, PatchError

BUILDER = HybridBuilder()


def image(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


def randomized(network: nn.Module) -> nn.Module:
    """Give a network weights that are no fresh one's, since a fresh ViT's head is 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


# -- ends ------------------------------------------------------------------------------------------

ENDS = [
    ("test_efficientnet", 3),
    ("test_convnext", 2),
    ("test_resnet", 3),
    ("test_vit2", 2),
    ("test_vit3", 1),  # pools by attention
]


@pytest.mark.parametrize(("name", "count"), ENDS)
def test_an_early_end_gives_what_timms_network_gives_there(
    name: str, count: int, tmp_path: Path
) -> None:
    theirs: Any = randomized(timm.create_model(name))
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    options = {"pretrained_cfg_overlay": {"file": str(tmp_path / "net.pth")}}
    model: Any = BUILDER.from_backbone(f"timm/{name}", stages=count, options=options).eval()
    x = image(*theirs.pretrained_cfg["input_size"][1:])
    module = model.stage_info[-1].module
    seen: list[Tensor] = []
    theirs.get_submodule(module).register_forward_hook(lambda _, args, out: seen.append(out))
    with torch.no_grad():
        theirs(x)
        assert torch.equal(model.forward_features(x), seen[0])
        pooled = model(x)
        assert pooled.shape == (2, model.stage_info[-1].channels) and model.num_classes == 0
        assert torch.equal(model.forward_head(model.forward_features(x)), pooled)
    kept, gone = set(model.state_dict()), set(model._hybrid.left_out.tensors)
    assert kept | gone == set(theirs.state_dict()) and not kept & gone
    assert any(key.startswith(module) for key in kept)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


def test_timms_own_reduction_to_features_has_the_same_maps_and_parameters() -> None:
    model: Any = BUILDER.from_backbone("timm/test_resnet", None, stages=2).eval()
    theirs: Any = timm.create_model("test_resnet", features_only=True, out_indices=(1, 2)).eval()
    theirs.load_state_dict(model.state_dict())  # no key more or less: timm drops the same
    x = image(96, 64)
    for ours, wanted in zip(model.get_stage_outputs(x, [0, 1]), theirs(x), strict=True):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize(
    ("name", "said"),
    [("cait_xxs24_224", "uses cls_token after that stage. Build it whole: get_stage_outputs")],
)
def test_a_class_token_of_the_last_stage_keeps_a_network_whole(name: str, said: str) -> None:
    with pytest.raises(BackboneError) as caught:
        BUILDER.from_backbone(f"timm/{name}", None, stages=2)
    assert said in str(caught.value)


# -- sizes -----------------------------------------------------------------------------------------

SIZES = [(160, 160), (80, 320), (320, 80), (64, 96)]
"""The first three have as many tokens: the number does not tell how they lie."""

CONV = {"wrap": {"type": "conv_bn_act", "init": "paper", "params": {"kernel_size": 3}}}


class OnTokens(nn.Module):
    """A timm ViT's block, and on its tokens a block that sees maps; written by hand."""

    def __init__(self, inner: nn.Module, block: nn.Module, prefix: int) -> None:
        super().__init__()
        self.inner, self.block, self.prefix = inner, block, prefix
        self.grid = (0, 0)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self.inner(x, *args, **kwargs)
        parts = [self.block(x[:, n, :, None, None]).flatten(2) for n in range(self.prefix)]
        maps = x[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        return torch.cat([*parts, self.block(maps).flatten(2)], 2).transpose(1, 2)


def by_hand(model: Any, name: str, path: str, prefix: int, **options: Any) -> tuple[Any, OnTokens]:
    network: Any = timm.create_model(name, **options)
    plain = {k: v for k, v in model.state_dict().items() if not k.startswith("patches.")}
    network.load_state_dict(plain)
    block = model.get_submodule(model.patch_records[0].paths[0]).block
    parent, _, child = path.rpartition(".")
    wrapped = OnTokens(network.get_submodule(path), block, prefix)
    network.get_submodule(parent)._modules[child] = wrapped
    return network.eval(), wrapped


@pytest.mark.parametrize(("name", "patch"), [("test_vit", 16), ("test_vit", 14), ("test_vit4", 12)])
@pytest.mark.parametrize("pad", [False, True])
def test_a_block_on_tokens_sees_the_image_whatever_its_size(
    name: str, patch: int, pad: bool
) -> None:
    options = {"dynamic_img_size": True, "dynamic_img_pad": pad, "patch_size": patch}
    model: Any = BUILDER.from_backbone(
        f"timm/{name}", None, patches={"blocks.1": CONV}, options=options
    )
    randomized(model)
    hand, block = by_hand(model, name, "blocks.1", 1, **options)
    assert {stage.stride for stage in model.stage_info} == {patch}
    for height, width in [*SIZES, *([(100, 130)] if pad else [])]:
        height, width = height * patch // 16, width * patch // 16  # whole patches, but the last
        x = image(height, width)
        block.grid = (-(-height // patch), -(-width // patch))
        with torch.no_grad():
            assert torch.allclose(model(x), hand(x), atol=1e-5)
            assert model.get_stage_outputs(x, -1)[0].shape[2:] == block.grid


@pytest.fixture
def on_tokens() -> Any:
    model: Any = BUILDER.from_backbone(
        "timm/test_vit", None, patches={"blocks.1": CONV}, options={"dynamic_img_size": True}
    )
    return randomized(model)


@pytest.mark.sweep
def test_compiled_and_exported_passes_know_the_image_as_well(on_tokens: Any) -> None:
    model = on_tokens
    compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
    for size in SIZES[1:3]:
        assert torch.allclose(compiled(image(*size)), model(image(*size)), atol=1e-5)
    x = image(*SIZES[2])
    exported = torch.export.export(model, (x,), strict=False)
    assert torch.allclose(exported.module()(x), model(x), atol=1e-5)


def test_a_recomputed_pass_knows_the_image_as_well(on_tokens: Any) -> None:
    model, grads = on_tokens, []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(image(80, 320)).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_tokens_that_are_no_grid_of_the_image_are_refused() -> None:
    options = {"dynamic_img_size": True, "patch_drop_rate": 0.5}
    with pytest.raises(PatchError, match=r"training step fails.*51 tokens.*10x10.*drops or merges"):
        BUILDER.from_backbone(
            "timm/test_vit", None, patches={"blocks.1": {"wrap": "se"}}, options=options
        )
    options["patch_drop_rate"] = 0
    model: Any = BUILDER.from_backbone(
        "timm/test_vit", None, patches={"blocks.1": {"wrap": "se"}}, options=options
    ).eval()
    model(image(64, 96))
    model.blocks[0].register_forward_hook(lambda _, args, out: out[:, :-3])
    with pytest.raises(PatchError, match=r"22 tokens.*patches of 16 pixels.*would be 4x6.*drops"):
        model(image(64, 96))


@pytest.mark.sweep
def test_a_block_in_a_swin_block_sees_images_of_several_sizes() -> None:
    name, options = "swin_tiny_patch4_window7_224", {"strict_img_size": False}
    target = "layers.1.blocks.1.mlp"  # which gets tokens [N, L, C] of a map with stride 8
    model: Any = BUILDER.from_backbone(
        f"timm/{name}", None, patches={target: CONV}, options=options
    )
    randomized(model)
    hand, block = by_hand(model, name, target, 0, **options)
    for height, width in [(224, 224), (112, 448), (224, 96)]:
        x = image(height, width)
        block.grid = (height // 8, width // 8)
        with torch.no_grad():
            assert torch.allclose(model(x), hand(x), atol=1e-4)


def test_an_image_size_may_be_a_height_and_a_width(tmp_path: Path) -> None:
    torch.save(randomized(timm.create_model("test_vit")).state_dict(), tmp_path / "net.pth")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "net.pth")}}
    theirs: Any = timm.create_model("test_vit", pretrained=True, img_size=(96, 128), **overlay)
    model: Any = BUILDER.from_backbone(
        "timm/test_vit", image_size=[96, 128], options=overlay, patches={"blocks.0": {"wrap": "se"}}
    )
    x = image(96, 128)
    assert torch.equal(model.eval()(x), theirs.eval()(x))
    assert model.get_stage_outputs(x, -1)[0].shape == (2, 64, 6, 8)
    model.save(tmp_path / "wide.safetensors")
    again = BUILDER.load(tmp_path / "wide.safetensors")
    assert again.recipe.image_size == (96, 128) and torch.equal(again(x), model(x))
    prepared = model.transforms()(torch.zeros(3, 300, 200, dtype=torch.uint8))
    assert prepared.shape == (3, 96, 128)


@pytest.mark.parametrize(
    ("name", "given", "near"),
    [
        ("test_vit", [97, 160], [[96, 160], [112, 160]]),
        ("test_vit", 100, [[96, 96], [112, 112]]),
        ("test_vit3", 5, [[16, 16]]),
    ],
)
def test_a_size_of_which_a_border_would_be_cut_off_is_refused(
    name: str, given: Any, near: list[list[int]]
) -> None:
    said = re.escape(f"image_size={given} does not divide into patches of 16x16 pixels")
    with pytest.raises(ParameterError, match=said) as caught:
        BUILDER.from_backbone(f"timm/{name}", None, image_size=given)
    for height, width in near:
        assert f"{height}x{width}" in str(caught.value)
        model = BUILDER.from_backbone(f"timm/{name}", None, image_size=[height, width])
        assert model(image(height, width)).shape == (2, 1000)


def test_a_size_that_the_network_does_not_accept_is_refused() -> None:
    model: Any = BUILDER.from_backbone("timm/test_vit", None)
    said = r"trained with images of 160x160, does not accept images of 100x130 pixels.*divisible"
    with pytest.raises(BackboneError, match=said):
        model.remeasure(image_size=[100, 130])
    assert model._hybrid.probe_shape == (1, 3, 160, 160)
    with pytest.raises(BackboneError, match=r"levit_128s.*does not accept images of 97x160 pixels"):
        BUILDER.from_backbone("timm/levit_128s", None, image_size=[97, 160])


# -- heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("vit_small_patch16_dinov3", {}, marks=pytest.mark.sweep),
        pytest.param("eva02_tiny_patch14_224", {}, marks=pytest.mark.sweep),
        ("test_vit4", {"reg_tokens": 4}),  # five tokens in front
        ("test_vit2", {"global_pool": "avgmax"}),
        ("test_vit", {"global_pool": "max"}),
        ("test_vit", {"drop_rate": 0.5}),
    ],
)
def test_the_head_of_a_vit_that_averages_tokens_is_known(
    name: str, options: dict[str, Any]
) -> None:
    theirs: Any = randomized(timm.create_model(name, num_classes=4, **options))
    model: Any = BUILDER.from_backbone(f"timm/{name}", None, num_classes=4, options=options).eval()
    model.load_state_dict(theirs.state_dict())
    x = image(*theirs.pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        features = model.forward_features(x)
        assert torch.equal(features, theirs.forward_features(x))
        assert torch.equal(model.forward_head(features), theirs(x))
        wanted = theirs.forward_head(features, pre_logits=True)
        assert torch.equal(model.forward_head(features, pre_logits=True), wanted)
        model.train(), theirs.train()  # dropout of the head is part of the way
        torch.manual_seed(0)
        dropped = model.forward_head(features)
        torch.manual_seed(0)
        assert torch.equal(dropped, theirs.forward_head(features))


def test_a_vit_that_was_set_to_another_size_is_measured_at_it() -> None:
    model: Any = BUILDER.from_backbone("timm/test_vit", None, patches={"blocks.1": CONV})
    randomized(model)
    model.set_input_size((64, 96))
    model.remeasure(image_size=[64, 96])
    assert model._hybrid.probe_shape == (1, 3, 64, 96)
    x = image(64, 96)
    assert model.get_stage_outputs(x, -1)[0].shape == (2, 64, 4, 6)
    hand, block = by_hand(model, "test_vit", "blocks.1", 1, img_size=(64, 96))
    block.grid = (4, 6)
    assert torch.allclose(model(x), hand(x), atol=1e-5)


@pytest.mark.parametrize("share", [0.75, 1.0])
def test_images_are_squashed_to_the_shape_of_the_network(tmp_path: Path, share: float) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "net.pth")
    said = {"crop_mode": "squash", "crop_pct": share}
    overlay = {"file": str(tmp_path / "net.pth"), **said}
    options = {"pretrained_cfg_overlay": overlay}
    model: Any = BUILDER.from_backbone("timm/test_vit", options=options, image_size=[96, 160])
    config = resolve_data_config({"input_size": (3, 96, 160), **said}, model=model)
    picture = Image.radial_gradient("L").resize((421, 300)).convert("RGB")
    theirs: Any = create_transform(**config, is_training=False)
    torch.testing.assert_close(model.transforms()(picture), theirs(picture), rtol=0, atol=1e-5)
