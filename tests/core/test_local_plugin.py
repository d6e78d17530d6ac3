"""LocalPlugin: what a notebook decorates is offered like what a distribution offers."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tvc_core
from tvc_core import (
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    HybridModel,
    LocalPlugin,
    PluginError,
    Registry,
    UnknownNameError,
)

from .conftest import Gate, Tiny


class ChannelScale(nn.Module):
    """Scale each channel by a learned constant.

    More about it.
    """

    def __init__(self, in_channels: int, start: float = 0.5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, in_channels, 1, 1), start))

    def gate(self, x: Tensor) -> Tensor:
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def tiny_net(spec: BackboneSpec, *, weights: Any, num_classes: int = 7) -> nn.Module:
    torch.manual_seed(3)
    return Tiny(num_classes)


def filled() -> LocalPlugin:
    plugin = LocalPlugin("notebook")
    assert plugin.block(category="attention", gated=True)(ChannelScale) is ChannelScale
    parts = {"stem": "stem", "stages": ["layer1", "layer2", "layer3"], "head": "fc"}
    assert plugin.backbone(**parts, options={"num_classes": 7}, min_size=8)(tiny_net) is tiny_net

    @plugin.patch_op(options={"times": 2})
    def several(target: Any, block: Any, times: int = 2) -> nn.Module:
        for _ in range(times):
            target.after(block(target.out_channels))
        module: nn.Module = target.module
        return module

    @plugin.initializer
    def halves(module: nn.Module) -> None:
        for parameter in module.parameters():
            nn.init.constant_(parameter, 0.25)

    assert several.__name__ == "several" and halves.__name__ == "halves"
    return plugin


def alone(plugin: LocalPlugin) -> HybridBuilder:
    return HybridBuilder(registry=Registry([plugin], installed=False))


def build(builder: HybridBuilder) -> HybridModel:
    patches = {"layer2": {"several": {"type": "channel_scale", "times": 3, "init": "halves"}}}
    return builder.from_backbone("tiny_net", weights=None, patches=patches)


def test_all_four_kinds_can_be_decorated_and_used_in_one_build() -> None:
    model = build(alone(filled()))
    assert model.recipe.backbone == "notebook:tiny_net"
    assert [name for name, _ in model.named_parameters() if name.endswith("scale")] == [
        f"patches.layer2.channel_scale{number}.block.scale" for number in ("", "_2", "_3")
    ]
    assert model.get_parameter("patches.layer2.channel_scale.block.scale").unique().tolist() == [
        0.25
    ]
    assert model.step0_difference == 0.0


def test_name_and_summary_come_from_the_class_or_function() -> None:
    plugin = LocalPlugin("notebook")
    plugin.block(ChannelScale)
    plugin.block(name="other", summary="Another.")(ChannelScale)
    plugin.block(type("SEBlock2D", (ChannelScale,), {}))
    specs = [offer.spec for offer in Registry([plugin], installed=False).all(BlockSpec)]
    assert {spec.name: spec.summary for spec in specs} == {
        "channel_scale": "Scale each channel by a learned constant.",
        "other": "Another.",
        "se_block2_d": "",
    }


def test_a_name_twice_is_an_error_unless_it_is_to_be_replaced() -> None:
    plugin = LocalPlugin("notebook")
    plugin.block(name="gate")(ChannelScale)
    with pytest.raises(
        PluginError,
        match=r"LocalPlugin\('notebook'\) offers the block 'gate' already: .*replace=True",
    ):
        plugin.block(name="gate")(Gate)
    assert isinstance(alone(plugin).create_block("gate", 4), ChannelScale), (
        "the plugin is as it was"
    )
    plugin.block(name="gate", replace=True)(Gate)
    assert isinstance(alone(plugin).create_block("gate", 4), Gate)
    plugin.initializer(name="gate")(lambda module: None)  # another kind has names of its own


def test_a_builder_knows_what_was_there_when_it_was_made() -> None:
    plugin = LocalPlugin("notebook")
    plugin.block(name="gate")(ChannelScale)
    builder = alone(plugin)
    plugin.block(name="later")(ChannelScale)
    with pytest.raises(UnknownNameError, match="'later'"):
        builder.create_block("later", 4)
    assert alone(plugin).create_block("later", 4).scale.shape == (1, 4, 1, 1)


@pytest.mark.parametrize("owner", ["", "a b", "-", None, 7, "ä"])
def test_an_owner_that_cannot_stand_in_a_name_is_refused(owner: Any) -> None:
    with pytest.raises(PluginError, match="the owner of a LocalPlugin"):
        LocalPlugin(owner)


@pytest.mark.parametrize(
    "arguments", [{"name": "My Gate"}, {"layouts": ("NCWH",)}, {"category": 3}]
)
def test_a_wrong_value_is_refused_where_it_is_written(arguments: dict[str, Any]) -> None:
    plugin = LocalPlugin("notebook")
    with pytest.raises(PluginError, match=r"LocalPlugin\('notebook'\): BlockSpec"):
        plugin.block(**arguments)(ChannelScale)
    assert Registry([plugin], installed=False).all(BlockSpec) == []


def test_a_name_by_position_is_told_from_a_class() -> None:
    for given in (("gate",), ("gate", ChannelScale)):
        with pytest.raises(PluginError, match="not above 'gate'; a name is given by name='gate'"):
            LocalPlugin("notebook").block(*given)


def test_a_decorator_above_something_else_says_so() -> None:
    with pytest.raises(PluginError, match="above a class or function, not above 'gate'"):
        LocalPlugin("notebook").block("gate")


def test_a_saved_model_needs_the_plugin_again(tmp_path: Path) -> None:
    plugin = LocalPlugin("notebook")
    plugin.block(gated=True)(ChannelScale)
    plugin.backbone(stem="stem", stages=["layer1", "layer2", "layer3"], head="fc", min_size=8)(
        tiny_net
    )
    builder = alone(plugin)
    model = builder.from_backbone(
        "tiny_net", weights=None, patches={"layer2": {"wrap": "channel_scale"}}
    )
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(UnknownNameError, match="There is no plugin 'notebook'"):
        tvc_core.load(tmp_path / "model.safetensors", registry=Registry(installed=False))
    loaded = alone(plugin).load(tmp_path / "model.safetensors")
    twin = pickle.loads(pickle.dumps(model))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(x), model.eval()(x)) and torch.equal(twin.eval()(x), model(x))


def test_decorating_imports_no_torch() -> None:
    code = (
        "import sys\nfrom tvc_core import HybridBuilder, LocalPlugin\nplugin = "
        "LocalPlugin('notebook')\n"
        "@plugin.initializer\ndef fill(module): pass\n"
        "assert 'fill' in HybridBuilder(plugins=[plugin]).list_initializers()\nassert 'torch' not "
        "in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_specs_are_added_all_or_none() -> None:
    plugin, gate = filled(), BlockSpec(name="gate", factory=Gate)
    before = Registry([plugin], installed=False).plugins
    for wrong in (Gate, BlockSpec(name="channel_scale", factory=Gate)):
        with pytest.raises(
            PluginError, match=r"offers specs|offers the block 'channel_scale' already"
        ):
            plugin.add(gate, wrong)  # type: ignore[arg-type]
    assert Registry([plugin], installed=False).plugins == before
    family = BackboneFamilySpec(name="nets", factory="acme:describe", members="acme:names")
    plugin.add(gate, family, BlockSpec(name="channel_scale", factory=Gate), replace=True)
    builder = HybridBuilder(plugins=[plugin])
    assert isinstance(builder.create_block("notebook:channel_scale", 8), Gate)
    assert "nets" in builder.list_families() and "gate" in builder.list_blocks()
