"""What `model.transforms()` makes of pictures and tensors, in evaluation and in training."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as T

from tests.core.conftest import TINY, Builder, build_tiny
from tvc_core import (
    BackboneError,
    BackboneSpec,
    HybridBuilder,
    HybridModel,
    ParameterError,
    Preprocessing,
    Recipe,
    Registry,
    WeightsError,
    WeightsSpec,
    describe_file,
    describe_model,
    load,
)
from tvc_core.recipe import make_plan
from tvc_core.weights.digest import digest_of
from tvc_core.weights.preprocessing import transforms

SMALL = WeightsSpec(
    name="V1",
    crop_size=32,
    resize_size=40,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
    num_classes=7,
)
RNG = np.random.default_rng(0)
COLORS = Image.fromarray(RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8))
GREY = Image.fromarray(RNG.integers(0, 256, (50, 70), dtype=np.uint8))

Make = Callable[..., HybridModel]


@pytest.fixture
def model(lab: Builder) -> Make:
    """Return a function that makes a small hybrid with weights of the fields given."""

    def make(arguments: dict[str, Any] | None = None, **fields: Any) -> HybridModel:
        spec = dataclasses.replace(
            TINY,
            name="prepared",
            weights=(dataclasses.replace(SMALL, **fields),),
            default_weights="V1",
            factory=lambda spec, *, weights, **options: build_tiny(spec, weights=None, **options),
        )
        return lab(spec).from_backbone("prepared", **(arguments or {}))

    return make


def by_hand(*steps: Any, mean: Any = SMALL.mean, std: Any = SMALL.std) -> Any:
    return T.Compose(
        [*steps, T.PILToTensor(), T.ConvertImageDtype(torch.float), T.Normalize(mean, std)]
    )


EVALUATION = by_hand(T.Resize(40), T.CenterCrop(32))


# -- training and test sizes -----------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_augments_as_torchvisions_reference_scripts_do(
    model: Make, interpolation: str
) -> None:
    prepare = model(interpolation=interpolation).transforms(train=True)
    mode = T.InterpolationMode(interpolation)
    reference = by_hand(
        T.RandomResizedCrop(32, interpolation=mode, antialias=True), T.RandomHorizontalFlip(0.5)
    )
    seen = []
    for seed in range(6):
        torch.manual_seed(seed)
        expected = reference(COLORS)
        torch.manual_seed(seed)
        seen.append(prepare(COLORS))
        torch.testing.assert_close(seen[-1], expected, rtol=0, atol=1e-6)
    assert not torch.equal(seen[0], seen[1])
    pixels = T.functional.pil_to_tensor(COLORS)
    assert prepare(pixels.float() / 255).shape == prepare(pixels[None]).shape[1:] == (3, 32, 32)


def test_the_test_size_is_the_weights_own_where_they_have_one(model: Make) -> None:
    larger = model(test_crop_size=48, test_resize_size=50)
    by_test_size = by_hand(T.Resize(50), T.CenterCrop(48))
    assert torch.equal(larger.transforms(use_test_size=True)(COLORS), by_test_size(COLORS))
    assert torch.equal(larger.transforms()(COLORS), EVALUATION(COLORS))
    whole = model(test_crop_size=48).transforms(use_test_size=True)
    assert torch.equal(whole(COLORS), by_hand(T.Resize(48), T.CenterCrop(48))(COLORS))
    assert torch.equal(model().transforms(use_test_size=True)(COLORS), EVALUATION(COLORS))
    with pytest.raises(ParameterError, match="train=True and use_test_size=True contradict"):
        larger.transforms(train=True, use_test_size=True)


def test_a_squashed_image_gets_both_sides(model: Make) -> None:
    prepare = model(squash=True, crop_size=40).transforms()
    assert torch.equal(prepare(COLORS), by_hand(T.Resize((40, 40)), T.CenterCrop(40))(COLORS))


@pytest.mark.parametrize("train", [False, True])
def test_preprocessing_goes_to_the_workers_of_a_loader(model: Make, train: bool) -> None:
    prepare = model().transforms(train=train)
    assert isinstance(prepare, nn.Module)
    twin = pickle.loads(pickle.dumps(prepare))
    torch.manual_seed(0)
    expected = prepare(COLORS)
    torch.manual_seed(0)
    assert torch.equal(twin(COLORS), expected)
    with pytest.raises(ParameterError):
        twin(Image.new("F", (50, 50)))


# -- pictures of all modes -------------------------------------------------------------------------

OPAQUE = COLORS.copy()
OPAQUE.putalpha(255)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        pytest.param(GREY, Image.merge("RGB", [GREY] * 3), id="L"),
        pytest.param(
            GREY.point(lambda value: 255 * (value > 99), "1"),
            Image.merge("RGB", [GREY.point(lambda value: 255 * (value > 99))] * 3),
            id="1",
        ),
        pytest.param(OPAQUE, COLORS, id="RGBA"),
        pytest.param(OPAQUE.convert("LA"), Image.merge("RGB", [COLORS.convert("L")] * 3), id="LA"),
        pytest.param(
            COLORS.quantize(256),
            Image.fromarray(
                np.array(COLORS.quantize(256).getpalette(), np.uint8).reshape(-1, 3)[
                    np.array(COLORS.quantize(256))
                ]
            ),
            id="P",
        ),
        pytest.param(
            Image.merge("CMYK", [*COLORS.split(), Image.new("L", COLORS.size)]),
            Image.fromarray(255 - np.array(COLORS)),
            id="CMYK",
        ),
    ],
)
@pytest.mark.parametrize("train", [False, True])
def test_what_has_a_clear_meaning_in_red_green_and_blue_is_converted(
    model: Make, picture: Image.Image, expected: Image.Image, train: bool
) -> None:
    prepare = model().transforms(train=train)
    torch.manual_seed(0)
    found = prepare(picture)
    torch.manual_seed(0)
    assert torch.equal(found, prepare(expected))
    if not train:
        assert torch.equal(found, EVALUATION(expected))


def gif_with_a_transparent_color() -> Image.Image:
    content = io.BytesIO()
    palette = COLORS.quantize(16)
    palette.save(content, "PNG", transparency=palette.getpixel((0, 0)))
    return Image.open(content)


def half_transparent() -> Image.Image:
    picture = OPAQUE.copy()
    picture.putpixel((3, 4), (1, 2, 3, 128))
    return picture


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (half_transparent(), "'RGBA' has transparent pixels.*alpha_composite"),
        (half_transparent().convert("LA"), "'LA' has transparent pixels"),
        (gif_with_a_transparent_color(), "'P' has transparent pixels"),
        (Image.new("I;16", (50, 50)), "'I;16' has more than 8 bits.*scale it to 8 bits"),
        (Image.new("I", (50, 50)), "'I' has more than 8 bits"),
        (Image.new("F", (50, 50)), "'F' has more than 8 bits"),
        (np.zeros((50, 50, 3), np.uint8), r"not ndarray: PIL\.Image\.fromarray"),
        ("photo.jpg", r"not str: PIL\.Image\.open"),
        (Path("photo.jpg"), r"Path: PIL\.Image\.open"),
        ([COLORS, COLORS], "not list: prepare images one by one"),
        (torch.zeros(1, 50, 50), r"\[1, 50, 50\] is not an image \[..., 3, H, W\] of 3 channels"),
        (torch.zeros(2, 4, 50, 50), "select or repeat channels"),
        (torch.zeros(50, 60, 3), r"channels are last: image\.movedim\(-1, -3\)"),
        (torch.zeros(50, 60), r"\[50, 60\] is not an image"),
        (torch.zeros(3, 50, 60, dtype=torch.int64), "torch.int64 says no range.*torch.uint8"),
        (torch.full((2, 3, 50, 60), 255.0), "from 255 to 255: divide by 255"),
        (torch.full((3, 50, 60), -1.5, dtype=torch.float16), "normalized already"),
        (torch.zeros(3, 0, 60), r"\[3, 0, 60\] has no pixels"),
        (Image.new("RGB", (0, 5)), "'RGB' has no pixels"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("train", [False, True])
def test_what_would_be_a_guess_is_refused_by_name(
    model: Make, picture: Any, text: str, train: bool
) -> None:
    with pytest.raises(ParameterError, match=text):
        model().transforms(train=train)(picture)


def test_bands_that_are_no_colors_are_refused_for_other_numbers_of_channels(lab: Builder) -> None:
    hybrid = lab().from_backbone("tiny", weights=None, in_channels=4)
    hybrid.preprocessing = dataclasses.replace(OWN, mean=(0.5,) * 4, std=(0.5,) * 4)
    assert hybrid.transforms()(OPAQUE).shape[0] == 4
    for picture in (OPAQUE.convert("RGBa"), COLORS.convert("P").convert("PA")):
        with pytest.raises(ParameterError, match=f"'{picture.mode}' has .*: convert it first"):
            hybrid.transforms()(picture)


def test_a_network_for_grey_images_takes_them_as_they_are(lab: Builder) -> None:
    def build(spec: Any, *, weights: Any, **options: Any) -> nn.Module:
        network = build_tiny(spec, weights=None, **options)
        network.stem.conv = nn.Conv2d(1, 8, 3, 2, 1, bias=False)
        return network

    spec = dataclasses.replace(
        TINY,
        name="grey",
        factory=build,
        num_channels=1,
        weights=(dataclasses.replace(SMALL, mean=(0.5,), std=(0.2,)),),
        default_weights="V1",
    )
    prepare = lab(spec).from_backbone("grey").transforms()
    expected = by_hand(T.Resize(40), T.CenterCrop(32), mean=(0.5,), std=(0.2,))
    assert torch.equal(prepare(GREY), expected(GREY))
    assert torch.equal(prepare(COLORS), expected(COLORS.convert("L")))
    palette = COLORS.quantize(64)  # the numbers of its colors are no brightness
    assert torch.equal(prepare(palette), expected(palette.convert("RGB").convert("L")))
    with pytest.raises(ParameterError, match=r"of 1 channel: "):
        prepare(torch.zeros(3, 50, 60))


# -- what was set for a model ----------------------------------------------------------------------

OWN = Preprocessing(
    size=(24, 36), resize=40, interpolation="bicubic", mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.125)
)


def fitted_by_hand(picture: Image.Image, fit: str) -> np.ndarray:
    """Return pixels [H, W, C] of size 24 x 36 [pixels], by Pillow alone."""
    (width, height), bicubic = picture.size, Image.Resampling.BICUBIC
    if fit == "squash":
        return np.asarray(picture.resize((36, 24), bicubic))
    if fit == "crop":  # torch cuts off what is half a pixel
        short = min(width, height)
        wide, high = int(40 * width / short), int(40 * height / short)
        left, top = round((wide - 36) / 2), round((high - 24) / 2)
        found = picture.resize((wide, high), bicubic)
        return np.asarray(found.crop((left, top, left + 36, top + 24)))
    scale = min(36 / width, 24 / height)
    inner = picture.resize((round(width * scale), round(height * scale)), bicubic)
    border = tuple(round(255 * value) for value in OWN.mean[: len(picture.getbands())])
    canvas = Image.new(picture.mode, (36, 24), border if len(border) > 1 else border[0])
    canvas.paste(inner, ((36 - inner.width) // 2, (24 - inner.height) // 2))
    return np.asarray(canvas)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (9, 90)])
def test_what_was_set_prepares_images_after_save_and_load(
    lab: Builder, fit: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    builder = lab()
    hybrid = builder.from_backbone("tiny", weights=None)
    with pytest.raises(BackboneError, match="nothing says how"):
        hybrid.transforms()
    own = hybrid.preprocessing = dataclasses.replace(OWN, fit=fit)
    hybrid.save(tmp_path / "m.safetensors")
    again = builder.load(tmp_path / "m.safetensors")
    assert again.preprocessing == own
    picture = Image.fromarray(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))
    wanted = torch.from_numpy(fitted_by_hand(picture, fit).copy()).movedim(-1, 0) / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (own.mean, own.std))
    tensor = torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0)
    for prepare in (hybrid.transforms(), again.transforms()):
        assert torch.equal(prepare(picture), (wanted - mean) / std)
        # torch resizes a little differently from Pillow
        for given in (tensor, tensor / 255):
            found = prepare(given[None])[0] * std + mean
            assert (found.clamp(0, 1) - wanted).abs().mean() < 0.01
    assert again.transforms(train=True)(picture).shape == (3, 24, 36)


def test_what_was_set_stays_with_weights_from_a_file_and_with_copies(
    lab: Builder, tmp_path: Path
) -> None:
    builder = lab()
    hybrid = builder.from_backbone("tiny", weights=None)
    hybrid.preprocessing = OWN
    hybrid.save(tmp_path / "m.safetensors")
    assert describe_file(tmp_path / "m.safetensors").preprocessing == OWN.to_mapping()
    new = builder.from_backbone("tiny", weights=tmp_path / "m.safetensors", num_classes=2)
    assert new.preprocessing == copy.deepcopy(hybrid).preprocessing == OWN
    assert new.transforms()(COLORS).equal(hybrid.transforms()(COLORS))
    new.preprocessing = None
    new.save(tmp_path / "n.safetensors")
    assert builder.load(tmp_path / "n.safetensors").preprocessing is None


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pictures_are_then_read_as_a_model_is_trained_on_them(
    lab: Builder, orientation: int
) -> None:
    hybrid = lab().from_backbone("tiny", weights=None)
    hybrid.preprocessing = OWN
    prepare, turned = hybrid.transforms(), COLORS.copy()
    turned.getexif()[0x0112] = orientation
    upright = {1: 0, 3: 180, 6: -90, 8: 90}[orientation]
    assert prepare(turned).equal(prepare(COLORS.rotate(upright, expand=True)))
    deep = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
    assert prepare(deep).equal(prepare(GREY)) and prepare(GREY).equal(prepare(GREY.convert("RGB")))
    white = COLORS.copy()
    white.putalpha(0)
    assert prepare(white).equal(prepare(Image.new("RGB", COLORS.size, "white")))
    assert prepare(OPAQUE.convert("LA").convert("La")).equal(prepare(COLORS.convert("L")))
    with pytest.raises(ParameterError, match="32 bits"):
        prepare(Image.new("F", (40, 40)))


def test_a_grey_network_gets_grey(lab: Builder) -> None:
    hybrid = lab().from_backbone("tiny", weights=None, in_channels=1)
    grey = dataclasses.replace(OWN, mean=(0.5,), std=(0.25,), fit="pad")
    hybrid.preprocessing = grey
    wanted = torch.from_numpy(fitted_by_hand(GREY, "squash").copy())
    hybrid.preprocessing = dataclasses.replace(grey, fit="squash")
    assert hybrid.transforms()(GREY).equal(((wanted / 255 - 0.5) / 0.25)[None])
    assert hybrid.transforms()(COLORS).equal(hybrid.transforms()(COLORS.convert("L")))
    with pytest.raises(ParameterError, match="takes 1 channels, and this preprocessing is for 3"):
        hybrid.preprocessing = OWN
    assert len(hybrid.preprocessing.mean) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 24}, "size is height and width"), ({"size": (0, 3)}, "size"),
        ({"size": (True, 3)}, "size"), ({"resize": 0}, "resize"), ({"fit": "cut"}, "fit is one of"),
        ({"interpolation": "lanczos"}, "interpolation"), ({"mean": ()}, "mean"),
        ({"std": (1, 0, 1)}, "std"), ({"std": (1, 1)}, "std"),
        ({"mean": (float("nan"), 0, 0)}, "mean"), ({"mean": "abc"}, "mean"),
        ({"mean": (10**400, 0, 0)}, "mean"), ({"std": (float("inf"), 1, 1)}, "std"),
    ],
)  # fmt: skip
def test_a_preprocessing_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=f"Preprocessing: {said}"):
        dataclasses.replace(OWN, **change)
    wrong = {**OWN.to_mapping(), **change}
    with pytest.raises(ParameterError, match=f"Preprocessing: {said}"):
        Preprocessing.from_mapping(wrong)


def test_other_keys_of_a_preprocessing_are_refused(lab: Builder) -> None:
    plain = OWN.to_mapping()
    assert Preprocessing.from_mapping(json.loads(json.dumps(plain))) == OWN
    with pytest.raises(ParameterError, match=r"unknown key 'sise'.*Did you mean 'size'"):
        Preprocessing.from_mapping({**plain, "sise": 3})
    with pytest.raises(ParameterError, match="fit is missing"):
        Preprocessing.from_mapping({k: v for k, v in plain.items() if k != "fit"})
    with pytest.raises(ParameterError, match=r"tvc_core\.Preprocessing, or None"):
        lab().from_backbone("tiny", weights=None).preprocessing = plain


@pytest.mark.parametrize(
    "said",
    [
        {"fit": "crop"}, {**OWN.to_mapping(), "fit": "cut"}, {**OWN.to_mapping(), "more": 1},
        {**OWN.to_mapping(), "size": [10**400, 1]}, {**OWN.to_mapping(), "mean": [0.5], "std": [1]},
        {**OWN.to_mapping(), "std": [[], {}, None]},
    ],
)  # fmt: skip
def test_a_file_with_a_preprocessing_that_cannot_be_is_refused(
    lab: Builder, said: dict[str, Any], tmp_path: Path
) -> None:
    builder, path = lab(), tmp_path / "m.safetensors"
    hybrid = builder.from_backbone("tiny", weights=None)
    hybrid.preprocessing = OWN
    hybrid.save(path)
    data = path.read_bytes()
    tensors = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header["__metadata__"]["tvc"])
    del content["sha256"]
    content["preprocessing"] = said
    content["sha256"] = digest_of(content, tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata={"tvc": json.dumps(content)}))
    with pytest.raises(WeightsError, match="preprocessing inside is not valid"):
        builder.load(path)


def test_a_network_built_without_weights_gets_images_of_its_own_size() -> None:
    registry = Registry()
    # ViT-H/14: its default weights were trained at 518 pixels, its builder makes it for 224
    for offer in registry.all(BackboneSpec):
        built = offer.spec.options.get(offer.spec.size_option)
        for weights in (None, *(each.name for each in offer.spec.weights)):
            plan = make_plan(Recipe(backbone=offer.qualified, weights=weights), registry)
            if plan.weights is None and offer.spec.default_weights is None:
                continue
            known = plan.weights or offer.spec.find_weights(offer.spec.default_weights)
            side = known.crop_size if plan.weights or built is None else built
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # says that default weights stand in
                assert transforms(plan).crop_size == [side], (offer.qualified, weights)


def test_a_file_says_how_images_are_prepared_at_the_size_of_its_model(tmp_path: Path) -> None:
    model = HybridBuilder().from_backbone(
        "timm/vit_tiny_patch16_224", weights=None, image_size=64, num_classes=2
    )
    model.save(tmp_path / "m.safetensors")
    said = describe_file(tmp_path / "m.safetensors").preprocessing or {}
    with pytest.warns(UserWarning, match="no pretrained weights"):
        prepare: Any = load(tmp_path / "m.safetensors").transforms()
    assert [said["crop_size"]] == prepare.crop_size == [64]
    assert [said["resize_size"]] == prepare.resize_size
    assert {each.image for each in describe_model(model)} == {(64, 64)}
