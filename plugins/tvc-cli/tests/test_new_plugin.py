"""`tvc new-plugin`: what it refuses, that it writes everything or nothing, and that what it writes
is as tidy as tvc itself.

That what it writes works is shown in a clean environment by the project's packaging tests.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tvc_cli.commands
from click.testing import CliRunner, Result
from tvc_cli.new_plugin import PIECES

from tvc_core.testing import write_distribution

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("block", "backbone", "op", "initializer")
LONGEST = "a" * 19 + "-" + "b" * 20


def new_plugin(*args: object) -> Result:
    return CliRunner().invoke(
        tvc_cli.commands.tvc, ["new-plugin", *map(str, args)], prog_name="tvc"
    )


def make(folder: Path, name: str, kind: str = "block", *more: str) -> Path:
    result = new_plugin(name, "--kind", kind, "--into", folder, *more)
    assert result.exit_code == 0, result.output
    return folder / name


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"  # what a test imports is compiled there
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Acme-Blocks", "Did you mean 'acme-blocks'"),
        ("acme_blocks", "Did you mean 'acme-blocks'"),
        ("acme blocks", "Did you mean 'acme-blocks'"),
        ("acme--blocks", "Did you mean 'acme-blocks'"),
        ("3d-blocks", "Did you mean 'd-blocks'"),
        ("-acme", "No such option"),
        ("acme/blocks", "Did you mean 'acme-blocks'"),
        ("../acme", "Did you mean 'acme'"),
        ("", "is no name such as acme-blocks"),
        ("blöcke", "is no name such as acme-blocks"),
        ("a" * 41, "has 41 characters"),
        ("tvc-attention", "is a distribution of the tvc project"),
        ("tvc-core", "is a distribution of the tvc project"),
        ("tvc-timm", "is a distribution of the tvc project"),
        ("class", "would have the import name 'class'"),
        ("json", "would have the import name 'json'"),
        ("tests", "would have the import name 'tests'"),
        ("tvc-cli", "is a distribution of the tvc project"),
    ],
)
def test_a_bad_name_is_refused_and_nothing_is_written(tmp_path: Path, name: str, said: str) -> None:
    result = new_plugin("--into", tmp_path, name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["yaml", "torch"])  # of the distributions PyYAML and torch
def test_a_name_that_would_hide_an_installed_package_is_refused(tmp_path: Path, name: str) -> None:
    result = new_plugin(name, "--into", tmp_path)
    assert result.exit_code == 2
    assert f"would have the import name {name!r}, and hide what is at" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_plugin_may_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_distribution(tmp_path / "site", "acme-blocks", "")
    (tmp_path / "site" / "acme_blocks.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert make(tmp_path, "acme-blocks").is_dir()


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_what_is_there_stays_as_it_is(tmp_path: Path, there: str) -> None:
    path = tmp_path / "acme-blocks"
    if there == "folder":
        path.mkdir()
    elif there == "file":
        path.write_text("mine")
    else:
        path.symlink_to(tmp_path / "nowhere")
    before = os.lstat(path)
    result = new_plugin("acme-blocks", "--into", tmp_path)
    assert result.exit_code == 2
    assert "exists; choose another name, or another folder with --into" in result.stderr
    assert os.lstat(path) == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_offers_every_kind_that_can_be_written() -> None:
    assert set(tvc_cli.commands._PIECES) == set(PIECES) == set(KINDS)


@pytest.mark.parametrize(
    "args", [("acme-blocks", "--kind", "bloc"), ("acme-blocks", "--into", "/no/such/folder"), ()]
)
def test_wrong_usage_is_exit_code_2(args: tuple[str, ...]) -> None:
    assert new_plugin(*args).exit_code == 2


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(path: Path, *args: Any, **options: Any) -> int:
        if path.name == "recipe.yaml":
            raise OSError(28, "No space left on device")
        return write(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", full)
    result = new_plugin("acme-blocks", "--into", tmp_path)
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_to_do_next_with_paths_that_a_shell_takes(tmp_path: Path) -> None:
    folder = tmp_path / "my plugins"
    folder.mkdir()
    lines = new_plugin("acme-blocks", "--into", folder).stdout.splitlines()
    place = folder / "acme-blocks"
    assert [line.strip() for line in lines[-3:]] == [
        f"pip install -e '{place}[test]'",
        f"pytest '{place}'",
        f"tvc build '{place}/recipe.yaml'",
    ]
    other = json.loads(new_plugin("acme-nets", "--into", folder, "--json").stdout)
    assert sorted(everything(folder / "acme-nets")) == other["files"]
    assert other["next"][1] == f"pytest '{folder}/acme-nets'"


@pytest.mark.skipif(tomllib is None, reason="no tomllib in this Python")
@pytest.mark.parametrize("kind", KINDS)
def test_the_metadata_announces_the_plugin_and_what_its_tests_need(
    tmp_path: Path, kind: str
) -> None:
    folder = make(tmp_path, "acme-things", kind)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["tvc.plugins"] == {"acme-things": "acme_things.plugin"}
    assert [requirement.partition(">")[0] for requirement in project["dependencies"]] == [
        "tvc-core"
    ]
    needs = {
        requirement.partition(">")[0] for requirement in project["optional-dependencies"]["test"]
    }
    recipe = (folder / "recipe.yaml").read_text()
    assert ("tvc-resnet" in needs) is ("resnet18" in recipe)
    assert ("tvc-attention" in needs) is ("type: se" in recipe)
    assert "pytest" in needs
    files = everything(folder)
    assert {
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "acme_things/py.typed",
        "tests/test_acme_things.py",
    } <= set(files)
    assert not [path for path, text in files.items() if re.search(rb"\$(?!\{\{)", text)], (
        "a placeholder that was not filled"
    )
    assert b"YOUR NAME" in files["LICENSE"] and b"YOUR NAME" in files["pyproject.toml"]


def test_where_nothing_is_installed_the_recipe_names_what_the_tests_will_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVC_ONLY", "tvc-core")
    folder = make(tmp_path, "acme-ops", "op")
    assert "name: resnet18" in (folder / "recipe.yaml").read_text()
    assert (
        'test = ["pytest>=8.0", "tvc-attention", "tvc-resnet"]'
        in (folder / "pyproject.toml").read_text()
    )


@pytest.mark.parametrize(
    "only",
    ["tvc-mobilenet,tvc-blocks", "tvc-transformers,tvc-blocks", "tvc-convnext,tvc-attention"],
)
def test_the_recipe_is_made_of_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: str
) -> None:
    from tvc_core import HybridBuilder

    for owner in only.split(","):
        pytest.importorskip(owner.replace("-", "_"))
    monkeypatch.setenv("TVC_ONLY", only)
    folder = make(tmp_path, "acme-inits", "initializer")
    text = (folder / "recipe.yaml").read_text().replace(', init: "acme-inits:acme_orthogonal"', "")
    (tmp_path / "plain.yaml").write_text(text)
    assert HybridBuilder().build(tmp_path / "plain.yaml").step0_difference == 0.0


@pytest.mark.parametrize("name", ["acme-blocks", LONGEST, "x"])
def test_it_is_formatted_and_linted_by_its_rules_and_by_tvcs(tmp_path: Path, name: str) -> None:
    pytest.importorskip("ruff")
    piece = () if name == LONGEST else ("--name", "three_way_gate_of_channels")
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        make(tmp_path / kind, name, kind, *piece)
    configs = (
        [(), ("--config", str(ROOT / "pyproject.toml"))] if (ROOT / "tvc_core").is_dir() else [()]
    )
    for config in configs:
        for kind in KINDS:
            for command in (("check",), ("format", "--check")):
                done = subprocess.run(
                    [sys.executable, "-m", "ruff", *command, "--no-cache", *config, "."],
                    cwd=tmp_path / kind / name,
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "options", "factory", "offered"),
    [
        ("block", ("--class", "TripletAttention"), "acme_new.triplet:TripletAttention", "block"),
        ("block", (), "acme_new.triplet:Triplet", "block"),
        ("backbone", ("--class", "TriNet"), "acme_new.triplet:build", "backbone"),
        ("op", (), "acme_new.triplet:triplet", "patch op"),
        ("initializer", (), "acme_new.triplet:triplet", "initializer"),
    ],
)
def test_with_a_name_nothing_has_to_be_renamed(
    tmp_path: Path, kind: str, options: tuple[str, ...], factory: str, offered: str
) -> None:
    from tvc_core import Registry

    folder = make(tmp_path, "acme-new", kind, "--name", "triplet", *options)
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("acme_new.plugin")
        registry = Registry([module], installed=False)
        named = registry.resolve(offered, "acme-new:triplet")
        assert named.spec.factory == factory and callable(named.load())
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.startswith("acme_new")]:
            del sys.modules[name]
    text = b"".join(everything(folder).values()).decode()
    assert "acme_gate" not in text and "Gate(" not in text and "ResidualNet" not in text
    assert (folder / "acme_new" / "triplet.py").is_file()
    if options:
        assert f"class {options[1]}(nn.Module)" in text
    assert "acme-new:triplet" in (folder / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--name", "TripletAttention"), "Did you mean 'triplet_attention'?"),
        (("--name", "my-gate"), "Did you mean 'my_gate'?"),
        (("--name", "class"), "no word that the code uses already"),
        (("--name", "plugin"), "no word that the code uses already"),
        (("--name", "wrap", "--kind", "op"), "is taken by tvc-core"),
        (("--class", "Gate"), "--class needs --name"),
        (("--name", "triplet", "--class", "triplet"), "such as 'Triplet'"),
        (("--name", "triplet", "--class", "Tensor"), "such as 'Triplet'"),
        (("--name", "residual", "--kind", "backbone"), "such as 'MyResidual', or taken"),
        (("--name", "none"), "such as 'MyNone', or taken"),
        (("--name", "both", "--class", "Both", "--kind", "op"), "is for blocks and backbones"),
        (("--name", "a" * 27), "at most 26 characters"),
        (("--name", "a" * 20, "--class", "B" * 60), "at most 75"),
    ],
)
def test_a_bad_name_of_the_piece_is_refused(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = new_plugin("acme-new", "--into", tmp_path, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_its_ci_runs_the_tests_strictly(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    folder = make(tmp_path, "acme-new")
    text = (folder / ".github" / "workflows" / "tests.yml").read_text()
    job = yaml.safe_load(text)["jobs"]["tests"]
    assert job["strategy"]["matrix"]["python"][0] == "3.10"
    assert "${{ matrix.python }}" in text
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert 'pip install ".[test]"' in runs and runs[-1] == "pytest"
    assert job["steps"][-1]["env"] == {"TVC_STRICT": "1"}


@pytest.mark.sweep
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_typed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    pytest.importorskip("mypy")
    folder = make(tmp_path, f"acme-{kind}", kind)
    cache = tmp_path_factory.getbasetemp() / "mypy"  # torch is read once for all kinds
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
