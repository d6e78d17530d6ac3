"""Malformed recipes from a seed: nothing but an error of tvc's, and nothing done to the process.

`python tests/recipe_mutants.py` is the whole run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recipe_mutants

SCRIPT = Path(recipe_mutants.__file__)


def test_500_malformed_recipes_raise_recipe_errors_and_do_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", "500"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    count, refused = done.stdout.split()[0], int(done.stdout.split()[2])
    assert count == "500" and refused > 350


def test_the_run_would_see_an_import_and_a_file_that_is_written(tmp_path: Path) -> None:
    seen: list[Any] = []
    sys.modules.pop("colorsys", None)  # which another test may have imported
    with recipe_mutants.audited(seen):
        import colorsys  # noqa: F401

        (tmp_path / "x").write_text("")
    assert {each[0] for each in seen} >= {"import", "module", "open"}


@pytest.mark.sweep
@pytest.mark.timeout(1800)  # some import torch
def test_300_malformed_recipes_as_commands_show_no_traceback(tmp_path: Path) -> None:
    recipe_mutants.write_files(tmp_path)
    path, out, codes = str(tmp_path / "mutant.yaml"), str(tmp_path / "out"), set()
    commands = (
        ["validate", path], ["validate", path, "--json"], ["fmt", path, "--check"],
        ["diff", path, str(tmp_path / "base.yaml")], ["lock", path, "--out", out, "--force"],
        ["build", path],
    )  # fmt: skip
    for seed in range(300):
        Path(path).write_bytes(recipe_mutants.mutant(seed))
        command = [sys.executable, "-m", "tvc_cli", *commands[seed % len(commands)]]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "Traceback" not in done.stdout + done.stderr, seed
        codes.add(done.returncode)
    assert codes == {0, 1}
