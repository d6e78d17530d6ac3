"""Only some features, not computing what comes after them; what the last layer gets; the levels of
a pyramid.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from tvc_core import BackboneSpec, HybridBuilder, LevelInfo, StageError
from tvc_core.surgery import calls

LAYERS = ("stem", "layer1", "layer2", "layer3", "fc")


@contextmanager
def counting(model: nn.Module) -> Iterator[list[str]]:
    """Yield the list of the parts that ran; counted by pre-hooks, which nobody waits for."""
    ran: list[str] = []
    handles = [
        model.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: ran.append(path))
        for path in LAYERS
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("stages", "last", "entries"),
    [
        (None, "layer3", [0, 1, 2, 3]),
        (0, "layer1", [1]),
        ("stem", "stem", [0]),
        ([1, "stem"], "layer2", [2, 0]),
        ([-3], "layer1", [1]),
        ((1, -2, 1), "layer2", [2, 2, 2]),
        (range(2), "layer2", [1, 2]),
    ],
)
def test_what_comes_after_the_last_wanted_stage_is_not_run(
    tiny: Any, images: Tensor, stages: Any, last: str, entries: list[int]
) -> None:
    model = tiny({"layer2": {"wrap": "gate"}, "layer3": {"wrap": "gate"}}).eval()
    x, expected = images, []
    for path in LAYERS[:-1]:
        x = model.get_submodule(path)(x)
        expected.append(x.clone())
    with counting(model) as ran:
        found = model.get_stage_outputs(images, stages)
        assert ran == list(LAYERS[: LAYERS.index(last) + 1])
    assert len(found) == len(entries)
    assert all(torch.equal(a, expected[index]) for a, index in zip(found, entries, strict=True))


def test_forward_features_and_the_pyramid_do_not_run_the_head(tiny: Any, images: Tensor) -> None:
    model = tiny().eval()
    for read in (model.forward_features, model.pyramid):
        with counting(model) as ran:
            read(images)
        assert ran == list(LAYERS[:-1])
    with counting(model) as ran:
        model(images)
    assert ran == list(LAYERS)


@pytest.mark.parametrize("stages", [3, -4, [0, 3], "layer9", [True], [0.5], [[0]], None])
def test_a_stage_that_is_not_there_is_named_and_nothing_runs(
    tiny: Any, images: Tensor, stages: Any
) -> None:
    model = tiny()
    with (
        counting(model) as ran,
        pytest.raises(StageError, match=r"there is no stage .*0: layer1, 1: layer2, 2: layer3"),
    ):
        model.get_stage_outputs(images, [None] if stages is None else stages)
    assert ran == []


def test_an_empty_list_of_stages_is_refused(tiny: Any, images: Tensor) -> None:
    with pytest.raises(StageError, match="no stage is asked for"):
        tiny().get_stage_outputs(images, [])


@pytest.mark.parametrize("grad", [True, pytest.param(False, marks=pytest.mark.sweep)])
def test_compiled_graphs_do_not_have_what_comes_after(
    tiny: Any, images: Tensor, grad: bool
) -> None:
    model = tiny({"layer2": {"wrap": "gate"}}).eval()
    counts: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        targets = [str(node.target) for node in graph.graph.nodes]
        counts.append(sum("conv2d" in target or "linear" in target for target in targets))
        return graph.forward

    # the gate has one
    for stages, convolutions in (("stem", 1), (0, 2), (1, 3 + 1), ([0, 2], 5 + 1), (None, 5 + 1)):
        with torch.set_grad_enabled(grad):
            expected = model.get_stage_outputs(images, stages)
            for chosen in (backend, "aot_eager"):
                torch._dynamo.reset()

                # not a partial: torch 2.10 compiles nothing of one, without a word
                def read(x: Tensor, stages: Any = stages) -> list[Tensor]:
                    return model.get_stage_outputs(x, stages)

                compiled = torch.compile(read, fullgraph=True, backend=chosen)
                for _ in range(2):
                    for a, b in zip(compiled(images), expected, strict=True):
                        torch.testing.assert_close(a, b)
        assert counts.pop() == convolutions and not counts
    assert model(images).shape == (4, 7)


def test_a_compiled_network_whose_features_are_read_still_gives_logits(
    tiny: Any, images: Tensor
) -> None:
    torch._dynamo.reset()
    model = tiny().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(images)
    torch.testing.assert_close(compiled(images), expected)
    model.get_stage_outputs(images, 0)
    torch.testing.assert_close(compiled(images), expected)


class Some(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return (
            self.model.get_stage_outputs(x, [0, "stem"]),
            self.model.pyramid(x),
            self.model.forward_features(x),
        )


@pytest.mark.parametrize("strict", [False, True])
def test_some_features_export(tiny: Any, images: Tensor, strict: bool) -> None:
    model = tiny({"layer2": {"wrap": "gate"}}).eval()
    program = torch.export.export(Some(model), (images,), strict=strict)
    for a, b in zip(
        torch.utils._pytree.tree_leaves(program.module()(images)),
        torch.utils._pytree.tree_leaves(Some(model)(images)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_nothing_leaks_from_a_pass_that_ended_early(tiny: Any, images: Tensor) -> None:
    model = tiny()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    first = model.get_stage_outputs(images, "stem")[0]
    assert calls.collections() == []
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    model.eval()
    logits = model(images)
    model.get_stage_outputs(images, 1)
    assert torch.equal(model(images), logits)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with counting(twin) as ran, counting(model) as own:
            twin.get_stage_outputs(images, 0)
        assert ran == ["stem", "layer1"] and own == []
    assert first.shape == (4, 8, 16, 16)


def test_gradients_reach_what_ran_and_nothing_else(tiny: Any, images: Tensor) -> None:
    """As those of the plain modules called by hand."""
    model = tiny().train()
    reference = copy.deepcopy(model)
    for net in (model, reference):
        net.layer1.drop.p = net.stem.drop.p = 0.0
    found = model.get_stage_outputs(images, [0])[0]
    expected = reference.layer1(reference.stem(images))
    found.square().sum().backward()
    expected.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == (not name.startswith(("stem", "layer1")))
        assert a.grad is None or torch.equal(a.grad, b.grad)
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_foreign_hook_on_a_module_that_would_be_left_gets_its_end(
    tiny: Any, images: Tensor
) -> None:
    model = tiny().eval()
    expected = model.get_stage_outputs(images, 0)[0]
    seen: list[str] = []
    for module, name in ((model, "root"), (model.layer1, "layer1")):
        handle = module.register_forward_hook(lambda *_, name=name: seen.append(name))
        with counting(model) as ran:
            assert torch.equal(model.get_stage_outputs(images, 0)[0], expected)
        handle.remove()
        assert ran == list(LAYERS)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append("global"))
    with counting(model) as ran:
        model.get_stage_outputs(images, 0)
    handle.remove()
    assert ran == list(LAYERS) and seen[:2] == ["root", "layer1"] and seen[2] == "global"
    # not left, since not entered
    handle = model.layer3.register_forward_hook(lambda *_: seen.append("layer3"))
    with counting(model) as ran:
        model.get_stage_outputs(images, 0)
    assert ran == ["stem", "layer1"] and seen[-1] == "global"


def test_a_parallel_patch_around_a_stage_gets_its_end(lab: Any, images: Tensor) -> None:
    """It keeps a copy of its target's input until the target is done."""

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 1, 1))
            self.head = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x).mean((2, 3)))

    stages: dict[str, Any] = {"stem": ("features.0",), "stages": ("features.1",), "head": "head"}
    spec = BackboneSpec(name="nested", factory=lambda spec, weights: Nested(), **stages)
    entry = {"inject": {"type": "conv", "position": "parallel"}}
    model = (
        lab(spec)
        .from_backbone(
            "nested", weights=None, patches={"features": entry, "features.1": {"wrap": "gate"}}
        )
        .eval()
    )
    ran: list[str] = []
    model.head.register_forward_pre_hook(lambda *_: ran.append("head"))
    model.get_stage_outputs(images, 0)
    assert ran == ["head"]
    model = lab(spec).from_backbone("nested", weights=None, patches={"features.0": entry}).eval()
    model.head.register_forward_pre_hook(lambda *_: ran.append("end"))
    model.get_stage_outputs(images, "stem")
    assert ran == ["head"]  # one at the stage itself is done when the stage is


def test_a_stage_that_runs_twice_gives_its_last_map(lab: Any, images: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.stage = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stage(self.stage(self.stem(x)).relu()).mean((2, 3)))

    spec = BackboneSpec(
        name="twice",
        factory=lambda spec, weights: Twice(),
        stem=("stem",),
        stages=("stage",),
        head="head",
    )
    model = lab(spec).from_backbone("twice", None).eval()
    expected = model.stage(model.stage(model.stem(images)).relu())
    for _ in range(2):
        assert torch.equal(model.get_stage_outputs(images, 0)[0], expected)
    assert torch.equal(model.forward_features(images), expected)


def test_under_fsdp_a_pass_runs_whole_and_gives_the_same_gradients(
    tiny: Any, images: Tensor, tmp_path: Path
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = tiny().eval()
        model.get_stage_outputs(images, [0])[0].sum().backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        sharded = tiny().eval()
        mesh = init_device_mesh("cpu", (1,))
        for layer in (sharded.layer1, sharded.layer2):
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        for _ in range(2):
            sharded.zero_grad()
            sharded.get_stage_outputs(images, [0])[0].sum().backward()
            found = {
                name: p.grad.full_tensor()
                for name, p in sharded.named_parameters()
                if p.grad is not None
            }
            assert all(torch.equal(found[name], grad) for name, grad in expected.items())
        assert torch.equal(sharded(images), model(images))
    finally:
        torch.distributed.destroy_process_group()


def test_under_ddp_features_of_some_stages_train(tiny: Any, images: Tensor, tmp_path: Path) -> None:
    class Pooled(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model, self.top = model, nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.top(self.model.get_stage_outputs(x, [0])[0].mean((2, 3)))

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        ddp = nn.parallel.DistributedDataParallel(Pooled(tiny()), find_unused_parameters=True)
        for _ in range(3):
            ddp(images).sum().backward()
        assert ddp.module.model.stem.conv.weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()


# -- what the last layer gets ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_tiny", "vgg11", "mobilenetv3_small_100", "vit_base_patch32_224"]
)
def test_pre_logits_are_timms(builder: HybridBuilder, name: str) -> None:
    """The same weights in timm's network, where the two have the same names; else its own
    definition, by hand.
    """
    names = {"mobilenetv3_small_100": "mobilenet_v3_small", "vit_base_patch32_224": "vit_b_32"}
    model = builder.from_torchvision(names.get(name, name), None, num_classes=5).eval()
    side = 224 if name.startswith("vit") else 64
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.forward_head(model.forward_features(x), pre_logits=True)
        assert torch.equal(model.get_classifier()(found), model(x))
        if name == "resnet18":
            other = timm.create_model(name, num_classes=5).eval()
            other.load_state_dict(model.state_dict())
            torch.testing.assert_close(
                found, other.forward_head(other.forward_features(x), pre_logits=True)
            )
        with torch.device("meta"):
            other = timm.create_model(name, num_classes=5).eval()
            features = other.forward_features(torch.zeros(2, 3, 224, 224))
            assert other.forward_head(features, pre_logits=True).shape == found.shape


def test_pre_logits_have_the_dropout_and_the_patches_before_the_last_layer(
    tiny: Any, images: Tensor
) -> None:
    model = tiny(None, dropout=0.5).eval()
    features = model.forward_features(images)
    plain = model.forward_head(features, pre_logits=True)
    assert torch.equal(plain, features.mean((2, 3)))
    model.train()
    torch.manual_seed(0)
    found = model.forward_head(features, pre_logits=True)
    torch.manual_seed(0)
    assert torch.equal(found, nn.functional.dropout(plain, 0.5))
    model.reset_classifier(3)
    assert torch.equal(model.eval().forward_head(features, pre_logits=True), plain)
    assert calls.collections() == []


def test_pre_logits_compile_and_export(tiny: Any, images: Tensor) -> None:
    torch._dynamo.reset()

    class PreLogits(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model.forward_head(self.model.forward_features(x), pre_logits=True)

    wrapped = PreLogits(tiny().eval())
    expected = wrapped(images)
    torch.testing.assert_close(
        torch.compile(wrapped, fullgraph=True, backend="aot_eager")(images), expected
    )
    torch.testing.assert_close(torch.export.export(wrapped, (images,)).module()(images), expected)


def test_a_last_layer_that_was_exchanged_by_hand_is_read_too(tiny: Any, images: Tensor) -> None:
    model = tiny().eval()
    before = model.forward_head(model.forward_features(images), pre_logits=True)
    model.fc = nn.Linear(32, 2)
    features = model.forward_features(images)
    assert torch.equal(model.forward_head(features), model(images))
    assert torch.equal(model.forward_head(features, pre_logits=True), before)


# -- the pyramid -----------------------------------------------------------------------------------


def test_the_pyramid_of_a_resnet_is_torchvisions(builder: HybridBuilder) -> None:
    model = builder.from_torchvision(
        "resnet18", weights=None, patches={"layer3": {"wrap": "se"}}
    ).eval()
    reference = torchvision.models.resnet18()
    reference.load_state_dict(model.state_dict(), strict=False)
    layers = {f"layer{index + 1}": str(index) for index in range(4)}
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    expected = IntermediateLayerGetter(reference, layers).eval()(x)
    found = model.pyramid(x)
    assert list(found) == list(expected) == [level.name for level in model.pyramid_info]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("mobilenet_v2", "mobilenetv2_100"),
        ("efficientnet_b0", "efficientnet_b0"),
        ("convnext_tiny", "convnext_tiny"),
        ("regnet_x_400mf", "regnetx_004"),
        ("densenet121", "densenet121"),
        ("swin_t", "swin_tiny_patch4_window7_224"),
    ],
)
def test_the_pyramid_has_the_strides_of_timms_features(
    builder: HybridBuilder, name: str, other: str
) -> None:
    model = builder.from_torchvision(name, None).eval()
    # timm's RegNet computes its widths with tensors
    with nullcontext() if other.startswith("regnet") else torch.device("meta"):
        info = timm.create_model(other, features_only=True).feature_info
    theirs = [stride for stride in info.reduction() if stride >= 4]
    levels = [level for level in model.pyramid_info if level.stride >= 4]
    assert [level.stride for level in levels] == theirs
    channels = [level.channels for level in levels]
    # of the others timm taps other layers, or has other widths
    if name in ("convnext_tiny", "swin_t"):
        assert channels == info.channels()[-4:]
    for side in (64, 96):
        maps = model.pyramid(torch.zeros(1, 3, side, side))
        assert [tuple(x.shape) for x in maps.values()] == [
            (1, level.channels, side // level.stride, side // level.stride)
            for level in model.pyramid_info
        ]


def test_a_vit_has_one_level(builder: HybridBuilder) -> None:
    model = builder.from_torchvision("vit_b_32", None).eval()
    assert model.pyramid_info == (
        LevelInfo(name="0", part="stage 3", feature=4, channels=768, stride=32),
    )
    maps = model.pyramid(torch.zeros(1, 3, 224, 224))
    assert {key: tuple(x.shape) for key, x in maps.items()} == {"0": (1, 768, 7, 7)}


def test_levels_are_measured_after_patching(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer2": {"inject": {"type": "conv", "params": {"channels": 16}}}}).eval()
    assert [(level.part, level.channels, level.stride) for level in model.pyramid_info] == [
        ("stage 0", 8, 2),
        ("stage 1", 16, 4),
        ("stage 2", 32, 8),
    ]
    assert torch.equal(model.pyramid(images)["1"], model.get_stage_outputs(images, 1)[0])


def test_what_is_no_map_is_no_level(lab: Any, images: Tensor) -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pool = (
                nn.Conv2d(3, 8, 3, 2, 1),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            )
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.stem(x)))

    spec = BackboneSpec(
        name="vector",
        factory=lambda spec, weights: Vector(),
        stem=("stem",),
        stages=("pool",),
        head="head",
    )
    model = lab(replace(spec)).from_backbone("vector", None).eval()
    assert [(level.part, level.stride) for level in model.pyramid_info] == [("stem", 2)]
    assert list(model.pyramid(images)) == ["0"]
