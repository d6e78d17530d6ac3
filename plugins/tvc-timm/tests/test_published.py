"""Files in the layout of a model's own repository go into a hybrid as timm itself loads them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from tvc_timm.migrate import _filter_of

from tvc_core import HybridBuilder, WeightsError, partial_load

B = HybridBuilder()
State = dict[str, Tensor]


def source(name: str, **arguments: Any) -> State:
    torch.manual_seed(0)
    network = timm.create_model(name, **arguments)
    return {k: torch.rand_like(v) if v.is_floating_point() else v
            for k, v in network.state_dict().items()}  # fmt: skip


def convnext(state: State) -> State:
    """FAIR's names."""
    words = {"head.norm.": "norm.", "head.fc.": "head.", "mlp.fc": "pwconv", "conv_dw": "dwconv"}
    found = {}
    for key, value in state.items():
        for new, old in words.items():
            key = key.replace(new, old)
        key = re.sub(r"stages\.(\d+)\.blocks\.(\d+)", r"stages.\1.\2", key)
        key = re.sub(r"stages\.(\d+)\.downsample\.", r"downsample_layers.\1.", key)
        found[re.sub(r"^stem\.", "downsample_layers.0.", key)] = value
    return found


def swin(state: State) -> State:
    """Microsoft's: a stage ends with what timm's next one begins with, and masks are stored."""
    found = {}
    for key, value in state.items():
        key = re.sub(
            r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key
        )
        found[key.replace("head.fc.", "head.")] = value
    found["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    found["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return found


def deit3(state: State) -> State:
    """FAIR's layer scale."""
    return {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in state.items()}


def clip(state: State) -> State:
    """OpenCLIP's towers with a network of timm's, whose projection is the head."""
    found = {f"visual.trunk.{k}": v for k, v in state.items() if not k.startswith("head.")}
    found["visual.head.proj.weight"] = state["head.weight"]
    return {**found, "text.embedding": torch.rand(3, 3), "logit_scale": torch.ones(())}


LAYOUTS: dict[str, tuple[Callable[[State], State], dict[str, Any]]] = {
    "test_convnext": (convnext, {}),
    "test_convnext2": (convnext, {}),
    "test_vit": (clip, {}),
    "swin_tiny_patch4_window7_224": (swin, {"embed_dim": 24}),
    "deit3_small_patch16_224": (deit3, {"embed_dim": 48}),
}


@pytest.mark.parametrize("front", ["", "module.", "model.net."])
@pytest.mark.parametrize("name", ["test_convnext", "test_convnext2", "test_vit"])
def test_it_is_loaded_as_timm_loads_it(name: str, front: str) -> None:
    given = LAYOUTS[name][0](source(name))
    overlay = {"state_dict": given, "num_classes": 1000}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    ours = B.from_backbone(f"timm/{name}", None, patches={"stage:-1": {"wrap": "se"}}).eval()
    report = partial_load(ours, {front + key: value for key, value in given.items()})
    right = theirs.state_dict()
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in right.items())
    below = f" below '{front}'" if front else ""
    assert report.rules[0].startswith(f"as tvc-timm:timm/{name} was published{below} (")
    assert all(key.startswith("patches.") for key in report.missing)
    x = torch.randn(1, 3, *theirs.pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "deit3_small_patch16_224"])
def test_a_layout_with_arguments_of_one_architecture(name: str) -> None:
    """The function that timm makes for the model is the one that is asked."""
    from tvc_timm.migrate import migrate

    layout, smaller = LAYOUTS[name]
    if "deit3" in name:  # all of its widths follow from this one
        smaller = {**smaller, "num_heads": 3}
    right = source(name, **smaller)
    network = timm.create_model(name, **smaller)
    spec: Any = type("Spec", (), {"name": f"timm/{name}"})
    found = migrate(spec, network, layout(right))
    assert found is not None and found.keys() == right.keys()
    assert all(torch.equal(found[key], right[key]) for key in right)


@pytest.mark.parametrize("size", [128, 192, (128, 192)])
def test_position_embeddings_of_another_size(size: Any) -> None:
    state = source("test_vit")
    overlay = {"state_dict": state, "num_classes": 1000}
    theirs = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay=overlay, img_size=size
    )
    ours = B.from_backbone("timm/test_vit", None, image_size=size)
    report = partial_load(ours, state)
    assert torch.equal(ours.pos_embed, theirs.pos_embed) and report.load_ratio == 1.0
    assert [each.key for each in report.converted] == ["pos_embed"]
    assert report.sources["pos_embed"] == "pos_embed" and report.migrated == ()


def test_a_file_is_a_start_with_its_own_classes(tmp_path: Path) -> None:
    state = source("test_convnext", num_classes=7)
    torch.save({f"module.{k}": v for k, v in convnext(state).items()}, tmp_path / "fair.pth")
    model = B.from_backbone("timm/test_convnext", tmp_path / "fair.pth")
    assert model.num_classes == 7
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_the_function_is_timms_own() -> None:
    found = _filter_of("deit3_small_patch16_224")
    assert found is not None and found.keywords == {"adapt_layer_scale": True}
    assert _filter_of("resnet18") is None


def test_a_checkpoint_of_another_network_is_still_an_error() -> None:
    model = B.from_backbone("timm/test_convnext", None)
    with pytest.raises(WeightsError):
        partial_load(model, source("test_resnet"))
