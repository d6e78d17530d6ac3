"""The pages for authors of plugins say what the code does: fields, calls of factories, hooks, and
what a template writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tvc_core import (
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    InitializerSpec,
    PatchOpSpec,
    Target,
    WeightsSpec,
    hookimpl,
    hookspecs,
)
from tvc_core.registry.discovery import HOOKS

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "plugin-authors"
PAGES = {
    "blocks.md": BlockSpec,
    "backbones.md": BackboneSpec,
    "patch-operations.md": PatchOpSpec,
    "initializers.md": InitializerSpec,
}


def text_of(page: str) -> str:
    return (FOLDER / page).read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text_of(page), re.MULTILINE | re.DOTALL)[1]


def first_column(table: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def signatures(page: str) -> list[str]:
    """Return the calls of the factory that a page shows, such as "(in_channels, **params)"."""
    found = re.findall(r"`\w+(\(.*?\)) -> (?:nn\.Module|None)`", section(page, "The factory"))
    assert found, page
    return found


# -- fields and hooks ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_the_fields_of_a_page_are_those_of_the_spec(page: str) -> None:
    tables = section(page, "The fields").split("And of a `WeightsSpec`:")
    assert first_column(tables[0]) == [field.name for field in fields(PAGES[page])]
    if page == "backbones.md":
        assert first_column(tables[1]) == [field.name for field in fields(WeightsSpec)]


def test_every_hook_has_a_page_and_the_tutorial_lists_them() -> None:
    assert {
        f"tvc_{page.removesuffix('.md').replace('patch-operations', 'patch_ops')}" for page in PAGES
    } == set(HOOKS)
    for hook, page in re.findall(
        r"^\| `(\w+)` \|.*\]\((\w[\w-]*\.md)\) \|$", text_of("first-plugin.md"), re.MULTILINE
    ):
        assert HOOKS[hook][0] is PAGES[page] and f"`{hook}`" in text_of(page)


def test_hooks_in_the_documentation_take_the_arguments_of_the_code_and_return_its_specs() -> None:
    shown = 0
    for page in FOLDER.parent.rglob("*.md"):
        for hook, arguments, result in re.findall(
            r"def (tvc_\w+)\((.*?)\)(?: -> list\[(.+)\])?:", page.read_text(encoding="utf-8")
        ):
            # the FAQ's misspelt one, and the hooks of plugins' kinds
            if hook == "tvc_block" or hook.startswith(
                ("tvc_cli_", "tvc_export_", "tvc_recipes_", "tvc_train_")
            ):
                continue
            declared = inspect.signature(getattr(hookspecs, hook))
            wanted, offered = (
                list(declared.parameters),
                re.findall(r"\w+Spec", declared.return_annotation),
            )
            assert [name for name in arguments.split(", ") if name and name != "self"] == wanted, (
                page
            )
            assert not result or set(result.split(" | ")) <= set(offered), page
            shown += 1
    assert shown >= len(HOOKS)


# -- factories -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_the_spec_and_its_page_give_one_call_of_the_factory(page: str) -> None:
    for signature in signatures(page):
        assert signature in " ".join((PAGES[page].__doc__ or "").split()), f"{page} has {signature}"


def with_signature(signature: str, answer: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    """Return a function with exactly the parameters that a page shows; it hands on what it is
    called with.
    """
    names: dict[str, Any] = {"answer": answer}
    exec(f"def factory{signature}: return answer(locals())", names)
    return names["factory"]


def test_factories_are_called_as_the_pages_show() -> None:
    """Factories with the documented parameters, and no others, serve a build that uses all four
    kinds.
    """
    seen: dict[str, dict[str, Any]] = {}

    def network(given: dict[str, Any]) -> nn.Module:
        seen["backbone"] = given
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        )

    def block(given: dict[str, Any]) -> nn.Module:
        seen["block"] = given
        return nn.Conv2d(given["in_channels"], given["in_channels"], 1)

    def operation(given: dict[str, Any]) -> nn.Module:
        seen["operation"] = given
        given["target"].after(given["block"](given["target"].out_channels))
        return given["target"].module

    def bare(given: dict[str, Any]) -> nn.Module:
        seen["bare"] = given
        return nn.SiLU()

    def initialize(given: dict[str, Any]) -> None:
        seen["initializer"] = given
        for parameter in given["module"].parameters():
            nn.init.constant_(parameter, 0.5)

    with_block, without_block = (
        with_signature(s, f)
        for s, f in zip(signatures("patch-operations.md"), (operation, bare), strict=True)
    )
    (build,) = (with_signature(s, network) for s in signatures("backbones.md"))
    (make,) = (with_signature(s, block) for s in signatures("blocks.md"))
    (fill,) = (with_signature(s, initialize) for s in signatures("initializers.md"))

    class Documented:
        TVC_OWNER = "acme"

        @hookimpl
        def tvc_backbones(self) -> list[BackboneSpec]:
            parts = {"stem": ("0",), "stages": ("1",), "head": "4"}
            return [BackboneSpec(name="net", factory=build, options={"width": 1}, **parts)]

        @hookimpl
        def tvc_blocks(self) -> list[BlockSpec]:
            return [BlockSpec(name="mix", factory=make)]

        @hookimpl
        def tvc_patch_ops(self) -> list[PatchOpSpec]:
            return [
                PatchOpSpec(name="put", factory=with_block, options={"side": "x"}),
                PatchOpSpec(
                    name="soften", factory=without_block, takes_block=False, options={"side": "x"}
                ),
            ]

        @hookimpl
        def tvc_initializers(self) -> list[InitializerSpec]:
            return [InitializerSpec(name="half", factory=fill)]

    builder = HybridBuilder(plugins=[Documented()])
    patches = {
        "0": {"put": {"type": "mix", "params": {"depth": 3}, "init": "half", "side": "y"}},
        "1": {"soften": {"side": "z"}},
    }
    model = builder.from_backbone("net", weights=None, patches=patches, options={"width": 7})
    assert isinstance(seen["backbone"]["spec"], BackboneSpec)
    assert (seen["backbone"]["weights"], seen["backbone"]["options"]) == (None, {"width": 7})
    assert (seen["block"]["in_channels"], seen["block"]["params"]) == (8, {"depth": 3})
    assert isinstance(seen["operation"]["target"], Target) and seen["operation"]["options"] == {
        "side": "y"
    }
    assert seen["bare"]["options"] == {"side": "z"} and isinstance(
        model.get_submodule("1"), nn.SiLU
    )
    weight = dict(model.named_parameters())["patches.0.mix.block.weight"]
    assert torch.equal(weight, torch.full_like(weight, 0.5))


# -- the tutorial ----------------------------------------------------------------------------------


def test_the_tutorial_shows_what_the_template_writes(tmp_path: Path) -> None:
    new_plugin = pytest.importorskip("tvc_cli.new_plugin")
    new_plugin.write_plugin("acme-blocks", "block", tmp_path)
    shown = re.findall(
        r"^```(?:python|yaml)\n# file: (acme-blocks/\S+)\n(.*?)^```$",
        text_of("first-plugin.md"),
        re.MULTILINE | re.DOTALL,
    )
    assert len(shown) == 4
    for name, text in shown:
        assert (tmp_path / name).read_text(encoding="utf-8") == text, (
            f"first-plugin.md shows another {name}"
        )
    assert text_of("first-plugin.md").count('acme-blocks = "acme_blocks.plugin"') == 1
    assert 'acme-blocks = "acme_blocks.plugin"' in (
        tmp_path / "acme-blocks" / "pyproject.toml"
    ).read_text(encoding="utf-8")
