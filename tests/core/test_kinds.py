"""Kinds that plugins define: offered by others, listed, resolved, clashing, broken, absent."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tvc_core import (
    AmbiguousNameError,
    BlockSpec,
    Kind,
    LocalPlugin,
    Named,
    PluginError,
    PluginInfo,
    Registry,
    Spec,
    UnknownNameError,
    hookimpl,
    hookspec,
)
from tvc_core.hookspecs import tvc_blocks
from tvc_core.testing import ConformanceError, check_plugin

pytestmark = pytest.mark.filterwarnings("ignore:The plugin :tvc_core.RegistryWarning")

Install = Callable[..., Path]

DEFINES = '''
from dataclasses import dataclass
from typing import ClassVar
from tvc_core import Kind, Spec, hookimpl, hookspec

TVC_API = (1, 1)

@dataclass(frozen=True, kw_only=True)
class LossSpec(Spec):
    """A loss."""
    kind: ClassVar[str] = "loss"
    needs_labels: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.needs_labels, bool):
            raise TypeError("needs_labels is True or False")

@hookspec
def PREFIX_losses():
    """Offer losses."""

TVC_KINDS = (Kind(spec=LossSpec, hook=PREFIX_losses, plural="losses"),)

@hookimpl(specname="PREFIX_losses")
def _losses():
    return [LossSpec(name="focal", factory="builtins:dict", summary="Down-weights the easy.")]
'''
OFFERS = """
from tvc_core import BlockSpec, hookimpl

TVC_API = (1, 1)

@hookimpl
def tvc_blocks():
    return [BlockSpec(name="gate", factory="a:b")]

@hookimpl(optionalhook=True)
def acme_losses():
    from acme_plugin import LossSpec
    return [LossSpec(name="dice", factory="builtins:list", needs_labels=False, summary="Overlap.")]
"""


def defines(prefix: str = "acme") -> str:
    return DEFINES.replace("PREFIX", prefix)


def info_of(registry: Registry, owner: str) -> PluginInfo:
    (info,) = [info for info in registry.plugins if info.owner == owner]
    return info


@pytest.mark.parametrize("offering", ["aa-first", "zz-last"])
def test_what_a_third_plugin_offers_of_a_kind_is_found_by_every_way(
    install: Install, offering: str
) -> None:
    """The order of loading, which is the alphabet's, decides nothing."""
    install("acme", defines())
    install(offering, OFFERS)
    registry = Registry()
    spec_type = sys.modules["acme_plugin"].LossSpec
    for kind in (spec_type, "loss", "acme:loss"):
        assert registry.names(kind) == ["dice", "focal"]
        assert [offer.owner for offer in registry.all(kind)] == [offering, "acme"]
        assert registry.resolve(kind, f"{offering}:dice").spec.needs_labels is False
    assert registry.resolve("loss", "focal").load() is dict
    assert registry.names(Kind)[-1] == "patch op" and "loss" in registry.names(Kind)
    assert registry.resolve(Kind, "loss").spec.hook.__name__ == "acme_losses"
    assert [spec.kind for spec in info_of(registry, offering).specs].count("loss") == 1
    assert [kind.name for kind in info_of(registry, "acme").kinds] == ["loss"]
    assert registry.names(BlockSpec) == ["gate"]
    assert {info.status for info in Registry().plugins} == {"active"}, "also when remembered"


def test_a_plugin_works_where_the_kind_is_absent(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("zeta", OFFERS.replace("from acme_plugin", "raise AssertionError('not called')\n    #"))
    registry = Registry()
    assert registry.names(BlockSpec) == ["gate"] and info_of(registry, "zeta").error == ""
    assert info_of(registry, "zeta").unknown_hooks == ("acme_losses",)
    with pytest.raises(
        UnknownNameError, match=r"Unknown kind 'loss'\. .*Registry\(\)\.names\(Kind"
    ):
        registry.names("loss")
    install("acme", defines())
    assert "not called" in info_of(Registry(), "zeta").error
    monkeypatch.setenv("TVC_DISABLE", "acme")
    assert info_of(Registry(), "zeta").status == "active"


@pytest.mark.parametrize("why", ["fails", "incompatible"])
def test_a_plugin_works_where_the_one_that_defines_the_kind_is_broken(
    install: Install, why: str
) -> None:
    broken = f"{defines()}\nraise OSError" if why == "fails" else defines().replace("1, 1", "9, 9")
    install("acme", broken)
    install("zeta", OFFERS)
    registry = Registry()
    assert registry.names(BlockSpec) == ["gate"] and "loss" not in registry.names(Kind)
    assert info_of(registry, "zeta").status == "active"


def test_what_is_broken_costs_only_its_own_plugin(install: Install) -> None:
    install("acme", defines())
    install("good", OFFERS)
    install("bad", OFFERS.replace("needs_labels=False", "needs_labels=3").replace("gate", "door"))
    registry = Registry()
    assert registry.names("loss") == ["dice", "focal"] and registry.names(BlockSpec) == ["gate"]
    bad = info_of(registry, "bad")
    assert (bad.status, bad.error) == ("failed", "TypeError: needs_labels is True or False")
    assert "needs_labels=3" in bad.traceback


def test_a_hook_that_is_not_optional_needs_its_kind(install: Install) -> None:
    install("zeta", OFFERS.replace("@hookimpl(optionalhook=True)", "@hookimpl"))
    error = info_of(Registry(), "zeta").error
    assert "an unknown hook 'acme_losses'" in error and "@hookimpl(optionalhook=True)" in error
    install("acme", defines())
    assert Registry().names("loss") == ["dice", "focal"]


@pytest.mark.parametrize(
    ("name", "near"), [("acme_loses", "acme_losses"), ("tvc_bloks", "tvc_blocks")]
)
def test_an_optional_hook_that_is_misspelt_is_a_fault(
    install: Install, name: str, near: str
) -> None:
    install("acme", defines())
    install("zeta", OFFERS.replace("def acme_losses", f"def {name}"))
    assert f"{name!r}. Did you mean {near!r}" in info_of(Registry(), "zeta").error


def test_an_optional_hook_of_a_later_version_is_not_taken_for_a_misspelt_one(
    install: Install,
) -> None:
    install("acme", defines())
    install("zeta", OFFERS.replace("def acme_losses", "def acme_loaders"))
    assert info_of(Registry(), "zeta").status == "active"


def test_two_plugins_that_define_one_kind_clash_in_that_name_alone(install: Install) -> None:
    install("acme", defines())
    install("other", defines("other"))
    install("zeta", OFFERS)
    registry = Registry()
    with pytest.raises(
        AmbiguousNameError, match="'loss' is offered by 2 plugins: write 'acme:loss'"
    ):
        registry.all("loss")
    assert registry.names("acme:loss") == ["dice", "focal"]
    assert registry.names("other:loss") == ["focal"]
    assert registry.names("block") == ["gate"]
    assert [name for name in registry.names(Kind) if "loss" in name] == ["acme:loss", "other:loss"]


def test_two_plugins_that_offer_one_name_clash_in_that_name_alone(install: Install) -> None:
    install("acme", defines())
    install("zeta", OFFERS.replace('"dice"', '"focal"'))
    registry = Registry()
    with pytest.raises(AmbiguousNameError) as caught:
        registry.resolve("loss", "focal")
    assert "write 'acme:focal' or 'zeta:focal'" in str(caught.value)
    assert "HybridBuilder" not in str(caught.value), "a builder has nothing to do with losses"
    assert registry.resolve("loss", "zeta:focal").load() is list
    assert Registry(prefer="zeta").resolve("loss", "focal").owner == "zeta"


def test_an_unknown_name_of_a_kind_has_near_names(install: Install) -> None:
    install("acme", defines())
    with pytest.raises(UnknownNameError) as caught:
        Registry().resolve("loss", "vocal")
    assert "Unknown loss 'vocal'. Did you mean 'focal'?" in str(caught.value)
    assert "Registry().names('loss') lists them" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("los", "Did you mean 'loss'"),
        ("acme:los", "Did you mean"),
        ("command", "tvc-cli provides it and is not installed: pip install tvc-cli"),
    ],
)
def test_an_unknown_kind_says_what_to_do(install: Install, given: str, advice: str) -> None:
    install("acme", defines())
    with pytest.raises(UnknownNameError, match=advice):
        Registry().names(given)


@pytest.mark.parametrize("given", [3, None, int])
def test_what_is_no_kind_is_an_error(given: Any) -> None:
    for ask in (Registry().names, Registry().all, lambda kind: Registry().resolve(kind, "se")):
        with pytest.raises(UnknownNameError, match=r"Unknown kind .*: a name is a string, not "):
            ask(given)


def test_two_kinds_of_one_plugin_share_no_word(install: Install) -> None:
    """Both of these would be "metrics" in the plural."""
    two = defines().replace('"loss"', '"train metric"').replace(', plural="losses"', "")
    second = two[two.index("@dataclass") : two.index("TVC_KINDS")].replace("train", "late")
    second = second.replace("LossSpec", "LateSpec").replace("acme_losses", "acme_late")
    two = two.replace(
        "TVC_KINDS = (", f"{second}\nTVC_KINDS = (Kind(spec=LateSpec, hook=acme_late), "
    )
    install("acme", two)
    (error,) = {info.error for info in Registry().plugins if info.owner == "acme"}
    assert error == (
        "defines the kind 'train metric', which is also, or in the plural, its kind 'late metric'; "
        "choose another"
    )


@pytest.mark.parametrize("name", ["kind", "spec", "Loss", None, 3])
def test_a_kind_has_a_name_of_its_own(name: Any) -> None:
    @dataclass(frozen=True, kw_only=True)
    class OddSpec(Spec):
        kind: ClassVar[str] = name

    with pytest.raises(ValueError, match=r"OddSpec\.kind is .*, not lower-case words"):
        Kind(spec=OddSpec, hook=tvc_blocks)


def test_two_modules_of_one_distribution_may_not_define_one_kind(install: Install) -> None:
    info = install("acme", defines())
    (info.parent / "acme_more_plugin.py").write_text(defines())
    (info / "entry_points.txt").write_text(
        "[tvc.plugins]\none = acme_plugin\ntwo = acme_more_plugin\n"
    )
    errors = {info.error for info in Registry().plugins if info.owner == "acme"}
    assert errors == {
        "offers the kind 'loss', which another module of the distribution also offers"
    }


def test_a_kind_whose_plugin_fails_later_is_gone(install: Install) -> None:
    """acme defines a kind and offers something of zeta's, and fails in that."""
    offer = "@hookimpl(optionalhook=True)\ndef zeta_things(): raise OSError('late')\n"
    install("acme", defines() + offer)
    things = defines("zeta").replace('"loss"', '"thing"').replace("losses", "things")
    install("zeta", things)
    install("zz", OFFERS)
    registry = Registry()
    assert "late" in info_of(registry, "acme").error
    assert "loss" not in registry.names(Kind) and "thing" in registry.names(Kind)
    assert registry.names(BlockSpec) == ["gate"]


# -- in this process -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ThingSpec(Spec):
    """A thing."""

    kind: ClassVar[str] = "fine thing"
    size: int = 1


@hookspec
def lab_things() -> list[ThingSpec]:
    """Offer things."""
    raise NotImplementedError


class Lab:
    """Defines a kind, and offers nothing."""

    TVC_KINDS = (Kind(spec=ThingSpec, hook=lab_things),)


def alone(*plugins: Any) -> Registry:
    return Registry(plugins, installed=False)


def test_a_local_plugin_offers_things_of_any_kind() -> None:
    plugin = LocalPlugin("notebook")
    plugin.add(ThingSpec(name="first", factory="a:b"))

    @plugin.offer(ThingSpec, size=3)
    def second() -> None:
        """Second to none."""

    registry = alone(plugin, Lab)
    assert registry.names("fine thing") == ["first", "second"]
    found = registry.resolve(ThingSpec, "second")
    assert found == Named("notebook", found.spec) and found.load() is second
    assert (found.spec.size, found.spec.summary) == (3, "Second to none.")
    with pytest.raises(PluginError, match="'first', of a kind that no plugin here defines"):
        alone(plugin)


def test_a_faulty_in_process_plugin_is_an_error_also_in_its_later_hooks() -> None:
    class Late:
        @hookimpl(optionalhook=True)
        def lab_things(self) -> list[Any]:
            raise OSError("disk")

    assert alone(Late()).names("block") == []
    with pytest.raises(PluginError, match="in-process plugin 'late': OSError: disk"):
        alone(Lab, Late())


def test_the_plural_is_the_last_word_with_an_s_unless_it_is_said() -> None:
    assert Kind(spec=ThingSpec, hook=lab_things).plural == "things"
    assert Kind(spec=ThingSpec, hook=lab_things, plural="stuff").plural == "stuff"
    with pytest.raises(ValueError, match="plural is 'fine things'"):
        Kind(spec=ThingSpec, hook=lab_things, plural="fine things")


def test_named_is_a_frozen_pair_that_pickles() -> None:
    named = Named("lab", ThingSpec(name="first", factory="a:b"))
    assert pickle.loads(pickle.dumps(named)) == named and named.qualified == "lab:first"
    with pytest.raises(dataclasses.FrozenInstanceError):
        named.owner = "other"  # type: ignore[misc]


# -- the conformance kit ---------------------------------------------------------------------------


def test_the_kit_checks_a_plugin_that_defines_a_kind_and_one_that_offers_of_it(
    install: Install,
) -> None:
    install("acme", defines())
    install("zeta", OFFERS.replace('factory="a:b"', 'factory="tvc_core.testing.toy_networks:Gate"'))
    for module, thing in (
        ("acme_plugin", "loss 'acme:focal'"),
        ("acme_plugin", "kind 'acme:loss'"),
        ("zeta_plugin", "loss 'zeta:dice'"),
    ):
        assert thing in {check.thing for check in check_plugin(module).passed}


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('    """Offer losses."""', "    ...", "docstring of acme_losses"),
        ('    """A loss."""\n', "", "docstring of LossSpec"),
        (', summary="Down-weights the easy."', "", "a summary in its spec"),
        ("needs_labels: bool = True", "needs_labels: object = True", None),
        ("builtins:dict", "builtins:no_such", "no_such"),
        ("def PREFIX_losses", "def other_losses", "carries the name"),
    ],
)
def test_the_kit_names_what_is_wrong_with_a_kind(
    install: Install, old: str, new: str, what: str | None
) -> None:
    assert old in DEFINES
    source = DEFINES.replace(old, new)
    if "other_losses" in new:
        source = source.replace("hook=PREFIX_losses", "hook=other_losses")
    install("acme", source.replace("PREFIX", "acme"))
    if what is None:
        check_plugin("acme_plugin")
    else:
        with pytest.raises(ConformanceError, match=what):
            check_plugin("acme_plugin")
