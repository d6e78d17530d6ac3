"""The plugins of examples/plugins, as a stranger ships them: each builds, installs beside tvc, and
passes its own tests.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tvc_cli
import tvc_recipes
from distributions import ROOT, Built, Environment, build

import tvc_core
import tvc_core.testing

FOLDERS = sorted(path.parent for path in ROOT.glob("examples/plugins/*/pyproject.toml"))

pytestmark = pytest.mark.packaging


def can_be_in_a_recipe(folder: Path) -> bool:
    """Tell whether a plugin offers something that a recipe names, not only what others define."""
    [plugin] = folder.rglob("plugin.py")
    return bool(re.search(r"def tvc_(?!kinds|cli_|recipes_)", plugin.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def with_cli(tmp_path_factory: pytest.TempPathFactory, built: Built) -> Environment:
    """An environment with tvc-cli. Each test leaves it as it was, which it also checks."""
    environment = Environment(tmp_path_factory.mktemp("with_cli"))
    environment.install_by_name(built.folder, "tvc-cli", "tvc-recipes")
    return environment


@pytest.fixture(scope="module")
def dists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with the sdist and the wheel of each plugin, of which twine has nothing to say."""
    folders = {folder.name: tmp_path_factory.mktemp(folder.name) for folder in FOLDERS}
    kinds = ("sdist", "wheel")
    build([(kind, folder, folders[folder.name]) for folder in FOLDERS for kind in kinds])
    files = [str(path) for folder in folders.values() for path in folder.iterdir()]
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folders


each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@each
@pytest.mark.parametrize(
    "tests", ["not conformance and not digits", pytest.param("", marks=pytest.mark.sweep, id="all")]
)
def test_it_installs_passes_its_tests_and_builds_its_recipe(
    folder: Path,
    tests: str,
    with_cli: Environment,
    built: Built,
    dists: dict[str, Path],
    tmp_path: Path,
) -> None:
    environment, name, dist = with_cli, folder.name, dists[folder.name]
    assert {path.suffix for path in dist.iterdir()} == {".gz", ".whl"}
    before = environment.files()
    environment.install_by_name(built.folder, str(next(dist.glob("*.whl"))))

    desk = tmp_path / "desk"  # without the sources of the package: the tests see what is installed
    shutil.copytree(
        folder, desk, ignore=shutil.ignore_patterns(name.replace("-", "_"), "__pycache__")
    )
    said = environment.command(
        environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", tests, cwd=desk
    )
    assert re.search(r"^\d+ passed", said, re.MULTILINE), said
    tvc = environment.folder / "bin" / "tvc"
    if can_be_in_a_recipe(folder):
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
    recipe = ("recipe.yaml",) if can_be_in_a_recipe(folder) else ()
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "tests", *recipe):
        assert (folder / name).exists(), name


@each
def test_it_uses_public_names_only(folder: Path) -> None:
    modules = (tvc_core, tvc_core.testing, tvc_cli, tvc_recipes)
    public = {module.__name__: {*module.__all__} for module in modules}
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
                assert node.module != "tvc_core.testing" or "tests" in file.parts, (
                    f"{file.name}: {node.module} is for tests"
                )
