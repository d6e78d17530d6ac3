"""The conformance kit's checks of registration modules, and how authors run the kit, skip checks
and give parameters.
"""

from __future__ import annotations

import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
from torch import nn

from tvc_core import (
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    LocalPlugin,
    ParameterError,
    TvcError,
    UnknownNameError,
    hookimpl,
)
from tvc_core.testing import (
    Check,
    ConformanceError,
    check_plugin,
    checks_of,
    parametrize_with_checks,
)
from tvc_core.testing.conformance import all_checks

from .conftest import plugin_of, run_pytest
from .defects import modules
from .defects.backbones import build as build_backbone
from .defects.blocks import Healthy, NeedsChannels, NotPersistent, Unused

Install = Callable[..., Path]


def plugin_checks(given: Any) -> dict[str, str]:
    """Return the messages of the plugin's own checks that fail."""
    failed: dict[str, str] = {}
    for check in checks_of(given):
        if check.name.startswith("plugin_"):
            try:
                check()
            except ConformanceError as error:
                failed[check.name] = str(error)
            except SkipTest:
                pass
    return failed


@pytest.mark.parametrize("what", modules.DEFECTS)
def test_a_defective_module_is_caught_by_the_right_check_alone(
    what: str, fake_distribution: Install
) -> None:
    source, caught_by, says = modules.DEFECTS[what]
    fake_distribution("acme-broken", source)
    failed = plugin_checks("acme_broken_plugin")
    assert list(failed) == [caught_by], failed
    assert failed[caught_by].startswith(f"{caught_by}: plugin 'acme_broken_plugin': expected ")
    assert says in failed[caught_by]


def test_the_healthy_module_passes_under_the_name_of_its_distribution(
    fake_distribution: Install,
) -> None:
    fake_distribution("acme-healthy", modules.HEALTHY)
    assert plugin_checks("acme_healthy_plugin") == {}
    assert "block 'acme-healthy:gate'" in {
        check.thing for check in checks_of("acme_healthy_plugin")
    }
    module = sys.modules["acme_healthy_plugin"]
    assert plugin_checks(module) == {} and len(checks_of(module)) == len(
        checks_of("acme_healthy_plugin")
    )


def test_a_module_that_takes_its_time_is_caught(
    fake_distribution: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvc_core.testing.plugin_checks.MOST_SECONDS", 0.0)
    fake_distribution("acme-slow", modules.HEALTHY)
    failed = plugin_checks("acme_slow_plugin")
    assert (
        list(failed) == ["plugin_light_import"]
        and "takes at most 0 s, saw 0." in failed["plugin_light_import"]
    )


def test_a_module_without_a_file_skips_what_needs_one() -> None:
    module = types.ModuleType("acme_made_up")
    exec(modules.HEALTHY, module.__dict__)
    reasons = []
    for check in checks_of(module):
        if check.name in ("plugin_light_import", "plugin_api_version"):
            with pytest.raises(SkipTest) as skipped:
                check()
            reasons.append(str(skipped.value))
    assert len(reasons) == 2 and all("no module file" in reason for reason in reasons)


# -- how it is run ---------------------------------------------------------------------------------


def local(**blocks: type[nn.Module]) -> LocalPlugin:
    plugin = LocalPlugin("acme")
    for name, block in blocks.items():
        plugin.block(name=name)(block)
    return plugin


def only(name: str, checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.name == name]


def test_check_plugin_reports_all_failures_at_once_one_sentence_each() -> None:
    skip = dict.fromkeys(("block_compiles", "block_exports"), "not looked at here")
    with pytest.raises(ConformanceError) as caught:
        check_plugin(local(good=Healthy, idle=Unused, forgets=NotPersistent), skip=skip)
    first, *sentences = str(caught.value).splitlines()
    assert first.startswith("2 of ") and first.endswith(" checks fail:")
    assert [sentence.partition(": expected")[0] for sentence in sentences] == [
        "block_state_dict: block 'acme:forgets'",
        "block_gradients: block 'acme:idle'",
    ]
    assert isinstance(caught.value, AssertionError) and isinstance(caught.value, TvcError)


@pytest.mark.parametrize("calls", range(1, 12, 2))
def test_what_fails_from_some_call_on_is_never_reported_as_skipped_alone(calls: int) -> None:
    made: list[nn.Module] = []

    def tires(in_channels: int) -> nn.Module:
        if len(made) == calls:
            raise RuntimeError("tired")
        made.append(Healthy(in_channels))
        return made[-1]

    with pytest.raises(ConformanceError, match="tired"):
        check_plugin(local(tires=tires))


def test_check_plugin_returns_what_passed_and_why_the_rest_did_not_run() -> None:
    report = check_plugin(local(good=Healthy), skip={"block_exports": "the exporter is not there"})
    assert {check.name for check in report.passed} >= {
        "block_gradients",
        "block_compiles",
        "plugin_hooks",
    }
    skipped = {check.name: reason for check, reason in report.skipped}
    assert "skipped by the author: the exporter is not there" in skipped["block_exports"]
    assert "gated=True" in skipped["block_gated"]
    assert len(report.passed) + len(report.skipped) == len(checks_of(local(good=Healthy)))
    assert str(report).startswith(
        f"{len(report.passed)} checks passed, {len(report.skipped)} skipped\nskipped  "
    )


def test_parameters_are_given_by_name() -> None:
    plugin = local(conv=NeedsChannels)
    (made,) = only("block_made", checks_of(plugin))
    with pytest.raises(ConformanceError, match="the parameter channels must be given"):
        made()
    for name in ("conv", "block conv"):
        (made,) = only("block_made", checks_of(plugin, params={name: {"channels": 16}}))
        made()


def test_a_name_of_two_kinds_needs_its_kind() -> None:
    plugin = local(same=Healthy)
    plugin.initializer(name="same")(lambda module: None)
    with pytest.raises(
        ParameterError,
        match=r"'same' is the name of 2 things: write 'block same' or 'initializer same'",
    ):
        checks_of(plugin, params={"same": {}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": {"goood": {}}}, r"params: the plugin offers no 'goood'\. Did you mean 'good'"),
        (
            {"skip": {"block_export": "slow"}},
            r"skip: there is no check 'block_export'\. Did you mean 'block_exports'",
        ),
        ({"skip": {"block_exports": " "}}, "needs a reason"),
        ({"skip": {"good": {"block_exports": None}}}, "needs a reason"),
        ({"skip": {"bad": {"block_exports": "slow"}}}, "the plugin offers no 'bad'"),
    ],
)
def test_what_is_not_there_cannot_be_skipped_or_given_parameters(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        checks_of(local(good=Healthy), **arguments)


def test_a_check_is_skipped_for_one_thing_alone() -> None:
    checks = checks_of(
        local(good=Healthy, idle=Unused),
        skip={"idle": {"block_gradients": "learns nothing on purpose"}},
    )
    good, idle = only("block_gradients", checks)
    good()
    with pytest.raises(
        SkipTest,
        match="block_gradients of block 'acme:idle' is skipped by the author: learns nothing",
    ):
        idle()


def leaves(in_channels: int) -> nn.Module:
    raise SystemExit("no license")


def test_a_factory_that_leaves_the_process_is_a_failure_like_others() -> None:
    plugin = LocalPlugin("acme")
    plugin.block(leaves)
    made, *others = (check for check in checks_of(plugin) if check.name.startswith("block_"))
    with pytest.raises(
        ConformanceError,
        match=r"block_made: block 'acme:leaves': expected .* SystemExit: no license",
    ):
        made()
    for check in others:
        with pytest.raises(SkipTest, match="needs block_made"):
            check()


def test_a_check_that_needs_another_says_which_one_fails() -> None:
    (gradients,) = only("block_gradients", checks_of(local(conv=NeedsChannels)))
    with pytest.raises(SkipTest, match="needs block_made, which fails"):
        gradients()


def test_a_plugin_that_cannot_be_imported_has_the_plugins_checks_alone() -> None:
    checks = checks_of("no_such_module_anywhere")
    assert {check.name for check in checks} == {
        name for kind, name, _ in all_checks() if kind == "plugin"
    }


def test_every_check_says_which_defect_it_catches_and_names_are_unique() -> None:
    found = all_checks()
    assert len({name for _, name, _ in found}) == len(found) >= 55
    for kind, name, catches in found:
        assert catches.endswith(".") and "\n" not in catches, name
        assert name.startswith({"patch op": "operation"}.get(kind, kind) + "_")


def test_the_documentation_lists_every_check_with_what_it_catches() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "plugin-authors" / "conformance.md"
    rows = re.findall(
        r"^\| `((?:plugin|block|backbone|operation|initializer|kind)_\w+)` \| (.+) \|$",
        page.read_text(),
        flags=re.M,
    )
    assert rows == [(name, catches) for _, name, catches in all_checks()]


def test_backbones_that_are_not_listed_are_checked_by_name() -> None:
    plugin = Zoo()
    names = {check.id.partition("-")[0] for check in checks_of(plugin)}
    assert names == {"plugin"}
    checks = checks_of(plugin, names=["zoo/small"], params={"zoo/small": {"width": 16}})
    by_name = {check.name: check for check in checks}
    assert by_name["backbone_built"].thing == "backbone 'zoo:zoo/small'"
    by_name["backbone_built"]()
    by_name["backbone_head"]()
    with pytest.raises(UnknownNameError, match="zoo/large"):
        checks_of(plugin, names=["zoo/large"])


class Zoo:
    """Offers a family with one member."""

    TVC_OWNER = "zoo"

    @hookimpl
    def tvc_backbones(self) -> list[BackboneFamilySpec]:
        return [BackboneFamilySpec(name="zoo", factory=describe, members=members)]


def members() -> list[str]:
    return ["small"]


def describe(member: str) -> BackboneSpec:
    if member != "small":
        raise UnknownNameError(f"no {member}")
    parts: dict[str, Any] = {
        "stem": ("stem",),
        "stages": ("layer1", "layer2"),
        "head": "fc",
        "min_size": 8,
    }
    return BackboneSpec(name="zoo/small", factory=build_backbone, options={"width": 8}, **parts)


def test_three_lines_make_one_pytest_test_of_each_check(
    tmp_path: Path, fake_distribution: Install
) -> None:
    fake_distribution(
        "acme-three",
        modules.HEALTHY.replace('"torch.nn.init:ones_"', '"tvc_core.testing.toy_networks:Mix"'),
    )
    (tmp_path / "test_acme.py").write_text(
        "from tvc_core.testing import parametrize_with_checks\n\n"
        "@parametrize_with_checks('acme_three_plugin', skip={'block_exports': 'too slow here'})\n"
        "def test_conformance(check):\n    check()\n"
    )
    printed = run_pytest(tmp_path, "-rsf", "-k", "block_exports or runs")
    assert re.search(r"FAILED .*test_acme\.py::test_conformance\[ones-initializer_runs\]", printed)
    assert (
        "block_exports of block 'acme-three:gate' is skipped by the author: too slow here"
        in printed
    )
    assert printed.count("FAILED ") == 1 and "expected that it takes a convolution" in printed


def test_the_decorator_names_its_tests() -> None:
    mark = parametrize_with_checks(plugin_of(BlockSpec(name="good", factory=Healthy)))
    assert (
        "good-block_gradients" in mark.kwargs["ids"] and "plugin-plugin_hooks" in mark.kwargs["ids"]
    )


def test_the_kit_imports_neither_torch_nor_pytest_until_it_runs() -> None:
    code = "import sys, tvc_core.testing\nassert not {'torch', 'pytest'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
