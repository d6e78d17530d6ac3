"""The command line and files: what is in one, where a build starts, and where output cannot go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tvc_cli.commands
from click.testing import CliRunner, Result

import tvc_core
from tvc_core import HybridBuilder

RECIPE = """
name: "Zürich 東京"
backbone:
  name: mobilenet_v3_small
  weights: null
  patches: {features.3: {wrap: se}}
head: {num_classes: 2, class_names: [Zürich, 東京]}
"""


def tvc(*args: object, **extra: Any) -> Result:
    return CliRunner().invoke(tvc_cli.commands.tvc, [*map(str, args)], **extra)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def saved(recipe: Path) -> Path:
    path = recipe.with_name("m.safetensors")
    HybridBuilder().build(recipe).save(path, metadata={"accuracy": 0.5})
    return path


def run(*args: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tvc_cli", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, **environment}
    )


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ([], C_LOCALE),
        *(
            pytest.param(options, environment, marks=pytest.mark.sweep)
            for options, environment in (
                ([], {"PYTHONIOENCODING": "cp1252"}),
                (["--json"], {"PYTHONIOENCODING": "cp1252"}),
                (["--json"], C_LOCALE),
                (["--json"], {"PYTHONIOENCODING": "ascii"}),
                ([], {"PYTHONIOENCODING": "utf-8"}),
            )
        ),
    ],
)
def test_names_that_the_output_cannot_encode(
    recipe: Path, options: list[str], environment: dict[str, str]
) -> None:
    done = run("build", recipe, *options, **environment)
    assert done.returncode == 0, done.stderr
    encoding = environment.get("PYTHONIOENCODING", "ascii")
    if options:
        assert json.loads(done.stdout.decode(encoding))["recipe"]["name"] == "Zürich 東京"
    else:
        assert done.stdout.startswith("Zürich 東京".encode(encoding, "backslashreplace"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["list", "list --json", "list kinds"])
def test_a_full_disk_is_no_bug(command: str) -> None:
    shell = f"{sys.executable} -m tvc_cli {command} > /dev/full"
    done = subprocess.run(shell, shell=True, capture_output=True, check=False)
    assert done.returncode == 1 and b"No space left" in done.stderr and b"bug" not in done.stderr


def test_too_little_memory_is_no_bug() -> None:
    done = tvc("show", "mobilenet_v3_small", "--size", 99_999_999)
    assert done.exit_code == 1 and "memory" in done.stderr and "bug" not in done.stderr


def test_a_recipe_from_stdin() -> None:
    done = tvc("build", "-", "--json", input=RECIPE.encode())
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["num_classes"] == 2
    done = tvc("build", "-", input=b"backbone: resnet18\nodd: 1\n")
    assert done.exit_code == 1 and ":2:1: odd: unknown key 'odd'" in done.stderr


def test_a_seed_gives_the_same_model(recipe: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for file, seed in zip(files, (3, 3, 4), strict=True):
        done = tvc("build", recipe, "--out", file, "--seed", seed)
        assert done.exit_code == 0, done.stderr
    first, second, third = (file.read_bytes() for file in files)
    assert first == second != third


def test_what_is_set_takes_the_place_of_the_recipe_s(recipe: Path, saved: Path) -> None:
    elsewhere = saved.parent / "there"
    elsewhere.mkdir()
    moved = recipe.rename(elsewhere / "recipe.yaml")
    done = tvc("build", moved, "--json", "--set", f"weights={saved}", "--set", "name=mine")
    assert "warning" in done.stderr and "patches.features.3" in done.stderr
    found = json.loads(done.stdout)
    assert found["recipe"]["backbone"]["weights"] == "m.safetensors"
    assert found["recipe"]["name"] == "mine"
    done = tvc(
        "build", moved, "--set", 'class_names=["a", "b", "c"]', "--set", "num_classes=3", "--json"
    )
    assert json.loads(done.stdout)["num_classes"] == 3
    done = tvc("build", moved, "--set", "wieghts=3")
    assert done.exit_code == 1 and "weights" in done.stderr
    done = tvc("build", moved, "--set", "num_classes=3", "--set", "head.num_classes=4")
    assert done.exit_code == 1 and "num_classes is head.num_classes" in done.stderr
    assert tvc("build", moved, "--seed", "1", "--set", "seed=2").exit_code == 2


def test_show_says_what_is_in_a_file(saved: Path, recipe: Path) -> None:
    done = tvc("show", saved)
    assert done.exit_code == 0, done.stderr
    for text in ("Zürich, 東京", "sha256", "tvc-attention:se", "accuracy=0.5", "tvc-core "):
        assert text in done.stdout
    found = json.loads(tvc("show", saved, "--json").stdout)
    assert found["kind"] == "model" and found["missing"] == []
    assert found["recipe"]["backbone"]["name"] == "tvc-mobilenet:mobilenet_v3_small" or (
        found["recipe"]["backbone"]["name"].endswith(":mobilenet_v3_small")
    )
    assert found["num_values"] == sum(
        each.numel() for each in tvc_core.load(saved).state_dict().values()
    )
    model = tvc_core.load(saved)
    model.save(saved.with_name("d.safetensors"), base=saved)
    found = json.loads(tvc("show", saved.with_name("d.safetensors"), "--json").stdout)
    assert (found["kind"], found["base"], found["num_tensors"]) == ("delta", "m.safetensors", 0)
    done = tvc("show", recipe)
    assert done.exit_code == 1 and "tvc build" in done.stderr


def test_show_names_plugins_that_are_missing(saved: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TVC_DISABLE", "tvc-attention")
    done = tvc("show", saved)
    assert done.exit_code == 0, done.stderr
    assert "missing" in done.stdout and "block tvc-attention:se" in done.stdout
    assert "the plugin tvc-attention is disabled" in done.stdout


def test_show_of_other_files(tmp_path: Path, saved: Path) -> None:
    import torch

    torch.save({"a.weight": torch.zeros(2, 3)}, tmp_path / "w.pth")
    done = tvc("show", tmp_path / "w.pth")
    assert done.exit_code == 0 and "a.weight" in done.stdout and "2x3" in done.stdout
    for wrong in (tmp_path / "absent.pth", "./nothing", "absent.safetensors"):
        done = tvc("show", wrong)
        assert done.exit_code == 1 and "cannot be read" in done.stderr, done.stderr
    data = bytearray(saved.read_bytes())
    data[-5] ^= 64
    saved.write_bytes(data)
    done = tvc("show", saved)
    assert done.exit_code == 1 and "damaged" in done.stderr


def test_a_member_of_a_family_is_no_file() -> None:
    pytest.importorskip("timm")
    done = tvc("show", "timm/test_resnet", "--weights")
    assert done.exit_code == 0 and "timm/test_resnet" in done.stdout


def test_a_file_of_no_kind_that_is_known_is_said_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.txt").write_text("x")
    (tmp_path / "resnet").mkdir()
    with pytest.raises(tvc_core.UnknownNameError, match=r"There is a file 'weights\.txt'; saved"):
        HybridBuilder().from_backbone("weights.txt", None)
    with pytest.raises(tvc_core.UnknownNameError, match=r"There is a folder '\./resnet'; saved"):
        HybridBuilder().from_backbone("./resnet", None)
    with pytest.raises(tvc_core.UnknownNameError, match="Did you mean 'resnet"):
        HybridBuilder().from_backbone("resnet", None)
    assert "There is a file 'weights.txt'" in tvc("show", "weights.txt").stderr
