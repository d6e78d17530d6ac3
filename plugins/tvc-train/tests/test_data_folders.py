"""Data that are wrong: each kind is told by one message that names the file, folder or line."""

from __future__ import annotations

import os
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tvc_train.commands.data import data_command
from tvc_train.commands.train import train_command
from tvc_train.data import Data, DataSettings, inspect_data, open_data
from tvc_train.errors import DataError


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (10, 12), **options: object) -> Path:
    """Write an image of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def good(root: Path) -> Path:
    """Make a folder in which nothing is wrong: 2 classes, 3 images each to train on, 2 held out."""
    seed = 0
    for part, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for index in range(count):
                photo(root / part / name / f"{index}.png", seed := seed + 1)
    return root


def table(root: Path, *lines: str, header: str = "path,label,split") -> Path:
    good(root)
    rows = [
        f"{part}/{name}/{index}.png,{name},{part}"
        for part, count in (("train", 3), ("val", 2))
        for name in ("cat", "dog")
        for index in range(count)
    ]
    file = root / "list.csv"
    file.write_text("\n".join([header, *rows, *lines]) + "\n", encoding="utf-8")
    return file


def looked_at(root: Path, **settings: object) -> Data:
    made = DataSettings.from_mapping({"path": str(root), **settings})
    return inspect_data(open_data(made, folder=Path(), seed=0), made).ensure_fine()


def bomb(path: Path, side: int) -> None:
    """Write a PNG whose header promises side x side pixels."""
    header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(99))):
        whole += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(whole)


def cut(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def moved(root: Path, old: str, new: str) -> None:
    (root / old).rename(root / new)


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def outside(root: Path) -> Path:
    return photo(root.parent / "outside" / "secret.png", 99)


def linked(root: Path, where: str, to: Path | str) -> None:
    (root / where).symlink_to(to)


# what is done to a good folder, and what the message has to name
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty file": (lambda r: (r / "train/cat/0.png").write_bytes(b""), "train/cat/0.png"),
    "cut png": (lambda r: cut(r / "train/cat/1.png", 0.5), "train/cat/1.png"),
    "cut jpeg": (
        lambda r: cut(photo(r / "val/dog/x.jpg", 50, (64, 64)), 0.4), "val/dog/x.jpg"
    ),
    "only a header": (lambda r: cut(r / "train/dog/1.png", 0.1), "train/dog/1.png"),
    "flipped bits": (lambda r: flipped(r / "train/dog/2.png"), "train/dog/2.png"),
    "html as jpg": (
        lambda r: (r / "train/cat/p.jpg").write_text("<!DOCTYPE html>"), "an HTML page"
    ),
    "lfs pointer": (
        lambda r: (r / "val/cat/p.png").write_text("version https://git-lfs.github.com/spec/v1"),
        "git lfs pull",
    ),
    "text file": (lambda r: (r / "train/cat/notes.txt").write_text("x"), "notes.txt"),
    "no ending": (lambda r: (r / "train/cat/IMG").write_bytes(b"x"), "train/cat/IMG"),
    "heic": (
        lambda r: (r / "val/dog/a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40),
        "AVIF or HEIF",
    ),
    "svg": (lambda r: (r / "train/cat/a.svg").write_text("<svg/>"), "a.svg"),
    "archive": (lambda r: (r / "train/cat/a.zip").write_bytes(b"PK\3\4"), "a.zip"),
    "too many pixels": (lambda r: bomb(r / "train/cat/b.png", 12_000), "12000 x 12000 pixels"),
    "a line": (
        lambda r: photo(r / "train/cat/l.png", 9, (1, 1001)), "l.png: 1001 x 1 pixels, one side",
    ),
    "a bomb": (lambda r: bomb(r / "train/cat/b.png", 60_000), "train/cat/b.png: too large"),
    "pipe": (lambda r: os.mkfifo(r / "train/cat/pipe.png"), "pipe.png: is not a file"),
    "socket": (lambda r: a_socket(r / "train/cat/s.png"), "s.png: is not a file"),
    "folder named as an image": (
        lambda r: (r / "train/cat/f.png").mkdir() or (r / "train/cat/f.png/x.txt").write_text(""),
        "f.png/x.txt",
    ),
    "empty class": (lambda r: emptied(r / "train/cat"), "train/cat: an empty folder"),
    "empty held-out class": (lambda r: (r / "val/bird").mkdir(), "val/bird: an empty folder"),
    "class of val that train lacks": (
        lambda r: photo(r / "val/bird/0.png", 7), "bird: a class 'bird' that train/ does not have."
    ),
    "misspelt class of val": (lambda r: moved(r / "val", "dog", "dogs"), "Did you mean 'dog'"),
    "class in capitals": (lambda r: photo(r / "train/Dog/0.png", 7), "class 'dog'"),
    "image beside classes": (lambda r: photo(r / "train/0.png", 7), "train/0.png: lies beside"),
    "link out": (
        lambda r: linked(r, "train/cat/l.png", outside(r)), "train/cat/l.png: leads out"
    ),
    "folder out": (
        lambda r: linked(r, "train/fox", outside(r).parent), "train/fox: a link to a folder outside"
    ),
    "folder out, deeper": (
        lambda r: linked(r, "train/cat/more", outside(r).parent), "train/cat/more: a link"
    ),
    "link to nothing": (
        lambda r: linked(r, "train/cat/l.png", "gone.png"), "l.png: a link to what is not there"
    ),
    "link to itself": (lambda r: linked(r, "train/cat/l.png", "l.png"), "train/cat/l.png"),
    "circle of folders": (
        lambda r: linked(r, "train/cat/again", r / "train/cat"), "train/cat/again: a link"
    ),
    "image in both": (
        lambda r: (r / "val/cat/9.png").write_bytes((r / "train/cat/1.png").read_bytes()),
        "train/cat/1.png: the same image is held out",
    ),
    "same pixels in both": (
        lambda r: Image.open(r / "train/cat/1.png").save(r / "val/cat/9.bmp"),
        "train/cat/1.png: the same image is held out",
    ),
    "val alone": (lambda r: moved(r, "train", "../away"), "there is val/, and no train/"),
    "val by another name": (lambda r: moved(r, "val", "valid"), "called train/ and val/"),
    "parts in capitals": (
        lambda r: (moved(r, "train", "Train"), moved(r, "val", "Val")), "called train/ and val/"
    ),
    "empty val": (
        lambda r: [emptied(r / "val" / n) or (r / "val" / n).rmdir() for n in ("cat", "dog")],
        "val: there is no folder of a class",
    ),
    "one class": (
        lambda r: [moved(r, f"{p}/dog", f"../{p}-dog") for p in ("train", "val")],
        "there is one class",
    ),
    "images and no classes": (
        lambda r: [moved(r, p, f"../{p}") for p in ("train", "val")] and photo(r / "0.png"),
        "no folder of a class",
    ),
    "nothing": (lambda r: [moved(r, p, f"../{p}") for p in ("train", "val")], "It is empty"),
    "newline in a name": (
        lambda r: (r / "train/cat/a\nb.png").write_bytes(b"x"), "a\\nb.png"
    ),
    "bytes that are no text in a name": (
        lambda r: (r / os.fsdecode(b"train/cat/\xff.png")).write_bytes(b"x"), "\\udcff.png"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_bad_folder_is_told_by_name(kind: str, tmp_path: Path) -> None:
    root = good(tmp_path / "photos")
    change, wanted = FOLDERS[kind]
    change(root)
    with pytest.raises(DataError) as raised:
        looked_at(root)
    assert wanted in str(raised.value), str(raised.value)
    assert str(root) in str(raised.value) or "class" in str(raised.value)
    assert str(raised.value).isprintable() or "\n" in str(raised.value)
    refused(root, wanted, tmp_path / "run")


def refused(data: Path, wanted: str, out: Path) -> None:
    """Give data to `tvc train`, which has to refuse them before it leaves anything."""
    command = [str(data), "--backbone", "resnet18", "--out", str(out)]
    run = CliRunner().invoke(train_command, command)
    # which `tvc` shows as one message, and ends with 1
    assert isinstance(run.exception, DataError) and wanted in str(run.exception)
    assert run.output == ""
    assert not out.exists()


TABLES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (lambda r: table(r, "train/cat/77.png,cat,train"), "list.csv:12: train/cat/77"),
    "backslashes": (lambda r: table(r, r"train\cat\1.png,cat,train"), "with / in the place of"),
    "leads out": (lambda r: (outside(r), table(r, "../outside/secret.png,cat,train"))[1],
                  "list.csv:12: ../outside/secret.png: leads out"),
    "absolute": (lambda r: table(r, f"{outside(r)},cat,train"), "list.csv:12"),
    "no label": (lambda r: table(r, "train/cat/1.png,,train"), "list.csv:12"),
    "no path": (lambda r: table(r, ",cat,train"), "list.csv:12: has no path"),
    "twice": (lambda r: table(r, "./train/cat/1.png,dog,train"), "list.csv:12: train/cat/1.png s"),
    "misspelt part": (lambda r: table(r, "x.png,cat,trian"), "Did you mean 'train'"),
    "a field too many": (lambda r: table(r, "x.png,cat,train,1"), "list.csv:12: has 4 fields"),
    "a field too few": (lambda r: table(r, "x.png,cat"), "list.csv:12: has 2 fields"),
    "no column": (lambda r: table(r, header="path,class,split"), "list.csv:1: there is no column"),
    "semicolons": (lambda r: table(r, header="path;label;split"), "separated by commas"),
    "two columns": (lambda r: table(r, header="path,label,label"), "list.csv:1: there are two"),
    "quotes": (lambda r: table(r, '"x.png,cat,train'), "list.csv:"),
    "a folder": (lambda r: table(r, "train/cat,cat,train"), "train/cat: is a folder"),
    "a class nothing trains": (lambda r: (photo(r / "b.png", 77), table(r, "b.png,fox,val"))[1],
                               "class 'fox'"),
    "damaged": (lambda r: (table(r), cut(r / "train/cat/1.png", 0.5), r / "list.csv")[2],
                "list.csv:3: "),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_a_class_that_the_recipe_does_not_name_is_said_so(kind: str, tmp_path: Path) -> None:
    root = good(tmp_path / "photos") if kind == "folder" else table(tmp_path / "photos")
    with pytest.raises(DataError, match=r"a class 'dog' that data\.classes does not name"):
        looked_at(root, classes=["cat", "cow"])


@pytest.mark.parametrize("kind", TABLES)
def test_a_bad_table_is_told_by_its_line(kind: str, tmp_path: Path) -> None:
    make, wanted = TABLES[kind]
    file = make(tmp_path / "photos")
    with pytest.raises(DataError) as raised:
        looked_at(file)
    assert wanted in str(raised.value), str(raised.value)
    refused(file, wanted, tmp_path / "run")


def test_one_column_is_not_two_things(tmp_path: Path) -> None:
    file = table(tmp_path / "photos")
    with pytest.raises(DataError, match=r"list.csv:1: the column 'split' would be the label and"):
        looked_at(file, columns={"label": "split"})


def test_a_table_without_any_label_has_no_class(tmp_path: Path) -> None:
    for index in range(6):
        photo(tmp_path / f"{index}.png", index)
    file = tmp_path / "list.csv"
    file.write_text("path,label\n" + "".join(f"{index}.png,\n" for index in range(6)))
    with pytest.raises(DataError, match="there is no class: no image has a label"):
        looked_at(file, labels="many")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "there are no names of columns"),
        (b"path,label\n", "has no line"),
        (b"path,label\na\xff.png,cat\n", "UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\0", "bad.csv"),
    ],
)
def test_a_file_that_is_no_table(content: bytes, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.csv") as raised:
        looked_at(tmp_path / "bad.csv")
    assert wanted in str(raised.value)


def test_a_good_folder_is_fine_and_hidden_things_are_noted(tmp_path: Path) -> None:
    root = good(tmp_path / "photos")
    photo(root / "train/.ipynb_checkpoints/0-checkpoint.png")
    photo(root / "train/cat/.ipynb_checkpoints/0.png")
    (root / "train/cat/.DS_Store").write_bytes(b"x")
    photo(root / "train/cat/deeper/9.png", 40)
    settings = DataSettings(path=str(root))
    report = inspect_data(open_data(settings, folder=Path(), seed=0), settings)
    assert report.is_fine and not report.problems
    noted = {str(Path(note.where).relative_to(root)) for note in report.notes}
    assert noted == {
        "train/.ipynb_checkpoints", "train/cat/.ipynb_checkpoints", "train/cat/.DS_Store",
    }  # fmt: skip
    assert report.data.classes == ("cat", "dog")
    assert [*report.data.train.names] == [
        "cat/0.png", "cat/1.png", "cat/2.png", "cat/deeper/9.png",
        *(f"dog/{index}.png" for index in range(3)),
    ]  # fmt: skip
    settings = DataSettings(path=str(root), split=0.3)
    note = open_data(settings, folder=Path(), seed=0).problems[-1]
    assert note.kind == "note" and "data.split: is 0.3, and not used" in str(note)
    with pytest.raises(DataError, match=r"data\.columns: only a CSV file"):
        looked_at(root, columns={"path": "file"})


def test_everything_is_one_list_and_max_bad_is_a_budget(tmp_path: Path) -> None:
    root = good(tmp_path / "photos")
    cut(root / "train/cat/0.png", 0.5)
    (root / "train/cat/notes.txt").write_text("x")
    (root / "val/dog/9.png").write_bytes((root / "train/dog/1.png").read_bytes())
    with pytest.raises(DataError) as raised:
        looked_at(root, max_bad=2)
    said = str(raised.value)
    assert all(name in said for name in ("cat/0.png", "notes.txt", "dog/1.png", "max_bad"))
    data = looked_at(root, max_bad=3)
    assert [*data.train.names] == ["cat/1.png", "cat/2.png", "dog/0.png", "dog/2.png"]
    assert data.train.targets.tolist() == [0, 0, 1, 1] and len(data.val) == 5
    (root / "train/fox").mkdir()  # no budget leaves out a class
    with pytest.raises(DataError, match="train/fox"):
        looked_at(root, max_bad=100)


def test_headers_alone_find_what_no_decoding_needs(tmp_path: Path) -> None:
    root = good(tmp_path / "photos")
    bomb(root / "train/cat/b.png", 12_000)
    (root / "val/cat/9.png").write_bytes((root / "train/cat/1.png").read_bytes())
    with pytest.raises(DataError) as raised:
        looked_at(root, check="headers")
    assert "b.png" in str(raised.value) and "cat/1.png: the same image" in str(raised.value)


def test_one_folder_is_split_by_seed_and_class_and_copies_stay_together(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name, count in (("cat", 10), ("dog", 20)):
        for index in range(count):
            photo(root / name / f"{index}.png", hash_of(name, index))
    for index in range(10):  # a copy of each dog of these
        (root / "dog" / f"copy{index}.png").write_bytes((root / f"dog/{index}.png").read_bytes())
    data = looked_at(root, split=0.3)
    held = {*data.val.names}
    assert not held & {*data.train.names} and len(held) + len(data.train) == 40
    assert sum(name.startswith("cat") for name in held) == 3
    assert all((f"dog/{i}.png" in held) == (f"dog/copy{i}.png" in held) for i in range(10))
    settings = DataSettings(path=str(root), split=0.3)
    assert {*open_data(settings, folder=Path(), seed=0).val.names} == held
    assert {*open_data(settings, folder=Path(), seed=1).val.names} != held


@pytest.mark.parametrize("seed", range(4))
def test_a_class_of_copies_is_not_held_out_as_a_whole(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "photos"
    for index in range(4):
        photo(root / "dog" / f"{index}.png", index)
    for index in range(4):  # two pictures, each of them twice
        photo(root / "cat" / f"{index}.png", 10 + index // 2)
    settings = DataSettings(path=str(root), split=0.5)
    data = open_data(settings, folder=Path(), seed=seed)
    cats = [sum(name.startswith("cat") for name in part.names) for part in (data.train, data.val)]
    assert cats == [2, 2]


def test_labels_of_which_few_images_share_a_set_say_why_little_is_held_out(tmp_path: Path) -> None:
    rows = []
    for number in range(9):
        photo(tmp_path / f"{number}.png", number)
        labels = [name for place, name in enumerate("abcd") if number >> place & 1]
        rows.append(f"{number}.png,{';'.join(labels)}")
    file = tmp_path / "list.csv"
    file.write_text("\n".join(["path,label", *rows]) + "\n")
    settings = DataSettings(path=str(file), labels="many")
    report = inspect_data(open_data(settings, folder=Path(), seed=0), settings)
    assert [str(each) for each in report.problems] == [
        "data: no image is held out; add some to each class, or to val where the data name parts"
    ]
    assert "0 of 9 images are held out, since a set of labels" in str(report.notes[0])


def hash_of(name: str, index: int) -> int:
    return 1000 * len(name) + 7 * ord(name[0]) + index


def test_the_command_says_it_and_ends_with_1(tmp_path: Path) -> None:
    root = good(tmp_path / "photos")
    run = CliRunner().invoke(data_command, [str(root)])
    assert run.exit_code == 0 and run.stdout.endswith("fine\n")
    cut(root / "train/cat/1.png", 0.5)
    run = CliRunner().invoke(data_command, [str(root)])
    assert run.exit_code == 1 and f"{root}/train/cat/1.png: " in run.stderr
    assert "Traceback" not in run.output
    run = CliRunner().invoke(data_command, [str(root), "--set", "data.max_bad=1"])
    assert run.exit_code == 0 and "1 of at most 1 images" in run.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_class_whose_name_does_not_print_is_a_line_of_the_table(tmp_path: Path) -> None:
    root = good(tmp_path / "photos")
    for part in ("train", "val"):
        (root / part / "cat").rename(root / part / "a\nb\x1b[2J\udcff")
    run = CliRunner().invoke(data_command, [str(root)], catch_exceptions=False)
    assert run.exit_code == 0
    assert [line.split()[0] for line in run.stdout.splitlines()] == [
        "class", "a\\nb\\x1b[2J\\udcff", "dog", "images", "fine"
    ]  # fmt: skip


def test_a_recipe_in_another_folder_names_data_beside_it(tmp_path: Path) -> None:
    good(tmp_path / "work/photos")
    recipe = tmp_path / "work/recipe.yaml"
    recipe.write_text("backbone: resnet18\ndata:\n  path: photos\n  classes: [dog, cat]\n")
    run = CliRunner().invoke(data_command, [str(recipe), "--json"])
    assert run.exit_code == 0 and '"fine": true' in run.stdout
    assert run.stdout.index('"dog"') < run.stdout.index('"cat"')
