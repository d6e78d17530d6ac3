"""No exported file tells of the folders, the user or the name of the machine where it was made."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from exported_networks import Small, small
from tvc_export import export_model, read_certificate
from tvc_export.privacy import check_private, without_folders

from tvc_core import HybridBuilder, WeightsError

MODULES = {"pt2": "torch", "onnx": "onnxruntime", "openvino": "openvino"}
SUFFIXES = {"pt2": ".pt2", "onnx": ".onnx", "openvino": ".xml"}


@pytest.fixture
def jane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user `jane`, who works on the machine `boxwood`."""
    home = tmp_path / "homes" / "jane"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "jane")
    monkeypatch.setattr("platform.node", lambda: "boxwood.lan")
    return home


@pytest.mark.usefixtures("jane")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"\x00from {HOME}/a.py in a text", True),
        (b"written by jane on a rainy day", True),
        (b'{"user": "jane", "more": [1, 2]}', True),
        (b"ssh jane@elsewhere.example", True),
        (b"C:\\Users\\jane\\network.py is it", True),
        (b"made on boxwood at night", True),
        (b"made on boxwood.lan at night", True),
        (b"the janeway and the bluejane_x are words", False),
        (b"\x01\xffjane\x02\xff" * 5, False),  # four bytes of weights
        (b'{"layer": "jane.nets.Net"}', False),  # a word of the model's own: `known`
        (b"<jane></jane>, a tag of the format", False),
    ],
)
def test_folders_and_names_are_found_in_texts_and_not_in_weights(
    text: bytes, told: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "draft"
    folder.mkdir()
    text = text.replace(b"{HOME}", str(Path.home()).encode())
    (folder / "plain.bin").write_bytes(bytes(range(256)) + text)
    known = {"jane"} if b"nets" in text else set()
    for number in range(2):
        if number:
            (folder / "plain.bin").unlink()
            with zipfile.ZipFile(folder / "zip.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("inner", text)
        if told:
            with pytest.raises(WeightsError, match=r"not written.*would tell of"):
                check_private(folder, tmp_path / "m.pt2", known)
        else:
            check_private(folder, tmp_path / "m.pt2", known)


def test_short_names_and_folders_at_the_root_count_in_paths_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/data")
    monkeypatch.setenv("USERPROFILE", "/data")
    monkeypatch.setattr("getpass.getuser", lambda: "a")
    monkeypatch.setattr("platform.node", lambda: "vm")
    folder = tmp_path / "draft"
    folder.mkdir()
    fine = b'archive/data/weights, <x></data>, "a": a or the data of vm, /database/x, "data"'
    (folder / "f").write_bytes(fine)
    check_private(folder, tmp_path / "m")
    for told in (b"open /data/x.py", b"at /home/a/x.py of", b"mail to root@vm please"):
        (folder / "f").write_bytes(fine + b"\n" + told)
        with pytest.raises(WeightsError, match="would tell of"):
            check_private(folder, tmp_path / "m")


@pytest.mark.parametrize(
    "format",
    ["pt2", *(pytest.param(each, marks=pytest.mark.sweep) for each in ("onnx", "openvino"))],
)
def test_files_of_a_model_with_paths_in_its_recipe_name_none(
    format: str, jane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(MODULES[format])
    monkeypatch.chdir(jane)
    builder = HybridBuilder()
    whole = builder.from_backbone("mobilenet_v3_small", weights=None)
    torch.save(whole.state_dict(), jane / "mine.pth")
    model = builder.from_backbone(
        "mobilenet_v3_small",
        weights=jane / "mine.pth",
        stages=1,
        num_classes=2,
        class_names=["jane", "joe"],
    )
    out = tmp_path / "out"
    out.mkdir()
    export_model(model, format, out / f"m{SUFFIXES[format]}", size=(32, 32), dynamic=())
    certificate = read_certificate(out / f"m{SUFFIXES[format]}")
    assert certificate.recipe["backbone"]["weights"] == "mine.pth"
    assert certificate.classes == ["jane", "joe"]
    checkout = Path(__file__).resolve().parents[3]
    words = [str(jane), str(checkout), str(tmp_path), sys.prefix, "boxwood", "site-packages"]
    for file in out.iterdir():
        data = file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                data = b"".join(map(archive.read, archive.namelist()))
        assert not [word for word in words if word.encode() in data]


def test_a_class_that_names_a_folder_is_refused(jane: Path, tmp_path: Path) -> None:
    names = [f"{jane}/cats", *"bcdefg"]
    model = HybridBuilder().from_module(
        Small(), stem="stem", stages=["stage", "last"], head="head", class_names=names
    )
    with pytest.raises(WeightsError, match=r"would tell of .*jane.*class names"):
        export_model(model, "pt2", tmp_path / "m.pt2", size=(32, 32), dynamic=())
    assert not list(tmp_path.glob("*.pt2")) and not list(tmp_path.glob(".tvc*"))


def test_recipes_keep_the_last_part_of_paths_and_the_names_of_classes() -> None:
    recipe = {
        "backbone": {"weights": "/x/y/best.pth", "patches": {"layer3": {"wrap": "se"}}},
        "head": {"class_names": ["/m/01g317", "n/a"]},
        "data": {"path": "~/photos", "more": ["C:\\Users\\x\\z", "light/dark"]},
    }
    assert without_folders(recipe) == {
        "backbone": {"weights": "best.pth", "patches": {"layer3": {"wrap": "se"}}},
        "head": {"class_names": ["/m/01g317", "n/a"]},
        "data": {"path": "photos", "more": ["z", "light/dark"]},
    }


def test_a_user_without_name_and_home_can_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number."""

    def none() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", none)
    monkeypatch.setattr("pwd.getpwuid", lambda number: none())
    monkeypatch.delenv("HOME")
    export_model(small(), "pt2", tmp_path / "m.pt2", size=(40, 40), dynamic=())
    assert (tmp_path / "m.pt2").is_file()


ALONE = """
from onnx import TensorProto, helper
from tvc_export.quieting import onnxruntime
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnxruntime().InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
"""
"""The runtime without torch, which takes seconds to import."""


def test_onnx_runtime_gives_the_machine_no_number_and_reports_to_no_one(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    home = tmp_path / "home"
    home.mkdir()
    # where it thinks that tests run, it does not report anyway
    names = {each for each in os.environ if each.startswith(("CI", "GITHUB_", "XDG_", "ORT_"))}
    given = {each: value for each, value in os.environ.items() if each not in names}
    subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, env={**given, "HOME": str(home)}, check=True
    )
    assert not [each for each in home.rglob("*") if "onnxruntime" in each.name.lower()]
