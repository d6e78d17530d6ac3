"""Order, preparation, decoding, shards and settings: each held against a second derivation."""

from __future__ import annotations

import pickle
import random
import tarfile
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageOps
from tvc_train.data import (
    DataSettings,
    Samples,
    Transforms,
    class_weights,
    evaluation_batches,
    inspect_data,
    open_data,
    preprocessing_for,
    read_image,
    steps_in_epoch,
    training_batches,
    write_shards,
)
from tvc_train.data.batches import training_indices
from tvc_train.data.names import Names
from tvc_train.errors import DataError

from tvc_core import HybridBuilder, Preprocessing, RecipeError

PREPARED = Preprocessing(
    size=(16, 16), resize=18, fit="crop", interpolation="bilinear", mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
)  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Samples:
    return open_data(DataSettings(), folder=Path(), seed=0).train.take(np.arange(101))


# -- order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["light", "standard", "strong"])
def test_any_step_can_be_started_at_whatever_the_workers(augment: str, digits: Samples) -> None:
    given: dict[str, Any] = {
        "batch_size": 24, "seed": 3, "epoch": 1, "mixup": 0.2, "cutmix": 1.0, "num_classes": 10,
    }  # fmt: skip
    transforms = Transforms(PREPARED, augment)
    whole = list(training_batches(digits, transforms, **given))
    later = list(training_batches(digits, transforms, **given, first_step=2, workers=2))
    assert len(whole) == steps_in_epoch(101, 24) == 5 and len(later) == 3
    for one, other in zip(whole[2:], later, strict=True):
        assert one.images.equal(other.images) and one.targets.equal(other.targets)
        assert one.indices.equal(other.indices) and one.total == other.total
    other_epoch = list(training_batches(digits, transforms, **{**given, "epoch": 2}))
    assert not other_epoch[0].indices.equal(whole[0].indices)


def test_an_epoch_has_every_image_once_in_batches_of_like_size(digits: Samples) -> None:
    steps = training_indices(digits, batch_size=24, seed=0, epoch=0)
    assert sorted(np.concatenate(steps)) == list(range(101))
    assert sorted(map(len, steps)) == [20, 20, 20, 20, 21]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_steps_of_one_process(world: int, digits: Samples) -> None:
    alone = training_indices(digits, batch_size=24, seed=0, epoch=4)
    ranks = [
        training_indices(digits, batch_size=24, seed=0, epoch=4, rank=rank, world=world)
        for rank in range(world)
    ]
    for step, whole in enumerate(alone):
        assert sorted(np.concatenate([rank[step] for rank in ranks])) == sorted(whole)
    held = [
        torch.cat([b.indices for b in evaluation_batches(
            digits, Transforms(PREPARED), batch_size=8, rank=rank, world=world)])
        for rank in range(world)
    ]  # fmt: skip
    assert sorted(torch.cat(held).tolist()) == list(range(101))
    with pytest.raises(DataError, match="fewer images than processes"):
        training_indices(digits, batch_size=1, seed=0, epoch=0, world=world)


def test_the_users_generators_are_left_alone(digits: Samples) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    given: dict[str, Any] = {"batch_size": 50, "seed": 0, "epoch": 0}
    for workers in (0, 1):
        list(training_batches(digits, Transforms(PREPARED, "strong"), workers=workers, mixup=1.0,
                              num_classes=10, **given))  # fmt: skip
    assert torch.get_rng_state().equal(states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]


def test_what_is_drawn_does_not_depend_on_modes_of_torch(digits: Samples) -> None:
    given: dict[str, Any] = {"batch_size": 24, "seed": 0, "epoch": 0, "mixup": 1.0, "cutmix": 1.0}
    plain, other = (
        training_batches(digits, Transforms(PREPARED, "strong"), num_classes=10, **given)
        for _ in range(2)
    )
    first = next(plain)
    torch.set_default_dtype(torch.float64)
    try:
        assert next(other).images.equal(first.images)
    finally:
        torch.set_default_dtype(torch.float32)


def test_rare_classes_are_drawn_as_often_as_frequent_ones(digits: Samples) -> None:
    keep = np.flatnonzero(digits.targets == 1)[:2]
    few = digits.take(np.concatenate([keep, np.flatnonzero(digits.targets == 2)]))
    drawn = []
    for epoch in range(200):
        steps = training_indices(few, batch_size=4, seed=0, epoch=epoch, balance="sample")
        drawn.append(few.targets[np.concatenate(steps)])
    assert 0.45 < (np.concatenate(drawn) == 1).mean() < 0.55
    with pytest.raises(DataError, match="class 0 has no image"):
        class_weights(few, 10)


def test_weights_of_classes_are_one_on_average(digits: Samples) -> None:
    weights = class_weights(digits, 10)
    counts = torch.bincount(torch.from_numpy(digits.targets), minlength=10)
    torch.testing.assert_close((weights * counts).sum(), torch.tensor(101.0))
    torch.testing.assert_close(weights * counts, torch.full((10,), 10.1))


# -- preparation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300, 211), (20, 33), (224, 224)])
def test_evaluation_is_the_models_own_transforms_bit_for_bit(size: tuple[int, int]) -> None:
    model = HybridBuilder().from_torchvision("mobilenet_v3_small", None)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours = Transforms(preprocessing_for(model, DataSettings()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.transforms()
    found = ours(torch.from_numpy(image).movedim(-1, 0))
    assert found.equal(theirs(Image.fromarray(image)))


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("augment", ["none", "light", "standard", "strong"])
@pytest.mark.parametrize("mean", [(0.5, 0.4, 0.3), (0.5,)])
def test_every_preset_gives_the_networks_size(
    fit: str, augment: str, mean: tuple[float, ...]
) -> None:
    prepared = Preprocessing(
        size=(24, 16), resize=26, fit=fit, interpolation="bicubic", mean=mean, std=mean
    )
    image = torch.randint(0, 256, (3, 11, 40), dtype=torch.uint8)
    pixels = Transforms(prepared, augment).pixels(image, seed=1, epoch=2, index=3)
    assert pixels.shape == (len(mean), 24, 16) and pixels.dtype == torch.uint8


def test_another_size_keeps_the_shape_of_images() -> None:
    wide = Transforms(PREPARED.resized((48, 64)))
    assert wide.resized(32).preprocessing.size == (24, 32)
    assert wide.resized(64).preprocessing == wide.preprocessing


def test_pad_loses_nothing_and_borders_are_zero_when_normalized() -> None:
    prepared = Preprocessing(
        size=(32, 32), resize=32, fit="pad", interpolation="nearest", mean=(0.2, 0.4, 0.6),
        std=(1.0, 1.0, 1.0),
    )  # fmt: skip
    image = torch.full((3, 8, 16), 255, dtype=torch.uint8)
    found = Transforms(prepared)(image)
    assert found[:, :8].abs().max() < 1 / 255 and found[:, 24:].abs().max() < 1 / 255
    assert (found[0, 8:24] == 1 - torch.tensor(0.2)).all()


# -- decoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    assert (read_image(tmp_path / "a.png").movedim(0, -1).numpy() == wanted).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    gray = Image.fromarray(np.full((4, 6), 128, np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 6), 128 * 257, np.uint16))
    else:
        image = {"LA": gray, "P": gray.quantize(4)}.get(mode, gray.convert("RGB")).convert(mode)
    name = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read such a TIFF that it wrote itself")
    image.save(name)
    found = read_image(name)
    assert found.shape == (3, 4, 6) and found.dtype == torch.uint8
    if mode != "1":
        assert (found.int() - 128).abs().max() <= 2


def test_transparent_pixels_show_white(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 3), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 255).all()


def test_a_gray_of_16_bits_that_is_transparent_shows_white(tmp_path: Path) -> None:
    grays = np.array([[700, 701], [30_000, 700]], np.uint16)  # of which 8 bits of two are equal
    Image.fromarray(grays).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    named = b"tRNS" + (700).to_bytes(2, "big")  # which Pillow does not write for 16 bits
    chunk = b"\0\0\0\2" + named + zlib.crc32(named).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    assert read_image(tmp_path / "a.png")[0].tolist() == [[255, 2], [117, 255]]


# -- shards, names, settings -----------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw = np.random.default_rng(1)
    for part, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                image = draw.integers(0, 256, (9, 11, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{index}ü.png")
    return tmp_path / "photos"


def test_shards_hold_what_the_folder_holds(photos: Path, tmp_path: Path) -> None:
    settings = DataSettings(path=str(photos))
    data = open_data(settings, folder=Path(), seed=0)
    write_shards(data.train, data.val, data.classes, tmp_path / "s", shard_bytes=2000)  # type: ignore[arg-type]
    assert len([*(tmp_path / "s").glob("*.tar")]) > 2
    settings = DataSettings(path=str(tmp_path / "s"))
    found = open_data(settings, folder=Path(), seed=0)
    assert inspect_data(found, settings).is_fine and found.classes == ("cat", "dog")
    for one, other in ((data.train, found.train), (data.val, found.val)):
        assert (one.targets == other.targets).all()
        again = pickle.loads(pickle.dumps(other))  # as it goes to a worker
        assert all(one.read(i).equal(again.read(i)) for i in range(len(one)))
        assert [one.content(i) for i in range(len(one))] == [
            other.content(i) for i in range(len(one))
        ]
    turned = open_data(settings, folder=Path(), seed=0, classes=("dog", "cat"))
    assert turned.classes == ("dog", "cat")
    assert (turned.val.targets == 1 - found.val.targets).all()
    with pytest.raises(DataError, match="are cat, dog"):
        open_data(settings, folder=Path(), seed=0, classes=("cat", "dog", "hen"))
    inside = []
    for shard in sorted((tmp_path / "s").glob("*.tar")):
        with tarfile.open(shard) as opened:
            inside += opened.getnames()
    assert inside == [*found.train.names, *found.val.names]
    with pytest.raises(DataError, match="exists"):
        write_shards(data.train, data.val, data.classes, tmp_path / "s")  # type: ignore[arg-type]
    inside = Path(data.train.folder) / "s"  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="among the images"):
        write_shards(data.train, data.val, data.classes, inside)  # type: ignore[arg-type]


def test_shards_of_many_labels_go_by_the_names_of_classes(photos: Path, tmp_path: Path) -> None:
    files = sorted((photos / "val").rglob("*.png"))
    labels = ["cat", "dog;hen", "hen", "cat;hen"]
    rows = [f"{file},{label}\n" for file, label in zip(files, labels, strict=True)]
    (tmp_path / "d.csv").write_text("path,label\n" + "".join(rows), encoding="utf-8")
    settings = DataSettings(path=str(tmp_path / "d.csv"), labels="many", split=0.5)
    data = open_data(settings, folder=Path(), seed=0)
    write_shards(data.train, data.val, data.classes, tmp_path / "s")  # type: ignore[arg-type]
    shards = DataSettings(path=str(tmp_path / "s"), labels="many")
    turned = open_data(shards, folder=Path(), seed=0, classes=("hen", "cat", "dog"))
    assert data.classes == ("cat", "dog", "hen")
    assert (turned.val.targets == data.val.targets[:, [2, 0, 1]]).all()


def test_shards_that_changed_are_refused(photos: Path, tmp_path: Path) -> None:
    data = open_data(DataSettings(path=str(photos)), folder=Path(), seed=0)
    write_shards(data.train, data.val, data.classes, tmp_path / "s")  # type: ignore[arg-type]
    shard, index = tmp_path / "s/shard-00000.tar", tmp_path / "s/index.safetensors"
    settings = DataSettings(path=str(tmp_path / "s"))
    content, listed = bytearray(shard.read_bytes()), index.read_bytes()
    content[content.index(b"IDAT") + 6] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00000\.tar: train/cat/0ü\.png: is not what"):
        inspect_data(open_data(settings, folder=Path(), seed=0), settings).ensure_fine()
    shard.write_bytes(content[:-512])
    with pytest.raises(DataError, match="should have"):
        open_data(settings, folder=Path(), seed=0)
    shard.write_bytes(content)
    for end in (0, 10, len(listed) // 2, len(listed) - 1):
        index.write_bytes(listed[:end])
        with pytest.raises(DataError, match="index cannot be read"):
            open_data(settings, folder=Path(), seed=0)


def test_names_are_a_list_in_two_arrays() -> None:
    names = ["a", "", "ü/b.png", "c\udcff", "x" * 50]
    kept = Names(names)
    assert [*kept] == names and kept[-1] == names[-1] and [*kept[1:3]] == names[1:3]
    assert [*kept.take(np.array([3, 0, 3]))] == [names[3], names[0], names[3]]
    assert [*kept.take(np.array([], np.int64))] == [] and kept.nbytes < 120


def test_many_labels_come_from_a_table(tmp_path: Path) -> None:
    for index in range(4):
        pixels = np.full((4, 4, 3), 40 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    rows = ["0.png,sun;sea,train", "1.png,sea,train", "2.png,,val", "3.png,sun,val"]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,split", *rows]))
    settings = DataSettings(path=str(tmp_path / "l.csv"), labels="many")
    data = open_data(settings, folder=Path(), seed=0)
    assert data.classes == ("sea", "sun") and data.labels == "many"
    assert data.train.targets.tolist() == [[1, 1], [1, 0]]
    assert data.val.targets.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ({"pth": "x"}, "Did you mean 'path'"),
        ({"fit": "croop"}, "Did you mean 'crop'"),
        ({"size": "224"}, "a whole number"),
        ({"size": [1, 2, 3]}, "a list of 2"),
        ({"split": 1.0}, "below 1"),
        ({"max_bad": -1}, "at least 0"),
        ({"max_bad": True}, "a whole number"),
        ({"mixup": float("nan")}, "a number"),
        ({"mean": [0.5, 0.5, 0.5]}, "std"),
        ({"std": [0.5], "mean": [0.5, 0.5, 0.5]}, "mean has 3"),
        ({"std": [0.0], "mean": [0.5]}, "above 0"),
        ({"views": 4}, "cache: true"),
        ({"cache": True}, "views: 4"),
        ({"cache": True, "augment": "none", "views": 2}, "the same"),
        ({"cache": True, "augment": "none", "mixup": 0.2}, "mixup"),
        ({"max_cache": 2}, "nothing is kept"),
        ({"separator": "|"}, "labels: many"),
        ({"source": "folder"}, "path"),
        ({"source": "torchvision"}, "name"),
        ({"name": "CIFAR10"}, "source: torchvision"),
        ({"source": "digits", "path": "x"}, "scikit-learn"),
        ({"source": "folder", "path": "x", "labels": "many"}, "CSV"),
        ({"classes": ["a", "a"]}, "twice"),
        ({"columns": {"lable": "x"}}, "Did you mean 'label'"),
        ({"source": None, "labels": None}, "not null"),
        ("photos", "path: photos"),
        ([1], "keys"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_section_is_told_by_its_key(section: Any, wanted: str) -> None:
    with pytest.raises(RecipeError, match=r"^data") as raised:
        DataSettings.from_mapping(section)
    assert wanted in str(raised.value)


@pytest.mark.parametrize("pair", [("a", "A"), ("hot dog", "Hot  dog"), ("é", "e\u0301")])
def test_classes_that_look_alike_are_a_mistake_unless_they_are_named(
    tmp_path: Path, pair: tuple[str, str]
) -> None:
    rows = ["path,label"]
    for index in range(8):
        Image.new("L", (8, 8), index * 30).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{pair[index % 2]}")
    (tmp_path / "letters.csv").write_text("\n".join(rows), encoding="utf-8")
    settings = DataSettings(path="letters.csv", split=0.5)
    for known, fine in ((settings, False), (replace(settings, classes=pair), True)):
        report = inspect_data(open_data(known, folder=tmp_path, seed=0), known)
        assert report.is_fine == fine
        assert fine or "name them all in data.classes" in str(report.problems[0])


@pytest.mark.parametrize("more", [{}, {"source": "torchvision", "name": "CIFAR10"}])
def test_the_home_of_no_one_is_not_there(more: dict[str, str]) -> None:
    from tvc_train.fitting import preview

    said = {"path": "~nobody-here/photos", **more}
    with pytest.raises(DataError, match="~nobody-here/photos: is not there"):
        open_data(DataSettings.from_mapping(said), folder=Path(), seed=0)
    with pytest.raises(DataError, match="~nobody-here/photos: is not there"):
        preview({"backbone": "resnet18", "data": said})
