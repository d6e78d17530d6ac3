"""The guide's import name gives the same objects as tvc_core, as lazily."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torchvision_customizer
import torchvision_customizer.recipe

import tvc_core


@pytest.mark.parametrize("name", tvc_core.__all__)
def test_every_public_name_is_the_cores(name: str) -> None:
    assert getattr(torchvision_customizer, name) is getattr(tvc_core, name)


def test_a_private_or_unknown_name_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'errors'"):
        torchvision_customizer.errors  # noqa: B018


def test_the_recipe_module_loads_yaml() -> None:
    assert torchvision_customizer.recipe.load_yaml_recipe is tvc_core.load_yaml_recipe


def test_importing_imports_torch_only_when_something_needs_it() -> None:
    code = (
        "from torchvision_customizer import HybridBuilder; import sys; "
        "print([name in sys.modules for name in ('torch', 'tvc_core')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found == "[False, True]"
