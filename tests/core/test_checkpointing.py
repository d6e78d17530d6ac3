"""Gradient checkpointing changes memory and nothing else: equal gradients, equal buffers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import HybridBuilder
from tvc_core.model.checkpointing import Checkpointed

PATCHES = {"layer1": {"wrap": "gate"}, "layer3.0": {"wrap": "conv"}, "layer3.1.conv": {"inject": "conv"}}
"""A block after a stage, and blocks with running statistics inside one, which run again in the backward pass."""


def step(model: Any, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One forward and backward pass from a fixed random state: gradients and buffers."""
    torch.manual_seed(5)
    model.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 7).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and a
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def with_open_gates(model: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".alpha"):
                parameter.fill_(0.5)
    return model


@pytest.mark.parametrize("arguments", [{}, {"freeze_backbone": True}, {"freeze_backbone": True, "unfreeze_stages": [1]}])
@pytest.mark.parametrize("way", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_gradients_and_buffers_are_bit_equal(tiny: Any, images: Tensor, arguments: Any, way: Any) -> None:
    model = with_open_gates(tiny(PATCHES, **arguments)).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    other = way(other)
    assert all(
        isinstance(other.get_submodule(path).__dict__["forward"], Checkpointed)
        for path in ("stem", "layer1", "layer2", "layer3")
    )
    for a, b in zip(step(model, images), step(other, images), strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize(("name", "target"), [("resnet18", "layer2"), ("mobilenet_v3_small", "features.4")])
def test_a_real_backbone_with_layers_that_overwrite_their_input_too(builder: HybridBuilder, name: str, target: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    model = builder.from_backbone(name, None, {target: {"wrap": "se"}}, num_classes=7).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    for a, b in zip(step(model, x), step(other, x), strict=True):
        assert_equal(a, b)


def test_a_copy_checkpoints_its_own_stages(tiny: Any) -> None:
    model = tiny()
    model.set_grad_checkpointing()
    other = copy.deepcopy(model)
    assert other.layer2.__dict__["forward"].module is other.layer2
    assert model.layer2.__dict__["forward"].module is model.layer2


def test_less_is_kept_for_the_backward_pass(tiny: Any, images: Tensor) -> None:
    def kept(model: Any) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() if not isinstance(tensor, nn.Parameter) else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(images)
        return total

    model = tiny().train()
    plain = kept(model)
    model.set_grad_checkpointing()
    assert kept(model) < plain / 2
    model.set_grad_checkpointing(False)
    assert kept(model) == plain


def test_switching_it_leaves_names_keys_and_features(tiny: Any, images: Tensor) -> None:
    model = tiny(PATCHES).eval()
    keys, modules = list(model.state_dict()), [name for name, _ in model.named_modules()]
    features = model.get_stage_outputs(images)
    model.set_grad_checkpointing()
    assert list(model.state_dict()) == keys and [name for name, _ in model.named_modules()] == modules
    assert all(torch.equal(a, b) for a, b in zip(features, model.get_stage_outputs(images), strict=True))
    model.set_grad_checkpointing(False)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_the_head_is_not_checkpointed(tiny: Any) -> None:
    model = tiny()
    model.set_grad_checkpointing()
    assert "forward" not in model.fc.__dict__ and "forward" not in model.__dict__
