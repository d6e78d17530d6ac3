"""The kinds `section` and `template`: what plugins add to recipes. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tvc_core import Spec, hookspec

__all__ = ["SectionSpec", "TemplateSpec", "tvc_recipes_sections", "tvc_recipes_templates"]


@dataclass(frozen=True, kw_only=True)
class SectionSpec(Spec):
    """A section of a recipe, at its top, under its own name.

    The core keeps what stands there in `Recipe.sections`, after it was held against the schema. The
    factory is what acts on it: `act(data)` returns what its owner works with, whenever its owner
    asks for it (`Registry().resolve("section", name).load()`). With `expands` it is instead
    `expand(document, registry) -> document`: it gets the recipe as a `RecipeDocument` before any
    key is looked at, and returns it without the section, with other text in its place. Sections
    expand in the order of their names.

    Args:
        schema: a JSON Schema (draft 2020-12) of what may stand there. `tvc schema` hands it on to
            editors. With {"x-tvc-kind": "method"} text is the name of something of that kind, which
            editors complete and `tvc validate` looks up.
        expands: the section stands for other text.
        variants: "package.module:attribute" of `variants(data)`, which returns what is put in the
            place of the recipe's own values by whoever acts on the section, such as a search: each
            a mapping as `tvc_core.load_recipe` takes it. `tvc validate` checks the recipes that
            come out as well. Must not import torch.
    """

    kind: ClassVar[str] = "section"

    schema: Mapping[str, Any] = field(default_factory=dict)
    expands: bool = False
    variants: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variants:
            self._check_factory("variants")

    def read(self, data: Any, place: Any) -> Any:
        """Return what stands in the section, if it is what the schema says.

        Args:
            data: plain data.
            place: where it stands.

        Raises:
            RecipeError: it is not.
        """
        from .checking import check_data  # imports jsonschema

        if self.expands:
            raise place.error(f"{self.name} came from another section, after it was looked for")
        check_data(data, self.schema, place)
        return data


@dataclass(frozen=True, kw_only=True)
class TemplateSpec(Spec):
    """A recipe that others can extend by its name: `extends: acme:small_head`.

    The factory is `template() -> mapping`, with the keys of the YAML form.
    """

    kind: ClassVar[str] = "template"


@hookspec
def tvc_recipes_sections() -> list[SectionSpec]:
    """Offer sections of recipes. Must not import torch. Since tvc-recipes 0.1.

    Example:

        from tvc_core import hookimpl

        TVC_API = (1, 1)

        @hookimpl(optionalhook=True)  # works where tvc-recipes is not installed
        def tvc_recipes_sections():
            from tvc_recipes import SectionSpec

            schema = {"type": "object", "properties": {"author": {"type": "string"}}}
            return [
                SectionSpec(
                    name="card", factory="acme_card:Card", schema=schema, summary="Who made it.",
                )
            ]
    """
    raise NotImplementedError


@hookspec
def tvc_recipes_templates() -> list[TemplateSpec]:
    """Offer recipes to extend. Must not import torch. Since tvc-recipes 0.1."""
    raise NotImplementedError
