"""The plugins of examples/plugins, as a stranger ships them: each builds, installs beside tvc, and
passes its own tests.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
from distributions import ROOT, Built, Environment, build

import tvc_core

FOLDERS = sorted(path.parent for path in ROOT.glob("examples/plugins/*/pyproject.toml"))

pytestmark = pytest.mark.packaging

each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@each
@pytest.mark.parametrize(
    "tests", ["not conformance and not digits", pytest.param("", marks=pytest.mark.sweep, id="all")]
)
def test_it_installs_passes_its_tests_and_builds_its_recipe(
    folder: Path, tests: str, environment: Environment, built: Built, tmp_path: Path
) -> None:
    name = folder.name
    build([(kind, folder, tmp_path / "dist") for kind in ("sdist", "wheel")])
    assert {path.suffix for path in (tmp_path / "dist").iterdir()} == {".gz", ".whl"}
    twine = [environment.python, "-m", "twine", "check", "--strict"]
    environment.command(*twine, *(tmp_path / "dist").iterdir())
    environment.install_by_name(built.folder, "tvc-cli")
    before = environment.files()
    environment.install_by_name(built.folder, str(next((tmp_path / "dist").glob("*.whl"))))

    desk = tmp_path / "desk"  # without the sources of the package: the tests see what is installed
    shutil.copytree(
        folder, desk, ignore=shutil.ignore_patterns(name.replace("-", "_"), "__pycache__")
    )
    said = environment.command(
        environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", tests, cwd=desk
    )
    assert re.search(r"^\d+ passed", said, re.MULTILINE), said
    tvc = environment.folder / "bin" / "tvc"
    assert f"{name}:" in environment.command(tvc, "build", desk / "recipe.yaml")
    assert name in environment.command(tvc, "plugins")
    (tmp_path / "readme.py").write_text(
        "\n".join(
            re.findall(
                r"^```python\n(.*?)^```$",
                (folder / "README.md").read_text(),
                re.MULTILINE | re.DOTALL,
            )
        )
    )
    said = environment.command(environment.python, tmp_path / "readme.py").splitlines()
    assert said == re.findall(
        r"^print\(.*\)  # (.+)$", (tmp_path / "readme.py").read_text(), re.MULTILINE
    )

    environment.pip("uninstall", "-y", name)
    assert {file for file in environment.files() - before if not file.endswith(".pyc")} == set()


@each
def test_it_has_what_a_distribution_has(folder: Path) -> None:
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "recipe.yaml", "tests"):
        assert (folder / name).exists(), name


@each
def test_it_uses_public_names_only(folder: Path) -> None:
    public = {
        "tvc_core": {*tvc_core.__all__},
        "tvc_core.testing": {*__import__("tvc_core.testing").testing.__all__},
    }
    files = [*folder.rglob("*.py")]
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                ("tvc_", "torchvision_customizer")
            ):
                names = {alias.name for alias in node.names}
                assert names <= public.get(node.module, set()), (
                    f"{file.name} takes {names} from {node.module}"
                )
                assert node.module == "tvc_core" or "tests" in file.parts, (
                    f"{file.name}: {node.module} is for tests"
                )
