"""Bad plugins: each costs only itself, and its error says what is wrong."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from zoo.beasts import BEASTS, owner_of, release

from tvc_core import (
    AmbiguousNameError,
    BackboneSpec,
    BlockSpec,
    PatchOpSpec,
    PluginError,
    PluginInfo,
    Registry,
    RegistryWarning,
    UnknownNameError,
)
from tvc_core.testing.distributions import write_distribution

pytestmark = pytest.mark.filterwarnings("ignore:The plugin :tvc_core.RegistryWarning")

HEADER = (
    "from tvc_core import BackboneSpec, BlockSpec, InitializerSpec, PatchOpSpec, "
    "hookimpl\nTVC_API = (1, 0)\n"
)
GATE = "BlockSpec(name='gate', factory='acme.gate:Gate')"


def blocks(*names: str) -> str:
    """Return the source of a sound plugin that offers these blocks."""
    return HEADER + hook(
        "return ["
        + ", ".join(f"BlockSpec(name={name!r}, factory='acme:{name}')" for name in names)
        + "]"
    )


def hook(
    body: str, name: str = "tvc_blocks", decorator: str = "@hookimpl", arguments: str = ""
) -> str:
    """Return the source of a hook implementation."""
    return f"{decorator}\ndef {name}({arguments}):\n    {body}\n"


Install = Callable[..., Path]


def info_of(registry: Registry, owner: str) -> PluginInfo:
    (info,) = [info for info in registry.plugins if info.owner == owner]
    return info


LOCAL = [name for name, beast in BEASTS.items() if beast.status != "active" and not beast.slow]
"""The beasts of the zoo that can be met in this process."""


def test_plugins_are_found_in_all_that_imports_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_distribution(tmp_path / "folder", "in-folder", blocks("first")).parent
    write_distribution(folder, "in-develop", blocks("second")).rename(folder / "x.egg-info")
    (folder / "x.egg-info" / "METADATA").rename(folder / "x.egg-info" / "PKG-INFO")
    write_distribution(tmp_path / "zipped", "in-zip", blocks("third"))
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "zipped")
    write_distribution(tmp_path / "odd", "in-hook", blocks("fourth"))

    class Finder(importlib.metadata.DistributionFinder):
        def find_distributions(self, context: object = None) -> Any:
            return [importlib.metadata.Distribution.at(tmp_path / "odd/in_hook-1.0.dist-info")]

    (tmp_path / "odd" / "README.txt").write_text("no plugin", encoding="utf-8")
    closed = tmp_path / "[closed]"  # no pattern
    write_distribution(closed, "in-brackets", blocks("fifth"))
    added = [str(folder), archive, str(tmp_path / "absent"), str(closed)]
    monkeypatch.setattr(sys, "path", [*sys.path, *added, str(tmp_path / "odd" / "README.txt")])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    owners = {info.owner: info for info in Registry().plugins}
    found = {"in-folder", "in-develop", "in-zip", "in-brackets"}
    assert {owner for owner in found if owners[owner].status == "active"} == found
    assert owners["in-hook"].error.startswith("ModuleNotFoundError")  # its folder is on no path


@pytest.mark.parametrize("name", LOCAL)
def test_a_bad_plugin_costs_only_itself_and_says_why(install: Install, name: str) -> None:
    folder = install("aa-good", blocks("first")).parent
    release(folder, name, BEASTS[name])
    install("zz-good", blocks("last"))
    registry = Registry()
    assert registry.names(BlockSpec) == ["first", "last"]
    for bad in [info for info in registry.plugins if info.owner == owner_of(name)]:
        assert (bad.status, bad.specs, bad.kinds) == (BEASTS[name].status, (), ())
        assert BEASTS[name].words in bad.error
        assert "\n" not in bad.error, "the error is one line"
    assert len(registry.plugins) >= 4
    assert registry.names(PatchOpSpec) == ["inject", "replace", "wrap"]


def test_a_name_of_the_cores_is_refused_with_advice(install: Install) -> None:
    release(install("good", blocks("gate")).parent, "name_of_the_core", BEASTS["name_of_the_core"])
    error = info_of(Registry(), "beast-name-of-the-core").error
    assert error == "offers the patch op 'wrap', a name of tvc-core's own; choose another"


def test_a_hook_that_calls_itself_for_ever_is_a_fault(install: Install) -> None:
    install("bad", HEADER + hook("return tvc_blocks()"))
    assert "RecursionError: maximum recursion depth" in info_of(Registry(), "bad").error


def test_a_failed_plugin_keeps_its_original_traceback(install: Install) -> None:
    install("bad", "def deep():\n    raise OSError('disk')\ndeep()")
    kept = info_of(Registry(), "bad").traceback
    assert "in deep" in kept and "OSError: disk" in kept


def test_an_unknown_name_mentions_the_plugins_that_could_not_be_loaded(install: Install) -> None:
    install("acme-blocks", "raise OSError('disk')")
    with pytest.raises(
        UnknownNameError, match="Nothing of acme-blocks could be loaded; 'tvc plugins' says why"
    ):
        Registry().resolve(BlockSpec, "acme_gate")


@pytest.mark.parametrize(
    "source",
    ["raise KeyboardInterrupt", HEADER + hook("raise KeyboardInterrupt")],
    ids=["import", "hook"],
)
def test_a_plugin_that_raises_the_users_interrupt_is_faulty(install: Install, source: str) -> None:
    install("bad", source)
    bad = info_of(Registry(), "bad")
    assert (bad.status, bad.error) == ("failed", "KeyboardInterrupt")


def test_a_later_hook_that_fails_takes_the_whole_plugin_with_it(install: Install) -> None:
    install("bad", blocks("gate") + hook("raise OSError('late')", name="tvc_initializers"))
    registry = Registry()
    assert registry.names(BlockSpec) == []
    assert "late" in info_of(registry, "bad").error


@pytest.mark.parametrize("value", ["", "::", "1-2:3", "two words"])
def test_an_entry_point_that_is_no_reference_is_a_failed_plugin(
    install: Install, value: str
) -> None:
    install("good", blocks("gate"))
    info = install("bad", blocks("other"))
    (info / "entry_points.txt").write_text(f"[tvc.plugins]\nbad = {value}\n")
    registry = Registry()
    assert registry.names(BlockSpec) == ["gate"]
    assert info_of(registry, "bad").error == f"its entry point 'bad' is {value!r}, no module"


def test_broken_metadata_is_said_with_its_folder(install: Install) -> None:
    release(install("good", blocks("gate")).parent, "no_name", BEASTS["no_name"])
    with pytest.warns(
        RegistryWarning,
        match=r"no-name 1\.0 \(failed\) .*its metadata in .*beast_no_name-1\.0\.dist-info ",
    ):
        Registry()


def test_one_entry_point_name_in_two_distributions_loads_both(install: Install) -> None:
    for name in ("one", "two"):
        info = install(name, blocks(f"from_{name}"))
        (info / "entry_points.txt").write_text(f"[tvc.plugins]\nplugin = {name}_plugin\n")
    assert Registry().names(BlockSpec) == ["from_one", "from_two"]


def test_an_entry_point_that_is_listed_twice_is_loaded_once(install: Install) -> None:
    info = install("twice", blocks("gate"))
    (info / "entry_points.txt").write_text(
        "[tvc.plugins]\none = twice_plugin\ntwo = twice_plugin\n"
    )
    registry = Registry()
    assert registry.names(BlockSpec) == ["gate"]
    assert info_of(registry, "twice").status == "active"


def test_two_modules_of_one_distribution_share_its_owner(install: Install) -> None:
    info = install("acme", blocks("gate"))
    (info.parent / "acme_more_plugin.py").write_text(blocks("other"))
    (info / "entry_points.txt").write_text(
        "[tvc.plugins]\none = acme_plugin\ntwo = acme_more_plugin\n"
    )
    registry = Registry()
    assert [offer.qualified for offer in registry.all(BlockSpec)] == ["acme:gate", "acme:other"]


def test_two_modules_of_one_distribution_with_one_name_both_fail(install: Install) -> None:
    info = install("acme", blocks("gate"))
    (info.parent / "acme_more_plugin.py").write_text(blocks("gate", "other"))
    (info / "entry_points.txt").write_text(
        "[tvc.plugins]\none = acme_plugin\ntwo = acme_more_plugin\n"
    )
    registry = Registry()
    assert registry.names(BlockSpec) == []
    errors = {info.error for info in registry.plugins if info.owner == "acme"}
    assert errors == {
        "offers the block 'gate', which another module of the distribution also offers"
    }


def test_the_owner_is_the_normalized_name_of_the_distribution(install: Install) -> None:
    info = install("acme", blocks("gate"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Acme_Blocks.Extra\nVersion: 2.5\n")
    registry = Registry()
    assert registry.resolve(BlockSpec, "gate").qualified == "acme-blocks-extra:gate"
    assert info_of(registry, "acme-blocks-extra").version == "2.5"


# -- clashes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", [("alpha", "beta"), ("beta", "alpha")], ids=["alpha first", "beta first"]
)
class TestClash:
    @pytest.fixture(autouse=True)
    def both(self, install: Install, order: tuple[str, str]) -> None:
        for name in order:
            install(name, blocks("gate", f"own_{name}"))

    def test_only_the_short_name_fails_and_names_both_qualified_ones(self) -> None:
        registry = Registry()
        with pytest.raises(AmbiguousNameError) as caught:
            registry.resolve(BlockSpec, "gate")
        assert "'alpha:gate' or 'beta:gate'" in str(caught.value)
        assert "prefer=" in str(caught.value)

    def test_the_other_names_and_the_qualified_ones_work(self) -> None:
        registry = Registry()
        for name, qualified in [
            ("own_alpha", "alpha:own_alpha"),
            ("own_beta", "beta:own_beta"),
            ("alpha:gate", "alpha:gate"),
            ("beta:gate", "beta:gate"),
            ("Beta:gate", "beta:gate"),
        ]:
            assert registry.resolve(BlockSpec, name).qualified == qualified

    def test_the_listing_has_both_qualified_names(self) -> None:
        assert Registry().names(BlockSpec) == ["alpha:gate", "beta:gate", "own_alpha", "own_beta"]

    @pytest.mark.parametrize("owner", ["alpha", "beta"])
    def test_prefer_settles_it_either_way(self, owner: str) -> None:
        assert Registry(prefer=(owner,)).resolve(BlockSpec, "gate").qualified == f"{owner}:gate"

    def test_prefer_leaves_the_other_under_its_qualified_name(self) -> None:
        registry = Registry(prefer="beta")
        assert registry.names(BlockSpec) == ["alpha:gate", "gate", "own_alpha", "own_beta"]
        assert {
            registry.resolve(BlockSpec, name).qualified for name in registry.names(BlockSpec)
        } == {"alpha:gate", "beta:gate", "alpha:own_alpha", "beta:own_beta"}


# -- the environment -------------------------------------------------------------------------------


def test_a_disabled_plugin_is_listed_but_not_imported(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("good", blocks("gate"))
    install("acme-blocks", blocks("other"))
    monkeypatch.setenv("TVC_DISABLE", " Acme_Blocks ,")
    registry = Registry()
    assert registry.names(BlockSpec) == ["gate"]
    assert info_of(registry, "acme-blocks").status == "disabled"
    assert "acme_blocks_plugin" not in sys.modules and "good_plugin" in sys.modules


def test_only_excludes_all_others_without_importing_them(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("good", blocks("gate"))
    install("acme-blocks", blocks("other"))
    monkeypatch.setenv("TVC_ONLY", "good")
    registry = Registry()
    assert registry.names(BlockSpec) == ["gate"]
    assert registry.names(PatchOpSpec) == ["inject", "replace", "wrap"], (
        "the core is not a plugin that one can do without"
    )
    assert "acme_blocks_plugin" not in sys.modules


def test_disable_wins_over_only(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("good", blocks("gate"))
    monkeypatch.setenv("TVC_ONLY", "good")
    monkeypatch.setenv("TVC_DISABLE", "good")
    assert Registry().names(BlockSpec) == []


@pytest.mark.parametrize("variable", ["TVC_ONLY", "TVC_DISABLE"])
def test_an_empty_variable_excludes_nobody(
    install: Install, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    install("good", blocks("gate"))
    monkeypatch.setenv(variable, " ")
    assert Registry().names(BlockSpec) == ["gate"]


@pytest.mark.parametrize("variable", ["TVC_ONLY", "TVC_DISABLE"])
def test_a_misspelt_owner_warns_with_the_near_one(
    install: Install, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    install("acme-blocks", blocks("gate"))
    monkeypatch.setenv(variable, "acme-block")
    with pytest.warns(
        RegistryWarning, match=f"{variable} names 'acme-block'.*Did you mean 'acme-blocks'"
    ):
        Registry()


def test_only_the_core_is_a_way_to_switch_all_plugins_off(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("good", blocks("gate"))
    monkeypatch.setenv("TVC_ONLY", "tvc-core")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Registry().names(BlockSpec) == []


def test_disabling_the_core_warns_because_it_has_no_effect(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVC_DISABLE", "tvc-core")
    with pytest.warns(RegistryWarning, match="TVC_DISABLE names 'tvc-core'"):
        assert Registry().names(PatchOpSpec) == ["inject", "replace", "wrap"]


def test_strict_turns_every_faulty_plugin_into_one_error(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("good", blocks("gate"))
    install("broken", "raise OSError('disk')")
    install("newer", blocks("other").replace("(1, 0)", "(2, 0)"))
    monkeypatch.setenv("TVC_STRICT", "1")
    with pytest.raises(
        PluginError, match=r"2 of 3 plugins are faulty: broken: OSError: disk; newer: written for"
    ):
        Registry()


@pytest.mark.parametrize("value", ["", "0"])
def test_strict_can_be_off_and_a_disabled_plugin_is_not_faulty(
    install: Install, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    install("broken", "raise OSError('disk')")
    monkeypatch.setenv("TVC_STRICT", value)
    assert info_of(Registry(), "broken").status == "failed"
    monkeypatch.setenv("TVC_STRICT", "1")
    monkeypatch.setenv("TVC_DISABLE", "broken")
    assert info_of(Registry(), "broken").status == "disabled"


def test_a_registry_without_installed_plugins_imports_none(install: Install) -> None:
    install("good", blocks("gate"))
    registry = Registry(installed=False)
    assert [info.owner for info in registry.plugins] == ["tvc-core"]
    assert registry.names(BackboneSpec) == [] and "good_plugin" not in sys.modules
