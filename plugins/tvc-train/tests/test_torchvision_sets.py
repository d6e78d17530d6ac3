"""torchvision's data sets by name, made up in its own formats."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from tvc_train.data import Data, DataSettings, inspect_data, open_data, read_image
from tvc_train.data.torchvision_sets import _classes_of
from tvc_train.errors import DataError
from tvc_train.planning import make_plan

from tvc_core import RecipeError, Registry, load_recipe

PETS, NETTE = "oxford-iiit-pet", "imagenette2"
WNIDS = ("n01440764", "n02102040", "n02979186")


def opened(folder: Path, name: str, **keys: Any) -> Data:
    settings = DataSettings(source="torchvision", name=name, path=".", **keys)
    return open_data(settings, folder=folder, seed=0)


def draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.stem.encode()) + 1000 * shade
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


def write_nette(folder: Path, *, train: tuple[str, ...] = WNIDS, val: tuple[str, ...]) -> None:
    for part, wnids in (("train", train), ("val", val)):
        for wnid in wnids:
            for index in range(2):
                draw(folder / NETTE / part / wnid / f"{wnid}{part}{index}.JPEG", WNIDS.index(wnid))


def write_pets(folder: Path, names: dict[str, int]) -> None:
    (folder / PETS / "annotations").mkdir(parents=True)
    for part, numbers in (("trainval", (1, 2)), ("test", (3,))):
        lines = []
        for name, label in names.items():
            for number in numbers:
                draw(folder / PETS / "images" / f"{name}_{number}.jpg", label)
                lines.append(f"{name}_{number} {label} 1 1")
        (folder / PETS / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")


def test_torchvisions_data_sets_go_by_name(tmp_path: Path) -> None:
    settings = DataSettings(source="torchvision", name="EuroSAT", path=".", split=0.5)
    with pytest.raises(DataError, match=r"EuroSAT .*download: true"):
        open_data(settings, folder=tmp_path, seed=0)
    for name in ("Forest", "River"):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (8, 8), (index * 60, len(name), 0)).save(folder / f"{index}.png")
    data = open_data(settings, folder=tmp_path, seed=0)
    assert data.classes == ("Forest", "River") and len(data.train) == len(data.val) == 4
    assert inspect_data(data, settings).is_fine and data.train.read(0).shape == (3, 8, 8)
    with pytest.raises(DataError, match="Did you mean 'CIFAR10'"):
        open_data(DataSettings(source="torchvision", name="CIFAR-10"), folder=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("name", "prefix", "kind", "classes"),
    [
        ("QMNIST", "qmnist-{}", "idx2-int", 10),  # whose labels are rows of eight numbers
        ("EMNIST", "emnist-balanced-{}", "idx1-ubyte", 47),  # which has an A and an a
    ],
)
def test_data_sets_of_letters_and_digits_can_be_trained_on(
    tmp_path: Path, name: str, prefix: str, kind: str, classes: int
) -> None:
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    labels = np.arange(classes)
    for part in ("train", "test"):
        images = np.random.default_rng(len(part)).integers(0, 256, (classes, 28, 28), np.uint8)
        rows = labels.astype(np.uint8)
        if kind == "idx2-int":
            rows = np.stack([labels, *[labels + 900] * 7], 1).astype(">i4")
        for what, array, code in (("images-idx3-ubyte", images, 8), (f"labels-{kind}", rows, 12)):
            code = 8 if array.dtype == np.uint8 else code
            sizes = np.array(array.shape, ">i4").tobytes()
            header = bytes((0, 0, code, array.ndim)) + sizes
            (raw / f"{prefix.format(part)}-{what}").write_bytes(header + array.tobytes())
    settings = DataSettings(source="torchvision", name=name, path=".")
    data = open_data(settings, folder=tmp_path, seed=0)
    assert inspect_data(data, settings).is_fine and len(data.classes) == classes
    assert data.train.targets.tolist() == data.val.targets.tolist() == labels.tolist()


def test_pcams_labels_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for part, count in (("train", 5), ("valid", 3)):
        rng = np.random.default_rng(count)
        x = rng.integers(0, 256, (count, 96, 96, 3), np.uint8)
        y = rng.integers(0, 2, (count, 1, 1, 1), np.uint8)
        files[part] = x, y.reshape(-1)
        for what, array in (("x", x), ("y", y)):
            path = tmp_path / "pcam" / f"camelyonpatch_level_2_split_{part}_{what}.h5"
            path.parent.mkdir(exist_ok=True)
            with h5py.File(path, "w") as file:
                file[what] = array

    data = opened(tmp_path, "PCAM")
    assert data.val is not None and data.classes == ("0", "1")
    for samples, part in ((data.train, "train"), (data.val, "valid")):
        x, y = files[part]
        assert samples.targets.tolist() == y.tolist()
        assert all(np.array_equal(samples.read(i).movedim(0, -1), x[i]) for i in range(len(x)))

    def refuse(self: Any, index: int) -> Any:
        raise AssertionError("an image was read for its label")

    monkeypatch.setattr(datasets.PCAM, "__getitem__", refuse)
    opened(tmp_path, "PCAM")
    with h5py.File(tmp_path / "pcam" / "camelyonpatch_level_2_split_train_y.h5", "w") as file:
        file["y"] = np.zeros((4, 1, 1, 1), np.uint8)
    with pytest.raises(DataError, match=r"PCAM \(train\): has 5 images and 4 labels"):
        opened(tmp_path, "PCAM")
    (tmp_path / "pcam" / "camelyonpatch_level_2_split_train_y.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"the labels of PCAM \(train\) cannot be read"):
        opened(tmp_path, "PCAM")


def test_images_of_a_data_set_are_upright_and_its_classes_have_names(tmp_path: Path) -> None:
    upright = Image.Exif()
    upright[0x112] = 6
    for part in ("train", "val"):
        for wnid, shade in (("n01440764", 0), ("n02102040", 200)):
            folder = tmp_path / "imagenette2" / part / wnid
            folder.mkdir(parents=True)
            picture = Image.new("RGB", (8, 16), (shade, len(part), 0))
            picture.save(folder / "0.JPEG", exif=upright)
    settings = DataSettings(source="torchvision", name="Imagenette", path=".")
    data = open_data(settings, folder=tmp_path, seed=0)
    assert data.classes == ("tench, Tinca tinca", "English springer, English springer spaniel")
    assert data.train.read(0).shape == (3, 8, 16)


def test_names_of_a_data_set_that_two_classes_have_are_told_apart() -> None:
    given = SimpleNamespace(classes=[("crane",), ("tench",), ("crane",)], wnids=["n1", "n2", "n3"])
    assert _classes_of(given, 3) == ("crane (n1)", "tench", "crane (n3)")
    assert _classes_of(SimpleNamespace(), 2) == ("0", "1")


def test_parts_are_matched_by_the_names_of_their_classes(tmp_path: Path) -> None:
    """torchvision numbers the classes that it finds in each part."""
    write_nette(tmp_path, val=WNIDS[1:])
    data = opened(tmp_path, "Imagenette")
    assert data.train.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.val.targets.tolist() == [1, 1, 2, 2] and not data.problems
    for wnid in WNIDS[1:]:
        assert wnid in data.val.names[2 * WNIDS.index(wnid) - 2]


def test_a_class_that_is_only_held_out_is_a_problem(tmp_path: Path) -> None:
    write_nette(tmp_path, train=WNIDS[1:], val=WNIDS)
    data = opened(tmp_path, "Imagenette")
    assert len(data.val) == 4 and len(data.problems) == 1
    assert "'tench, Tinca tinca' that what is trained on does not have" in str(data.problems[0])


def test_classes_of_a_data_set_can_come_in_an_order_of_ones_own(tmp_path: Path) -> None:
    for name in ("Forest", "Pasture", "River"):
        for index in range(4):
            draw(tmp_path / "eurosat" / "2750" / name / f"{name}{index}.jpg", len(name))
    given = ("River", "Forest", "Pasture")
    data = opened(tmp_path, "EuroSAT", classes=given)
    assert data.classes == given and not data.problems
    for samples in (data.train, data.val):
        for name, target in zip(samples.names, samples.targets, strict=True):
            assert Path(name).parent.name == given[target]
    data = opened(tmp_path, "EuroSAT", classes=("River", "Forrest", "Pasture"))
    assert "'Forest' that data.classes does not name. Did you mean 'Forrest'" in str(
        data.problems[0]
    )


def test_images_in_files_are_read_as_any_others(tmp_path: Path) -> None:
    write_pets(tmp_path, {"Abyssinian": 1, "Bengal": 2})
    held = tmp_path / PETS / "images" / "Bengal_3.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), np.uint8)
    Image.fromarray(pixels).save(held, format="PNG")  # some of pixels that show what is below
    data = opened(tmp_path, "OxfordIIITPet")
    assert torch.equal(data.val.read(1), read_image(held))
    small = DataSettings(source="torchvision", name="OxfordIIITPet", path=".", max_pixels=50)
    report = inspect_data(open_data(small, folder=tmp_path, seed=0), small)
    assert report.bad_images == 6 and "8 pixels, more than 50" in str(report.problems[0])


def test_a_broken_image_of_a_data_set_is_named_and_may_be_left_out(tmp_path: Path) -> None:
    write_nette(tmp_path, val=WNIDS)
    broken = tmp_path / NETTE / "train" / WNIDS[0] / f"{WNIDS[0]}train1.JPEG"
    broken.write_bytes(b"none")
    settings = DataSettings(source="torchvision", name="Imagenette", path=".", max_bad=1)
    report = inspect_data(open_data(settings, folder=tmp_path, seed=0), settings)
    assert report.is_fine and report.problems[0].where == str(broken)


def test_the_order_of_images_is_not_that_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/abbey", "y/yard"):
        for index in range(4):
            draw(tmp_path / "SUN397" / name / f"sun_{index}.jpg", len(name))
    (tmp_path / "SUN397" / "ClassName.txt").write_text("/a/abbey\n/y/yard\n")
    orders = []
    plain = Path.rglob
    for turned in (False, True):
        monkeypatch.setattr(
            Path, "rglob", lambda self, pattern, t=turned: sorted(plain(self, pattern), reverse=t)
        )
        data = opened(tmp_path, "SUN397", split=0.5)
        orders.append([each.content(i) for each in (data.train, data.val) for i in range(4)])
    assert orders[0] == orders[1]


def test_a_data_set_of_which_a_part_is_missing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pets(tmp_path, {"Abyssinian": 1, "Bengal": 3})
    with pytest.raises(DataError, match=r"\(train\).*labels are 0 to 2.* names of 2 classes"):
        opened(tmp_path, "OxfordIIITPet")
    binary = tmp_path / "stl10_binary"
    binary.mkdir()
    for part in ("train", "test"):
        (binary / f"{part}_X.bin").write_bytes(bytes(2 * 3 * 96 * 96))
        (binary / f"{part}_y.bin").write_bytes(b"\1")
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    with pytest.raises(DataError, match=r"STL10 \(train\): has 2 images and 1 labels"):
        opened(tmp_path, "STL10")


@pytest.mark.parametrize(("name", "package"), [("SVHN", "scipy"), ("PCAM", "h5py")])
def test_a_package_that_a_data_set_needs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr("tvc_train.data.torchvision_sets.find_spec", lambda name: None)
    with pytest.raises(DataError, match=f"reads {name} with {package}.*pip install {package}$"):
        opened(tmp_path, name)


def test_a_data_set_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Caltech101.*there is no folder.*download: true"):
        opened(tmp_path, "Caltech101")
    settings = DataSettings(source="torchvision", name="Caltech256", path="set")
    with pytest.raises(DataError, match="set: is not there"):
        open_data(settings, folder=tmp_path, seed=0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="torchvision does not download it"):
        opened(tmp_path, "StanfordCars")
    with pytest.raises(RecipeError, match=r"data\.download: torchvision does not download Imag"):
        opened(tmp_path, "ImageNet", download=True)


@pytest.mark.parametrize("number", [101, 256])
def test_images_of_caltech_are_its_files(tmp_path: Path, number: int) -> None:
    top = tmp_path / f"caltech{number}" / f"{number}_ObjectCategories"
    (top / "BACKGROUND_Google").mkdir(parents=True)
    if number == 256:
        (top / "BACKGROUND_Google").rmdir()
    for place, name in enumerate(("001.ak47", "002.flag")):
        for index in range(1, 4):
            said = f"image_{index:04d}" if number == 101 else f"{place + 1:03d}_{index:04d}"
            draw(top / name / f"{said}.jpg", place)
    data = opened(tmp_path, f"Caltech{number}")
    assert data.classes == ("001.ak47", "002.flag")
    for samples in (data.train, data.val):
        for index, name in enumerate(samples.names):
            assert data.classes[samples.targets[index]] in name
            assert torch.equal(samples.read(index), read_image(tmp_path / name))


def test_no_code_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "evil"),)

    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        file = tmp_path / "cifar-10-batches-py" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pickle.dumps(Evil()))
    (tmp_path / "MNIST" / "processed").mkdir(parents=True)
    for name in ("training", "test"):
        torch.save(Evil(), tmp_path / "MNIST" / "processed" / f"{name}.pt")
    torch.save(Evil(), tmp_path / "meta.bin")
    for name in ("CIFAR10", "MNIST", "ImageNet"):
        with pytest.raises(DataError, match="cannot be opened"):
            opened(tmp_path, name)
    assert not (tmp_path / "evil").exists()


def test_the_written_recipe_finds_the_data_set_and_other_data_take_its_place(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_nette(tmp_path, val=WNIDS)
    recipe = {
        "backbone": {"name": "mobilenet_v3_small", "weights": None},
        "data": {"source": "torchvision", "name": "Imagenette", "size": 32},
        "training": {"batch_size": 8, "phases": [{"epochs": 1}]},
    }
    Path("r.yaml").write_text(json.dumps(recipe))
    Path("run").mkdir()
    for data in (None, photos):
        plan = make_plan(load_recipe("r.yaml"), Registry(), data=data)
        Path("run/recipe.yaml").write_text(plan.written({}).to_yaml())
        again = make_plan(load_recipe("run/recipe.yaml"), Registry())
        assert again.data_settings == plan.data_settings
        assert again.data.train.digest() == plan.data.train.digest()
    assert again.data_settings.name is None and again.data.classes[0] == "class0"
