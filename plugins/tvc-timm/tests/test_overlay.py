"""What an overlay of timm's configuration changes, tvc says and keeps: F2, F20 and M11."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import tvc_core
from tvc_core import HybridBuilder, HybridModel, ParameterError, WeightsError

B = HybridBuilder()


def built(name: str, overlay: dict[str, Any], folder: Path, **arguments: Any) -> HybridModel:
    network = timm.create_model(name, num_classes=overlay.get("num_classes"))
    torch.save(network.state_dict(), folder / "own.pth")
    overlay = {"file": str(folder / "own.pth"), **overlay}
    options = {"pretrained_cfg_overlay": overlay}
    return B.from_backbone(f"timm/{name}", options=options, **arguments)


def assert_as_timm(model: HybridModel) -> None:
    wanted = timm.data.resolve_model_data_config(model)
    found: Any = model.transforms()
    assert found.crop_size == [wanted["input_size"][-1]]
    assert (tuple(found.mean), tuple(found.std)) == (wanted["mean"], wanted["std"])
    assert found.resize_size == [int(wanted["input_size"][-1] / wanted["crop_pct"])]
    assert found.interpolation.value == wanted["interpolation"]


OVERLAYS = [
    {
        "num_classes": 7,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.9, 0.8, 0.7),
        "input_size": (3, 128, 128),
    },
    {"num_classes": 1000, "crop_pct": 0.5, "interpolation": "bilinear"},
    {"num_classes": 2, "label_names": ["cat", "dog"]},
]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_images_are_prepared_as_the_network_says(
    tmp_path: Path, name: str, overlay: dict[str, Any]
) -> None:
    model = built(name, overlay, tmp_path)
    assert_as_timm(model)
    assert model.class_names == (
        tuple(overlay["label_names"]) if "label_names" in overlay else None
    )
    assert "weights: own.pth" in model.explain()
    model.save(tmp_path / "m.safetensors")
    (tmp_path / "own.pth").unlink()
    again = tvc_core.load(tmp_path / "m.safetensors")
    assert repr(again.transforms()) == repr(model.transforms())
    assert again.explain() == model.explain().replace(
        next(line for line in model.explain().splitlines() if line.startswith("options:")) + "\n",
        "",
    )
    assert again.class_names == model.class_names


def test_a_missing_file_and_another_head_are_named(tmp_path: Path) -> None:
    options = {"pretrained_cfg_overlay": {"file": str(tmp_path / "absent.pth")}}
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        B.from_backbone("timm/test_resnet", options=options)
    network = timm.create_model("test_resnet", num_classes=7)
    torch.save(network.state_dict(), tmp_path / "seven.pth")
    options = {"pretrained_cfg_overlay": {"file": str(tmp_path / "seven.pth")}}
    with pytest.raises(WeightsError, match=r"'num_classes': 10"):
        B.from_backbone("timm/test_resnet", options=options)


@pytest.mark.parametrize("overlay", [{"file": "own.pth"}, {"mean": (0.1, 0.2, 0.3)}])
@pytest.mark.parametrize("weights", [None, "own.pth"])
def test_an_overlay_is_refused_where_timm_loads_no_weights(
    tmp_path: Path, weights: str | None, overlay: dict[str, Any]
) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "own.pth")
    options = {"pretrained_cfg_overlay": overlay}
    own = weights and str(tmp_path / weights)
    with pytest.raises(ParameterError, match=rf"overlay \({next(iter(overlay))}\) is about"):
        B.from_backbone("timm/test_resnet", own, options=options)


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("test_vit", {"input_size": (3, 128, 128)}, r"image_size=\[128, 128\]"),
        ("test_resnet", {"input_size": (3, 96, 160)}, "not 96x160"),
        ("test_resnet", {"crop_mode": "border"}, "crop_mode 'border'"),
        ("test_resnet", {"crop_mode": "squahs"}, "crop_mode 'squahs'"),
    ],
)
def test_images_of_which_a_file_would_say_nothing_are_refused(
    tmp_path: Path, name: str, said: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ParameterError, match=expected):
        built(name, {"num_classes": 1000, **said}, tmp_path)


def test_an_image_size_beside_that_of_an_overlay_is_kept(tmp_path: Path) -> None:
    overlay = {"num_classes": 1000, "input_size": (3, 96, 160)}
    model: Any = built("test_vit", overlay, tmp_path, image_size=[96, 160])
    model.save(tmp_path / "m.safetensors")
    again: Any = tvc_core.load(tmp_path / "m.safetensors")
    assert again.patch_embed.img_size == (96, 160)
    assert again.transforms().crop_size == model.transforms().crop_size == [96, 160]
