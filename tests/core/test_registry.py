"""Names: in-process plugins, unknown names and the advice that errors give."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from tvc_core import (
    AmbiguousNameError,
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    InitializerSpec,
    PatchOpSpec,
    PluginError,
    Registry,
    UnknownNameError,
    hookimpl,
)
from tvc_core.advice import hints
from tvc_core.errors import near_names
from tvc_core.specs import Spec

FIRST_PARTY = {
    file.parent.name
    for file in (Path(__file__).resolve().parents[2] / "plugins").glob("*/pyproject.toml")
}
KINDS: tuple[type[Spec], ...] = (BackboneSpec, BlockSpec, PatchOpSpec, InitializerSpec)


def plugin(owner: str, *names: str) -> Any:
    """Return an in-process plugin that offers these blocks."""

    class Plugin:
        TVC_OWNER = owner

        @hookimpl
        def tvc_blocks(self) -> list[BlockSpec]:
            return [BlockSpec(name=name, factory=f"{owner}:{name}") for name in names]

    return Plugin()


def alone(*plugins: Any, **more: Any) -> Registry:
    return Registry(plugins, installed=False, **more)


def unknown(registry: Registry, kind: type[Spec], name: object) -> str:
    """Return the message for a name that is not there."""
    with pytest.raises(UnknownNameError) as caught:
        registry.resolve(kind, name)
    assert not isinstance(caught.value, AmbiguousNameError)
    return str(caught.value)


# -- in-process plugins ----------------------------------------------------------------------------


def test_two_builders_do_not_see_each_others_plugins() -> None:
    one, two = HybridBuilder([plugin("one", "gate")]), HybridBuilder([plugin("two", "door")])
    assert "gate" in one.list_blocks() and "door" not in one.list_blocks()
    assert "door" in two.list_blocks() and "gate" not in two.list_blocks()
    assert not {"gate", "door"} & set(HybridBuilder.list_blocks()), (
        "the class lists what is installed, nothing else"
    )
    with pytest.raises(UnknownNameError, match="Unknown block 'door'"):
        one.create_block("door", 8)


@hookimpl
def _blocks_of_a_module() -> list[BlockSpec]:
    return [BlockSpec(name="gate", factory="acme:Gate")]


class Bare:
    @staticmethod
    @hookimpl
    def tvc_blocks() -> list[BlockSpec]:
        return [BlockSpec(name="gate", factory="acme:Gate")]


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.tvc_blocks = _blocks_of_a_module  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("given", "owner"),
    [
        (_module("acme.my_blocks"), "acme"),
        (_module("__main__"), "main"),
        (Bare, "bare"),
        (Bare(), "bare"),
        (plugin("Acme.Blocks", "gate"), "acme-blocks"),
    ],
    ids=["module", "script", "class", "object", "TVC_OWNER"],
)
def test_a_module_a_class_and_an_object_are_plugins_with_an_owner(given: Any, owner: str) -> None:
    assert alone(given).resolve(BlockSpec, "gate").qualified == f"{owner}:gate"


@pytest.mark.parametrize("owner", ["a:b", "a b", "ä", 7, "-"])
def test_an_owner_that_cannot_stand_in_a_qualified_name_is_refused(owner: Any) -> None:
    with pytest.raises(PluginError, match="TVC_OWNER"):
        alone(plugin(owner, "gate"))


def test_two_in_process_plugins_need_two_owners() -> None:
    with pytest.raises(PluginError, match="two plugins have the owner 'lab'"):
        alone(plugin("lab", "gate"), plugin("lab", "door"))


def test_an_in_process_plugin_cannot_pose_as_the_core() -> None:
    with pytest.raises(PluginError, match="'tvc-core'"):
        alone(plugin("tvc-core", "gate"))


def test_a_faulty_in_process_plugin_is_an_error_at_once() -> None:
    class Misspelt:
        @hookimpl
        def tvc_block(self) -> list[BlockSpec]:
            return []

    with pytest.raises(
        PluginError, match=r"'misspelt'.*unknown hook 'tvc_block'.*Did you mean 'tvc_blocks'"
    ):
        alone(Misspelt())


def test_a_factory_may_be_a_callable_in_an_in_process_plugin() -> None:
    class Local:
        @hookimpl
        def tvc_blocks(self) -> list[BlockSpec]:
            return [BlockSpec(name="plain", factory=dict)]

    assert alone(Local()).resolve(BlockSpec, "plain").load() is dict


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_order_of_plugins_decides_nothing(order: tuple[int, int]) -> None:
    pair = plugin("alpha", "gate"), plugin("beta", "gate")
    registry = alone(*(pair[index] for index in order))
    assert registry.names(BlockSpec) == ["alpha:gate", "beta:gate"]
    with pytest.raises(AmbiguousNameError):
        registry.resolve(BlockSpec, "gate")


def test_the_first_preferred_owner_wins() -> None:
    pair = plugin("alpha", "gate"), plugin("beta", "gate")
    assert alone(*pair, prefer=("beta", "alpha")).resolve(BlockSpec, "gate").owner == "beta"


def test_preferring_somebody_who_is_not_there_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match=r"'alfa' is installed\. Did you mean 'alpha'"):
        alone(plugin("alpha", "gate"), prefer=("alfa",))


def test_one_name_in_two_kinds_is_no_clash() -> None:
    registry = alone(plugin("lab", "identity"))  # the core has an initializer of that name
    assert registry.resolve(BlockSpec, "identity").qualified == "lab:identity"
    assert registry.resolve(InitializerSpec, "identity").qualified == "tvc-core:identity"


def test_names_are_sorted_as_people_count() -> None:
    names = ["net101", "net18", "net2_b", "net2_a", "a", "net"]
    assert alone(plugin("lab", *names)).names(BlockSpec) == [
        "a",
        "net",
        "net2_a",
        "net2_b",
        "net18",
        "net101",
    ]


def test_every_listed_name_stands_for_another_thing_and_nothing_is_left_out() -> None:
    plugins = (
        plugin("alpha", "gate", "a"),
        plugin("beta", "gate", "b"),
        plugin("gamma", "gate", "a"),
    )
    for prefer in ((), ("beta",), ("gamma", "alpha")):
        registry = alone(*plugins, prefer=prefer)
        found = [registry.resolve(BlockSpec, name).qualified for name in registry.names(BlockSpec)]
        assert sorted(found) == [
            "alpha:a",
            "alpha:gate",
            "beta:b",
            "beta:gate",
            "gamma:a",
            "gamma:gate",
        ]


# -- unknown names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "meant", "listed_by"),
    [
        (BackboneSpec, "resnet5O", "resnet50", "HybridBuilder.list_backbones()"),
        (BlockSpec, "cbam_blok", "cbam_block", "HybridBuilder.list_blocks()"),
        (PatchOpSpec, "warp", "wrap", "HybridBuilder.list_patch_ops()"),
        (InitializerSpec, "kaimming", "kaiming", "HybridBuilder.list_initializers()"),
    ],
)
def test_an_unknown_name_says_what_was_given_what_is_near_and_what_to_do(
    kind: type[Spec], given: str, meant: str, listed_by: str
) -> None:
    message = unknown(Registry(), kind, given)
    assert message.startswith(f"Unknown {kind.kind} {given!r}.")
    assert f"Did you mean '{meant}'" in message
    assert listed_by in message


def test_the_listing_that_an_error_names_exists() -> None:
    for kind in KINDS:
        message = unknown(alone(), kind, "zzzzzz")
        method = message.partition("HybridBuilder.")[2].partition("()")[0]
        assert isinstance(getattr(HybridBuilder, method)(), list)


@pytest.mark.parametrize("given", [None, 3, ["resnet50"], b"resnet50", True])
def test_a_name_that_is_no_string_is_an_unknown_name(given: object) -> None:
    assert f"a name is a string, not {type(given).__name__}" in unknown(
        alone(), BackboneSpec, given
    )


@pytest.mark.parametrize("given", ["", ":", "se:", ":wrap", "a:b:wrap", "wrap ", "Wrap"])
def test_what_only_looks_like_a_name_is_not_resolved(given: str) -> None:
    assert repr(given) in unknown(alone(), PatchOpSpec, given)


@pytest.mark.parametrize(
    ("kind", "name", "owner"),
    [
        (BackboneSpec, "resnet50", "tvc-resnet"),
        (BackboneSpec, "tvc-resnet:resnet50", "tvc-resnet"),
        (BackboneSpec, "Tvc_Resnet:resnet50", "tvc-resnet"),
        (BackboneSpec, "tvc-resnet:resnet51", "tvc-resnet"),
        (BackboneSpec, "efficientnet_lite0", "tvc-efficientnet"),
        (BlockSpec, "se", "tvc-attention"),
        (BlockSpec, "conv_bn_act", "tvc-blocks"),
    ],
)
def test_a_first_party_name_that_is_not_installed_says_how_to_install_it(
    kind: type[Spec], name: str, owner: str
) -> None:
    assert f"pip install {owner}" in unknown(alone(), kind, name)


def test_a_near_name_in_a_distribution_that_is_not_installed_says_which() -> None:
    message = unknown(alone(), BackboneSpec, "resnet5O")
    assert (
        "Did you mean 'resnet50'" in message
        and "resnet50 is in tvc-resnet, which is not installed" in message
    )


def test_a_disabled_plugin_is_not_offered_for_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVC_DISABLE", "tvc-resnet")
    message = unknown(Registry(), BackboneSpec, "resnet50")
    assert (
        "tvc-resnet" in message
        and "is installed but disabled: by TVC_DISABLE or TVC_ONLY" in message
    )
    assert "pip install" not in message


def test_a_wrong_owner_is_told_the_right_one() -> None:
    message = unknown(
        alone(plugin("alpha", "gate"), plugin("beta", "door")), BlockSpec, "beta:gate"
    )
    assert "'beta' does not offer it; there is alpha:gate" in message


def test_a_misspelt_owner_is_told_the_near_one() -> None:
    message = unknown(alone(plugin("alpha", "gate")), BlockSpec, "alfa:door")
    assert "There is no plugin 'alfa'. Did you mean 'alpha'" in message


def test_a_name_of_another_kind_says_so() -> None:
    assert "There is the patch op 'wrap'." in unknown(alone(), BlockSpec, "wrap")


# -- factories -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("nowhere.to:find", "ModuleNotFoundError: No module named 'nowhere'"),
        ("textwrap:no_such", "AttributeError: module 'textwrap' has no attribute 'no_such'"),
        ("textwrap:dedent.inner", "AttributeError"),
    ],
)
def test_a_factory_that_cannot_be_loaded_is_the_distributions_fault(
    factory: str, reason: str
) -> None:
    class Lab:
        @hookimpl
        def tvc_blocks(self) -> list[BlockSpec]:
            return [BlockSpec(name="gate", factory=factory)]

    offer = alone(Lab()).resolve(BlockSpec, "gate")
    with pytest.raises(PluginError) as caught:
        offer.load()
    assert all(
        part in str(caught.value)
        for part in ("'lab:gate'", repr(factory), reason, "fault of the distribution 'lab'")
    )


def test_a_factory_may_be_an_attribute_of_an_attribute() -> None:
    class Lab:
        @hookimpl
        def tvc_blocks(self) -> list[BlockSpec]:
            return [BlockSpec(name="gate", factory="textwrap:TextWrapper.wrap")]

    import textwrap

    assert alone(Lab()).resolve(BlockSpec, "gate").load() is textwrap.TextWrapper.wrap


# -- hints and words -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_hints_are_exactly_what_the_first_party_plugins_offer(kind: type[Spec]) -> None:
    """`docs/generate.py` writes them."""
    offered = {
        offer.spec.name: offer.owner for offer in Registry().all(kind) if offer.owner in FIRST_PARTY
    }
    assert hints.table(kind.kind) == offered


def test_the_hints_know_every_first_party_distribution() -> None:
    offering = {
        info.owner for info in Registry().plugins if info.owner in FIRST_PARTY and info.specs
    }
    assert len(offering) >= 6 and hints.distributions() == offering


@pytest.mark.parametrize(
    ("given", "names", "best"),
    [
        ("RESNET50", ["resnet18", "resnet50"], "resnet50"),
        ("se_block", ["se", "cbam_block"], "cbam_block"),
        ("wrpa", ["inject", "wrap"], "wrap"),
        ("cbam", ["bam", "cbam_block"], "cbam_block"),
        ("stage", ["stage_paths", "stages"], "stages"),
    ],
)
def test_near_finds_a_misspelling_or_what_was_cut_short_whatever_its_case(
    given: str, names: list[str], best: str
) -> None:
    assert near_names(given, names)[0] == best


def test_near_finds_nothing_where_nothing_is_near() -> None:
    assert near_names("quux", ["wrap", "inject"]) == []


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("drop_path", "stochastic_depth"),
        ("DropPath", "stochastic_depth"),
        ("timm.layers.DropPath", "stochastic_depth"),
        ("dropblock", "drop_block"),
        ("gn", "group_norm"),
        ("ln", "layer_norm_2d"),
        ("dwconv", "depthwise_separable_conv"),
        ("SEModule", "se"),
        ("swish", "silu"),
    ],
)
def test_what_other_libraries_call_a_block_leads_to_ours(given: str, meant: str) -> None:
    assert f" Did you mean '{meant}'? " in unknown(Registry(), BlockSpec, given)


def test_another_name_of_what_is_not_installed_says_where_it_is() -> None:
    message = unknown(alone(), BlockSpec, "drop_path")
    assert "stochastic_depth is in tvc-blocks, which is not installed" in message


def test_another_name_stands_for_one_block_and_is_no_other_blocks_own() -> None:
    text = Path(hints.__file__).with_name("other_names.json").read_text(encoding="utf-8")
    names = [
        (hints._letters(other), name) for name, more in json.loads(text).items() for other in more
    ]
    ours = {hints._letters(name): name for name in hints.table("block")}
    assert len(dict(names)) == len(names)
    assert all(ours.get(other, name) == name for other, name in names)
