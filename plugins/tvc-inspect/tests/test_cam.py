"""Class activation maps and gate maps, against captum and against what is written out by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from tvc_inspect import class_map, gate_maps

from tvc_core import BackboneError, HybridBuilder, HybridModel, ParameterError

PHOTOS = Path(__file__).resolve().parents[4] / "shared/data/photos"
LONG = pytest.mark.sweep
CNNS = [
    *("resnet18", "mobilenet_v3_small"),
    *(
        pytest.param(name, marks=LONG)
        for name in ("densenet121", "efficientnet_b0", "timm/resnet18")
    ),
]


def _model(name: str, **given: object) -> HybridModel:
    torch.manual_seed(1)
    return HybridBuilder().from_backbone(name, weights=None, num_classes=12, **given)  # type: ignore[arg-type]


def _image(side: int = 224) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))


def _alike(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


@pytest.mark.parametrize("name", CNNS)
def test_the_map_is_captums(name: str) -> None:
    model = _model(name, patches={"stage:-1": {"wrap": "se"}})
    image = _image(160)
    found = class_map(model, image, 3)
    reference = copy.deepcopy(model).eval()
    layer = reference.get_submodule(model.stage_info[-1].module)
    theirs = LayerGradCam(reference, layer).attribute(image, target=3)[0, 0].detach()
    assert found.layer == model.stage_info[-1].module
    assert found.values.shape == theirs.shape and _alike(found.values, theirs) >= 0.999
    assert found.index == 3 and found.name == "3"
    with torch.no_grad():
        assert found.score == pytest.approx(float(reference(image)[0, 3]), rel=1e-5)


def _by_hand(model: HybridModel, layer: str, image: Tensor, index: int, prefix: int) -> Tensor:
    """Return the map of a network of tokens or of [N, H, W, C]: gradients by tensor hooks."""
    network = copy.deepcopy(model).eval()
    kept: list[Tensor] = []

    def keep(_m: nn.Module, _a: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    network.get_submodule(layer).register_forward_hook(keep)
    network(image)[0, index].backward()
    x, gradient = kept[0][0].detach(), kept[0].grad[0]
    x, gradient = (t.reshape(-1, t.shape[-1])[prefix:] for t in (x, gradient))
    side = round(len(x) ** 0.5)
    return (x @ gradient.mean(0)).reshape(side, side)


@pytest.mark.parametrize(
    ("name", "layer", "prefix"),
    [
        pytest.param("swin_t", "norm", 0, marks=LONG),
        pytest.param("vit_b_32", "encoder.layers.encoder_layer_11.ln_1", 1, marks=LONG),
        pytest.param("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", 1, marks=LONG),
        pytest.param("swin_v2_t", "norm", 0, marks=LONG),
        ("timm/vit_tiny_patch16_224", "blocks.11.norm1", 1),
    ],
)
def test_transformers_have_the_map_written_by_hand(name: str, layer: str, prefix: int) -> None:
    model = _model(name, **({"image_size": 64} if "vit_" in name else {}))
    image = _image(64)
    found = class_map(model, image, 2)
    assert found.layer == layer
    expected = _by_hand(model, layer, image, 2, prefix)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-7)
    assert bool(found.values.any())


def test_the_default_is_the_class_with_the_largest_logit_and_names_work() -> None:
    model = _model("resnet18")
    model.class_names = tuple(f"class {index}" for index in range(12))
    with torch.no_grad():
        best = int(copy.deepcopy(model).eval()(_image(64))[0].argmax())
    found = class_map(model, _image(64))
    assert (found.index, found.name) == (best, f"class {best}")
    assert class_map(model, _image(64), "class 4").index == 4
    assert class_map(model, _image(64), "4").index == 4
    with pytest.raises(ParameterError, match=r"there is no class 'clas 4'.*Did you mean 'class 4'"):
        class_map(model, _image(64), "clas 4")
    for target in (12, ""):
        with pytest.raises(ParameterError, match="0 to 11"):
            class_map(model, _image(64), target)
    with pytest.raises(ParameterError, match="takes one image"):
        class_map(model, torch.zeros(2, 3, 64, 64))


def test_another_layer_and_one_that_is_no_map() -> None:
    model = _model("resnet18")
    assert class_map(model, _image(64), 1, layer="layer2").values.shape == (8, 8)
    with pytest.raises(ParameterError, match="'fcc' returns no map"):
        class_map(model, _image(64), 1, layer="fcc")


def test_a_stage_of_one_pixel_leaves_the_map_to_the_one_before() -> None:
    model = _model("resnet18")
    found = class_map(model, _image(32), 1)  # of which layer4 makes one pixel
    assert found.layer == "layer3" and found.values.shape == (2, 2)
    reference = copy.deepcopy(model).eval()
    theirs = LayerGradCam(reference, reference.layer3).attribute(_image(32), target=1)[0, 0]
    torch.testing.assert_close(found.values, theirs.detach(), rtol=1e-4, atol=1e-7)
    with pytest.raises(BackboneError, match="1 x 1 pixels are too small"):
        class_map(model, torch.randn(1, 3, 1, 1), 1)


@pytest.mark.parametrize("name", ["squeezenet1_1", pytest.param("vit_b_32", marks=LONG)])
def test_a_head_of_zeros_has_no_map(name: str) -> None:
    model = HybridBuilder().from_backbone(name, weights=None)
    head = model.get_submodule(model.head_info[0].module)
    torch.nn.init.zeros_(head.weight)  # as torchvision's ViT starts
    with pytest.raises(BackboneError, match="depends on no pixel"):
        class_map(model, _image(), 1)


def test_what_is_not_finite_has_no_map() -> None:
    model = _model("shufflenet_v2_x0_5")
    with torch.no_grad():
        model.fc.weight.fill_(float("nan"))
    with pytest.raises(BackboneError, match=r"logit is nan.*weights, or the image"):
        class_map(model, _image(64))


def test_several_heads_have_a_map_each() -> None:
    torch.manual_seed(0)
    model = HybridBuilder().from_backbone(
        "mobilenet_v3_small", weights=None, heads={"breed": ["pug", "beagle"], "age": 1}
    )
    image = _image(64)
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(image)
    found = class_map(model, image, "breed:beagle")
    assert (found.name, found.index) == ("breed:beagle", 1)
    assert found.score == pytest.approx(float(logits["breed"][0, 1]), rel=1e-5)
    other = class_map(model, image, "age")
    assert other.name == "age:0" and _alike(found.values, other.values) < 0.99
    assert class_map(model, image, "breed").index == int(logits["breed"][0].argmax())
    for target, says in ((None, "which class"), ("bred:pug", "class .bred:pug.")):
        with pytest.raises(ParameterError, match=rf"^{says}.*HEAD:CLASS.*The heads are breed, age"):
            class_map(model, image, target)
    with pytest.raises(ParameterError, match=r"'pgu'.*Did you mean 'pug'"):
        class_map(model, image, "breed:pgu")
    model = HybridBuilder().from_backbone("squeezenet1_1", weights=None, num_classes=0)
    with pytest.raises(BackboneError, match="has 0 classes"):
        class_map(model, image)


def test_the_model_is_as_before() -> None:
    model = _model("resnet18", patches={"layer3": {"wrap": "se"}})
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(9)
    before = torch.get_rng_state()
    class_map(model, _image(64))
    gate_maps(model, _image(64))
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not model.layer4[0].conv1._forward_hooks


def test_gate_maps_are_the_gates_of_the_blocks() -> None:
    patches = {"layer2": {"wrap": "se"}, "layer3": {"wrap": "cbam_block"}}
    model = _model("resnet18", patches=patches)
    by_path = {each.path: each for each in gate_maps(model, _image(64))}
    assert list(by_path) == ["patches.layer2.se", "patches.layer3.cbam_block"]
    network = copy.deepcopy(model).eval()
    seen: dict[str, Tensor] = {}
    for path in by_path:
        network.get_submodule(path).register_forward_pre_hook(
            lambda _m, args, path=path: seen.update({path: args[0]})
        )
    with torch.no_grad():
        network(_image(64))
        for path, found in by_path.items():
            x, block = seen[path], network.get_submodule(path).block
            gate = (block(x) / x)[0]  # a gated block multiplies
            if found.is_spatial:
                expected = torch.nanmean(torch.where(x[0].abs() > 1e-3, gate, torch.nan), 0)
                assert found.values.shape == x.shape[2:]
            else:
                usable = torch.where(x[0].abs() > 1e-3, gate, torch.nan)
                expected = torch.nanmean(usable.flatten(1), 1)
                assert found.values.shape == (x.shape[1],)
            known = ~expected.isnan()
            assert float(known.float().mean()) > 0.9
            tolerance = 0.1 if found.is_spatial else 1e-3  # a mean over other channels
            assert float((found.values - expected)[known].abs().max()) < tolerance


def test_factors_for_each_channel_are_seen_whole() -> None:
    patches = {"layer1": {"wrap": "layer_scale"}, "fc": {"wrap": "layer_scale"}}
    model = HybridBuilder().from_backbone("resnet18", weights=None, patches=patches)
    for each in gate_maps(model, _image(64)):
        assert torch.equal(each.values, model.get_submodule(each.path).block.gamma)  # type: ignore[union-attr]


def test_gates_of_tokens_are_those_of_the_image() -> None:
    patches = {"blocks.5": {"wrap": "cbam_block"}}
    model = _model("timm/vit_tiny_patch16_224", patches=patches, image_size=[64, 96])
    (found,) = gate_maps(model, torch.randn(1, 3, 64, 96))
    assert found.is_spatial and found.values.shape == (4, 6)


@pytest.mark.sweep
@pytest.mark.parametrize("name", HybridBuilder.list_backbones())
def test_no_map_of_a_classifier_is_all_zero(name: str) -> None:
    torch.manual_seed(0)
    # small images, since the largest of them take minutes with others
    side = 4 * int(name.rpartition("_")[2]) if name.startswith("vit_") else 96
    side = 224 if name in ("maxvit_t", "alexnet") else side
    sizes = {"image_size": side} if name.startswith("vit_") else {}
    model = HybridBuilder().from_backbone(name, weights=None, num_classes=10, **sizes)
    found = class_map(model, _image(side), 3)
    assert found.values.numel() > 1
    assert bool(found.values.any()) and bool(found.values.isfinite().all())


@pytest.mark.sweep
def test_hiding_the_hottest_cells_costs_the_class_most() -> None:
    if not PHOTOS.is_dir():
        pytest.skip("the photos are not beside the project")
    from tvc_inspect.pictures import open_photo, prepared

    model = HybridBuilder().from_backbone("efficientnet_lite0")
    network = copy.deepcopy(model).eval()
    draw = torch.Generator().manual_seed(0)
    better = 0
    for path in sorted(PHOTOS.glob("*.jpg")):
        image, _ = prepared(model, open_photo(path), path.name)
        label = int(path.name[:4])  # as the photos are named
        found = class_map(model, image, label)
        assert found.values.shape == (7, 7)
        cells = [found.values.flatten().topk(10).indices]
        cells += [torch.randperm(49, generator=draw)[:10] for _ in range(3)]
        with torch.no_grad():
            images = torch.cat([_hidden(image, each) for each in cells])
            left = network(images).softmax(1)[:, label]
        better += bool(left[0] < left[1:].mean())
    assert better >= 75, better


def _hidden(image: Tensor, cells: Tensor) -> Tensor:
    shown = torch.ones(49)
    shown[cells] = 0
    side = image.shape[2]
    mask = torch.nn.functional.interpolate(shown.reshape(1, 1, 7, 7), (side, side))
    return image * mask  # 0 is the mean color
