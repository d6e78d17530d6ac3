"""MaxViT at other sizes of images: the same tensors, as torchvision computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from tvc_core import HybridBuilder, ParameterError


@torch.no_grad()
def test_weights_are_the_same_at_another_size(tmp_path: Path) -> None:
    official = torchvision.models.maxvit_t(input_size=(448, 448)).eval()
    torch.save(official.state_dict(), file := tmp_path / "own.pth")
    model = HybridBuilder().from_torchvision("maxvit_t", file, image_size=448).eval()
    images = torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), official(images))
    assert model.transforms().crop_size == [448]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_seed_gives_the_same_parameters_at_each_size() -> None:
    build = HybridBuilder().from_backbone
    options: list[dict[str, Any]] = [{}, {"image_size": 224}, {"image_size": (448, 448)}]
    plain, same, larger = (build("maxvit_t", None, seed=1, **each).state_dict() for each in options)
    assert plain.keys() == same.keys() == larger.keys()
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    assert all(torch.equal(plain[name], larger[name]) for name in plain)


@pytest.mark.parametrize("size", [112, 192, 256, 300, (224, 448), (448, 224), 225], ids=str)
def test_a_size_whose_maps_do_not_divide_into_windows_is_refused(size: Any) -> None:
    with pytest.raises(ParameterError, match=r"multiple of 224 pixels, such as (224|448), "):
        HybridBuilder().from_backbone("maxvit_t", None, image_size=size)
