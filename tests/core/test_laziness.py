"""Listing, reading recipes and planning import neither torch nor numpy; and these tests can
fail.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "numpy", "safetensors", "PIL")
REPORT = "\nimport sys\nprint(sorted(set(sys.modules) & set(sys.argv[1:])))\n"

RECIPE = """
backbone:
  name: resnet50
  patches:
    layer3: {wrap: {type: se, params: {reduction: 16}}}
head: {num_classes: 10}
"""

LIGHT = {
    "import": "import tvc_core",
    "list backbones": "from tvc_core import HybridBuilder; assert "
    "len(HybridBuilder.list_backbones('resnet*')) == 5",
    "list everything": "from tvc_core import HybridBuilder as H; H.list_blocks(), "
    "H.list_patch_ops(), H.list_initializers()",
    "make a builder": "from tvc_core import HybridBuilder; "
    "HybridBuilder().list_backbones(origin='torchvision')",
    "unknown name": (
        "from tvc_core import HybridBuilder, UnknownNameError\n"
        "try: HybridBuilder().from_backbone('nope')\nexcept UnknownNameError: pass"
    ),
    "read a recipe": "from tvc_core.recipe import load_recipe; assert "
    "load_recipe('recipe.yaml').num_classes == 10",
    "write a recipe": "from tvc_core import Recipe; assert "
    "Recipe(backbone='resnet50').to_yaml().startswith('backbone:')",
    "make a plan": (
        "from tvc_core import Registry\nfrom tvc_core.recipe import load_recipe, make_plan\n"
        "assert make_plan(load_recipe('recipe.yaml'), Registry()).backbone.owner == 'tvc-resnet'"
    ),
}


def loaded_by(code: str, folder: Path, names: tuple[str, ...] = HEAVY) -> str:
    """Return which of these modules are loaded in a fresh process that has run the code."""
    (folder / "recipe.yaml").write_text(RECIPE)
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT, *names], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("what", LIGHT)
def test_it_imports_nothing_heavy(tmp_path: Path, what: str) -> None:
    assert loaded_by(LIGHT[what], tmp_path) == "[]"


def test_listing_does_not_even_import_the_yaml_reader(tmp_path: Path) -> None:
    assert (
        loaded_by(LIGHT["list backbones"], tmp_path, ("yaml", "tvc_resnet.plugin"))
        == "['tvc_resnet.plugin']"
    )


def test_a_plugin_that_imports_torch_would_be_seen(tmp_path: Path) -> None:
    from tvc_core.testing import write_distribution

    (tmp_path / "torch.py").touch()  # found before the real one, which takes seconds
    write_distribution(
        tmp_path, "acme-heavy", "import torch\nfrom tvc_core import hookimpl\nTVC_API = (1, 0)\n"
    )
    code = "import sys; sys.path.insert(0, '.')\n" + LIGHT["list backbones"]
    assert loaded_by(code, tmp_path) == "['torch']"


def test_every_public_name_can_be_imported_and_is_in_dir() -> None:
    import tvc_core

    for name in tvc_core.__all__:
        assert getattr(tvc_core, name) is not None and name in dir(tvc_core)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = tvc_core.no_such_thing
