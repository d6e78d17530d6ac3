"""Patches come out without a trace, for good or for a while, compiled or not."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tvc_core
from tvc_core import (
    BlockSpec,
    FreezeError,
    HeadError,
    HybridBuilder,
    HybridModel,
    PatchError,
    Recipe,
    TargetError,
)
from tvc_core.surgery.patches import PatchHook

BESIDE = {"type": "conv", "position": "parallel", "params": {"channels": 16, "stride": 2}}
PATCHES: dict[str, Any] = {
    "stem": {"wrap": "gate"},
    "layer1": {"inject": {"type": "conv", "position": "before"}},
    "layer2": [{"wrap": "gate"}, {"inject": {"type": "gate", "name": "other"}}, {"inject": BESIDE}],
    "layer3.0.conv": {"wrap": "conv"},
}
REPLACE = {"replace": {"type": "conv", "params": {"channels": 16, "stride": 2}}}
REPLACED_THEN_WRAPPED = {"layer1": {"wrap": "gate"}, "layer2": [REPLACE, {"wrap": "gate"}]}


def compiled(model: nn.Module) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def open_gates(model: HybridModel) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".alpha"):
                parameter.fill_(0.7)


def train(model: HybridModel, images: Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()


def assert_same_network(model: HybridModel, reference: nn.Module, images: Tensor) -> None:
    """Same names in the same order, types, tensors and outputs."""
    found = [(name, type(module)) for name, module in model.named_modules() if name]
    assert found == [(name, type(module)) for name, module in reference.named_modules() if name]
    expected = reference.state_dict()
    assert list(model.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.eval()(images), reference.eval()(images))


# -- unpatch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patches",
    [
        PATCHES,
        {"layer2": REPLACE},
        {"layer1": {"wrap": "gate"}, "layer2": [REPLACE, {"wrap": "gate"}]},
    ],
)
def test_unpatch_gives_the_backbone_back(
    tiny: Any, plain: Any, images: Tensor, patches: Any
) -> None:
    model = tiny(patches)
    open_gates(model)
    assert not torch.equal(model.eval()(images), plain().eval()(images))
    model.unpatch()
    assert_same_network(model, plain(), images)
    assert not hasattr(model, "patches")
    assert (
        model.patch_records == ()
        and model.recipe.patches == ()
        and "patches: none" in model.explain()
    )
    assert not model._hybrid.originals and model.step0_difference == 0.0


def test_after_training_it_is_the_trained_backbone(tiny: Any, plain: Any, images: Tensor) -> None:
    model = tiny(PATCHES)
    train(model, images)
    assert model.patches.layer2.gate.alpha.item() != 0
    trained = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith("patches.")
    }
    model.unpatch()
    reference = plain()
    reference.load_state_dict(trained)
    assert_same_network(model, reference, images)


def test_one_target_alone(tiny: Any, images: Tensor) -> None:
    model = tiny(PATCHES)
    expected = tiny({path: patch for path, patch in PATCHES.items() if path != "layer2"})
    for each in (model, expected):
        open_gates(each)
    model.unpatch("layer2")
    kept = {
        name: tensor for name, tensor in model.state_dict().items() if name.startswith("patches.")
    }
    expected.load_state_dict(kept, strict=False)
    assert_same_network(model, expected, images)
    assert model.recipe == expected.recipe and [r.target for r in model.patch_records] == [
        "stem",
        "layer1",
        "layer3.0.conv",
    ]


def test_patches_inside_a_wrapped_target_stay(tiny: Any) -> None:
    model = tiny({"layer3": {"wrap": "gate"}, "layer3.0.conv": {"wrap": "gate"}})
    model.unpatch("layer3")
    assert [name for name, _ in model.patches.named_modules() if name.endswith("gate")] == [
        "layer3.0.conv.gate"
    ]


def test_a_pattern_takes_out_all_that_it_means(tiny: Any, plain: Any, images: Tensor) -> None:
    model = tiny({"layer3.*": {"wrap": "gate"}, "layer1": {"wrap": "gate"}})
    model.unpatch("layer3.*")
    assert [record.target for record in model.patch_records] == ["layer1"]
    model.unpatch("layer1")
    assert_same_network(model, plain(), images)


def test_an_unknown_target_is_refused_with_what_is_patched(tiny: Any) -> None:
    model = tiny({"layer2": {"wrap": "gate"}})
    keys = list(model.state_dict())
    for call in (model.unpatch, lambda target: model.without(target).__enter__()):
        for target in ("layer1", "layer9"):
            with pytest.raises(
                TargetError, match=f"nothing is patched at '{target}'.*Patched are: layer2"
            ):
                call(target)
    assert list(model.state_dict()) == keys and model.layer2._forward_hooks


def test_unpatch_of_an_unpatched_model_leaves_it_as_it_is(
    tiny: Any, plain: Any, images: Tensor
) -> None:
    model = tiny()
    model.unpatch()
    assert_same_network(model, plain(), images)


def test_features_and_stages_follow_a_module_that_came_back(
    tiny: Any, plain: Any, images: Tensor
) -> None:
    model = tiny(
        {"layer3": {"replace": {"type": "conv", "params": {"channels": 32, "stride": 8}}}}
    ).eval()
    assert model.stage_info[2].stride == 32
    model.unpatch("layer3")
    reference = tiny().eval()
    assert model.stage_info == reference.stage_info and model.pyramid_info == reference.pyramid_info
    found, expected = model.get_stage_outputs(images), reference.get_stage_outputs(images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(model.forward_head(model.forward_features(images)), model(images))
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (4, 32)


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_carry_what_was_replaced_and_own_it(
    tiny: Any, plain: Any, images: Tensor, carry: Any
) -> None:
    model = tiny({"layer2": REPLACE})
    copied = carry(model)
    with torch.no_grad():
        model._hybrid.originals["layer2"].conv.weight.zero_()
    copied.unpatch()
    assert_same_network(copied, plain(), images)


def test_what_was_replaced_is_in_no_list_of_modules_or_tensors(tiny: Any) -> None:
    model = tiny({"layer2": REPLACE})
    original = model._hybrid.originals["layer2"]
    assert original not in list(model.modules())
    assert not {id(p) for p in original.parameters()} & {id(p) for p in model.parameters()}
    assert len(model.state_dict()) == sum(1 for _ in (*model.parameters(), *model.buffers()))


def test_a_module_comes_back_in_the_models_type(tiny: Any, plain: Any, images: Tensor) -> None:
    model = tiny({"layer2": REPLACE}).double()
    model.unpatch()
    assert_same_network(model, plain().double(), images.double())


@pytest.mark.parametrize(
    "frozen", [{}, {"unfreeze_stages": [1]}, {"unfreeze_stages": [2], "freeze_patches": True}]
)
def test_what_came_back_is_frozen_where_its_stage_is(tiny: Any, frozen: Any) -> None:
    model, reference = tiny({"layer2": REPLACE, "layer1": {"wrap": "gate"}}), tiny()
    for each in (model, reference):
        each.freeze_backbone(**frozen)
    model.unpatch()
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == [
        (n, p.requires_grad) for n, p in reference.named_parameters()
    ]
    assert [m.training for m in model.train().modules()] == [
        m.training for m in reference.train().modules()
    ]


def test_a_file_of_what_is_left_reads_back(
    tiny: Any, lab: Any, images: Tensor, tmp_path: Path
) -> None:
    model = tiny(
        {"layer2": [{"wrap": "gate"}], "layer1": {"wrap": "conv"}, "layer3": {"wrap": "gate"}}
    )
    open_gates(model)
    model.unpatch("layer2")
    model.save(tmp_path / "left.safetensors")
    again = lab().load(tmp_path / "left.safetensors")
    assert (
        torch.equal(again.eval()(images), model.eval()(images))
        and again.recipe.patches == model.recipe.patches
    )
    rebuilt = Recipe.from_mapping(model.recipe.to_mapping())
    assert rebuilt == model.recipe


def test_a_model_from_a_file_says_that_it_lacks_what_was_replaced(
    tiny: Any, lab: Any, tmp_path: Path
) -> None:
    tiny({"layer2": REPLACE}).save(tmp_path / "replaced.safetensors")
    model = lab().load(tmp_path / "replaced.safetensors")
    with pytest.raises(PatchError, match=r"'layer2' was replaced.*files keep no replaced modules"):
        model.unpatch()
    assert type(model.layer2).__name__ == "ConvNorm" and model.patch_records


def test_a_replaced_last_layer_with_other_classes_is_refused_whole(tiny: Any, plain: Any) -> None:
    dense = BlockSpec(
        name="dense", factory=lambda in_channels: nn.Linear(in_channels, 7), layouts=("NC",)
    )
    model = tiny({"layer3": {"wrap": "gate"}, "fc": {"replace": "dense"}}, dense, num_classes=5)
    keys = list(model.state_dict())
    with pytest.raises(HeadError, match=r"'fc'.*7 outputs.*5 now.*reset_classifier\(7\)"):
        model.unpatch()
    assert (
        list(model.state_dict()) == keys
        and len(model.patch_records) == 2
        and model.patches.layer3.gate.enabled
    )
    assert any(isinstance(hook, PatchHook) for hook in model.layer3._forward_hooks.values())
    model.reset_classifier(7)
    model.unpatch()
    assert list(model.state_dict()) == list(plain().state_dict()) and model.fc.weight.equal(
        plain().fc.weight
    )


def test_a_patch_keeps_its_key_when_the_one_before_it_goes(
    builder: HybridBuilder, tmp_path: Path
) -> None:
    patches = {
        "layer1.0": {"wrap": {"type": "se", "position": "branch"}},
        "layer1.0.bn2": {"wrap": "se"},
    }
    model = builder.from_backbone("resnet18", weights=None, patches=patches)
    assert [record.paths for record in model.patch_records] == [
        ("patches.layer1.0.bn2.se",),
        ("patches.layer1.0.bn2.se_2",),
    ]
    model.unpatch("layer1.0")
    model.save(tmp_path / "left.safetensors")
    again = tvc_core.load(tmp_path / "left.safetensors")
    assert (
        list(again.state_dict()) == list(model.state_dict())
        and again.recipe.patches[0].name == "se_2"
    )


def test_unpatch_is_refused_under_ddp(tiny: Any, images: Tensor) -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = tiny({"layer2": {"wrap": "gate"}})
        ddp = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(FreezeError, match=r"DistributedDataParallel.*patches\.layer2\.gate"):
            model.unpatch()
        assert model.layer2._forward_hooks and hasattr(model, "patches")
        del ddp
        model.unpatch()
    finally:
        torch.distributed.destroy_process_group()


# -- without ---------------------------------------------------------------------------------------


def test_without_switches_off_and_on(tiny: Any, plain: Any, images: Tensor) -> None:
    model, reference = tiny(PATCHES).eval(), plain().eval()
    open_gates(model)
    on, off = model(images), reference(images)
    with model.without():
        assert torch.equal(model(images), off)
        assert "switched off" in model.explain()
        assert torch.equal(model.forward_head(model.forward_features(images)), off)
    assert torch.equal(model(images), on) and "switched off" not in model.explain()


def test_without_one_target(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer1": {"wrap": "gate"}, "layer3": {"wrap": "gate"}}).eval()
    open_gates(model)
    expected = copy.deepcopy(model)
    expected.unpatch("layer3")
    with model.without("layer3") as same:
        assert same is model and torch.equal(model(images), expected(images))


def test_nested_contexts_and_errors_leave_it_on(tiny: Any, plain: Any, images: Tensor) -> None:
    model, off = tiny({"layer2": {"wrap": "gate"}}).eval(), plain().eval()(images)
    open_gates(model)
    on = model(images)
    with pytest.raises(RuntimeError, match="stop"), model.without():
        with model.without("layer2"):
            assert torch.equal(model(images), off)
        assert torch.equal(model(images), off)
        raise RuntimeError("stop")
    assert torch.equal(model(images), on)
    first, second = model.without(), model.without("layer2")
    for step in (first.__enter__, second.__enter__):
        step()
    first.__exit__(None, None, None)  # not the order of nesting
    assert torch.equal(model(images), off)
    second.__exit__(None, None, None)
    assert torch.equal(model(images), on)


def test_a_copy_made_inside_is_on(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer2": {"wrap": "gate"}}).eval()
    open_gates(model)
    on = model(images)
    with model.without():
        copied = copy.deepcopy(model)
    assert torch.equal(copied(images), on)


MEASURING: list[Any] = [
    lambda m: m.unpatch("layer1"),
    lambda m: m.remeasure(),
    lambda m: m.patch_report(torch.zeros(1, 3, 32, 32)),
]


@pytest.mark.parametrize("call", MEASURING)
def test_what_measures_the_network_says_that_patches_are_off(tiny: Any, call: Any) -> None:
    model = tiny(patches=PATCHES)
    with model.without(), pytest.raises(PatchError, match=r"is switched off.*outside of without"):
        call(model)
    model.unpatch()


def test_a_replacement_cannot_be_switched_off(tiny: Any) -> None:
    model = tiny({"layer2": REPLACE, "layer1": {"wrap": "gate"}})
    for target in (None, "layer2"):
        with (
            pytest.raises(PatchError, match=r"layer2 was replaced.*Use unpatch"),
            model.without(target),
        ):
            pass
    assert model.patches.layer1.gate.enabled


# -- compiled --------------------------------------------------------------------------------------


def test_a_compiled_model_follows_without(tiny: Any, plain: Any, images: Tensor) -> None:
    model = tiny(PATCHES).eval()
    open_gates(model)
    fast, on, off = compiled(model), model(images), plain().eval()(images)
    torch.testing.assert_close(fast(images), on)
    with model.without():
        torch.testing.assert_close(fast(images), off)
    torch.testing.assert_close(fast(images), on)
    assert not torch.allclose(on, off)


@pytest.mark.parametrize(
    "patches",
    [
        {"layer2": REPLACE, "layer1": {"wrap": "gate"}},
        pytest.param(PATCHES, marks=pytest.mark.sweep),
        pytest.param({"layer2": REPLACE}, marks=pytest.mark.sweep),
    ],
)
def test_a_compiled_model_follows_unpatch(
    tiny: Any, plain: Any, images: Tensor, patches: Any
) -> None:
    model = tiny(patches).eval()
    open_gates(model)
    fast, off = compiled(model), plain().eval()(images)
    assert not torch.allclose(fast(images), off)
    model.unpatch()
    torch.testing.assert_close(fast(images), off)


def test_a_model_compiled_in_place_follows_and_is_not_compiled_for_a_look(
    tiny: Any, images: Tensor
) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = tiny({"layer1": {"wrap": "gate"}, "layer2": {"wrap": "gate"}}).eval()
    open_gates(model)
    other = copy.deepcopy(model)
    model.compile(backend=backend, fullgraph=True)
    assert torch.equal(model(images), other(images)) and len(graphs) == 1
    model.unpatch("layer2")
    other.unpatch("layer2")
    assert len(graphs) == 1
    assert torch.equal(model(images), other(images)) and len(graphs) == 2


def test_a_compiled_model_follows_a_module_of_the_same_type(
    tiny: Any, plain: Any, images: Tensor
) -> None:
    model = tiny(
        {"layer1.norm": {"replace": "norm"}}, BlockSpec(name="norm", factory=nn.BatchNorm2d)
    ).eval()
    fast, off = compiled(model), plain().eval()(images)
    assert not torch.allclose(fast(images), off)
    model.unpatch()
    torch.testing.assert_close(fast(images), off)
