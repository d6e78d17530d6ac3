"""Gradient checkpointing changes memory and nothing else: equal gradients, equal buffers."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import BackboneSpec, HybridBuilder, StageError
from tvc_core.model.checkpointing import Checkpointed, CheckpointedRuns

PATCHES = {
    "layer1": {"wrap": "gate"},
    "layer3.0": {"wrap": "conv"},
    "layer3.1.conv": {"inject": "conv"},
}
"""A block after a stage, and blocks with running statistics inside one, which run again in the
backward pass.
"""


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


@pytest.mark.parametrize(
    "arguments", [{}, {"freeze_backbone": True}, {"freeze_backbone": True, "unfreeze_stages": [1]}]
)
@pytest.mark.parametrize(
    "way", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_gradients_and_buffers_are_bit_equal(
    tiny: Any, images: Tensor, arguments: Any, way: Any
) -> None:
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


@pytest.mark.parametrize(
    ("name", "target"), [("resnet18", "layer2"), ("mobilenet_v3_small", "features.4")]
)
def test_a_real_backbone_with_layers_that_overwrite_their_input_too(
    builder: HybridBuilder, name: str, target: str
) -> None:
    x = torch.randn(2, 3, 64, 64)
    model = builder.from_backbone(
        name, weights=None, patches={target: {"wrap": "se"}}, num_classes=7
    ).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    for a, b in zip(step(model, x), step(other, x), strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny"])
@pytest.mark.parametrize(
    "frozen", [None, {"unfreeze_stages": [-1]}, {"unfreeze_stages": [-1], "normalization": "train"}]
)
def test_less_memory_with_equal_gradients_and_buffers(
    builder: HybridBuilder, name: str, frozen: Any
) -> None:
    """Frozen stages, too: there nothing is kept, and checkpointing must not begin to."""
    x = torch.randn(2, 3, 64, 64)
    model = builder.from_backbone(name, None, num_classes=7).train()
    if frozen is not None:
        model.freeze_backbone(**frozen)
    kept = kept_numbers(model, x)
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())
    other.set_grad_checkpointing()
    less = kept_numbers(other, x)
    assert less < kept * (0.5 if frozen is None else 0.8)
    for network in (model, other):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))
    for a, b in zip(step(model, x), step(other, x), strict=True):
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []


def test_stages_are_switched_one_by_one(tiny: Any, images: Tensor) -> None:
    def checkpointed(model: Any) -> set[str]:
        return {path for path, module in model.named_modules() if "forward" in module.__dict__}

    model = tiny()
    model.set_grad_checkpointing(stages=[-1, 0])
    assert checkpointed(model) == {"layer1", "layer3"}
    model.set_grad_checkpointing(stages=1)
    assert checkpointed(model) == {"layer1", "layer2", "layer3"}
    model.set_grad_checkpointing(False, stages=(0, 2))
    assert checkpointed(model) == {"layer2"}
    model.set_grad_checkpointing(stages=["layer1", 1])
    model.set_grad_checkpointing(False, stages="layer1")
    assert checkpointed(model) == {"layer2"}
    for wrong in ([3], [0, -4], ["layer9"], True):
        with pytest.raises(StageError, match="the 3 stages are 0: layer1"):
            model.set_grad_checkpointing(stages=wrong)
    assert checkpointed(model) == {"layer2"}
    model.set_grad_checkpointing(False)
    assert checkpointed(model) == set()


def build_layers(spec: BackboneSpec, *, weights: Any) -> nn.Module:
    conv = [nn.Conv2d(3 if index == 0 else 8, 8, 3, padding=1) for index in range(4)]
    # not idempotent: applied twice, it gives something else
    relu = [nn.Hardswish(inplace=True) for _ in range(3)]
    layers = [
        conv[0],
        nn.BatchNorm2d(8),
        relu[0],
        conv[1],
        nn.BatchNorm2d(8),
        conv[2],
        relu[1],
        nn.Dropout(0.3),
        conv[3],
    ]
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*layers))
    network.add_module(
        "head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
    )
    return network


LAYERS = BackboneSpec(
    name="layers",
    factory=build_layers,
    stem=("features.0", "features.1"),
    stages=(
        ("features.2", "features.3", "features.4"),
        ("features.5", "features.6", "features.7", "features.8"),
    ),
    head="head",
)


@pytest.mark.parametrize(
    "way", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_layers_of_one_sequence_are_checkpointed_together(
    lab: Any, images: Tensor, way: Any
) -> None:
    patches = {"features.6": {"wrap": "conv"}, "features.3": {"wrap": "gate"}}
    model = with_open_gates(
        lab(LAYERS).from_backbone("layers", weights=None, patches=patches)
    ).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    runs = other.features.__dict__["forward"]
    assert isinstance(runs, CheckpointedRuns)
    # features.2 overwrites its input, from which the second pass of its run would start
    assert list(runs.runs.values()) == [("0", "1"), ("3", "4"), ("5", "6", "7", "8")]
    other = way(other)
    assert other.features.__dict__["forward"].module is other.features
    keys = list(model.state_dict())
    assert list(other.state_dict()) == keys and kept_numbers(
        copy.deepcopy(other), images
    ) < kept_numbers(copy.deepcopy(model), images)
    for a, b in zip(step(model, images), step(other, images), strict=True):
        assert_equal(a, b)
    other.set_grad_checkpointing(False, stages=1)
    assert list(other.features.__dict__["forward"].runs.values()) == [("0", "1"), ("3", "4")]
    other.set_grad_checkpointing(False)
    assert "forward" not in other.features.__dict__


def test_features_of_a_checkpointed_sequence_have_gradients(lab: Any, images: Tensor) -> None:
    model = lab(LAYERS).from_backbone("layers", None).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    gradients = []
    for network in (model, other):
        torch.manual_seed(5)
        sum(feature.square().mean() for feature in network.get_stage_outputs(images)).backward()
        gradients.append(
            {n: p.grad for n, p in network.named_parameters() if n.startswith("features.")}
        )
    assert_equal(*gradients)


@pytest.mark.parametrize(
    "patches", [PATCHES, {"layer3.0": {"inject": {"type": "gate", "position": "parallel"}}}]
)
def test_a_compiled_checkpointed_model_has_equal_gradients_and_buffers(
    tiny: Any, images: Tensor, patches: Any
) -> None:
    torch._dynamo.reset()
    model = with_open_gates(tiny(patches)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    compiled: Any = torch.compile(other, backend="aot_eager", fullgraph=True)
    gradients, buffers = step(model, images)
    nn.functional.cross_entropy(compiled(images), torch.arange(len(images)) % 7).backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(other.get_parameter(name).grad, gradient)
    for name, buffer in buffers.items():
        torch.testing.assert_close(other.get_buffer(name), buffer)


def test_a_copy_checkpoints_its_own_stages(tiny: Any) -> None:
    model = tiny()
    model.set_grad_checkpointing()
    other = copy.deepcopy(model)
    assert other.layer2.__dict__["forward"].module is other.layer2
    assert model.layer2.__dict__["forward"].module is model.layer2


def kept_numbers(model: Any, x: Tensor) -> int:
    """Return how many numbers a forward pass keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() if tensor.untyped_storage().data_ptr() not in own else 0
        return tensor.detach()  # else an output is held by its own graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return total


def test_less_is_kept_for_the_backward_pass(tiny: Any, images: Tensor) -> None:
    model = tiny().train()
    plain = kept_numbers(model, images)
    model.set_grad_checkpointing()
    assert kept_numbers(model, images) < plain / 2
    model.set_grad_checkpointing(False)
    assert kept_numbers(model, images) == plain


def test_switching_it_leaves_names_keys_and_features(tiny: Any, images: Tensor) -> None:
    model = tiny(PATCHES).eval()
    keys, modules = list(model.state_dict()), [name for name, _ in model.named_modules()]
    features = model.get_stage_outputs(images)
    model.set_grad_checkpointing()
    assert (
        list(model.state_dict()) == keys and [name for name, _ in model.named_modules()] == modules
    )
    assert all(
        torch.equal(a, b) for a, b in zip(features, model.get_stage_outputs(images), strict=True)
    )
    model.set_grad_checkpointing(False)
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("stages", [None, [0, -1]])
def test_a_file_says_what_is_checkpointed_when_it_is_written(
    lab: Any, stages: Any, tmp_path: Path
) -> None:
    model = lab().from_backbone("tiny", weights=None, grad_checkpointing=[1])
    model.set_grad_checkpointing(False)
    model.set_grad_checkpointing(stages=stages)
    model.save(tmp_path / "model.safetensors")
    loaded = lab().load(tmp_path / "model.safetensors")
    wanted = {path for path, module in model.named_modules() if "forward" in module.__dict__}
    assert wanted
    assert {p for p, module in loaded.named_modules() if "forward" in module.__dict__} == wanted


def test_the_head_is_not_checkpointed(tiny: Any) -> None:
    model = tiny()
    model.set_grad_checkpointing()
    assert "forward" not in model.fc.__dict__ and "forward" not in model.__dict__
