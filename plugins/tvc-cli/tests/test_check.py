"""`tvc check`: the conformance kit from the command line."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tvc_cli.commands
from click.testing import CliRunner, Result

SOUND = """
from tvc_core import InitializerSpec, hookimpl

TVC_API = (1, 0)

def fill(module):
    import torch
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 0.5)

@hookimpl
def tvc_initializers():
    return [InitializerSpec(name="half", factory="acme_fill_plugin:fill")]
"""


@pytest.fixture
def install(fake_distribution: Callable[..., Path]) -> Callable[[str], object]:
    return lambda source: fake_distribution("acme-fill", source)


def check(*args: str) -> Result:
    return CliRunner().invoke(tvc_cli.commands.tvc, ["check", *args], prog_name="tvc")


@pytest.mark.parametrize("given", ["acme-fill", "Acme_Fill", "acme_fill_plugin"])
def test_a_sound_plugin_passes_by_its_distribution_or_its_module(
    install: Callable[[str], None], given: str
) -> None:
    install(SOUND)
    result = check(given, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {one["result"] for one in found} <= {"passed", "skipped"}
    assert "initializer 'acme-fill:half'" in {one["thing"] for one in found}
    assert check(given).stdout.splitlines()[-1].endswith(", 0 failed")


def test_what_fails_is_said_in_a_sentence_and_is_exit_code_1(
    install: Callable[[str], None],
) -> None:
    install(
        SOUND.replace(
            "0.5)", "0.5)\n    module.bad = torch.nn.Linear(1, 1)\n    torch.manual_seed(3)"
        )
    )
    result = check("acme-fill")
    assert result.exit_code == 1
    failed = [line for line in result.stdout.splitlines() if line.startswith("failed: ")]
    assert failed and all("acme-fill:half" in line for line in failed)


def test_what_is_not_there_is_an_error_with_near_names(install: Callable[[str], None]) -> None:
    install(SOUND)
    result = check("acme-fil")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        "neither an installed plugin, nor the folder of one, nor a module that can be imported. "
        "Did you mean 'acme-fill'" in result.stderr
    )


PROJECT = """[project]
name = "acme-half"

[project.entry-points.'tvc.plugins']
acme-half = "acme_half.plugin"
"""


def write_project(folder: Path, source: str, metadata: str = PROJECT, inside: str = "") -> Path:
    package = folder / inside / "acme_half"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "plugin.py").write_text(source.replace("acme_fill_plugin", "acme_half.plugin"))
    (folder / "pyproject.toml").write_text(metadata)
    return folder


@pytest.mark.parametrize("inside", ["", "src"])
def test_a_folder_is_checked_in_place(
    tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path / "half", SOUND, inside=inside)
    # a copy that was imported before, as of an installed version, is not what is checked
    old = write_project(tmp_path / "old", "raise ImportError('the old one')")
    (old / "acme_half" / "plugin.py").write_text("TVC_API = (1, 0)")
    monkeypatch.syspath_prepend(old)
    importlib.import_module("acme_half.plugin")
    path = list(sys.path)
    try:
        found = json.loads(check(str(tmp_path / "half"), "--json").stdout)
        assert "initializer 'acme-half:half'" in {one["thing"] for one in found}
        assert not [one for one in found if one["result"] == "failed"]
        assert sys.path == path
    finally:
        for name in [name for name in sys.modules if name.startswith("acme_half")]:
            del sys.modules[name]


def test_failures_come_last_and_skips_in_one_line(tmp_path: Path) -> None:
    source = SOUND.replace("acme_fill_plugin:fill", "acme_half.plugin:fil")
    lines = check(str(write_project(tmp_path / "half", source))).stdout.splitlines()
    kinds = [line.partition(":")[0] for line in lines]
    assert kinds[0] == "skipped" and set(kinds[1:-1]) == {"failed"} and len(kinds) > 2
    assert "need initializer_runs, which fails" in lines[0] and "--json" in lines[0]
    for name in [name for name in sys.modules if name.startswith("acme_half")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("[project]\nname = 'x'\n", "names no plugin"),
        (PROJECT + 'other = "acme_half.other"\n', "2 plugins: acme_half.plugin, acme_half.other"),
    ],
)
def test_a_folder_says_what_its_plugin_is(tmp_path: Path, metadata: str, said: str) -> None:
    result = check(str(write_project(tmp_path / "half", SOUND, metadata)))
    assert result.exit_code == 1 and said in result.stderr


def test_a_folder_without_metadata_is_no_plugin(tmp_path: Path) -> None:
    assert "no pyproject.toml" in check(str(tmp_path)).stderr


def test_metadata_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes("# café".encode("latin-1"))
    result = check(str(tmp_path))
    assert result.exit_code == 1 and "pyproject.toml is not in UTF-8" in result.stderr
