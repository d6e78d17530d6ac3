"""Wheels alone, in a clean environment without the source tree: what is installed is there, what is not says how to get it."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
FIVE = ["cbam_block", "channel_attention", "eca", "se", "spatial_attention"]

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the wheel of each distribution, built from the source tree."""
    out = tmp_path_factory.mktemp("dist")
    for folder in FOLDERS:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    return {path.name.partition("-")[0].replace("_", "-"): path for path in out.glob("*.whl")}


class Environment:
    """A virtual environment that sees the running one's packages except ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "env"
        venv.create(self.folder, with_pip=False, symlinks=True)
        self.python = self.folder / "bin" / "python"
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            ours = entry.name.startswith(("tvc", "_tvc", "torchvision_customizer", "_editable", "__editable__"))
            if not ours and entry.suffix != ".pth":
                (borrowed / entry.name).symlink_to(entry)
        site = next((self.folder / "lib").glob("python*/site-packages"))
        (site / "borrowed.pth").write_text(str(borrowed), encoding="utf-8")

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        subprocess.run(command, check=True, capture_output=True, env=self.clean())

    def install(self, *wheels: Path) -> None:
        self.pip("install", "--no-index", "--no-deps", *map(str, wheels))

    def run(self, code: str) -> str:
        command = [str(self.python), "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=self.clean(), check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def clean(self) -> dict[str, str]:
        return {key: value for key, value in os.environ.items() if not key.startswith(("TVC_", "PYTHONPATH", "PIP_FIND_LINKS"))}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def names(environment: Environment, expression: str) -> object:
    return json.loads(environment.run(f"import json; from tvc_core import HybridBuilder as H; print(json.dumps({expression}))"))


def test_core_and_attention_alone_offer_the_five_blocks_and_say_who_provides_resnet50(
    environment: Environment, wheels: dict[str, Path]
) -> None:
    environment.install(wheels["tvc-core"], wheels["tvc-attention"])
    assert names(environment, "H.list_blocks()") == FIVE
    assert names(environment, "H.list_backbones()") == []
    message = environment.run(
        "from tvc_core import HybridBuilder, TvcError\n"
        "try: HybridBuilder().from_torchvision('resnet50')\n"
        "except TvcError as error: print(error)"
    )
    assert "tvc-resnet provides it" in message
    assert "pip install tvc-resnet" in message


def test_the_core_alone_lists_its_own_operations(environment: Environment, wheels: dict[str, Path]) -> None:
    environment.install(wheels["tvc-core"])
    assert names(environment, "[H.list_patch_ops(), H.list_initializers(), H.list_blocks()]") == [
        ["inject", "replace", "wrap"],
        ["identity", "kaiming", "paper", "xavier", "zero"],
        [],
    ]


def test_with_resnet_a_patched_network_builds_and_uninstalling_it_removes_its_names_only(
    environment: Environment, wheels: dict[str, Path]
) -> None:
    environment.install(wheels["tvc-core"], wheels["tvc-attention"], wheels["tvc-resnet"])
    code = (
        "from tvc_core import HybridBuilder\n"
        "m = HybridBuilder().from_torchvision('resnet18', weights=None, patches={'layer3': {'wrap': 'se'}}, num_classes=10)\n"
        "print(m.fc.out_features, m.step0_difference)"
    )
    assert environment.run(code) == "10 0.0"
    environment.pip("uninstall", "-y", "tvc-resnet")
    assert names(environment, "[H.list_backbones(), H.list_blocks()]") == [[], FIVE]


def test_everything_together_has_the_guides_import_name_and_the_command(
    environment: Environment, wheels: dict[str, Path]
) -> None:
    environment.install(*wheels.values())
    assert environment.run(
        "from torchvision_customizer import HybridBuilder; import torchvision_customizer.recipe as r; "
        "print(len(HybridBuilder.list_backbones(origin='torchvision')), r.load_yaml_recipe.__name__)"
    ).split() == ["80", "load_yaml_recipe"]
    done = subprocess.run(
        [str(environment.folder / "bin" / "tvc"), "list", "blocks"],
        capture_output=True,
        text=True,
        env=environment.clean(),
        check=True,
    )
    assert all(name in done.stdout for name in FIVE)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_wheel_carries_what_an_index_shows_and_nothing_else(folder: Path, wheels: dict[str, Path]) -> None:
    name = "tvc-core" if folder == ROOT else folder.name
    with zipfile.ZipFile(wheels[name]) as archive:
        files = archive.namelist()
        metadata = email.message_from_bytes(archive.read(next(file for file in files if file.endswith("METADATA"))))
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Summary"]
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert len(str(metadata.get_payload())) > 300, "the description is the README"
    assert any(file.endswith("py.typed") for file in files)
    assert any(file.endswith("licenses/LICENSE") for file in files)
    tops = {file.partition("/")[0] for file in files if ".dist-info" not in file}
    assert tops == {"torchvision_customizer" if name == "tvc-all" else name.replace("-", "_")}


def test_the_core_requires_its_six_and_no_more(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["tvc-core"]) as archive:
        text = archive.read(next(file for file in archive.namelist() if file.endswith("METADATA")))
    required = {line.split(">")[0] for line in email.message_from_bytes(text).get_all("Requires-Dist", [])}
    assert required == {"torch", "torchvision", "pluggy", "pyyaml", "importlib-metadata", "safetensors"}
