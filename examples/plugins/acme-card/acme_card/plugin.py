"""Offers the section card and the template small. Light: imports no torch."""

from __future__ import annotations

from tvc_recipes import SectionSpec, TemplateSpec

from tvc_core import hookimpl

TVC_API = (1, 1)
SCHEMA = {
    "type": "object",
    "properties": {
        "author": {"type": "string"},
        "license": {"enum": ["mit", "apache-2.0", "cc-by-4.0"]},
        "use": {"type": "string"},
    },
    "required": ["author"],
    "additionalProperties": False,
}


@hookimpl
def tvc_recipes_sections() -> list[SectionSpec]:
    """Offer card."""
    return [
        SectionSpec(
            name="card",
            factory="acme_card.card:make_card",
            schema=SCHEMA,
            summary="Who made the model, and for what.",
        )
    ]


@hookimpl
def tvc_recipes_templates() -> list[TemplateSpec]:
    """Offer small."""
    return [
        TemplateSpec(name="small", factory="acme_card.card:small", summary="A ResNet-18 to start.")
    ]
