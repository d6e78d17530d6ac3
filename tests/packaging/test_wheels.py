"""Wheels alone, in a clean environment without the source tree: what is installed is there, what is
not says how to get it.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from distributions import FOLDERS, Built, Environment, build

ATTENTION = [
    "bam", "cbam_block", "channel_attention", "coord_attention", "eca", "ela", "ema_attention",
    "ese", "gather_excite", "gct", "global_context", "lka", "mlca", "non_local", "scse", "se",
    "simam", "spatial_attention", "srm", "triplet_attention",
]  # fmt: skip
GUIDE = """
import sys, torch
from pathlib import Path
from tvc_core import HybridBuilder
from tvc_core.testing import official_weights
with official_weights(Path("home"), "resnet50:IMAGENET1K_V2"):
    builder = HybridBuilder()
    model = builder.from_torchvision("resnet50", weights="IMAGENET1K_V2", num_classes=10)
    patches = {"layer3": {"wrap": "se"}, "layer4": {"wrap": "cbam_block"}}
    patched = builder.from_torchvision(
        "resnet50", weights="IMAGENET1K_V2", patches=patches, num_classes=100
    )
shape = list(model.eval()(torch.randn(1, 3, 64, 64)).shape)
print(shape, patched.num_classes, patched.step0_difference)
"""
"""The guide's first two examples, with made-up weights under their official name."""

pytestmark = pytest.mark.packaging


def names(environment: Environment, expression: str) -> object:
    return json.loads(
        environment.run(
            f"import json; from tvc_core import HybridBuilder as H; print(json.dumps({expression}))"
        )
    )


def test_the_core_alone_lists_its_own_operations(
    environment: Environment, wheels: dict[str, Path]
) -> None:
    environment.install(wheels["tvc-core"])
    assert names(
        environment,
        "[H.list_patch_ops(), H.list_initializers(), H.list_blocks(), H.list_backbones()]",
    ) == [["inject", "replace", "wrap"], ["identity", "kaiming", "paper", "xavier", "zero"], [], []]


def test_core_and_attention_alone_offer_their_blocks_and_say_who_provides_resnet50(
    environment: Environment, built: Built
) -> None:
    environment.install_by_name(built.folder, "tvc-attention")  # which requires the core
    assert names(environment, "H.list_blocks()") == ATTENTION
    assert names(environment, "H.list_backbones()") == []
    message = environment.run(
        "from tvc_core import HybridBuilder, TvcError\n"
        "try: HybridBuilder().from_torchvision('resnet50')\n"
        "except TvcError as error: print(error)"
    )
    assert "tvc-resnet provides it" in message
    assert "pip install tvc-resnet" in message


def test_with_resnet_the_guides_first_examples_build_and_uninstalling_it_removes_its_names_only(
    environment: Environment, built: Built
) -> None:
    environment.install_by_name(built.folder, "tvc-core", "tvc-attention")
    before = environment.files()
    environment.install_by_name(built.folder, "tvc-resnet")
    assert environment.run(GUIDE) == "[1, 10] 100 0.0"
    environment.pip("uninstall", "-y", "tvc-resnet")
    assert names(environment, "[H.list_backbones(), H.list_blocks()]") == [[], ATTENTION]
    assert {file for file in environment.files() - before if not file.endswith(".pyc")} == set()


def test_everything_together_has_the_guides_import_name_and_the_command(
    environment: Environment, built: Built
) -> None:
    environment.install_by_name(built.folder, "tvc-all[timm]")  # which requires all others
    assert environment.run(
        "from torchvision_customizer import HybridBuilder; import torchvision_customizer.recipe as "
        "r; "
        "print(len(HybridBuilder.list_backbones(origin='torchvision')), "
        "r.load_yaml_recipe.__name__)"
    ).split() == ["80", "load_yaml_recipe"]
    listed = environment.command(environment.folder / "bin" / "tvc", "list", "blocks")
    assert all(name in listed for name in ATTENTION)
    status = environment.run(
        "import tvc_core; print(sorted({info.status for info in tvc_core.Registry().plugins}))"
    )
    assert status == "['active']"


def test_uninstalling_one_of_all_removes_its_names_and_nothing_else(
    environment: Environment, wheels: dict[str, Path]
) -> None:
    def offered() -> list[list[str]]:
        return json.loads(
            environment.run(
                "import json; from tvc_core import Registry\n"
                "print(json.dumps(sorted([i.owner, s.kind, s.name] for i in Registry().plugins for "
                "s in i.specs)))"
            )
        )

    environment.install(*wheels.values())
    before = offered()
    for owner in ("tvc-attention", "tvc-resnet"):
        environment.pip("uninstall", "-y", owner)
        left = [offer for offer in before if offer[0] != owner]
        assert left != before
        assert offered() == left
        before = left


ALONE = """
import importlib, json, sys
from tvc_core import BackboneSpec, BlockSpec, InitializerSpec, PatchOpSpec, Registry
for owner, folder, package in json.loads(sys.argv[1]):
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    importlib.import_module(package)
    registry = Registry()
    assert {info.owner for info in registry.plugins} <= {"tvc-core", owner}, registry.plugins
    assert {info.status for info in registry.plugins} == {"active"}, registry.plugins
    kinds = (BackboneSpec, BlockSpec, InitializerSpec, PatchOpSpec)
    offers = [offer for kind in kinds for offer in registry.all(kind)]
    for factory in {str(offer.spec.factory): offer for offer in offers}.values():
        factory.load()
    print(owner, sum(offer.owner == owner for offer in offers))
    sys.path.remove(folder)
"""
"""Puts one plugin at a time on sys.path, with nothing but the core beside it."""


def test_each_plugin_alone_works_with_the_core(
    environment: Environment, wheels: dict[str, Path], tmp_path: Path
) -> None:
    environment.install(wheels["tvc-core"])
    alone = []
    for owner in sorted(set(wheels) - {"tvc-core"}):
        # all that installing a wheel without commands does
        with zipfile.ZipFile(wheels[owner]) as archive:
            archive.extractall(tmp_path / owner)
        package = next(
            path.name
            for path in (tmp_path / owner).iterdir()
            if not path.name.endswith(".dist-info")
        )
        alone.append([owner, str(tmp_path / owner), package])
    lines = environment.command(environment.python, "-c", ALONE, json.dumps(alone)).splitlines()
    counts = {owner: int(count) for owner, count in map(str.split, lines)}
    assert set(counts) == set(wheels) - {"tvc-core"}
    assert {owner for owner, count in counts.items() if not count} <= {
        "tvc-all",
        "tvc-cli",
        "tvc-dense",
        "tvc-export",
        "tvc-hub",
        "tvc-inspect",
        "tvc-recipes",
        "tvc-timm",
        "tvc-train",
    }
    assert (counts["tvc-resnet"], counts["tvc-attention"]) == (10, 20)


def test_an_upgrade_leaves_nothing_of_the_old_version_and_uninstalling_nothing_at_all(
    environment: Environment, wheels: dict[str, Path], tmp_path: Path
) -> None:
    newer, removed = tmp_path / "newer", []
    for folder in FOLDERS:
        copy = tmp_path / "sources" / folder.name
        removed += next_version(folder, copy)
    build([("wheel", copy, newer) for copy in (tmp_path / "sources").iterdir()])
    fresh_folder = tmp_path / "other"
    fresh_folder.mkdir()
    fresh = Environment(fresh_folder)
    fresh.install(*newer.glob("*.whl"))

    before = environment.files()
    environment.install(*wheels.values())
    was = environment.files()
    environment.install(*newer.glob("*.whl"))
    now = environment.files()
    assert len(removed) > 5
    for module in removed:
        assert any(file.endswith(f"site-packages/{module}") for file in was), module
        assert not any(file.endswith(f"site-packages/{module}") for file in now), module
    assert now == fresh.files()
    environment.pip("uninstall", "-y", *wheels)
    assert environment.files() == before


def next_version(folder: Path, copy: Path) -> list[str]:
    """Copy a distribution as version 0.1.1 without the last of its modules, and return that module,
    if it has more than one.
    """
    copy.mkdir(parents=True)
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    assert 'version = "0.1.0"' in text
    (copy / "pyproject.toml").write_text(
        text.replace('version = "0.1.0"', 'version = "0.1.1"', 1), encoding="utf-8"
    )
    package = next(folder.glob("t*/py.typed")).parent
    shutil.copytree(package, copy / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE", "hatch_build.py"):
        if (folder / name).is_file():
            shutil.copy(folder / name, copy)
    modules = [
        path
        for path in copy.rglob("*.py")
        if path.name not in ("__init__.py", "plugin.py", "hatch_build.py")
    ]
    for module in sorted(modules)[-1:]:
        module.unlink()
    return [str(module.relative_to(copy)) for module in sorted(modules)[-1:]]
