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


@pytest.mark.parametrize(
    ("folders", "tests"),
    [
        pytest.param(FOLDERS, "not conformance and not digits", id="together"),
        *(
            pytest.param([folder], "", id=folder.name, marks=pytest.mark.sweep)
            for folder in FOLDERS
        ),
    ],
)
def test_they_install_pass_their_tests_and_build_their_recipes(
    folders: list[Path],
    tests: str,
    with_cli: Environment,
    built: Built,
    dists: dict[str, Path],
    tmp_path: Path,
) -> None:
    environment = with_cli
    before = environment.files()
    for folder in folders:
        assert {path.suffix for path in dists[folder.name].iterdir()} == {".gz", ".whl"}
    wheels = [str(next(dists[folder.name].glob("*.whl"))) for folder in folders]
    environment.install_by_name(built.folder, *wheels)

    for folder in folders:  # without the sources of the package: the tests see what is installed
        package = folder.name.replace("-", "_")
        ignored = shutil.ignore_patterns(package, "__pycache__")
        shutil.copytree(folder, tmp_path / folder.name, ignore=ignored)
    names = [folder.name for folder in folders]
    said = environment.command(
        environment.python,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"),
        *("-k", tests, *names),
        cwd=tmp_path,
    )
    assert re.search(r"^(=+ )?\d+ passed", said, re.MULTILINE), said

    tvc = environment.folder / "bin" / "tvc"
    listed = environment.command(tvc, "plugins")
    code, printed = "", []
    for folder in folders:
        assert folder.name in listed
        if can_be_in_a_recipe(folder):
            recipe = tmp_path / folder.name / "recipe.yaml"
            assert f"{folder.name}:" in environment.command(tvc, "build", recipe)
        readme = (folder / "README.md").read_text(encoding="utf-8")
        for block in re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL):
            code += block
            printed += re.findall(r"^print\(.*\)  # (.+)$", block, re.MULTILINE)
    (tmp_path / "readmes.py").write_text(code, encoding="utf-8")
    assert environment.command(environment.python, tmp_path / "readmes.py").splitlines() == printed

    environment.pip("uninstall", "-y", *names)
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
