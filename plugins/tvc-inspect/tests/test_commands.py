"""The commands inspect and cam, as a user calls them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tvc_core import HybridBuilder, Registry, TvcError

RECIPE = """
backbone:
  name: mobilenet_v3_small
  weights: null
  patches:
    features.4: {wrap: se}
head:
  num_classes: 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    Image.new("RGB", (120, 90), (10, 200, 30)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _tvc(name: str, *args: str) -> Result:
    return CliRunner().invoke(Registry().resolve("command", name).load(), list(args))


def test_a_recipe_a_file_and_a_name_are_shown(folder: Path) -> None:
    HybridBuilder().build("recipe.yaml").save("model.safetensors")
    for given, *more in (("recipe.yaml", "--set", "num_classes=9"), ("model.safetensors",)):
        result = _tvc("inspect", given, "--json", "--size", "64", *more)
        assert result.exit_code == 0, result.output
        data = json.loads(result.stdout)
        assert (data["model"]["num_classes"] == 9) is bool(more)
        assert data["model"]["patches"][0]["target"] == "features.4" and data["notes"] == []
    result = _tvc("inspect", "mobilenet_v3_small", "recipe.yaml", "--json", "--size", "64")
    data = json.loads(result.stdout)
    kinds = [(each["kind"], each["path"]) for each in data["comparison"]["differences"]]
    assert kinds[:2] == [("patch", "features.4"), ("head", "classifier.3")]
    assert "random weights" in data["notes"][0]
    for command in (
        ("inspect", "model.safetensors", "--json"),
        ("cam", "model.safetensors", "photo.jpg", "--out", "a.png"),
    ):
        result = _tvc(*command, "--set", "seed=1")
        assert isinstance(result.exception, TvcError) and "saved model" in str(result.exception)


def test_a_page_is_written_and_not_overwritten(folder: Path) -> None:
    args = ("inspect", "recipe.yaml", "--out", "page.html", "--size", "64", "--photo", "photo.jpg")
    Path("page.html").write_text("mine")
    result = _tvc(*args)
    assert isinstance(result.exception, TvcError) and "--force" in str(result.exception)
    assert Path("page.html").read_text() == "mine"
    result = _tvc(*args, "--force")
    assert result.exit_code == 0, result.output
    text = Path("page.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "data:image/jpeg" in text
    assert sorted(each.name for each in folder.iterdir()) == [
        "page.html", "photo.jpg", "recipe.yaml",
    ]  # fmt: skip


def test_cam_writes_the_picture(folder: Path) -> None:
    result = _tvc("cam", "recipe.yaml", "photo.jpg", "--out", "map.png", "--class", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("2: logit ")
    with Image.open("map.png") as picture:
        assert picture.size == (224, 224)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("inspect", "resnet19", "--out", "p.html"), "Did you mean 'resnet18'"),
        (("inspect", "nix.yaml", "--out", "p.html"), "nix.yaml"),
        (("inspect", "nix.safetensors", "--out", "p.html"), "nix.safetensors"),
        (("inspect", "recipe.yaml", "--out", "nowhere/p.html"), "'nowhere' does not exist"),
        (("inspect", "recipe.yaml", "--out", "."), "is a folder"),
        (("inspect", "recipe.yaml", "--out", "p.html", "--photo", "no.jpg"), "no.jpg: the photo"),
        (("inspect", "recipe.yaml", "--out", "p.html", "--photo", "text.jpg"), "text.jpg: is no"),
        (("inspect", "recipe.yaml", "--out", "p.html", "--photo", "cut.jpg"), "cut.jpg: the photo"),
        (("inspect", "recipe.yaml", "--out", "p.html", "--gates", "text.jpg"), "holds no line"),
        # before the model, which may take long
        (("inspect", "nix.yaml", "--out", "p.html", "--photo", "cut.jpg"), "cut.jpg: the photo"),
        (("inspect", "nix.yaml", "--out", "p.html", "--gates", "text.jpg"), "holds no line"),
        (("cam", "recipe.yaml", "photo.jpg", "--out", "m.gif2"), "suffix of a picture: .png"),
        (("cam", "recipe.yaml", "photo.jpg", "--out", "m.png", "--class", "9"), "0 to 3"),
        (("cam", "recipe.yaml", "photo.jpg", "--out", "m.png", "--layer", "nix"), "no map"),
        (("cam", "recipe.yaml", "glass.png", "--out", "m.png"), "glass.png: "),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    folder: Path, args: tuple[str, ...], said: str
) -> None:
    (folder / "text.jpg").write_text("no picture")
    (folder / "cut.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:400])
    Image.new("RGBA", (60, 60), (9, 9, 9, 100)).save(folder / "glass.png")
    before = sorted(folder.iterdir())
    result = _tvc(*args)
    assert isinstance(result.exception, TvcError), result.output
    assert said in str(result.exception)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("inspect", "resnet18"), "--out page.html, or --json"),
        (("inspect", "resnet18", "--json", "--photo", "photo.jpg"), "give --out"),
        (("inspect", "resnet18", "--out", "p.html", "--class", "3"), "give --photo"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    folder: Path, args: tuple[str, ...], said: str
) -> None:
    result = _tvc(*args)
    assert result.exit_code == 2 and said in result.stderr


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
@pytest.mark.parametrize(
    "args", [("inspect", "gone.yaml"), ("cam", "gone.yaml", "gone.jpg")], ids=["inspect", "cam"]
)
def test_a_folder_that_cannot_be_written_is_an_error_before_building(
    folder: Path, args: tuple[str, ...]
) -> None:
    result = _tvc(*args, "--out", "/proc/self/p.png")  # where root cannot write either
    assert "'/proc/self' cannot be written to" in str(result.exception)


def test_an_error_is_one_sentence_and_exit_code_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tvc", "inspect", "resnet19", "--out", "page.html"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tvc_cli", run_name="__main__")  # in this process, which has torch
    shown = capfd.readouterr()
    assert ended.value.code == 1 and shown.out == ""
    assert shown.err.startswith("error: Unknown backbone 'resnet19'. Did you mean 'resnet18'")
    assert "Traceback" not in shown.err and not Path("page.html").exists()


def test_another_model_of_other_images_is_compared_at_its_own_size(folder: Path) -> None:
    for side in (64, 96):
        (folder / f"vit{side}.yaml").write_text(
            f"backbone:\n  name: timm/vit_tiny_patch16_224\n  weights: null\n  image_size: {side}\n"
        )
    result = _tvc("inspect", "vit64.yaml", "vit96.yaml", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["model"]["image"] == [1, 3, 64, 64]
    assert "are those of 96 x 96" in data["notes"][0]
    shapes = {
        each["path"]: each["b"]
        for each in data["comparison"]["differences"]
        if each["kind"] == "shape"
    }
    assert shapes["blocks.0"] == "[1, 37, 192] NLC"  # 6 x 6 patches and the class token
