"""A lock: what changed since is named, all of it, and nothing is built."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torchvision
from click.testing import CliRunner
from tvc_recipes import lock_recipe
from tvc_recipes.commands import lock_command
from tvc_recipes.formatting import format_recipe

from tvc_core import HybridBuilder, RecipeError, WeightsError

RECIPE = """\
backbone:
  name: mobilenet_v3_small
  patches: {"features.1": {wrap: se}}
head: {num_classes: 3}
seed: 1
"""


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put random weights in the place of the official ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TVC_VERIFY_WEIGHTS", "0")
    monkeypatch.delenv("TVC_WEIGHTS_PATH", raising=False)
    name = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.url.rpartition("/")[2]
    path = tmp_path / "home" / "hub" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), path)
    return path


@pytest.fixture
def locked(tmp_path: Path, weights: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    path = tmp_path / "recipe.lock.yaml"
    path.write_text(lock_recipe(tmp_path / "recipe.yaml").to_yaml())
    return path


def test_a_lock_has_versions_and_the_hash_of_the_weights(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    lock = lock_recipe(tmp_path / "recipe.yaml").sections["lock"]
    assert lock["weights"] == {
        "file": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    for name in ("tvc-core", "tvc-mobilenet", "tvc-attention", "torch", "torchvision"):
        assert lock["plugins"][name] == metadata.version(name)


def test_the_command_writes_a_lock_as_tvc_fmt_would(tmp_path: Path, weights: Path) -> None:
    recipe, made = tmp_path / "recipe.yaml", tmp_path / "made.yaml"
    recipe.write_text(RECIPE.replace("_classes: 3", "_classes: 2, class_names: [cat, dog]"))
    CliRunner().invoke(lock_command, [str(recipe), "--out", str(made)], catch_exceptions=False)
    assert format_recipe(made.read_text()) == made.read_text() != lock_recipe(recipe).to_yaml()
    assert HybridBuilder.build(made).class_names == ("cat", "dog")


def test_a_lock_builds_the_same_model_while_nothing_changes(
    tmp_path: Path, locked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVC_WEIGHTS_PATH", "~nobody-here/weights")  # of which a warning tells
    one, two = (HybridBuilder.build(path) for path in (tmp_path / "recipe.yaml", locked))
    states = one.state_dict(), two.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_an_upgraded_plugin_and_changed_weights_are_both_named_and_nothing_is_built(
    locked: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "9.9.9" if name == "tvc-attention" else version(name)
    )
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), weights)
    with pytest.raises(RecipeError) as caught:
        HybridBuilder.build(locked)
    said = str(caught.value)
    assert said.startswith(f"{locked}:") and ": lock: what the recipe was locked with has" in said
    assert f"'tvc-attention' is 9.9.9, locked at '{version('tvc-attention')}'" in said
    assert weights.name in said


@pytest.mark.parametrize("entry", ["", "#model_ema"])
def test_weights_of_ones_own_are_locked_by_their_path(tmp_path: Path, entry: str) -> None:
    own = tmp_path / "sub" / "own.pth"
    own.parent.mkdir()
    state = torchvision.models.resnet18().state_dict()
    torch.save({entry[1:]: state, "model": state} if entry else state, own)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"backbone: {{name: resnet18, weights: 'sub/own.pth{entry}'}}")
    for folder, path in ((None, tmp_path), (own.parent, own.parent)):
        locked = path / "lock.yaml"
        locked.write_text(lock_recipe(recipe, folder=folder).to_yaml())
        assert HybridBuilder.build(locked).num_classes == 1000
    own.write_bytes(own.read_bytes() + b"x")
    with pytest.raises(RecipeError, match=r"the weights .*own\.pth"):
        HybridBuilder.build(locked)
    with pytest.raises(RecipeError, match=r"is not in that of the lock, .*elsewhere: put it"):
        lock_recipe(recipe, folder=tmp_path / "elsewhere")
    own.unlink()
    with pytest.raises(WeightsError, match=r"own\.pth: cannot be read: No such file"):
        lock_recipe(recipe)


@pytest.mark.parametrize("name", [".", "", "/"])
def test_what_is_no_file_cannot_be_locked(name: str) -> None:
    error = CliRunner().invoke(lock_command, [name]).exception
    assert isinstance(error, RecipeError) and "Is a directory" in str(error)


@pytest.mark.parametrize(
    "lock", ["3", "{}", "{plugins: {a: 1}}", "{plugins: {}, weights: {file: a}}", "{plugin: {}}"]
)
def test_a_damaged_lock_is_refused(tmp_path: Path, lock: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"backbone: {{name: resnet18, weights: null}}\nlock: {lock}\n")
    with pytest.raises(RecipeError, match=r"recipe.yaml:2:\d+: lock"):
        HybridBuilder.build(path)
