"""Defines the kinds `section` and `template`, and offers sections and commands. Light: imports
neither click nor torch.
"""

from __future__ import annotations

from typing import Any

from tvc_core import Kind, hookimpl

from . import kinds
from .keys import LOCK
from .kinds import SectionSpec, TemplateSpec

TVC_API = (1, 1)
TVC_OWNER = "tvc-recipes"
TVC_KINDS = (
    Kind(spec=SectionSpec, hook=kinds.tvc_recipes_sections),
    Kind(spec=TemplateSpec, hook=kinds.tvc_recipes_templates),
)

_FILE = {"type": "string", "pattern": r"\.ya?ml$"}
_NAME = {"anyOf": [{"type": "string", "x-tvc-kind": "template"}, _FILE]}
_NAMES = {"oneOf": [_NAME, {"type": "array", "items": _NAME, "minItems": 1}]}
_COMMANDS = {
    "init": "Write a recipe for a backbone, with comments.",
    "validate": "Say everything that is wrong with a recipe.",
    "fmt": "Write recipes in their canonical form.",
    "diff": "Say in what two models differ.",
    "lock": "Write down the versions and weights that a recipe is built with.",
    "schema": "Print a JSON Schema, by which editors complete and check recipes.",
}


@hookimpl
def tvc_recipes_sections() -> list[SectionSpec]:
    """Offer extends, macros and lock."""
    return [
        SectionSpec(
            name="extends",
            factory="tvc_recipes.extending:extend",
            expands=True,
            schema=_NAMES,
            summary="Files or templates that a recipe starts from.",
        ),
        SectionSpec(
            name="macros",
            factory="tvc_recipes.macros:expand",
            expands=True,
            schema={"type": "object"},
            summary="Values by name, which '@name' stands for.",
        ),
        SectionSpec(
            name="lock",
            factory="tvc_recipes.locking:check",
            expands=True,
            schema=LOCK,
            summary="Versions and weights with which alone a recipe is built.",
        ),
    ]


@hookimpl(optionalhook=True)  # works where tvc-cli is not installed
def tvc_cli_commands() -> list[Any]:
    """Offer init, validate, fmt, diff, lock and schema."""
    from tvc_cli import CommandSpec

    return [
        CommandSpec(name=name, factory=f"tvc_recipes.commands:{name}_command", summary=summary)
        for name, summary in _COMMANDS.items()
    ]
