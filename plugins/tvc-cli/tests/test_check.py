"""`tvc check`: the conformance kit from the command line."""

from __future__ import annotations

import json
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
        "neither a module that can be imported nor an installed plugin. Did you mean 'acme-fill'"
        in result.stderr
    )
