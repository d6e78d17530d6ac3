"""Files of a ViT for images of another size."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from tvc_core import BackboneSpec, HybridBuilder, Registry, WeightsError, partial_load


@pytest.fixture(scope="module")
def state() -> OrderedDict[str, Tensor]:
    torch.manual_seed(0)
    network = torchvision.models.vit_b_32(num_classes=4)
    network.encoder.pos_embedding.data.normal_()
    return OrderedDict(network.state_dict())


def test_they_are_resampled_as_torchvision_does(
    state: OrderedDict[str, Tensor], tmp_path: Path
) -> None:
    right = interpolate_embeddings(96, 32, OrderedDict(state))["encoder.pos_embedding"]
    model = HybridBuilder().from_torchvision("vit_b_32", None, image_size=96, num_classes=4)
    old = {k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v
           for k, v in state.items()}  # fmt: skip
    for given in (state, {f"module.{key}": value for key, value in old.items()}):
        model.encoder.pos_embedding.data.zero_()
        report = partial_load(model, given)
        assert report.load_ratio == 1.0 and torch.equal(model.encoder.pos_embedding, right)
        assert [each.key for each in report.converted] == ["encoder.pos_embedding"]
    torch.save(state, tmp_path / "own.pth")
    own = HybridBuilder().from_torchvision("vit_b_32", tmp_path / "own.pth", image_size=96)
    assert own.num_classes == 4 and torch.equal(own.encoder.pos_embedding, right)


def test_patches_of_another_size_are_an_error(state: OrderedDict[str, Tensor]) -> None:
    spec = Registry().resolve(BackboneSpec, "vit_b_32").spec
    from tvc_transformers.positions import migrate

    network = VisionTransformer(
        image_size=64, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    assert migrate(spec, network, network.state_dict()) is None
    model = HybridBuilder().from_torchvision("resnet18", None)
    with pytest.raises(WeightsError):
        partial_load(model, state)
