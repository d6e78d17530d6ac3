"""Parameter groups: every trainable parameter once, rates by depth, weight decay where it
belongs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from tvc_core import BackboneSpec, FreezeError, HybridBuilder, ParameterError, param_groups

PATCHES = {
    "layer1": {"wrap": "gate"},
    "layer3.0": {"wrap": "conv"},
    "layer2.conv": {"inject": {"type": "conv", "position": "before"}},
    "layer3.1.conv": {"replace": {"type": "conv", "params": {"channels": 32, "stride": 2}}},
    "avgpool": {"wrap": "gate"},
}


def by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the group of every parameter by its name; fails where one is in two groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(parameter)], group) for group in groups for parameter in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


def by_timm(
    model: nn.Module, layer_decay: float, weight_decay: float
) -> dict[str, tuple[float, float]]:
    """Return (rate, weight decay) of every parameter as timm groups a model of its own."""
    optim = pytest.importorskip("timm.optim")
    without = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    groups = optim.param_groups_layer_decay(model, weight_decay, without, layer_decay=layer_decay)
    return {name: (g["lr_scale"], g["weight_decay"]) for name, g in by_name(model, groups).items()}


@pytest.mark.parametrize("by", ["stage", "block"])
@pytest.mark.parametrize(
    "frozen", [{}, {"freeze_backbone": True}, {"freeze_backbone": True, "unfreeze_stages": [1, 2]}]
)
def test_complete_and_disjoint_after_any_patch(tiny: Any, frozen: Any, by: str) -> None:
    model = tiny(PATCHES, **frozen)
    found = by_name(model, param_groups(model, 0.1, layer_decay=0.5, by=by))
    assert set(found) == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def test_rates_fall_with_the_distance_from_the_head_and_what_is_new_has_the_full_one(
    tiny: Any,
) -> None:
    model = tiny(PATCHES)
    found = by_name(model, param_groups(model, 0.1, layer_decay=0.5))
    fresh = ("patches.", "layer3.1.conv.", "fc.")
    distances = {"stem": 4, "layer1": 3, "layer2": 2, "layer3": 1}
    for name, group in found.items():
        distance = 0 if name.startswith(fresh) else distances[name.partition(".")[0]]
        assert group["lr"] == pytest.approx(0.1 * 0.5**distance), name
        assert name.startswith(("patches.", "layer3.1.conv.")) == group["name"].startswith("new"), (
            name
        )


@pytest.mark.parametrize("by", ["stage", "block"])
def test_rates_do_not_depend_on_what_is_frozen(tiny: Any, by: str) -> None:
    every, model = tiny(), tiny(freeze_backbone=True, unfreeze_stages=[0])
    expected = by_name(every, param_groups(every, 0.1, layer_decay=0.5, by=by))
    found = by_name(model, param_groups(model, 0.1, layer_decay=0.5, by=by))
    assert found and all(group["lr"] == expected[name]["lr"] for name, group in found.items())


def sweep(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.sweep) for name in names]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        *sweep("swin_t", "convnext_tiny", "vgg11_bn", "densenet121"),
    ],
)
def test_rates_are_monotone_in_depth(builder: HybridBuilder, name: str) -> None:
    model = builder.from_backbone(name, None)
    for by in ("stage", "block"):
        found = by_name(model, param_groups(model, 1.0, layer_decay=0.9, by=by))
        # registered in order of execution
        rates = [found[parameter]["lr"] for parameter, _ in model.named_parameters()]
        assert rates == sorted(rates) and len(set(rates)) >= len(model.stage_info) + 2


def test_without_layer_decay_there_is_one_rate(tiny: Any) -> None:
    groups = param_groups(tiny(PATCHES), 0.3)
    assert {group["lr"] for group in groups} == {0.3} and {
        group["weight_decay"] for group in groups
    } == {0.0, 0.01}


def test_by_block_is_timms_grouping_of_resnet50(builder: HybridBuilder) -> None:
    """torchvision's resnet50 and timm's have equal names, so rate and decay of each parameter can
    be compared.
    """
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = by_timm(timm.create_model("resnet50"), 0.75, 0.05)
    model = builder.from_backbone("resnet50", None)
    found = by_name(
        model, param_groups(model, 1.0, layer_decay=0.75, weight_decay=0.05, by="block")
    )
    assert found.keys() == theirs.keys()
    assert {n: (pytest.approx(g["lr"]), g["weight_decay"]) for n, g in found.items()} == theirs


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("vit_b_32", "vit_base_patch32_224"), ("swin_t", "swin_tiny_patch4_window7_224")],
)
def test_by_block_is_timms_grouping_of_transformers(
    builder: HybridBuilder, ours: str, theirs: str
) -> None:
    """Names differ, so the parameters at each rate and decay are counted, without the last norm:
    timm's head has it.
    """
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        other = timm.create_model(theirs)
    expected = by_timm(other, 0.5, 0.05)
    model = builder.from_backbone(ours, None)
    found = by_name(model, param_groups(model, 1.0, layer_decay=0.5, weight_decay=0.05, by="block"))
    counts: list[dict[Any, int]] = []
    for network, placed, last in (
        (other, expected, "norm."),
        (
            model,
            {n: (g["lr"], g["weight_decay"]) for n, g in found.items()},
            ("encoder.ln.", "norm."),
        ),
    ):
        count: dict[Any, int] = {}
        for name, parameter in network.named_parameters():
            # torchvision's Swin has the pooling of patches in front of a stage's blocks as a layer
            # of its own
            if not name.startswith(last) and (ours != "swin_t" or placed[name][1] == 0):
                key = placed[name] if ours != "swin_t" else placed[name][1]
                count[key] = count.get(key, 0) + parameter.numel()
        counts.append(count)
    assert counts[0] == counts[1]


def decaying(model: nn.Module) -> set[str]:
    return {
        name
        for name, group in by_name(model, param_groups(model, 1.0)).items()
        if group["weight_decay"]
    }


def reference(network: nn.Module) -> set[str]:
    """Return the parameters that decay, from the types of their layers."""
    matrices = (nn.Conv2d, nn.Linear)
    found = {
        f"{path}.weight" for path, module in network.named_modules() if isinstance(module, matrices)
    }
    found |= {
        f"{p}.in_proj_weight"
        for p, module in network.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    return {name for name in found if ".cpb_mlp." not in name}


@pytest.mark.parametrize(
    "name",
    ["swin_v2_t", "efficientnet_b0", *sweep("convnext_tiny", "vit_b_32", "swin_t", "maxvit_t")],
)
def test_only_weights_of_convolutions_and_linear_layers_decay(
    builder: HybridBuilder, name: str
) -> None:
    network = torchvision.models.get_model(name, weights=None)
    assert decaying(builder.from_backbone(name, None)) == reference(network)


def test_gates_of_patches_and_norms_inside_do_not_decay(tiny: Any) -> None:
    found = decaying(tiny(PATCHES))
    assert {name for name in found if name.startswith("patches.")} == {
        "patches.layer1.gate.block.fc.weight",
        "patches.layer2.conv.conv.block.conv.weight",
        "patches.layer3.0.conv_2.block.conv.weight",
        "patches.avgpool.gate.block.fc.weight",
    }


def test_a_binary_head_decays(tiny: Any) -> None:
    """Its weight [1, C] has one long axis, as a factor for each channel has; but it is a layer's
    weight.
    """
    model = tiny(num_classes=1)
    assert "fc.weight" in decaying(model)


def test_groups_work_in_an_optimizer_and_move_each_layer_at_its_rate(tiny: Any) -> None:
    model = tiny(PATCHES)
    groups = param_groups(model, 0.1, layer_decay=0.5, weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {
        name: float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters()
    }
    for name, group in by_name(model, groups).items():
        # Adam's first step is its rate
        assert moved[name] == pytest.approx(group["lr"], rel=1e-3), name
    assert [group["name"] for group in optimizer.param_groups][:2] == ["stem", "stem, no decay"]
    optimizer.load_state_dict(optimizer.state_dict())
    assert [group["name"] for group in optimizer.state_dict()["param_groups"]][
        -1
    ] == "new, no decay"


def test_auxiliary_heads_have_the_full_rate_and_are_no_layers(builder: HybridBuilder) -> None:
    model = builder.from_backbone(
        "googlenet", None, options={"aux_logits": True, "init_weights": False}
    )
    for by, layers in (("stage", 5), ("block", 11)):
        found = by_name(model, param_groups(model, 1.0, layer_decay=0.5, by=by))
        assert {g["lr"] for n, g in found.items() if n.startswith(("aux1.", "aux2.", "fc."))} == {
            1.0
        }
        assert min(g["lr"] for g in found.values()) == 0.5 ** (layers - 1)


def test_layers_without_parameters_count_for_nothing(lab: Any) -> None:
    def build(spec: BackboneSpec, *, weights: Any) -> nn.Module:
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
        layers = [
            nn.Conv2d(3, 8, 3),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
        ]
        network = nn.Sequential(*layers)
        network.add_module("head", head)
        return network

    spec = BackboneSpec(
        name="layers", factory=build, stem=("0",), stages=(("1", "2", "3", "4", "5"),), head="head"
    )
    model = lab(spec).from_backbone("layers", None)
    found = by_name(model, param_groups(model, 1.0, layer_decay=0.5, by="block"))
    assert {name.partition(".")[0]: group["lr"] for name, group in found.items()} == {
        "0": 0.125,
        "2": 0.25,
        "3": 0.25,
        "5": 0.5,
        "head": 1.0,
    }


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"lr": 0}, "lr is a number above 0, not 0"),
        ({"lr": "0.1"}, "lr is a number above 0"),
        ({"layer_decay": 1.5}, "above 0 and at most 1, or None for one rate, not 1.5"),
        ({"layer_decay": 0}, "layer_decay is a number"),
        ({"weight_decay": -1}, "at least 0, not -1"),
        ({"weight_decay": True}, "weight_decay is a number"),
        ({"by": "blocks"}, "Did you mean 'block'"),
    ],
)
def test_what_is_out_of_range_is_refused(tiny: Any, wrong: Any, text: str) -> None:
    with pytest.raises(ParameterError, match=text):
        param_groups(tiny(), **{"lr": 0.1, **wrong})


def test_other_models_and_models_without_anything_to_train_are_refused(
    tiny: Any, plain: Any
) -> None:
    with pytest.raises(
        ParameterError, match=r"not Tiny; of a wrapped one, what is inside: ddp\.module"
    ):
        param_groups(plain(), 0.1)
    model = tiny()
    model.freeze_backbone(head="none")
    with pytest.raises(FreezeError, match="nothing of the model is trainable"):
        param_groups(model, 0.1)
