"""The recipe that a run leaves trains the same model again, from wherever it is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from tvc_train import Run, fit
from tvc_train.errors import TrainingError
from tvc_train.planning import make_plan
from tvc_train.running import run_folder
from tvc_train.starting import first_recipe

from tvc_core import HybridBuilder, LocalPlugin, Recipe, RecipeError, Registry, load

PHASES = [{"epochs": 1, "rate": "auto"}, {"epochs": 1, "rate": 0.001, "thaw": [-1]}]


@pytest.fixture
def lab(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with photos, and a recipe that extends one with its own weights
    in another folder.
    """
    monkeypatch.chdir(tmp_path)
    model = HybridBuilder().from_backbone("mobilenet_v3_small", weights=None, num_classes=7)
    Path("base").mkdir()
    torch.save(model.state_dict(), "base/w.pth")
    base = {
        "backbone": {"name": "mobilenet_v3_small", "weights": "./w.pth"},
        "data": {"size": 32, "fit": "pad", "augment": "light"},
        "training": {"batch_size": 8, "phases": PHASES},
    }
    Path("base/base.yaml").write_text(yaml.safe_dump(base))
    text = "extends: base/base.yaml\nmacros: {a: eca}\n"
    Path("mine.yaml").write_text(text + "backbone: {patches: {features.11: {wrap: '@a'}}}\n")
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    names = ("recipe.yaml", "metrics.csv", "predictions.safetensors", "model.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


def test_the_written_recipe_trains_the_same_again_wherever_the_run_is(
    lab: Path, photos: Path
) -> None:
    changes: dict[str, Any] = {"training.phases[0].epochs": 2, "training.ema": "0.5"}
    first = fit("mine.yaml", data=photos, changes=changes).run.folder
    assert first == Path("runs/mine")
    wanted = content(first)
    written = yaml.safe_load(wanted["recipe.yaml"])
    assert written["backbone"]["weights"] == "weights/w.pth"
    rates = [phase["rate"] for phase in written["training"]["phases"]]
    assert rates[0] in (1e-3, 3e-3, 1e-2, 3e-2) and rates[1] == 0.001

    moved = Path("else where/moved")
    moved.parent.mkdir()
    shutil.move(first, moved)
    Path("base/w.pth").unlink()
    again = fit(moved / "recipe.yaml").run.folder
    assert again == Path("runs/mine") and content(again) == wanted
    # it goes on with the run that it was written for, too, and with no other
    assert fit(moved / "recipe.yaml", out=moved, resume=True).run == Run(folder=moved)
    model = load(moved / "model.safetensors")
    torch.save(model.state_dict(), moved / "weights/w.pth")
    with pytest.raises(TrainingError, match=r"another run.*weights was 'sha256"):
        fit(moved / "recipe.yaml", out=moved, resume=True)


@pytest.mark.parametrize("entry", ["", "#model_ema"])
def test_a_file_of_weights_that_is_set_from_outside_comes_along(
    lab: Path, photos: Path, entry: str
) -> None:
    if entry:  # of a training checkpoint, whose others are of another training
        state = torch.load("base/w.pth", weights_only=True)
        other = {name: torch.zeros_like(each) for name, each in state.items()}
        torch.save({"model": other, "model_ema": state}, "base/w.pth")
    recipe = {"backbone": "mobilenet_v3_small", "training": {"phases": [{"epochs": 1}]}}
    Path("short.yaml").write_text(yaml.safe_dump({**recipe, "data": {"size": 32}}))
    changes = {"backbone.weights": str(lab / "base" / "w.pth") + entry}
    run = fit("short.yaml", data=photos, changes=changes).run
    assert Recipe.from_mapping(yaml.safe_load(run.recipe.read_text())).weights == (
        f"weights/w.pth{entry}"
    )
    assert (run.folder / "weights" / "w.pth").read_bytes() == Path("base/w.pth").read_bytes()
    again = fit(run.recipe).run
    assert again.folder == Path("runs/short-2")
    assert content(again.folder) == content(run.folder)


def test_patches_of_one_target_are_all_in_the_first_recipe() -> None:
    pairs = [("layer3", "se"), ("layer3", "eca"), ("layer4", "se")]
    recipe = Recipe.from_mapping(first_recipe(Path("photos"), "resnet18", pairs))
    found = [(entry.target, entry.op, entry.block) for entry in recipe.patches]
    assert found == [(target, "wrap", block) for target, block in pairs]


def test_a_block_that_no_recipe_can_name_is_refused_and_one_of_a_plugin_is_taken(
    photos: Path, tmp_path: Path
) -> None:
    class Mine(nn.Conv2d):
        def __init__(self, in_channels: int) -> None:
            super().__init__(in_channels, in_channels, 1)

    sections = {"data": {"path": str(photos), "size": 32}, "training": {"phases": [{"epochs": 1}]}}
    recipe = Recipe(
        backbone="mobilenet_v3_small", weights=None, patches={"features.11": {"wrap": Mine}},
        sections=sections,
    )  # fmt: skip
    with pytest.raises(RecipeError, match=r"'Mine' is code of your own.*LocalPlugin"):
        make_plan(recipe, Registry())
    plugin = LocalPlugin("mine")
    plugin.block(Mine)
    named = replace(recipe, patches={"features.11": {"wrap": "mine"}})
    plan = make_plan(named, Registry([plugin]))
    assert "type: mine" in plan.written({}).to_yaml()


def test_a_run_lies_neither_among_the_images_nor_over_other_files(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("recipe.yaml", "report.html", "checkpoints", "weights", "model.safetensors"):
        there = tmp_path / "mine" / name
        (there if "." not in name else there.parent).mkdir(parents=True)
        if "." in name:
            there.write_text("mine")
        for resume in (False, True):
            with pytest.raises(TrainingError, match=rf"has .*{name}.* already, .*--force"):
                run_folder(tmp_path / "mine", "r", resume=resume, data=str(photos))
        assert run_folder(tmp_path / "mine", "r", resume=True, force=True, data=str(photos))
        shutil.rmtree(tmp_path / "mine")
    for out in (photos, photos / "runs" / "a", photos / "class0"):
        with pytest.raises(TrainingError, match="among the images"):
            run_folder(out, "r", resume=False, data=str(photos))
    monkeypatch.chdir(photos)
    with pytest.raises(TrainingError, match="would be runs/r, which is in"):
        run_folder(None, "r", resume=False, data=str(photos))
    assert run_folder(None, "r", resume=False, data=str(tmp_path / "list.csv")) == "runs/r"
