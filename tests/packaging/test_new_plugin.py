"""From nothing to a conformance-tested, installed plugin that a recipe uses: as a new user does it,
without the source tree.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributions import FOLDERS, ROOT, Environment, build
from tvc_cli.first_party import FIRST_PARTY

OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation")
"""What pip needs without a network; users leave it out."""

pytestmark = pytest.mark.packaging


class Desk:
    """A folder to work in, with the commands of an environment that has tvc from its wheels."""

    def __init__(self, folder: Path, environment: Environment) -> None:
        self.folder = folder
        self.environment = environment

    def pip(self, *arguments: str) -> None:
        self.environment.pip(*arguments)

    def pytest(self, *arguments: str) -> str:
        return self.environment.command(
            self.environment.python, "-m", "pytest", *arguments, cwd=self.folder
        )

    def tvc(self, *arguments: str) -> str:
        return self.environment.command(
            self.environment.folder / "bin" / "tvc", *arguments, cwd=self.folder
        )


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder, wheels = tmp_path_factory.mktemp("user"), tmp_path_factory.mktemp("wheels")
    sources = [
        ROOT,
        *(ROOT / "plugins" / name for name in ("tvc-cli", "tvc-attention", "tvc-resnet")),
    ]
    build([("wheel", source, wheels) for source in sources])
    environment = Environment(folder)
    environment.install(*wheels.glob("*.whl"))
    yield Desk(folder, environment)
    shutil.rmtree(folder)


def piece_of(kind: str, recipe: dict[str, Any]) -> str:
    """Return the name that a recipe has in the place where a piece of this kind is named."""
    backbone = recipe["backbone"]
    if kind == "backbone":
        return backbone["name"]
    [(op, patch)] = next(iter(backbone["patches"].values())).items()
    if kind == "op":
        return op
    return (
        patch["init"]
        if kind == "initializer"
        else patch
        if isinstance(patch, str)
        else patch["type"]
    )


def test_a_new_block_is_tested_installed_and_used_in_a_recipe_by_a_few_commands(desk: Desk) -> None:
    desk.tvc("new-plugin", "acme-blocks")
    desk.pip("install", *OFFLINE, str(desk.folder / "acme-blocks"))
    tested = desk.pytest("acme-blocks")
    assert " passed" in tested and "failed" not in tested
    built = json.loads(desk.tvc("build", "acme-blocks/recipe.yaml", "--json"))
    assert [patch["block"] for patch in built["patches"]] == ["acme-blocks:acme_gate"]
    assert built["step0_difference"] == 0.0


def test_the_names_that_are_taken_are_those_of_the_projects_distributions() -> None:
    assert sorted(FIRST_PARTY) == sorted(
        folder.name if folder != ROOT else "tvc-core" for folder in FOLDERS
    )


@pytest.mark.sweep
@pytest.mark.parametrize("kind", ["block", "backbone", "op", "initializer"])
def test_a_new_plugin_of_each_kind_works_from_its_wheel(desk: Desk, kind: str) -> None:
    name = f"zeta-{kind}"
    folder, dist = desk.folder / name, desk.folder / name / "dist"
    desk.tvc("new-plugin", name, "--kind", kind)
    build([("sdist", folder, dist), ("wheel", folder, dist)])
    files = [str(path) for path in dist.iterdir()]
    assert len(files) == 2
    desk.environment.command(sys.executable, "-m", "twine", "check", "--strict", *files)
    desk.environment.install(*dist.glob("*.whl"))
    # what is tested and built from now on is what the wheel has
    shutil.rmtree(folder / f"zeta_{kind}")
    tested = desk.pytest(name)
    assert " passed" in tested and "failed" not in tested
    built = json.loads(desk.tvc("build", f"{name}/recipe.yaml", "--json"))
    assert piece_of(kind, built["recipe"]).startswith(f"{name}:zeta_")
