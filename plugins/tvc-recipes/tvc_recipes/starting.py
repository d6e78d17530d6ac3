"""Write a first recipe for a backbone, with comments that say what else there is."""

from __future__ import annotations

from typing import Any

from tvc_core import BackboneSpec, BlockSpec, Registry

__all__ = ["first_recipe"]

SCHEMA = "tvc-recipe.schema.json"


def first_recipe(name: str, registry: Registry | None = None) -> str:
    """Return the text of a recipe for a backbone.

    Args:
        name: short or qualified name.
        registry: where it is looked up; by default what is installed.

    Raises:
        UnknownNameError: no installed plugin offers it.
    """
    registry = registry or Registry()
    offer = registry.resolve(BackboneSpec, name)
    spec = offer.spec
    weights = [each.name for each in spec.weights]
    attention = registry.names(BlockSpec)
    block = "se" if "se" in attention else next(iter(attention), "acme:block")
    target = _last_stage(spec)
    many = ", ".join(weights) or "none"
    return f"""# yaml-language-server: $schema={SCHEMA}
# `tvc schema > {SCHEMA}` writes that file, by which editors complete and check this one.
# `tvc validate` says everything that is wrong, `tvc build` builds the model.
version: 1
name: {spec.name.replace("/", "_")}-custom
backbone:
  name: {name}  # {spec.summary or "tvc list shows others"}
  weights: {"DEFAULT" if weights else "null"}  # {many}; null for random weights
  # patches:  # `tvc show {name}` lists the targets, `tvc list blocks` the blocks
  #   {target}: {{wrap: {block}}}
# head:
#   num_classes: 10
#   dropout: 0.2
# freeze_backbone: true
# unfreeze_stages: [-1]
"""


def _last_stage(spec: Any) -> str:
    """Return the path of a module of the last stage, in quotes where YAML needs them."""
    stages = spec.stage_paths
    last = stages[-1] if stages else "stage:-1"
    path = str(last if isinstance(last, str) else last[-1])
    return path if path.replace(".", "").replace("_", "").isalnum() else repr(path)
