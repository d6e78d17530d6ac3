"""More hands than the pages name: what a tool undoes, traces, hooks or exchanges."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from case_tools import Tiny, difference, open_gates
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.models.feature_extraction import create_feature_extractor

import tvc_core
from tvc_core import BackboneError, HybridBuilder, HybridModel, ParameterError, WeightsError
from tvc_core.surgery.probing import own_randomness

PACKAGE = __name__.partition(".")[0]
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def tiny(patches: Any = None) -> HybridModel:
    return HybridBuilder().from_module(
        Tiny(), stem="stem", stages=["layer1", "layer2"], head="fc", patches=patches
    )


def resnet18(**arguments: Any) -> HybridModel:
    arguments = {"num_classes": 4, "patches": {"layer3": {"wrap": "se"}}, **arguments}
    model = HybridBuilder().from_torchvision("resnet18", None, **arguments)
    open_gates(model)
    return model.eval()


# -- torch.fx --------------------------------------------------------------------------------------

HARD_TO_TRACE = (
    "bam", "deform_conv", "drop_block", "gct", "layer_scale", "non_local", "simam", "srm",
    "triplet_attention",
)  # fmt: skip
"""Blocks whose code asks a value for what a traced one has not."""


@pytest.mark.parametrize("block", HARD_TO_TRACE)
def test_torch_fx_takes_blocks_that_it_cannot_trace_for_one_step(block: str) -> None:
    positions = ["after", "before"]
    patches = [{"inject": {"type": block, "position": each}} for each in positions]
    model = tiny({"layer1": patches, "layer2": {"wrap": "se"}})
    open_gates(model)
    traced = torch.fx.symbolic_trace(model.eval())
    x = torch.randn(3, 3, 40, 56)
    assert difference(traced(x), model(x)) < 1e-6
    traced.graph.lint()
    steps = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert sum("patches.layer1" in str(each) for each in steps) >= len(positions)
    assert any(str(each).startswith("patches.layer2.se.block") for each in steps)  # looked into
    gradient = torch.autograd.grad(traced(x).sum(), traced.get_parameter("stem.0.weight"))
    expected = torch.autograd.grad(model(x).sum(), model.get_parameter("stem.0.weight"))
    assert difference(gradient[0], expected[0]) < 1e-4


@pytest.mark.parametrize("position", ["after", "before", "parallel"])
def test_torchvisions_extractor_on_tokens(position: str) -> None:
    network = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(2)]
    patches = {layers[0]: {"inject": {"type": "se", "position": position}}}
    model = HybridBuilder().from_module(
        network,
        stem=["class_token", "encoder.pos_embedding", "conv_proj"],
        stages=[layers[0], [layers[1], "encoder.ln"]],
        head="heads",
        patches=patches,
        min_size=32,
        fixed_size=True,
    )
    open_gates(model)
    maps: list[Tensor] = []
    model.eval().get_submodule(layers[0]).register_forward_hook(lambda m, a, y: maps.append(y))
    x = torch.randn(2, 3, 32, 32)
    model(x)
    assert difference(create_feature_extractor(model, [layers[0]])(x)[layers[0]], maps[0]) < 1e-6


# -- what a file computes --------------------------------------------------------------------------


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.remove(layer, "weight")


def normalized(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)
    parametrize.remove_parametrizations(layer, "weight")


def spectral(layer: nn.Module) -> None:
    nn.utils.spectral_norm(layer)
    nn.utils.remove_spectral_norm(layer)


@pytest.mark.parametrize("tool", [pruned, normalized, spectral])
@pytest.mark.parametrize("path", ["fc", "patches.layer2.se.block.fc1"])
def test_what_a_tool_has_undone_is_saved(
    tool: Callable[[nn.Module], None], path: str, tmp_path: Path
) -> None:
    model = open_gates(tiny({"layer2": {"wrap": "se"}})).eval()
    tool(model.get_submodule(path))
    model.save(tmp_path / "undone.safetensors")
    again = tvc_core.load(tmp_path / "undone.safetensors", module=Tiny())
    assert torch.equal(again(X), model(X))


class Conv2d(nn.Conv2d):
    """Standardizes nothing, and is no convolution of torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class BatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class BasicBlock(torchvision.models.resnet.BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("layer4.0.conv2", lambda: Conv2d(512, 512, 3, padding=1, bias=False)),
        ("layer4.1.bn2", lambda: BatchNorm2d(512)),
        ("layer1.0", lambda: BasicBlock(64, 64)),
    ],
)
def test_a_class_of_the_same_name_is_another_one(
    path: str, made: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = resnet18()
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, made())
    with pytest.raises(WeightsError, match=rf"{path} was .*{PACKAGE}\.\w+\("):
        model.save(tmp_path / "other.safetensors")
    assert not any(tmp_path.iterdir())


def test_a_method_that_was_assigned_is_not_in_a_file(tmp_path: Path) -> None:
    """ResNet's forward calls `_forward_impl`, and a network of timm its `forward_features`."""
    model = resnet18()
    model._forward_impl = lambda x: 2 * torchvision.models.ResNet._forward_impl(model, x)
    with pytest.raises(WeightsError, match=r"the model's _forward_impl was that of its class"):
        model.save(tmp_path / "assigned.safetensors")
    del model._forward_impl
    model.mine = model.layer1[0].mine = print  # which no code of the network calls
    model.save(tmp_path / "plain.safetensors")


def test_settings_that_are_attributes_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    model = HybridBuilder().from_backbone("timm/test_vit", None, image_size=32, num_classes=3)
    model.blocks[1].attn.num_heads, before = 1, model.blocks[1].attn.num_heads
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.num_heads was 2 and is 1"):
        model.save(tmp_path / "heads.safetensors")
    model.blocks[1].attn.num_heads = before
    model.global_pool = "avg"
    with pytest.raises(WeightsError, match=r"the model's global_pool was 'token' and is 'avg'"):
        model.save(tmp_path / "pool.safetensors")
    model.global_pool = "token"
    model.set_grad_checkpointing()
    model.blocks[0].attn.fused_attn = not model.blocks[0].attn.fused_attn  # the same function
    model.save(tmp_path / "same.safetensors")
    tvc_core.load(tmp_path / "same.safetensors").reset_classifier(5)


class Counting(nn.ReLU6):
    """Counts its calls, which changes nothing."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_a_module_that_counts_its_calls_can_be_saved(tmp_path: Path) -> None:
    network = Tiny()
    network.stem[2] = Counting()
    model = HybridBuilder().from_module(
        network, stem="stem", stages=["layer1", "layer2"], head="fc"
    )
    model(X)
    model.save(tmp_path / "counted.safetensors")


def test_hooks_of_other_code_stay_behind_and_are_named(tmp_path: Path) -> None:
    model = resnet18()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(tmp_path / "plain.safetensors")
    handle = model.layer2.register_forward_hook(lambda m, args, y: 2 * y)
    with pytest.warns(UserWarning, match=r"hooks of other code run at layer2, and no file"):
        model.save(tmp_path / "hooked.safetensors")
    assert difference(tvc_core.load(tmp_path / "hooked.safetensors")(X), model(X)) > 1e-3
    handle.remove()
    network = Tiny()
    network.stem.register_forward_hook(lambda m, args, y: 2 * y)  # part of what is handed over
    own = HybridBuilder().from_module(network, stem="stem", stages=["layer1", "layer2"], head="fc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.save(tmp_path / "own.safetensors")


HEADS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "layers": (lambda: nn.Sequential(nn.Linear(512, 6), nn.ReLU(), nn.Linear(6, 5)), False),
    "norm first": (lambda: nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 5)), False),
    "wrapped": (lambda: nn.Sequential(nn.Linear(512, 5)), False),
    "without bias": (lambda: nn.Linear(512, 5, bias=False), False),
    "wider": (lambda: nn.Linear(512, 5), True),
    "normalized": (lambda: parametrizations.weight_norm(nn.Linear(512, 5)), True),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_by_hand_that_got_new_outputs(kind: str, tmp_path: Path) -> None:
    made, is_saved = HEADS[kind]
    model = resnet18()
    model.fc = made()
    model.reset_classifier(3)
    path = tmp_path / "head.safetensors"
    if is_saved:
        model.save(path)
        assert torch.equal(tvc_core.load(path)(X), model.eval()(X))
    else:
        with pytest.raises(WeightsError, match=r"fc was Linear\(in_features=512"):
            model.save(path)
        assert not path.exists()


# -- nothing inert is silent -----------------------------------------------------------------------


@pytest.mark.parametrize("noise", [nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.RReLU(0.1, 0.3)])
def test_a_regularizer_of_ones_own_acts_from_the_first_step(noise: nn.Module) -> None:
    model = tiny({"layer1": {"wrap": noise}})
    starts = type(noise) is not nn.RReLU  # which is no identity in eval mode, and keeps its gate
    assert starts == (not any(name.endswith("alpha") for name, _ in model.named_parameters()))
    assert model.step0_difference == 0.0
    model.train()
    for module in model.modules():
        module.training = isinstance(module, type(noise)) or module is model
    assert (difference(model(X), model(X)) > 1e-3) == starts


def test_looks_inside_of_looks_agree_on_the_generator() -> None:
    """An operator that takes it by position, as RReLU's does, has it from the inner one."""
    noise = nn.RReLU(0.1, 0.3)
    with own_randomness():
        alone = noise(-torch.ones(8))
    with own_randomness(), own_randomness():
        assert torch.equal(noise(-torch.ones(8)), alone)


@pytest.mark.parametrize("block", ["drop_block", "stochastic_depth"])
def test_a_regularizer_beside_a_target_is_refused(block: str) -> None:
    with pytest.raises(ParameterError, match=r"'after' or 'branch' or 'before', not 'parallel'"):
        tiny({"layer1": {"inject": {"type": block, "position": "parallel"}}})


# -- what is handed over ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "advice"), [(torch.jit.script, "was scripted"), (torch.compile, r"network\._orig_mod")]
)
def test_a_network_that_tools_have_wrapped_is_refused(wrap: Any, advice: str) -> None:
    with pytest.raises(BackboneError, match=advice):
        HybridBuilder().from_module(
            wrap(Tiny()), stem="stem", stages=["layer1", "layer2"], head="fc"
        )


# -- torch's own wrappers --------------------------------------------------------------------------

INSIDE = {"layer1.1": {"wrap": "se"}, "layer2.0": {"wrap": "eca"}, "layer2": {"wrap": "se"}}


def checkpointed(model: HybridModel) -> None:
    inside = [model.layer1, model.layer2]
    apply_activation_checkpointing(model, check_fn=lambda part: part in inside)


def compiled(model: HybridModel) -> None:
    for name in ("layer1", "layer2", "fc"):
        setattr(model, name, torch.compile(getattr(model, name), backend="eager"))


@pytest.mark.parametrize("wrap", [checkpointed, compiled])
def test_parts_that_torch_wraps_keep_their_patches(
    wrap: Callable[[HybridModel], None], tmp_path: Path
) -> None:
    model = open_gates(tiny(INSIDE)).eval()
    twin = copy.deepcopy(model)
    wrap(model)
    expected, maps = twin(X), twin.get_stage_outputs(X)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*outside of its model")
        assert difference(model(X), expected) < 1e-6
        assert difference(model.get_stage_outputs(X), maps) < 1e-6
        model(X).square().mean().backward()
    twin(X).square().mean().backward()
    gradients = [[p.grad for p in each.parameters()] for each in (model, twin)]
    assert difference(*gradients) < 1e-4
    with model.without(), torch.no_grad():
        assert difference(model(X), expected) > 1e-4
    told = model.explain().partition("part  ")[0]
    assert "_orig_mod" not in told
    assert "_wrapped_module" not in told
    model.freeze_backbone(unfreeze_stages=[-1])
    model.get_submodule("layer2.0").weight.requires_grad_(False)
    model.save(tmp_path / "wrapped.safetensors")
    again = tvc_core.load(tmp_path / "wrapped.safetensors", module=Tiny())
    assert difference(again(X), expected) < 1e-6
    assert not again.layer2[0].weight.requires_grad
    assert again.layer2[1].weight.requires_grad
    model.unpatch("layer2")
    assert difference(model(X), expected) > 1e-4


def test_a_tensor_that_was_put_into_the_root_is_seen(tmp_path: Path) -> None:
    model = resnet18()
    model.register_buffer("mine", torch.zeros(3))
    with pytest.raises(WeightsError, match=r"the model itself had no tensors and has mine 3"):
        model.save(tmp_path / "more.safetensors")


def test_a_tensor_that_was_put_into_a_node_of_the_patches_is_seen(tmp_path: Path) -> None:
    """Tools that count operations leave their sums in modules, which they reach by `apply`."""
    model = resnet18()
    names = dict(model.named_modules())
    model.patches.apply(
        lambda m: None if m in names.values() else m.register_buffer("total", torch.zeros(1))
    )
    model.patches.layer3.weight = nn.Parameter(torch.ones(1))
    assert "patches.layer3.weight" in dict(model.named_parameters())
    assert set(model.state_dict()) == {
        k for k, _ in (*model.named_parameters(), *model.named_buffers())
    }
    with pytest.raises(WeightsError, match=r"patches \(PatchTree\(\) with total 1\) is new"):
        model.save(tmp_path / "counted.safetensors")
    assert not any(tmp_path.iterdir())
    for module in (model.patches, model.patches.layer3):
        del module.total
    del model.patches.layer3.weight
    assert dict(model.named_modules()) == names
    model.save(tmp_path / "plain.safetensors")


def test_a_network_that_is_half_on_meta_is_refused() -> None:
    network = Tiny()
    network.layer1[0].to("meta")  # as accelerate's init_empty_weights leaves the buffers
    with pytest.raises(BackboneError, match=r"'layer1.0.weight' on the meta device and 'stem"):
        HybridBuilder().from_module(network, stem="stem", stages=["layer1", "layer2"], head="fc")
