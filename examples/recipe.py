"""Guide, "YAML Recipes for Hybrid Models": build the model that recipes/hybrid_model.yaml
describes.

Prints the report of the model, the recipe with every name written out, and the error for a
misspelled key. By default the weights of the recipe are left out, so that nothing is downloaded;
`--weights recipe` takes them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from tvc_core import HybridBuilder, Recipe, RecipeError, load_yaml_recipe

RECIPE = Path(__file__).parent / "recipes" / "hybrid_model.yaml"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        type=Path,
        default=RECIPE,
        help="a YAML file (recipes/hybrid_model.yaml)",
    )
    parser.add_argument(
        "--weights", default="none", help="none, recipe, or a name such as DEFAULT (%(default)s)"
    )
    arguments = parser.parse_args(argv)

    if arguments.weights == "recipe":
        model = load_yaml_recipe(arguments.recipe)
    else:
        recipe = Recipe.from_mapping(yaml.safe_load(arguments.recipe.read_text(encoding="utf-8")))
        weights = None if arguments.weights == "none" else arguments.weights
        model = HybridBuilder().build(replace(recipe, weights=weights))
    print(model.explain())
    print("\nThe same recipe with every name written out:\n")
    print(model.recipe.to_yaml())

    with tempfile.TemporaryDirectory() as folder:
        faulty = Path(folder, "faulty.yaml")
        faulty.write_text(
            "backbone:\n  name: resnet50\n  patch:\n    layer3:\n      wrap: se\n", encoding="utf-8"
        )
        try:
            load_yaml_recipe(faulty)
        except RecipeError as error:
            print(f"A misspelled key: {str(error).replace(folder + '/', '')}")


if __name__ == "__main__":
    main()
