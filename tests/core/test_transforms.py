"""What `model.transforms()` makes of pictures and tensors, in evaluation and in training."""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as T

from tests.core.conftest import TINY, Builder, build_tiny
from tvc_core import HybridModel, ParameterError, WeightsSpec

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
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("train", [False, True])
def test_what_would_be_a_guess_is_refused_by_name(
    model: Make, picture: Any, text: str, train: bool
) -> None:
    with pytest.raises(ParameterError, match=text):
        model().transforms(train=train)(picture)


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
