"""Photos that judge a file, what a file in int8 is said to be, and arguments that fit nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from exported_networks import small
from PIL import Image
from tvc_export import export_model, open_exported, verify
from tvc_export.benching import bench
from tvc_export.commands import export_command, verify_command
from tvc_export.exporting import judged
from tvc_export.photos import read_photos
from tvc_export.proving import outputs_of, photo_inputs, try_input

from tvc_core import (
    BackboneError,
    HybridBuilder,
    HybridModel,
    ParameterError,
    Preprocessing,
    WeightsError,
)


def taught(size: int = 40) -> HybridModel:
    """Return a small network that knows how photos are prepared."""
    model = small()
    model.preprocessing = Preprocessing(size=(size, size), resize=size)
    return model


def photos_in(folder: Path, number: int, name: str = "{:04}_x.png") -> Path:
    folder.mkdir()
    chance = np.random.default_rng(0)
    for turn in range(number):
        pixels = chance.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name.format(turn))
    return folder


def test_a_number_says_no_class_where_a_model_has_several_heads(tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "photos", 3)
    assert [each.label for each in read_photos(photos, taught())] == [0, 1, 2]
    several = HybridBuilder().from_backbone(
        "squeezenet1_1", weights=None, heads={"color": 2, "breed": 5}
    )
    several.preprocessing = Preprocessing(size=(40, 40), resize=40)
    assert [each.label for each in read_photos(photos, several)] == [None] * 3


@pytest.mark.parametrize("known", [True, False])
def test_names_that_torch_is_right_on_none_of_judge_nothing(known: bool, tmp_path: Path) -> None:
    model = taught()
    photos = read_photos(photos_in(tmp_path / "photos", 6), model)
    answers = [int(outputs_of(model, each.image[None].numpy())[0].argmax()) for each in photos]
    labels = answers if known else [(each + 1) % 7 for each in answers]
    photos = [replace(each, label=label) for each, label in zip(photos, labels, strict=True)]

    def other(images: Any) -> list[Any]:
        return [np.roll(each, 2, 1) for each in outputs_of(model, images)]

    trials = [
        try_input(trial, images, outputs_of(model, images), other, 1e-5)
        for trial, images in photo_inputs(photos)
    ]
    with pytest.raises(WeightsError, match="int8 loses 6 of 6 photos, and --max-drop allows 5"):
        judged(trials, photos, other, 4, 5, tmp_path / "m.onnx")
    said = judged(trials, photos, other, 4, 6, tmp_path / "m.onnx")
    assert (said["before"], said["after"]) == (6, 0)
    assert said["measure"] == ("right" if known else "answered as in torch")


def test_a_photo_of_another_size_than_the_exports_is_named_before_anything_is_written(
    tmp_path: Path,
) -> None:
    model, path = taught(), tmp_path / "m.onnx"
    photos = photos_in(tmp_path / "photos", 8)
    for given in ({"photos": photos}, {"int8": photos}):
        with pytest.raises(ParameterError, match=r"0\d_x\.png: is prepared .*40, 40\].*h is 40"):
            export_model(model, "onnx", path, size=(48, 64), **given)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["photos"]
    export_model(model, "pt2", tmp_path / "m.pt2", size=(48, 64))
    with pytest.raises(ParameterError, match=r"0000_x\.png: is prepared .*m\.pt2 was proved for"):
        verify(tmp_path / "m.pt2", model=model, photos=photos)


def test_a_file_in_int8_is_judged_by_the_photos_of_its_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    model, path = taught(), tmp_path / "m.onnx"
    photos = photos_in(tmp_path / "photos", 8, "x{}.png")  # names that say no class
    made = export_model(model, "onnx", path, int8=photos, max_drop=4)
    assert made.int8 is not None and made.int8["judged"] == 4

    def run(*words: str) -> str:
        result = CliRunner().invoke(verify_command, [str(path), *words])
        assert result.exit_code == 0, result.exception
        return result.output

    text, data = run(), json.loads(run("--json").splitlines()[0])
    assert "but how right it is was not tried" in text and "same answers" not in text
    assert (data["equal"], data["trials"]) == (None, [])
    monkeypatch.setattr("tvc_export.models.read_model", lambda *_: model)
    text = run("--model", "small", "--photos", str(photos))
    assert "of its photos no more are lost than the 4 that were allowed" in text
    with pytest.raises(ParameterError, match="is in int8, whose answers on noise are not torch's"):
        verify(path, model=model, shapes=[(1, 3, 40, 40)])
    # where the runtime answers otherwise, that counts on the photos of the proof alone
    stricter = replace(made, int8={**made.int8, "max_drop": 3})
    monkeypatch.setattr("tvc_export.verifying.read_certificate", lambda *_, **__: stricter)
    monkeypatch.setattr(
        "tvc_export.formats.onnx.Runner.__call__",
        lambda self, images: [np.roll(each, 2, 1) for each in outputs_of(model, images)],
    )
    with pytest.raises(WeightsError, match="int8 loses 4 of 4 photos, and --max-drop allows 3"):
        verify(path, model=model, photos=photos)


def test_photos_of_two_folders_are_told_apart_by_name(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, path = taught(), tmp_path / "m.onnx"
    photos = photos_in(tmp_path / "photos", 8, "x{}.png")
    made = export_model(model, "onnx", path, photos=photos, int8=photos, max_drop=8)
    assert made.int8 is not None and made.int8["judged"] == 8
    assert len({each.name for each in made.trials}) == len(made.trials)
    others = photos_in(tmp_path / "others", 8, "x{}.png")
    (others / "x3.png").write_bytes((photos / "x4.png").read_bytes())
    with pytest.raises(ParameterError, match=r"others have different photos named x3\.png,"):
        export_model(model, "onnx", path, photos=photos, int8=others, force=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": (64,)}, r"size is a whole number .*not \(64,\)"),
        ({"size": (64, -3)}, "size is a whole number"),
        ({"size": 64.0}, "size is a whole number"),
        ({"size": "64"}, "size is a whole number"),
        ({"size": True}, "size is a whole number"),
        ({"dynamic": "batch"}, "dynamic is a list of batch, hw, not 'batch'"),
        ({"dynamic": ("Batch",)}, "Did you mean 'batch'"),
        ({"dynamic": None}, "dynamic is a list"),
        ({"tolerance": -1}, "tolerance is a positive number, not -1"),
        ({"tolerance": math.inf}, "tolerance is a positive number, not inf"),
        ({"tolerance": "1e-5"}, "tolerance is a positive number"),
        ({"limit": math.nan}, "limit is a positive number, not nan"),
        ({"max_drop": -1}, "max_drop is a whole number of photos, not -1"),
    ],
)
def test_arguments_that_fit_nothing_are_refused(
    given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=said):
        export_model(small(), "pt2", tmp_path / "m.pt2", **{"size": (40, 40), **given})
    assert not list(tmp_path.iterdir())


def test_one_side_is_that_of_squares_and_any_tensor_of_floats_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    model = small()
    assert export_model(model, "pt2", path, size=40).claims.example == (2, 3, 40, 40)
    exported, images = open_exported(path), torch.randn(2, 3, 40, 40)
    (found,) = exported(images.clone().requires_grad_())
    assert np.array_equal(found, exported(images)[0])
    with pytest.raises(ParameterError, match="images of bfloat16 were given, and it takes float32"):
        exported(images.bfloat16())


@pytest.mark.parametrize("text", ["none,batch", "", ","])
def test_what_may_vary_is_none_alone_or_something(text: str, tmp_path: Path) -> None:
    words = ["no-such", "--format", "pt2", "--out", str(tmp_path / "m.pt2"), "--dynamic", text]
    result = CliRunner().invoke(export_command, words)
    assert result.exit_code == 2 and "or none alone" in result.output


def test_bench_names_a_model_that_takes_other_images_and_leaves_modes_alone() -> None:
    model = small().train()
    model.get_submodule("last").eval()
    modes = [module.training for module in model.modules()]
    (timing,) = bench({"mine": model}, shape=(1, 3, 32, 32), rounds=10, without=False)
    assert timing.median > 0
    with pytest.raises(BackboneError, match=r"mine does not take images \[1, 1, 32, 32\]"):
        bench({"mine": model}, shape=(1, 1, 32, 32))
    assert [module.training for module in model.modules()] == modes
