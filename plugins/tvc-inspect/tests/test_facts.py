"""What a page says of a model: each number by a second derivation, and the model is as before."""

from __future__ import annotations

import copy
import gc
import json
import random
import weakref
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import nn
from tvc_inspect import ModelFacts, inspect_model
from tvc_inspect.facts import probe_image

from tvc_core import (
    HybridBuilder,
    HybridModel,
    ParameterError,
    Patch,
    Preprocessing,
    describe_model,
)

NETWORKS = {
    "resnet18": {"layer2.0.conv1": {"wrap": "eca"}, "layer3": {"wrap": "se"}},
    "densenet121": {"features.denseblock2": {"wrap": "cbam_block"}},
    "efficientnet_b0": {"features.4": {"wrap": "se"}, "features.6": {"wrap": "eca"}},
    "swin_t": {"features.5": {"wrap": "se"}},
    "vit_b_32": {"encoder.layers.encoder_layer_11": {"wrap": "se"}},
    "timm/resnet18": {"layer4": {"wrap": "coord_attention"}},
}
MIXED = {"resnet18", "vit_b_32", "timm/resnet18"}
"""Those that are also looked at with something frozen."""


def _built(name: str) -> HybridModel:
    model = HybridBuilder().from_backbone(name, weights=None, patches=NETWORKS[name], num_classes=7)
    if name in MIXED:
        model.freeze_backbone(unfreeze_stages=-1)
    return model


LARGE = ("densenet121", "efficientnet_b0", "swin_t", "vit_b_32")


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.sweep] * (n in LARGE)) for n in NETWORKS],
)
def looked_at(request: pytest.FixtureRequest) -> tuple[HybridModel, ModelFacts]:
    model = _built(request.param)
    size = None if request.param in LARGE else 64
    return model, inspect_model(model, size=size, repeats=1)


def _by_formulas(model: HybridModel, image: torch.Tensor) -> dict[str, int]:
    """Return the FLOPs of each convolution, linear layer and attention, two a multiply-add."""
    found: defaultdict[str, int] = defaultdict(int)
    network = copy.deepcopy(model).eval()

    def count(path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                window = module.weight[0].numel()  # in / groups x kernel
                found[path] += 2 * output.numel() * window
            elif isinstance(module, nn.Linear):
                found[path] += 2 * output.numel() * module.in_features
            elif isinstance(module, nn.MultiheadAttention):
                tokens, width = args[0].shape[0] * args[0].shape[1], module.embed_dim
                found[path] += 2 * tokens * width * 3 * width + 2 * tokens * width * width
            elif type(module).__name__ == "WindowAttention":
                tokens, width = args[0].numel() // args[0].shape[-1], args[0].shape[-1]
                seen = 7 * 7  # tokens of a window, into which all maps of 224 pixels divide
                found[path] += 2 * tokens * width * 4 * width + 2 * 2 * tokens * seen * width

        return hook

    for path, module in network.named_modules():
        module.register_forward_hook(count(path))
    with torch.no_grad():
        network(image)
    return found


def test_flops_are_those_of_the_formulas(looked_at: tuple[HybridModel, ModelFacts]) -> None:
    model, facts = looked_at
    image = torch.randn(1, 3, *facts.image[2:])
    expected = _by_formulas(model, image)
    for row in facts.paths:
        below = [n for path, n in expected.items() if _is_below(path, row.path)]
        assert row.flops == sum(below), row.path
    assert facts.total.flops > 0


def _is_below(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")


def test_patches_do_not_count_at_the_module_that_runs_them() -> None:
    plain = HybridBuilder().from_backbone("resnet18", weights=None)
    patched = HybridBuilder().from_backbone(
        "resnet18", weights=None, patches={"layer3": {"wrap": "se"}}
    )
    before, after = (inspect_model(each, size=64, repeats=1) for each in (plain, patched))
    other = {row.path: row for row in after.paths}
    for row in before.paths[1:]:
        assert (row.flops, row.shape) == (other[row.path].flops, other[row.path].shape)
    # 256 channels to 16 and back: one multiply-add for each weight, two FLOPs
    assert other["patches.layer3.se"].flops == 2 * (256 * 16 + 16 * 256)
    assert after.total.flops - before.total.flops == 2 * (256 * 16 + 16 * 256)


def test_kept_bytes_are_those_of_saved_tensor_hooks(
    looked_at: tuple[HybridModel, ModelFacts],
) -> None:
    model, facts = looked_at
    network = copy.deepcopy(model).train()
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    alive, sizes = [], {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # else an output is held by its own graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(torch.randn(facts.kept_images, *facts.image[1:]))
    expected = sum(size for place, size in sizes.items() if place not in own)
    assert output is not None and expected > 0
    assert facts.total.kept == expected
    # what a row has is what its children have, and what it keeps itself
    for row in facts.paths:
        if ".block" in row.path:  # another pass
            continue
        children = [r for r in facts.paths if _is_child(r.path, row.path)]
        assert row.kept >= sum(child.kept for child in children), row.path


def test_no_map_outlives_the_look() -> None:
    model = HybridBuilder().from_backbone("squeezenet1_1", weights=None, num_classes=2)
    maps: list[weakref.ref[torch.Tensor]] = []

    def note(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        maps.append(weakref.ref(output))

    handles = [each.register_forward_hook(note) for each in model.modules()]
    inspect_model(model, size=64, repeats=1)
    for handle in handles:
        handle.remove()
    gc.collect()
    assert len(maps) > 100 and not any(each() is not None for each in maps)


def _is_child(path: str, root: str) -> bool:
    return path.startswith(f"{root}.") and "." not in path[len(root) + 1 :] if root else False


def test_a_frozen_part_keeps_nothing_for_backward() -> None:
    model = HybridBuilder().from_backbone("resnet18", weights=None)
    before = {row.path: row.kept for row in inspect_model(model, size=64, repeats=1).paths}
    model.freeze_backbone(unfreeze_stages="layer4")
    after = {row.path: row.kept for row in inspect_model(model, size=64, repeats=1).paths}
    assert before["conv1"] == 3 * 64 * 64 * 4  # the image, of floats
    assert before["bn1"] == 64 * 32 * 32 * 4 + 2 * 64 * 4  # its input, a mean and a deviation
    assert after["layer4"] and not any(after[path] for path in ("conv1", "layer1", "layer3"))


def test_parameters_shapes_and_strides_are_the_modules_own(
    looked_at: tuple[HybridModel, ModelFacts],
) -> None:
    model, facts = looked_at
    modules = dict(model.named_modules())
    assert [row.path for row in facts.paths] == list(modules)
    shapes: dict[str, tuple[int, ...]] = {}
    network = copy.deepcopy(model).eval()
    for path, module in network.named_modules():
        module.register_forward_hook(
            lambda _m, _a, output, path=path: shapes.update(
                {path: tuple((output[0] if isinstance(output, tuple) else output).shape)}
            )
        )
    with torch.no_grad():
        network(torch.zeros(facts.image))
    state = model.state_dict(keep_vars=True)
    for row in facts.paths:
        prefix = f"{row.path}." if row.path else ""
        own = [
            t
            for name, t in state.items()
            if name.startswith(prefix) and isinstance(t, nn.Parameter)
        ]
        assert row.parameters == sum(t.numel() for t in own), row.path
        assert row.trainable == sum(t.numel() for t in own if t.requires_grad), row.path
        assert row.type == type(modules[row.path]).__name__
        if row.path in shapes:
            assert row.shape == shapes[row.path], row.path
        if row.layout == "NCHW" and row.stride:
            assert row.stride == round(facts.image[2] / row.shape[2])
    stages = {info.module: info for info in model.stage_info}
    for row in facts.paths:
        if row.path in stages:
            assert (row.stride, row.layout) == (stages[row.path].stride, stages[row.path].layout)
    parts = {part.name: part for part in facts.parts}
    assert sum(part.parameters for part in parts.values()) == facts.total.parameters
    assert sum(part.trainable for part in parts.values()) == facts.total.trainable


def test_a_map_that_loses_its_border_has_the_stride_of_its_stage() -> None:
    model = HybridBuilder().from_backbone("squeezenet1_1", weights=None)
    rows = {row.path: row for row in inspect_model(model, size=224, repeats=1).paths}
    assert rows["features.12"].shape[2:] == (13, 13)  # and 224 / 13 is 17.2
    convolutions = [2, 4, 8, 16]
    at = ["features.0", "features.4.squeeze", "features.6.expand1x1", "features.9.squeeze"]
    assert [rows[path].stride for path in at] == convolutions
    assert [rows[path].stride for path in ("features", "classifier.1")] == [16, 16]
    for info in model.stage_info:
        assert rows[info.module].stride == info.stride


def test_gated_blocks_and_their_gates_are_seen(looked_at: tuple[HybridModel, ModelFacts]) -> None:
    model, facts = looked_at
    rows = {row.path: row for row in facts.paths}
    homes = [path for path, module in model.named_modules() if isinstance(module, Patch)]
    assert [patch.path for patch in facts.patches] == homes and homes
    for patch in facts.patches:
        block = rows[f"{patch.path}.block"]
        assert block.calls >= 1 and block.kept and block.milliseconds > 0
        module = model.get_submodule(patch.path)
        assert patch.gate == 0.0 and patch.starts_as_identity
        assert patch.parameters == sum(p.numel() for p in module.parameters())
    with torch.no_grad():
        model.get_submodule(homes[0]).alpha.fill_(0.25)
    assert inspect_model(model, repeats=1).patches[0].gate == 0.25
    assert facts.step0_difference == model.step0_difference


def test_what_is_not_counted_is_listed() -> None:
    model = HybridBuilder().from_backbone("timm/vit_tiny_patch16_224", weights=None)
    facts = inspect_model(model, repeats=1)
    names = {each.name: each for each in facts.uncounted}
    attention = [name for name in names if "scaled_dot_product" in name]
    assert attention and names[attention[0]].calls == 12
    assert names["aten.gelu.default"].where[0] == "blocks.0.mlp.act"


def test_the_model_is_as_before() -> None:
    model = HybridBuilder().from_backbone(
        "mobilenet_v3_small", weights=None, patches={"features.4": {"wrap": "se"}}
    )
    model.train()
    model.features[2].eval()
    fired = []
    model.features[0].register_forward_hook(lambda *_: fired.append(1))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = _hooks(model)
    torch.manual_seed(3)
    random.seed(3)
    states = torch.get_rng_state(), random.getstate()
    inspect_model(model, size=64, repeats=1)
    assert [module.training for module in model.modules()] == modes
    assert _hooks(model) == hooks
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "gate" not in vars(model.get_submodule("patches.features.4.se").block)


def _hooks(model: nn.Module) -> list[tuple[Any, ...]]:
    return [
        (tuple(module._forward_hooks.values()), tuple(module._forward_pre_hooks.values()))
        for module in model.modules()
    ]


@pytest.mark.sweep
def test_a_network_that_cannot_train_on_one_image_is_measured_with_two() -> None:
    model = HybridBuilder().from_backbone("inception_v3", weights=None)
    facts = inspect_model(model, repeats=1)
    assert facts.kept_images == 2 and facts.total.kept


def test_the_facts_are_json_and_frozen() -> None:
    model = HybridBuilder().from_backbone(
        "resnet18", weights=None, patches={"layer1": {"wrap": {"type": "se", "init": "paper"}}}
    )
    facts = inspect_model(model, size=[64, 96], repeats=1)
    data = json.loads(json.dumps(facts.as_data(), allow_nan=False))
    assert data["image"] == [1, 3, 64, 96]
    assert data["paths"][0]["flops"] == facts.total.flops
    assert data["patches"][0]["gate"] is None and not data["patches"][0]["starts_as_identity"]
    with pytest.raises(AttributeError):
        facts.name = "x"  # type: ignore[misc]


@pytest.mark.parametrize("size", [-3, 0, True, False, (64,), (), "64"])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    model = HybridBuilder().from_backbone("mobilenet_v3_small", weights=None)
    with pytest.raises(ParameterError, match="size is a whole number"):
        inspect_model(model, size=size)


def test_the_image_is_that_of_the_model() -> None:
    model = HybridBuilder().from_backbone("resnet18", weights=None, in_channels=1)
    assert probe_image(model, (32, 48)).shape == (1, 1, 32, 48)
    assert inspect_model(model, size=64, repeats=1).image == (1, 1, 64, 64)


@pytest.mark.parametrize(
    ("given", "sides"),
    [
        ({"options": {"img_size": [96, 64]}}, (96, 64)),
        ({"image_size": 96, "in_channels": 1}, (96, 96)),
        ({"in_channels": 1}, (160, 160)),
    ],
)
def test_the_default_size_is_the_one_that_a_model_was_built_for(
    given: dict[str, Any], sides: tuple[int, int]
) -> None:
    """However it was asked for, and whatever channels the weights know."""
    pytest.importorskip("timm")
    model = HybridBuilder().from_backbone("timm/test_vit", weights=None, **given)
    assert describe_model(model)[0].image == sides


def test_the_default_size_is_the_one_that_a_model_was_trained_at() -> None:
    model = HybridBuilder().from_backbone("shufflenet_v2_x0_5", weights=None)
    model.preprocessing = Preprocessing(size=(96, 64), resize=96)
    assert describe_model(model)[0].image == (96, 64)
