"""The table library: got from npm by version and hash, and never another."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HOOK = Path(__file__).parents[1] / "hatch_build.py"


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hook_of_tvc_inspect", HOOK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENDOR", tmp_path / "vendor")
    return module


def test_what_is_there_is_not_asked_for(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = HOOK.parent / "tvc_inspect" / "vendor"
    monkeypatch.setattr(hook, "VENDOR", installed)
    monkeypatch.setattr(subprocess, "run", _never)
    hook.fetch()


def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError("npm was asked")


def test_another_file_is_refused(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import tarfile

    def pack(args: list[str], cwd: str, **_: Any) -> None:
        with tarfile.open(Path(cwd) / "x.tgz", "w:gz") as package:
            for member in hook.FILES:
                entry = tarfile.TarInfo(member)
                entry.size = 4
                package.addfile(entry, io.BytesIO(b"evil"))

    monkeypatch.setattr(subprocess, "run", pack)
    with pytest.raises(RuntimeError, match="another file than it should be"):
        hook.fetch()
    assert not list(hook.VENDOR.glob("*"))


def test_without_npm_a_wheel_fails_and_an_editable_install_says_so(
    hook: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("npm")

    monkeypatch.setattr(subprocess, "run", absent)
    said: list[str] = []

    class App:
        def display_warning(self, text: str) -> None:
            said.append(text)

    build = hook.CustomBuildHook.__new__(hook.CustomBuildHook)
    monkeypatch.setattr(hook.CustomBuildHook, "app", App(), raising=False)
    with pytest.raises(RuntimeError, match=r"npm, which gets tabulator-tables@.* is not installed"):
        build.initialize("standard", {})
    build.initialize("editable", {})
    assert "npm" in said[0]
