"""`mypy --strict` knows all types of a user's program from the installed wheels, and notices when
annotations go missing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import ROOT, Environment

PROGRAM = Path(__file__).with_name("typed_user.py")
CACHE = ROOT / ".mypy_cache" / "typed_user"
"""Kept from one run to the next: it is torch that takes the time."""

pytestmark = pytest.mark.packaging


def test_a_users_typed_program(environment: Environment, wheels: dict[str, Path]) -> None:
    pytest.importorskip("mypy")
    environment.install(wheels["tvc-core"])
    program = Path(shutil.copy(PROGRAM, environment.folder / "program.py"))

    def mypy() -> str:
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--python-executable",
            str(environment.python),
            program.name,
        ]
        command += ["--config-file", "", "--cache-dir", str(CACHE)]
        done = subprocess.run(
            command,
            cwd=environment.folder,
            env=environment.clean(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout

    assert mypy() == "Success: no issues found in 1 source file\n"

    builder = environment.site / "tvc_core" / "builder.py"
    text = builder.read_text(encoding="utf-8")
    start = text.index("    def build(\n")
    builder.write_text(
        text[:start] + text[start:].replace(") -> HybridModel:", "):", 1), encoding="utf-8"
    )
    assert 'Expression is of type "Any", not "HybridModel"  [assert-type]' in mypy()
    builder.write_text(text, encoding="utf-8")

    (environment.site / "tvc_core" / "py.typed").unlink()
    assert "missing library stubs or py.typed marker  [import-untyped]" in mypy()
