"""`tvc predict` and `tvc evaluate`: from a model's file alone, a row for each file."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from tvc_train import evaluate, fit
from tvc_train.commands.evaluate import evaluate_command
from tvc_train.commands.predict import predict_command
from tvc_train.data import Batch
from tvc_train.errors import DataError
from tvc_train.judging import judge
from tvc_train.planning import make_plan
from tvc_train.predicting import find_files, predict
from tvc_train.trained import KEY, Trained

from tvc_core import (
    HybridBuilder,
    HybridModel,
    ParameterError,
    Preprocessing,
    Recipe,
    RecipeError,
    Registry,
    WeightsError,
    load,
    load_recipe,
)

CLASSES = ["cat", "dog", "a;b, c"]
MODES = ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "I;16", "turned"]
ENDS = {
    "RGB": "jpg",
    "L": "webp",
    "RGBA": "png",
    "P": "gif",
    "CMYK": "jpg",
    "1": "png",
    "LA": "png",
    "I;16": "png",
    "turned": "jpg",
}


def picture(number: int) -> tuple[Image.Image, str]:
    """A picture of some mode and size, and how its name ends."""
    drawn = np.random.default_rng(number)
    mode = MODES[number % len(MODES)]
    height, width = (int(side) for side in drawn.integers(5, 90, 2))
    array = drawn.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    if mode == "turned":
        image.getexif()[0x0112] = 2 + number % 7  # of EXIF: its orientation
    elif mode == "I;16":
        image = Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(array[..., 1]))
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    return image, ENDS[mode]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of a model for one label an image, and of one for many."""
    folder = tmp_path_factory.mktemp("saved")
    recipe = {
        "backbone": {"name": "mobilenet_v3_small", "weights": None},
        "head": {"class_names": CLASSES},
        "seed": 0,
    }
    model = HybridBuilder().build(Recipe.from_mapping(recipe)).eval()
    prepared = Preprocessing(
        size=(40, 32), resize=44, fit="pad", interpolation="bicubic", mean=(0.4, 0.5, 0.3),
        std=(0.2, 0.3, 0.25),
    )  # fmt: skip
    found = {}
    for labels in ("one", "many"):
        about = Trained(
            preprocessing=prepared,
            labels=labels,
            temperature=0.02,
            thresholds=None if labels == "one" else (0.5, 0.2, 0.999999),
            figures={"accuracy": 0.5, "f1": float("nan")},
        )
        found[labels] = folder / f"{labels}.safetensors"
        about.save(model, found[labels])
    return found


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pictures of all kinds in folders of classes."""
    folder = tmp_path_factory.mktemp("labeled")
    for number in range(200):
        image, end = picture(number)
        below = folder / CLASSES[number % 3] / ("deep" if number % 2 else "")
        below.mkdir(parents=True, exist_ok=True)
        image.save(below / f"{number}.{end}", exif=image.getexif())
    return folder


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def by_hand(model: HybridModel, path: Path) -> torch.Tensor:
    """Probabilities of one file, by the saved model's own transforms alone."""
    with Image.open(path) as picture:
        logits = model(model.transforms()(picture)[None])[0].double()
    said = model.metadata[KEY]
    scaled = logits / said["temperature"]
    return scaled.sigmoid() if said["labels"] == "many" else scaled.softmax(0)


def test_predictions_equal_evaluation_and_the_saved_file_in_a_fresh_process(
    saved: dict[str, Path], labeled: Path, tmp_path: Path
) -> None:
    (labeled / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "tvc_cli", "predict", str(saved["one"]), str(labeled)]
    done = subprocess.run(
        [*command, "--out", str(out), "--batch-size", "7"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "201 files, 1 with an error" in done.stderr
    rows = {row["path"]: row for row in rows_of(out.read_text(encoding="utf-8"))}
    assert len(rows) == 201
    broken = rows.pop(str(labeled / "cat" / "broken.jpg"))
    assert broken["class"] == "" and "damaged" in broken["error"]
    (labeled / "cat" / "broken.jpg").unlink()

    judged = judge(saved["one"], labeled)
    said = (judged.evaluation.logits.double() / 0.02).softmax(1)
    assert {str(labeled / name) for name in judged.samples.names} == {*rows}
    right = 0
    for name, target, row in zip(
        judged.samples.names, judged.evaluation.targets.tolist(), said, strict=True
    ):
        found = rows[str(labeled / name)]
        best = int(row.argmax())
        assert found["class"] == found["top1_class"] == CLASSES[best]
        assert float(found["probability"]) == pytest.approx(float(row[best]), abs=1e-6)
        named = {found[f"top{i}_class"]: float(found[f"top{i}_probability"]) for i in (1, 2, 3)}
        assert [named[name] for name in CLASSES] == pytest.approx(row.tolist(), abs=1e-6)
        right += found["class"] == CLASSES[target]
    assert judged.scores.figures["accuracy"] == pytest.approx(right / 200)

    # in this process, which has not trained it, one file at a time: two of each kind
    model = load(saved["one"])
    for number in range(2 * len(MODES)):
        path = next(each for each in rows if Path(each).stem == str(number))
        probability = float(by_hand(model, Path(path)).max().detach())
        assert float(rows[path]["probability"]) == pytest.approx(probability, abs=1e-6)


def test_modes_of_the_script_around_it_change_no_prediction(
    saved: dict[str, Path], labeled: Path, other_modes: Callable[[], Any]
) -> None:
    model, trained = Trained.open(saved["one"])
    files = find_files([labeled])[0][:9]
    plain = list(predict(model, trained, files))
    figures = judge(saved["one"], labeled).scores.to_mapping()
    with other_modes():
        given = []
        for each in predict(model, trained, files):
            given.append(each)
            assert torch.empty(0).is_meta  # between two of them the script has its own
        assert judge(saved["one"], labeled).scores.to_mapping() == figures
    assert given == plain


def test_many_labels_have_a_threshold_each(saved: dict[str, Path], labeled: Path) -> None:
    files = sorted((labeled / "dog").glob("*.*"))[:6]
    done = CliRunner().invoke(
        predict_command, [str(saved["many"]), *map(str, files), "--json"], catch_exceptions=False
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == [*map(str, files)]
    model = load(saved["many"])
    for row, path in zip(rows, files, strict=True):
        chances = by_hand(model, path).tolist()
        wanted = [
            name for name, p, low in zip(CLASSES, chances, (0.5, 0.2, 0.999999), strict=True)
            if p >= low
        ]  # fmt: skip
        assert [each["class"] for each in row["said"]] == wanted
        top = [each["probability"] for each in row["top"]]
        assert top == pytest.approx(sorted(chances, reverse=True), abs=1e-6)


def test_whatever_a_file_is_it_has_a_row_and_workers_change_nothing(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    (folder / "b" / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("b/z.png", "a.png", "b/.ipynb_checkpoints/a.png", "B.png"):
        picture(2)[0].save(folder / name)
    (folder / "notes.txt").write_text("hi")
    (folder / "empty.jpg").touch()
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "page.jpg").write_text("<html></html>")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "b" / "up").symlink_to("..")
    os.mkfifo(folder / "pipe")
    odd = os.fsdecode(b"odd\xff.png")
    (folder / odd).write_bytes((folder / "a.png").read_bytes())
    files, hidden = find_files([folder / "b" / "z.png", folder])
    names = [str(each.path.relative_to(folder)) for each in files]
    assert names == [
        "b/z.png", "B.png", "a.png", "b/up", "cut.png", "empty.jpg", "gone.png", "notes.txt", odd,
        "page.jpg", "pipe",
    ]  # fmt: skip
    assert hidden == [folder / "b" / ".ipynb_checkpoints"]
    model, about = Trained.open(saved["one"])
    found = list(predict(model, about, files, batch_size=3))
    assert [each.path for each in found] == [str(each.path) for each in files]
    good = {"b/z.png", "B.png", "a.png", odd}
    assert {name for name, each in zip(names, found, strict=True) if not each.error} == good
    assert all("\n" not in each.error and each.top == () for each in found if each.error)
    assert list(predict(model, about, files, batch_size=3, workers=2)) == found
    out = tmp_path / "rows.csv"
    done = CliRunner().invoke(
        predict_command, [str(saved["one"]), str(folder), "--out", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0 and "1 hidden" in done.stderr
    assert b"odd\xff.png" in out.read_bytes()
    again = [str(saved["one"]), str(folder / "a.png"), "--out", str(out)]
    with pytest.raises(ParameterError, match=r"rows\.csv exists: --force"):
        CliRunner().invoke(predict_command, again, catch_exceptions=False)
    assert b"odd\xff.png" in out.read_bytes()
    done = CliRunner().invoke(predict_command, [str(saved["one"]), str(folder)])
    assert done.stdout_bytes == out.read_bytes()


def test_an_error_does_not_say_again_which_file_it_is_about(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    model, about = Trained.open(saved["one"])
    for name in (b"odd\xff.png", "\N{RIGHT-TO-LEFT OVERRIDE}.png".encode(), b"tab\t.png"):
        file = tmp_path / os.fsdecode(name)
        file.touch()
        (row,) = predict(model, about, find_files([file])[0])
        assert (row.path, row.error) == (str(file), "the file is empty")


@pytest.mark.parametrize(
    ("paths", "said"),
    [(["not/there.png"], "not/there.png does not exist"), (["."], "there are no files")],
)
def test_what_is_not_there_is_said_before_any_work(
    paths: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=said):
        find_files(paths)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": "some"}, {"temperature": 0}, {"temperature": True}, {"temperature": "1"},
        {"thresholds": [0.5]}, {"thresholds": 3}, {"figures": []}, {"more": 1}, None,
    ],
)  # fmt: skip
def test_a_file_that_says_something_else_is_refused(
    saved: dict[str, Path], change: Any, tmp_path: Path
) -> None:
    model, _ = Trained.open(saved["one"])
    said = model.metadata[KEY]
    model.metadata[KEY] = said | change if change is not None else "text"
    with pytest.raises(WeightsError, match=KEY):
        Trained.of(model)


def test_what_is_said_of_training_comes_back(saved: dict[str, Path]) -> None:
    _, about = Trained.open(saved["many"])
    assert about.labels == "many" and about.thresholds == (0.5, 0.2, 0.999999)
    assert about.preprocessing.fit == "pad" and about.preprocessing.size == (40, 32)
    assert about.figures["accuracy"] == 0.5 and about.figures["f1"] != about.figures["f1"]


def test_a_model_that_was_never_trained_predicts_with_what_its_weights_say(tmp_path: Path) -> None:
    model = HybridBuilder().from_backbone("mobilenet_v3_small", weights=None)
    model.save(tmp_path / "m.safetensors")
    _, about = Trained.open(tmp_path / "m.safetensors")
    assert about.preprocessing.size == (224, 224) and about.temperature == 1.0


def test_evaluation_as_text_and_as_json(saved: dict[str, Path], labeled: Path) -> None:
    def run(*arguments: str) -> Any:
        given = [str(saved["one"]), str(labeled), *arguments]
        return CliRunner().invoke(evaluate_command, given, catch_exceptions=False)

    found = json.loads(run("--json").stdout)
    confusion = np.array(found["confusion"])
    assert confusion.sum() == found["num_images"] == 200
    assert found["accuracy"] == pytest.approx(np.trace(confusion) / 200)
    recalls = [each["recall"] for each in found["classes"]]
    assert recalls == pytest.approx((np.diag(confusion) / confusion.sum(1)).tolist())
    text = run().stdout
    assert f"accuracy           {found['accuracy']:.4f}" in text
    assert "a;b, c" in text and "true \\ predicted" in text


def test_a_report_replaces_a_file_only_where_that_is_asked_for(
    saved: dict[str, Path], labeled: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.html"
    page.write_text("mine")
    words = [str(saved["one"]), str(labeled), "--report", str(page)]
    with pytest.raises(ParameterError, match=r"page\.html exists: --force"):
        CliRunner().invoke(evaluate_command, words, catch_exceptions=False)
    assert page.read_text() == "mine"
    done = CliRunner().invoke(evaluate_command, [*words, "--force"], catch_exceptions=False)
    assert done.exit_code == 0 and page.read_text().startswith("<!")


def test_bad_data_are_named_and_left_out_only_where_that_is_asked_for(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    for name in CLASSES:
        (tmp_path / name).mkdir()
        picture(0)[0].save(tmp_path / name / "a.png")
    (tmp_path / "cat" / "b.txt").touch()
    with pytest.raises(DataError, match=r"(?s)cat/b.txt.*--max-bad 1"):
        judge(saved["one"], tmp_path)
    judged = judge(saved["one"], tmp_path, max_bad=1)
    assert judged.scores.num_images == 3 and len(judged.problems) == 1
    for name, size in (("dog/c.png", 60), ("cat/d.png", 0)):  # which only decoding finds
        (tmp_path / name).write_bytes((tmp_path / "dog" / "a.png").read_bytes()[:size])
    with pytest.raises(DataError, match=r"(?s)b.txt.*d.png.*c.png.*--max-bad 3"):
        judge(saved["one"], tmp_path, max_bad=2)
    (tmp_path / "cat" / "b.txt").unlink()
    with pytest.raises(DataError, match=r"(?s)d.png.*c.png.*--max-bad 2"):
        judge(saved["one"], tmp_path)
    judged = judge(saved["one"], tmp_path, max_bad=2)
    assert judged.scores.num_images == 3 and len(judged.problems) == 2
    (tmp_path / "bird").mkdir()
    picture(0)[0].save(tmp_path / "bird" / "a.png")
    with pytest.raises(DataError, match="bird: a class 'bird' that the model does not know"):
        judge(saved["one"], tmp_path, max_bad=10)


def test_what_a_recipe_holds_out_is_evaluated_whichever_seed_it_has(
    photos: Path, tmp_path: Path
) -> None:
    head = {"class_names": ["class0", "class1", "class2"]}
    backbone = {"name": "mobilenet_v3_small", "weights": None}
    recipe = {"backbone": backbone, "head": head, "data": {"path": str(photos), "size": 32}}
    HybridBuilder().build(Recipe.from_mapping(recipe)).save(tmp_path / "m.safetensors")
    held = []
    for more in ({}, {"seed": 5}, {"seed": 5, "training": {"seed": 0}}):
        (tmp_path / "r.yaml").write_text(json.dumps({**recipe, **more}))
        registry = Registry()
        plan = make_plan(load_recipe(tmp_path / "r.yaml"), registry)
        held.append(tuple(judge(tmp_path / "m.safetensors", tmp_path / "r.yaml").samples.names))
        assert held[-1] == tuple(plan.data.val.names)
    assert held[0] == held[2] != held[1]
    file, path = tmp_path / "m.safetensors", tmp_path / "r.yaml"  # the last one, with two seeds
    changed = judge(file, path, changes={"training.seed": "5"})
    assert tuple(changed.samples.names) == held[1]
    with pytest.raises(RecipeError, match="--set changes recipes"):
        judge(file, photos, changes={"training.seed": "5"})
    (photos / "class0" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"notes.txt.*(?s:.*)--max-bad 1"):
        judge(file, path)
    found = judge(file, path, changes={"data.max_bad": "1"})  # as it was trained
    assert tuple(found.samples.names) == held[2] and len(found.problems) == 1
    shutil.copytree(photos / "class0", photos / "class3")
    with pytest.raises(DataError, match="a class 'class3' that the model does not know"):
        judge(file, path)


@pytest.mark.parametrize(
    ("labels", "precision"), [("one", "float32"), ("many", "float32"), ("one", "bfloat16")]
)
def test_figures_of_a_run_and_in_its_file_are_those_that_evaluation_finds(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path, labels: str, precision: str
) -> None:
    """With its temperature and its own numbers, and with the thresholds of several labels."""
    given = recipe(methods=["temperature"], precision=precision)
    if labels == "many":
        rows = [f"photos/class{n % 3}/{n // 3}.png,{'a;b' if n % 2 else 'b'}" for n in range(24)]
        (tmp_path / "many.csv").write_text("\n".join(["path,label", *rows]))
        given["data"] |= {"labels": "many", "path": str(tmp_path / "many.csv")}
    found = fit(given, out=tmp_path / "run")
    _, about = Trained.open(found.run.model)
    assert about.temperature != 1.0
    found.model.save(tmp_path / "again.safetensors")  # after a fold, say
    assert Trained.open(tmp_path / "again.safetensors")[1] == about
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(given))
    judged = judge(found.run.model, tmp_path / "toy.yaml")
    wanted = judged.scores.figures
    assert torch.allclose(found.evaluation.logits, judged.evaluation.logits, atol=1e-5)
    assert found.evaluation.figures == about.figures == pytest.approx(wanted, abs=1e-5)


def test_what_evaluates_tensors_says_so_of_files_and_of_other_batches() -> None:
    with pytest.raises(ParameterError, match=r"not 'm\.safetensors'; tvc_train\.judge takes its"):
        evaluate("m.safetensors", "images")  # type: ignore[arg-type]
    pair = torch.zeros(1, 3, 8, 8), torch.zeros(1)  # of any other library's loader
    with pytest.raises(ParameterError, match=r"a batch has images, targets .* of type tuple"):
        evaluate(torch.nn.Identity(), [pair])
    with pytest.raises(ParameterError, match="there are no images to evaluate"):
        evaluate(torch.nn.Identity(), iter(()))


def test_an_evaluation_leaves_each_module_in_its_mode() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(), torch.nn.Flatten())
    model.train()
    model[0].eval()  # fixed by hand
    images = torch.rand(2, 3, 1, 1)
    batch = Batch(images=images, targets=torch.tensor([0, 2]), indices=torch.arange(2), total=2)
    found = evaluate(model, [batch])
    assert torch.equal(found.logits, model[0](images).flatten(1))
    assert [module.training for module in model.modules()] == [True, False, True, True]
