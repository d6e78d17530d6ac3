"""What an index gets of each distribution: files, metadata, versions and links."""

from __future__ import annotations

import ast
import email
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest
import yaml
from distributions import FOLDERS, ROOT, Built

import tvc_core

pytestmark = pytest.mark.packaging

PYTHONS = [f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)]
HOME = "https://tvc.example/"
"""Stands for the project's address until it has one (docs/explanation/releasing.md)."""


def name_of(folder: Path) -> str:
    return "tvc-core" if folder == ROOT else folder.name


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(
            archive.read(next(f for f in archive.namelist() if f.endswith("dist-info/METADATA")))
        )


each = pytest.mark.parametrize("folder", FOLDERS, ids=name_of)


@each
def test_a_wheel_has_one_package_its_license_and_its_types_and_nothing_else(
    folder: Path, built: Built
) -> None:
    name = name_of(folder)
    with zipfile.ZipFile(built.wheels[name]) as archive:
        files = archive.namelist()
    assert {file.partition("/")[0] for file in files if ".dist-info" not in file} == {
        "torchvision_customizer" if name == "tvc-all" else name.replace("-", "_")
    }
    assert any(file.endswith("py.typed") for file in files)
    assert any(file.endswith("licenses/LICENSE") for file in files)
    assert not [file for file in files if re.search(r"(^|/)(test_\w+\.py$|__pycache__/|\.)", file)]


@each
def test_the_wheel_of_the_sdist_is_the_wheel_of_the_tree(folder: Path, built: Built) -> None:
    name = name_of(folder)
    assert built.wheels[name].read_bytes() == built.from_tree[name].read_bytes()


@each
def test_an_sdist_has_what_a_build_and_a_reader_need(folder: Path, built: Built) -> None:
    with tarfile.open(built.sdists[name_of(folder)]) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    package = "tvc_core/" if folder == ROOT else ""
    assert {
        "pyproject.toml",
        "PKG-INFO",
        "LICENSE",
        f"{package}README.md",
        f"{package}CHANGELOG.md",
    } <= files
    assert not [
        file
        for file in files
        if "__pycache__" in file or file.startswith(("plugins/", "tests/", "docs/"))
    ]


def test_twine_finds_nothing_to_complain_about(built: Built) -> None:
    files = [*map(str, built.sdists.values()), *map(str, built.wheels.values())]
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2 * len(FOLDERS)


@each
def test_the_metadata_say_what_it_is_for_whom_and_where(folder: Path, built: Built) -> None:
    name, found = name_of(folder), metadata_of(built.wheels[name_of(folder)])
    assert found["Name"] == name
    assert 25 <= len(found["Summary"]) <= 120 and found["Summary"].endswith(".")
    assert (found["License-Expression"], found["License-File"]) == ("MIT", "LICENSE")
    assert found["Author"] == "The tvc authors"
    assert found["Description-Content-Type"] == "text/markdown"
    assert str(found.get_payload()).startswith(f"# {name}\n"), "the description is the README"
    assert found["Requires-Python"] == ">=3.10"
    assert len(found["Keywords"].split(",")) >= 3
    classifiers = found.get_all("Classifier", [])
    assert {
        *PYTHONS,
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Image Recognition",
    } <= set(classifiers)
    assert not [text for text in classifiers if text.startswith("License ::")], (
        "the license expression says it"
    )


@each
def test_the_classifiers_are_known_to_the_index(folder: Path, built: Built) -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    assert set(metadata_of(built.wheels[name_of(folder)]).get_all("Classifier", [])) <= known


@each
def test_the_links_are_the_projects_own(folder: Path, built: Built) -> None:
    """Nobody's address is invented: `.example` is reserved, and one command replaces it before the
    first upload.
    """
    name = name_of(folder)
    links = dict(
        text.split(", ") for text in metadata_of(built.wheels[name]).get_all("Project-URL", [])
    )
    root = dict(
        text.split(", ")
        for text in metadata_of(built.wheels["tvc-core"]).get_all("Project-URL", [])
    )["Homepage"]
    assert (
        root.startswith("https://")
        and root.endswith("/")
        and (root == HOME or ".example" not in root)
    )
    assert links == {
        "Homepage": root,
        "Documentation": f"{root}docs/",
        "Source": f"{root}source/",
        "Changelog": f"{root}changelog/{name}/",
    }


@each
def test_the_newest_version_of_the_changelog_is_the_version(folder: Path, built: Built) -> None:
    name, version = name_of(folder), metadata_of(built.wheels[name_of(folder)])["Version"]
    text = (folder / ("tvc_core/CHANGELOG.md" if folder == ROOT else "CHANGELOG.md")).read_text(
        encoding="utf-8"
    )
    assert text.startswith(f"# Changelog of {name}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[0] == version


def test_the_core_says_its_own_version(built: Built) -> None:
    assert metadata_of(built.wheels["tvc-core"])["Version"] == tvc_core.__version__


@each
def test_what_is_required_of_ours_has_a_lower_bound_that_exists_and_knows_the_plugin_api(
    folder: Path, built: Built
) -> None:
    versions = {name: metadata_of(wheel)["Version"] for name, wheel in built.wheels.items()}
    required = metadata_of(built.wheels[name_of(folder)]).get_all("Requires-Dist", [])
    ours = [line for line in required if line.startswith("tvc-")]
    assert (folder == ROOT) is (not ours)
    for line in ours:
        name, bound = re.fullmatch(
            r"(tvc-\w+)(?:\[\w+\])?>=([\d.]+)(?:; extra == '\w+')?", line
        ).groups()
        assert tuple(map(int, bound.split("."))) <= tuple(map(int, versions[name].split("."))), line
    for module in folder.glob("tvc_*/plugin.py"):
        text = module.read_text(encoding="utf-8")
        api = ast.literal_eval(re.search(r"^TVC_API = (.+)$", text, re.MULTILINE)[1])
        assert api[0] == tvc_core.API_VERSION[0] and api <= tvc_core.API_VERSION


def test_the_core_requires_its_six_and_no_more(built: Built) -> None:
    required = {
        line.split(">")[0]
        for line in metadata_of(built.wheels["tvc-core"]).get_all("Requires-Dist", [])
    }
    assert required == {
        "torch",
        "torchvision",
        "pluggy",
        "pyyaml",
        "importlib-metadata",
        "safetensors",
    }


def test_tvc_all_requires_all_others_or_has_them_as_extras(built: Built) -> None:
    required = {
        re.match(r"[\w-]+", line)[0]
        for line in metadata_of(built.wheels["tvc-all"]).get_all("Requires-Dist", [])
    }
    assert required == set(built.wheels) - {"tvc-all"}


def test_the_ci_runs_what_is_promised_and_the_hooks_what_lint_runs() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))["jobs"]
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    assert [f"Programming Language :: Python :: {each}" for each in pythons] == PYTHONS
    oldest = [step["with"]["python-version"] for step in jobs["lowest"]["steps"] if "with" in step]
    assert f"Programming Language :: Python :: {oldest[0]}" == PYTHONS[0]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    targets = re.findall(r"\bmake ([\w-]+)", " ".join(commands))
    assert len(targets) >= 3
    assert all(f"\n{target}:" in makefile for target in targets)
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert repo["repo"] == "local", "other repositories would bring versions of their own"
    tools = {hook["entry"].split()[0] for hook in repo["hooks"] if hook["language"] == "system"}
    assert tools == {f".venv/bin/{tool}" for tool in re.findall(r"\$\(BIN\)/(ruff|mypy)", makefile)}
