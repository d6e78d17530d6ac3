"""Families: names that no plugin lists one by one become backbones when they are used."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core.conftest import TINY, build_tiny
from tvc_core import (
    AmbiguousNameError,
    BackboneError,
    BackboneFamilySpec,
    BackboneSpec,
    HybridBuilder,
    HybridModel,
    ParameterError,
    PluginError,
    Registry,
    UnknownNameError,
    describe_backbone,
    hookimpl,
    load_yaml_recipe,
)

MEMBERS = ("net2", "net10", "Wide-x.v2")


def describe(member: str) -> BackboneSpec:
    """Describe the small network under any of the names, and one that is not listed."""
    if member == "odd":
        raise BackboneError("acme/odd cannot be offered: it has no stages")
    if member not in (*MEMBERS, "hidden"):
        raise UnknownNameError
    return dataclasses.replace(TINY, name=f"acme/{member}")


def offering(
    owner: str, factory: Any = describe, members: Any = lambda: MEMBERS, **more: Any
) -> Any:
    """Return an in-process plugin that offers the family acme."""

    class Plugin:
        TVC_OWNER = owner

        @hookimpl
        def tvc_backbones(self) -> list[Any]:
            return [BackboneFamilySpec(name="acme", factory=factory, members=members, **more)]

    return Plugin()


def registry(*plugins: Any, **more: Any) -> Registry:
    return Registry(plugins or [offering("acme-nets")], installed=False, **more)


@pytest.mark.parametrize("name", ["acme/net2", "acme-nets:acme/Wide-x.v2", "Acme_Nets:acme/hidden"])
def test_a_member_is_resolved_by_its_short_and_its_qualified_name(name: str) -> None:
    found = registry().resolve(BackboneSpec, name)
    assert found.owner == "acme-nets" and found.spec.name == name.rpartition(":")[2]
    assert found.qualified == f"acme-nets:{found.spec.name}"


def test_a_member_is_described_once_in_a_registry() -> None:
    asked: list[str] = []

    def count(member: str) -> BackboneSpec:
        asked.append(member)
        return describe(member)

    table = registry(offering("acme-nets", count))
    assert table.resolve(BackboneSpec, "acme/net2") is table.resolve(
        BackboneSpec, "acme-nets:acme/net2"
    )
    assert asked == ["net2"]


def test_listing_describes_nothing_and_loads_no_factory() -> None:
    table = registry(offering("acme-nets", "no_such_module:describe", origin="acme"))
    builder = HybridBuilder(registry=table)
    assert (
        builder.list_backbones() == []
        and builder.list_backbones("net*") == []
        and table.names(BackboneSpec) == []
    )
    assert builder.list_families() == ["acme"]
    every = ["acme/Wide-x.v2", "acme/net2", "acme/net10"]
    assert (
        builder.list_backbones(owner="acme-nets") == builder.list_backbones(origin="acme") == every
    )
    assert builder.list_backbones("acme/*") == builder.list_backbones("acme-nets:*/*") == every
    assert (
        builder.list_backbones("net1*", owner="acme-nets")
        == builder.list_backbones("acme/net1*")
        == ["acme/net10"]
    )
    assert builder.list_backbones("other/*") == []
    with pytest.raises(PluginError, match=r"no_such_module.*acme-nets"):
        table.resolve(BackboneSpec, "acme/net2")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme/net3", ["no such member", "Did you mean 'acme/net2'", "3 members"]),
        ("acm/net2", ["no family 'acm'", "Did you mean 'acme'"]),
        ("other:acme/net2", ["'other' does not offer it", "acme-nets:acme"]),
        ("acme/", ["no such member"]),
        ("timm/resnet50", ["pip install tvc-timm"]),
        ("tvc-timm:timm/resnet50", ["pip install tvc-timm"]),
    ],
)
def test_an_unknown_name_says_what_there_is(name: str, said: list[str]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        registry().resolve(BackboneSpec, name)
    assert repr(name) in str(caught.value) and all(part in str(caught.value) for part in said), (
        caught.value
    )


def test_what_a_family_says_of_an_unknown_member_is_handed_on() -> None:
    def refuse(member: str) -> BackboneSpec:
        raise UnknownNameError(f"there was a {member} until version 2")

    with pytest.raises(UnknownNameError, match="'acme/net2': there was a net2 until version 2"):
        registry(offering("acme-nets", refuse)).resolve(BackboneSpec, "acme/net2")


def test_a_member_that_cannot_be_offered_keeps_its_reason() -> None:
    with pytest.raises(BackboneError, match="it has no stages"):
        registry().resolve(BackboneSpec, "acme/odd")


def test_what_is_meant_instead_is_a_name_that_works_here_whatever_else_is_installed() -> None:
    found = registry(offering("a-nets"), offering("b-nets"))
    with pytest.raises(
        UnknownNameError,
        match=r"Did you mean 'a-nets:acme/net2'.*list_backbones\('a-nets:acme/\*'\)",
    ) as caught:
        found.resolve(BackboneSpec, "a-nets:acme/net3")
    assert "'acme/net2'" not in str(caught.value)


def test_a_family_with_two_owners_fails_only_where_it_is_used() -> None:
    plugins = [offering("a-nets"), offering("b-nets")]
    table = registry(*plugins)
    with pytest.raises(
        AmbiguousNameError, match=r"'a-nets:acme/net2' or 'b-nets:acme/net2'.*prefer=\('a-nets',\)"
    ):
        table.resolve(BackboneSpec, "acme/net2")
    assert table.resolve(BackboneSpec, "b-nets:acme/net2").owner == "b-nets"
    assert table.names(BackboneFamilySpec) == ["a-nets:acme", "b-nets:acme"]
    assert HybridBuilder(registry=table).list_backbones("acme/net2") == [
        "a-nets:acme/net2",
        "b-nets:acme/net2",
    ]
    preferred = registry(*plugins, prefer=("b-nets",))
    assert preferred.resolve(BackboneSpec, "acme/net2").owner == "b-nets"
    listed = HybridBuilder(registry=preferred).list_backbones("acme/net2")
    assert listed == ["a-nets:acme/net2", "acme/net2"]
    assert [preferred.resolve(BackboneSpec, name).owner for name in listed] == ["a-nets", "b-nets"]


def _exit(member: str) -> Any:
    raise SystemExit(3)


def _divide(member: str) -> Any:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (_exit, "SystemExit"),
        (_divide, "division by zero"),
        (lambda member: None, "NoneType"),
        (lambda member: TINY, "description of 'tiny'"),
        (
            lambda member: dataclasses.replace(TINY, name="acme/net10"),
            "description of 'acme/net10'",
        ),
    ],
)
def test_a_faulty_family_is_named_with_its_owner(factory: Any, said: str) -> None:
    with pytest.raises(PluginError, match="distribution 'acme-nets'") as caught:
        registry(offering("acme-nets", factory)).resolve(BackboneSpec, "acme/net2")
    assert said in str(caught.value) and "acme-nets:acme/net2" in str(caught.value)


@pytest.mark.parametrize("members", [lambda: "net2", lambda: [1], lambda: None, lambda: _exit("")])
def test_members_that_are_no_names_are_the_plugins_fault(members: Any) -> None:
    table = registry(offering("acme-nets", members=members))
    assert HybridBuilder(registry=table).list_backbones() == []
    with pytest.raises(PluginError, match=r"acme-nets:acme.*members.*distribution 'acme-nets'"):
        HybridBuilder(registry=table).list_backbones("acme/*")


def test_a_plugin_may_not_offer_a_members_name_itself() -> None:
    class Plugin:
        TVC_OWNER = "acme-nets"

        @hookimpl
        def tvc_backbones(self) -> list[BackboneSpec]:
            return [dataclasses.replace(TINY, name="acme/net2")]

    with pytest.raises(PluginError, match="only a BackboneFamilySpec"):
        registry(Plugin())


@pytest.mark.parametrize(
    "name", ["acme/", "/net", "acme/a/b", "Acme/net", "acme/-net", "acme/a b", "acme:net"]
)
def test_a_members_name_has_one_form(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        dataclasses.replace(TINY, name=name)


@pytest.mark.parametrize(
    "change", [{"members": "nowhere"}, {"members": None}, {"name": "a/b"}, {"origin": 3}]
)
def test_a_family_spec_refuses_what_it_cannot_use(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="BackboneFamilySpec"):
        BackboneFamilySpec(**{"name": "acme", "factory": "a.b:c", "members": "a.b:d", **change})


def test_a_family_spec_survives_pickle() -> None:
    spec = BackboneFamilySpec(name="acme", factory="a.b:c", members="a.b:d", origin="acme")
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_member_builds_saves_loads_and_pickles_as_any_backbone(
    tmp_path: Path, images: torch.Tensor
) -> None:
    builder = HybridBuilder(registry=registry())
    file = tmp_path / "recipe.yaml"
    file.write_text("backbone:\n  name: acme/net2\n  weights: null\nhead:\n  num_classes: 3\n")
    model = load_yaml_recipe(file, builder).eval()
    assert model.recipe.backbone == "acme-nets:acme/net2"
    model.save(tmp_path / "model.safetensors")
    with torch.no_grad():
        wanted = model(images)
        assert torch.equal(builder.load(tmp_path / "model.safetensors").eval()(images), wanted)
    assert {path.path for path in describe_backbone("acme/net2", registry=builder.registry)} >= {
        "stem",
        "layer3",
        "fc",
    }


# -- what families' members brought with them ------------------------------------------------------

CHANNELS = dataclasses.replace(
    TINY,
    name="wide",
    factory=lambda spec, *, weights, in_chans=3: _with_channels(in_chans),
    options={"in_chans": 3},
    channels_option="in_chans",
)


def _with_channels(channels: int) -> torch.nn.Module:
    network = build_tiny(TINY, weights=None)
    network.stem.conv = torch.nn.Conv2d(channels, 8, 3, 2, 1, bias=False)
    return network


def test_an_option_may_set_the_channels_of_the_image(lab: Callable[..., HybridBuilder]) -> None:
    model = lab(CHANNELS).from_backbone(
        "wide", weights=None, patches={"layer2": {"wrap": "gate"}}, options={"in_chans": 5}
    )
    assert model(torch.randn(2, 5, 32, 32)).shape == (2, 7)
    with pytest.raises(ParameterError, match="in_chans is a whole number from 1"):
        lab(CHANNELS).from_backbone("wide", None, options={"in_chans": 0})


def test_the_neck_counts_to_the_head(lab: Callable[..., HybridBuilder]) -> None:
    spec = dataclasses.replace(TINY, name="necked", stages=("layer1", "layer2"), neck=("layer3",))
    model = lab(spec).from_backbone("necked", None, freeze_backbone=True).train()
    parts = {part.name: part.num_parameters for part in model.freeze_report().parts}
    neck_and_head = [*model.layer3.parameters(), *model.fc.parameters()]
    assert parts["head"] == sum(parameter.numel() for parameter in neck_and_head)
    assert all(p.requires_grad for p in model.layer3.parameters()) and model.layer3.training
    assert not any(p.requires_grad for p in model.layer2.parameters())
    assert len(model.stage_info) == 2
    model.freeze_backbone(head="last")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "fc.weight",
        "fc.bias",
    ]


@pytest.mark.parametrize("patches", [None, {"layer3": {"wrap": "gate"}}])
def test_without_a_classifier_the_model_returns_what_it_got(
    tiny: Callable[..., HybridModel],
    images: torch.Tensor,
    tmp_path: Path,
    lab: Callable[..., HybridBuilder],
    patches: Any,
) -> None:
    whole, model = tiny(patches).eval(), tiny(patches, num_classes=0).eval()
    with torch.no_grad():
        wanted = whole.forward_head(whole.forward_features(images), pre_logits=True)
        assert torch.equal(model(images), wanted) and wanted.shape == (4, 32)
        assert torch.equal(
            model.forward_head(model.forward_features(images), pre_logits=True), wanted
        )
    assert model.num_classes == 0 and model.class_names is None
    assert set(model.state_dict()) == set(whole.state_dict()) - {"fc.weight", "fc.bias"}
    model.save(tmp_path / "model.safetensors")
    again = lab().load(tmp_path / "model.safetensors")
    assert again.num_classes == 0
    for other in (again, pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            assert torch.equal(other.eval()(images), wanted)
    again.freeze_backbone()
    assert not [
        name
        for name, p in again.named_parameters()
        if p.requires_grad and not name.startswith("patches.")
    ]
    again.reset_classifier(6)
    assert (
        isinstance(again.fc, torch.nn.Linear)
        and again(images).shape == (4, 6)
        and again.num_classes == 6
    )


def test_a_convolution_as_last_layer_can_be_left_out_and_given_back() -> None:
    model = HybridBuilder().from_backbone("squeezenet1_1", None, num_classes=0).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 512)
    model.reset_classifier(4)
    assert model.classifier[1].kernel_size == (1, 1) and model(torch.randn(1, 3, 64, 64)).shape == (
        1,
        4,
    )
