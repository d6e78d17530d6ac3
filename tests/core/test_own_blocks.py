"""A class, a function or a module of the user's own stands in `patches` itself."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import (
    HybridBuilder,
    HybridModel,
    LocalPlugin,
    ParameterError,
    PatchError,
    PluginError,
    Recipe,
    RecipeError,
    Registry,
    UnknownNameError,
)

from .conftest import TINY, plugin_of


class MyScale(nn.Module):
    """Scale and shift each channel."""

    def __init__(self, in_channels: int, start: float = 2.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, in_channels, 1, 1), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def my_branch(in_channels: int, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.Conv2d(width, in_channels, 1))


def scaled(plain: nn.Module, factor: float, images: Tensor) -> Tensor:
    """The network with layer2's map multiplied, written by a hook of torch's."""
    plain.get_submodule("layer2").register_forward_hook(lambda m, a, out: out * factor)
    with torch.no_grad():
        return plain.eval()(images)


PAPER = {"init": "paper"}
WAYS: dict[str, Any] = {
    "class": {"type": MyScale, **PAPER},
    "params": {"type": MyScale, "params": {"start": 3.0}, **PAPER},
    "partial": {"type": functools.partial(MyScale, start=3.0), **PAPER},
    "module": {"type": MyScale(16, 3.0), **PAPER},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_computes_what_it_is(tiny: Any, plain: Any, images: Tensor, way: str) -> None:
    model = tiny({"layer2": {"wrap": WAYS[way]}}).eval()
    right = scaled(plain(), 2.0 if way == "class" else 3.0, images)
    with torch.no_grad():
        assert torch.equal(model(images), right)
    record = model.patch_records[0]
    assert (record.block, record.paths) == ("local:my_scale", ("patches.layer2.my_scale",))
    assert "local:my_scale" in model.explain() and "local:my_scale" in model.recipe.to_yaml()


def test_it_starts_as_the_backbone_and_learns(tiny: Any, plain: Any, images: Tensor) -> None:
    model = tiny({"layer*": {"wrap": MyScale}, "layer3": {"inject": my_branch}}).eval()
    with torch.no_grad():
        assert torch.equal(model(images), plain().eval()(images))
    assert [record.block for record in model.patch_records][-1] == "local:my_branch"
    model(images).sum().backward()
    gates = [p.grad for n, p in model.named_parameters() if n.endswith("alpha")]
    assert len(gates) == 4 and all(bool(g.any()) for g in gates if g is not None)
    model.unpatch()
    assert not [name for name in model.state_dict() if "patches" in name]


def test_a_module_is_used_itself(tiny: Any) -> None:
    mine = MyScale(16)
    model = tiny({"layer2": {"wrap": mine}})
    assert model.get_submodule("patches.layer2.my_scale").block is mine
    twin = copy.deepcopy(model)
    own = twin.get_submodule("patches.layer2.my_scale.block")
    assert own is not mine and sum(isinstance(m, MyScale) for m in twin.modules()) == 1
    assert pickle.loads(pickle.dumps(model)).patch_records == model.patch_records


def test_a_module_may_replace(tiny: Any, plain: Any, images: Tensor) -> None:
    norm = nn.GroupNorm(4, 16)
    model = tiny({"layer2.norm": {"replace": norm}}).eval()
    network = plain()
    network.layer2.norm = norm
    with torch.no_grad():
        assert model.layer2.norm is norm and torch.equal(model(images), network.eval()(images))


@pytest.mark.parametrize("way", ["pattern", "two", "one target", "inside", "in the network"])
def test_a_module_has_one_place(tiny: Any, lab: Any, plain: Any, way: str) -> None:
    mine, network = MyScale(16), plain()
    with pytest.raises(PatchError, match=r"stands at .* already, and a module has one place"):
        if way == "pattern":
            tiny({"layer3.*": {"wrap": mine}})
        elif way == "two":
            tiny({"layer2": {"wrap": mine}, "layer3.0": {"wrap": mine}})
        elif way == "one target":
            tiny({"layer2": [{"wrap": mine}, {"wrap": mine}]})
        elif way == "inside":
            tiny({"layer2": [{"wrap": mine}, {"wrap": nn.Sequential(mine, nn.ReLU())}]})
        else:
            lab().from_module(
                network, "stem", ["layer1", "layer2", "layer3"], "fc",
                patches={"layer2": {"wrap": network.layer2.norm}},
            )  # fmt: skip


def test_a_module_may_hold_what_it_replaces(lab: Any, plain: Any, images: Tensor) -> None:
    network, same = plain(), plain()
    around = nn.Sequential(nn.Tanh(), network.layer2.norm)
    same.layer2.norm = nn.Sequential(nn.Tanh(), same.layer2.norm)
    model = lab().from_module(
        network, "stem", ["layer1", "layer2", "layer3"], "fc",
        patches={"layer2.norm": {"replace": around}},
    ).eval()  # fmt: skip
    with torch.no_grad():
        assert torch.equal(model(images), same.eval()(images))


def test_a_saved_model_says_what_it_needs(lab: Any, images: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    patches = {"layer2": {"wrap": {"type": MyScale, **PAPER}}, "layer1": {"wrap": MyScale(8)}}
    model = lab().from_backbone("tiny", weights=None, patches=patches).eval()
    with pytest.warns(UserWarning, match=r"my_scale are your own.*LocalPlugin\('local'\)"):
        model.save(file)
    with pytest.raises(UnknownNameError, match=r"my_scale.*plugin.block\(name='my_scale'\)"):
        lab().load(file)
    local = LocalPlugin("local")
    local.block(MyScale)
    builder = HybridBuilder(registry=Registry([plugin_of(TINY), local], installed=False))
    again = builder.load(file)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert again.recipe.patches == model.recipe.patches
    rebuilt = builder.build(Recipe.from_mapping(model.recipe.to_mapping()))
    assert list(rebuilt.state_dict()) == list(model.state_dict())


def test_a_model_without_own_blocks_is_saved_without_a_word(tiny: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny({"layer2": {"wrap": "gate"}}).save(tmp_path / "m.safetensors")


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()


def no_module(in_channels: int) -> int:
    return in_channels


def twice() -> Any:
    class MyScale(nn.Identity):
        def __init__(self, in_channels: int) -> None:
            super().__init__()

    return MyScale


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "no channels": ({"wrap": Nothing}, ParameterError, "argument"),
    "a lambda": ({"wrap": lambda c: MyScale(c)}, PluginError, "a lambda has no name to record"),
    "no module": ({"wrap": no_module}, PluginError, "returned int, not an nn.Module"),
    "a parameter": (
        {"wrap": {"type": MyScale, "params": {"begin": 1}}},
        ParameterError,
        "unknown parameter 'begin'",
    ),
    "missing ones": ({"wrap": nn.Conv2d}, ParameterError, "out_channels, kernel_size must be"),
    "params of a module": (
        {"wrap": {"type": MyScale(16), "params": {"start": 1.0}}},
        ParameterError,
        "is a module, made already, and takes no params: hand over the class MyScale",
    ),
    "wrong width": ({"wrap": MyScale(5)}, PatchError, "fails on"),
    "another shape": ({"wrap": nn.Conv2d(16, 8, 1)}, PatchError, "Shape mismatch"),
    "one name": (
        [{"wrap": MyScale}, {"wrap": twice()}],
        RecipeError,
        "two different blocks of your own are called 'my_scale'",
    ),
    "torch's own": (
        {"wrap": nn.ReLU},
        PluginError,
        "here that is inplace: bool = False. Give a function that makes it: def block(in_channels"
        "): return ReLU(...), or the module itself: ReLU(...)",
    ),
    "a function": ({"wrap": nn.functional.relu}, PluginError, "here that is input: torch.Tensor"),
    "no signature": ({"wrap": {"type": dict}}, ParameterError, "block 'local:dict' cannot be made"),
    "no argument": ({"wrap": object}, PluginError, "and it takes no argument"),
    "no block": ({"wrap": 16}, RecipeError, "in code also a class or a module, not 16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_block_is_refused(tiny: Any, case: str) -> None:
    patch, kind, said = WRONG[case]
    with pytest.raises((kind, PluginError)) as caught:
        tiny({"layer2": patch})
    assert said in str(caught.value) and "layer2" in str(caught.value)


def test_other_networks_take_them() -> None:
    builder = HybridBuilder()
    mine = MyScale(40)
    model: HybridModel = builder.from_torchvision(
        "mobilenet_v3_small",
        None,
        patches={"features.4": {"wrap": mine}, "features.9.block.2": {"inject": my_branch}},
    ).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), model.without():
        right = model(image)
    with torch.no_grad():
        assert torch.equal(model(image), right)
    tokens = builder.from_backbone(
        "timm/vit_tiny_patch16_224", None, patches={"blocks.1": {"wrap": my_branch}}
    )
    assert tokens.patch_records[0].starts_as_identity


def test_a_recipe_with_a_block_of_ones_own_says_how_to_build_it(tiny: Any, lab: Any) -> None:
    recipe = tiny({"layer2": {"wrap": nn.Conv2d(16, 16, 1)}}).recipe.to_mapping()
    with pytest.raises(UnknownNameError, match=r"plugin\.block\(name='conv2d'\).*plugins=\[plugin"):
        lab().build(recipe)
