"""A file is trusted for nothing: each field is checked, and what is cheap is looked at first. And a
save leaves the old file or the new one, whatever happens on the way.
"""

from __future__ import annotations

import json
import os
import resource
import stat
import struct
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from own_files import forge, taken_apart
from packaging.version import Version

import tvc_core
from tvc_core import HybridBuilder, TvcError, UnknownNameError, WeightsError
from tvc_core.weights.container import pack
from tvc_core.weights.content import FORMAT


@pytest.fixture
def saved(tiny: Any, tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    model = tiny({"layer2": {"wrap": "gate"}}, num_classes=3, class_names=["a", "b", "c"])
    model.save(path)
    return path


def deep(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


WRONG = {
    "class_names": [3, "abc", [1, 2, 3], {"": "abc"}, ["a", "b"]],
    "step0_difference": ["x", 0.0, None],
    "freeze": [[], {"stem": 1}],
    "verified": ["yes", 1, None],
    "by_hand": [[], {"frozen": "conv"}, {"frozen": ["nothing.weight"]}, {"other": []}],
    "metadata": [[], 3, deep(400)],
    "module": [[1], {"type": 3}, {"odd": "x"}],
    "license": [3],
    "versions": [[]],
    "preprocessing": [3, []],
    "base": [3, {"name": "x"}, {"name": "../x.safetensors", "sha256": "0" * 64}],
    "recipe": [[], {}, {"backbone": 3}, {"backbone": {"name": "lab:tiny", "odd": 1}}],
    "odd": [1],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_no_field_is_trusted_for_its_hash(saved: Path, lab: Any, key: str, value: Any) -> None:
    content, tensors = taken_apart(saved)
    with pytest.raises(WeightsError, match=r"m\.safetensors") as found:
        lab().load(forge(saved, {**content, key: value}, tensors))
    assert len(str(found.value)) < 1500


NEWER = Version(version("safetensors")) >= Version("0.7")
"""safetensors itself knows complex numbers, and tensors without any."""


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, *([torch.complex64] if NEWER else [])])
def test_a_tensor_of_another_kind_is_refused(saved: Path, lab: Any, kind: torch.dtype) -> None:
    content, tensors = taken_apart(saved)
    tensors["fc.weight"] = tensors["fc.weight"].to(kind)
    with pytest.raises(WeightsError, match=r"fc\.weight is of torch"):
        lab().load(forge(saved, content, tensors))


def test_names_that_are_unknown_come_with_the_file(saved: Path, lab: Any) -> None:
    content, tensors = taken_apart(saved)
    content["recipe"]["backbone"]["name"] = "lab:absent"
    with pytest.raises(UnknownNameError, match=r"m\.safetensors.*absent"):
        lab().load(forge(saved, content, tensors))
    content, tensors = taken_apart(saved)
    content["recipe"]["backbone"] |= {"name": "lab:tiny", "patches": {"nowhere": {"wrap": "gate"}}}
    with pytest.raises(TvcError, match=r"m\.safetensors.*nowhere"):
        lab().load(forge(saved, content, tensors))


def test_a_newer_format_is_refused_by_its_version(saved: Path) -> None:
    content, tensors = taken_apart(saved)
    content |= {"format": FORMAT + 1, "new": {}}
    content["versions"]["tvc-core"] = "9.8.7"
    with pytest.raises(WeightsError, match=rf"format {FORMAT + 1}.*9\.8\.7.*newer"):
        tvc_core.load(forge(saved, content, tensors))


def test_a_key_that_stands_twice_is_refused(saved: Path, lab: Any) -> None:
    content, tensors = taken_apart(saved)
    text = json.dumps(content).replace('"metadata": {}', '"metadata": {"a": 1, "a": 1}')
    saved.write_bytes(safetensors.torch.save(tensors, metadata={"tvc": text}))
    with pytest.raises(WeightsError, match="twice"):
        lab().load(saved)


# -- before anything is built or read --------------------------------------------------------------


def header_of(entries: dict[str, Any], content: dict[str, Any] | None) -> bytes:
    metadata = {} if content is None else {"__metadata__": {"tvc": json.dumps(content)}}
    text = json.dumps({**metadata, **entries}).encode()
    return struct.pack("<Q", len(text)) + text


def many(count: int) -> dict[str, Any]:
    return {f"w{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}


def hostile(kind: str, folder: Path) -> Path:
    """Write a file that is small on disk and asks for much."""
    path = folder / f"{kind}.safetensors"
    HybridBuilder().from_backbone("resnet18", None, num_classes=3).save(path)
    content, tensors = taken_apart(path)
    if kind == "many_tensors":
        path.write_bytes(header_of(many(90_000), content))
    elif kind == "too_many_tensors":
        path.write_bytes(header_of(many(110_000), content))
    elif kind == "long_header":
        path.write_bytes(struct.pack("<Q", 1 << 33) + b"{" + b" " * 100)
        os.truncate(path, (1 << 33) + 16)
    elif kind == "huge_tensor":
        entry = {"dtype": "F32", "shape": [1 << 31, 512], "data_offsets": [0, 1 << 42]}
        head = header_of({"fc.weight": entry}, content)
        path.write_bytes(head)
        os.truncate(path, len(head) + (1 << 42))
    elif kind == "other_network":  # of 304 million parameters, each no larger than many have
        content["recipe"]["backbone"]["name"] = "tvc-transformers:vit_l_16"
        forge(path, content, tensors)
    elif kind.endswith("_patches"):  # of which making and trying each takes milliseconds
        block = "tvc-attention:se" if kind == "many_patches" else "tvc-blocks:conv_bn_act"
        op = "wrap" if kind == "many_patches" else "inject"
        patches = [{op: {"type": block, "name": f"p{i}"}} for i in range(800)]
        content["recipe"]["backbone"]["patches"] = {"layer1": patches}
        forge(path, content, tensors)
    else:
        section = "head" if kind == "num_classes" else ""
        place = content["recipe"].setdefault(section, {}) if section else content["recipe"]
        place[kind] = 10_000_000
        forge(path, content, tensors)
    return path


HOSTILE = ("many_tensors", "too_many_tensors", "long_header", "huge_tensor")
HOSTILE += ("num_classes", "in_channels", "other_network", "many_patches", "large_patches")


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_costs_little(tmp_path: Path, kind: str) -> None:
    path = hostile(kind, tmp_path)
    tvc_core.HybridBuilder().from_backbone("resnet18", None)  # everything is imported
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(WeightsError, match=path.name):
        tvc_core.load(path)
    assert time.process_time() - began < 20  # 1 s, and 2.5 on a busy machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # [KiB]


BIG: dict[str, Any] = {"dtype": "F32", "shape": [1 << 31], "data_offsets": [0, 1 << 33]}


@pytest.mark.parametrize(
    "kind",
    [
        "many",
        "huge",
        "huge in a shard",
        "model",
        "huge pickle",
        "many in a pickle",
        "many names in a pickle",
    ],
)
def test_what_is_many_times_a_model_is_not_read_into_it(tmp_path: Path, kind: str) -> None:
    """Through the doors that fill a model; files of torch.save by their size."""
    path = tmp_path / "m.safetensors"
    if kind == "many":
        path.write_bytes(header_of(many(90_000), None))
    elif kind == "model":
        path = hostile("huge_tensor", tmp_path)
    elif kind.startswith("many"):
        path, one = tmp_path / "m.pth", torch.zeros(0)
        names = range(50_000 if kind == "many names in a pickle" else 7_000)
        torch.save({f"w{n}": one if len(names) > 10_000 else torch.zeros(0) for n in names}, path)
    elif kind == "huge pickle":
        path = tmp_path / "m.pth"
        torch.save({"fc.weight": torch.zeros(3)}, path)
        os.truncate(path, 1 << 40)
    else:
        head = header_of({"fc.weight": BIG}, None)
        path.write_bytes(head)
        os.truncate(path, len(head) + (1 << 33))
    given = path
    if kind == "huge in a shard":
        given = tmp_path / "model.safetensors.index.json"
        given.write_text(json.dumps({"weight_map": {"fc.weight": path.name}}))
    builder = HybridBuilder()
    model = builder.from_backbone("resnet18", None)
    doors = (
        lambda: tvc_core.partial_load(model, given),
        lambda: builder.from_backbone("resnet18", given),
    )
    for door in doors:
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        with pytest.raises(WeightsError, match=r"many times what the model has|are read here"):
            door()
        assert time.process_time() - began < 20  # below 1 s, and 2.5 on a slow machine
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # [KiB]


def test_a_tensor_for_which_there_is_no_memory_is_an_error_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    entry = {"dtype": "F32", "shape": [1 << 31, 1 << 10], "data_offsets": [0, 1 << 43]}
    head = header_of({"fc.weight": entry}, None)
    path.write_bytes(head)
    os.truncate(path, len(head) + (1 << 43))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 42, limit[1]))
    try:
        with pytest.raises(WeightsError, match=r"m\.safetensors: there is no memory for 'fc"):
            tvc_core.read_state_dict(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.safetensors", "zero.safetensors", "nul\0.safetensors", "x" * 300):
        with pytest.raises(WeightsError):
            tvc_core.load(tmp_path / name)


# -- what is written -------------------------------------------------------------------------------


def test_saving_twice_gives_equal_bytes_that_others_read(
    tiny: Any, lab: Any, tmp_path: Path
) -> None:
    model = tiny({"layer2": {"wrap": "gate"}})
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model.save(first)
    time.sleep(1.1)
    model.save(second)
    assert first.read_bytes() == second.read_bytes()
    lab().load(first).save(second)
    assert first.read_bytes() == second.read_bytes()
    with safetensors.safe_open(first, "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert {key: file.get_tensor(key).shape for key in file.keys()} == {  # noqa: SIM118
            key: value.shape for key, value in model.state_dict().items()
        }


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ({}, lambda model: model.set_grad_checkpointing(True)),
        ({}, lambda model: model.reset_classifier(5, dropout=0.3)),
        ({"hidden": [4], "activation": "gelu"}, lambda model: model.reset_classifier(5)),
    ],
)
def test_what_was_changed_is_saved_again_in_equal_bytes(
    tiny: Any, lab: Any, tmp_path: Path, head: dict[str, Any], change: Any
) -> None:
    model = tiny({}, num_classes=3, **head)
    change(model)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model.save(first)
    lab().load(first).save(second)
    assert first.read_bytes() == second.read_bytes()


def test_every_type_is_written_as_others_read_it() -> None:
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    small = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool)
    ints = (torch.int64, torch.int32, torch.int16)
    tensors = {str(kind): torch.randn(3, 5).to(kind) for kind in (*floats, *small, *ints)}
    tensors |= {"one": torch.tensor(1.5), "\u00e9": torch.arange(3)}
    if NEWER:
        tensors["none"] = torch.zeros(0, 4)
        tensors["complex"] = torch.randn(2, dtype=torch.complex64)
    found = safetensors.torch.load(b"".join(map(bytes, pack(tensors, {"format": "pt"}))))
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape
        raw = [each.reshape(-1).view(torch.uint8) for each in (found[key], tensor)]
        assert torch.equal(*raw)


def test_what_is_frozen_by_hand_is_kept(tmp_path: Path) -> None:
    model = HybridBuilder().from_backbone("resnet18", None, num_classes=3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc"))
    model.save(tmp_path / "f.safetensors")
    again = tvc_core.load(tmp_path / "f.safetensors")
    assert again.count_parameters(trainable_only=True) == 512 * 3 + 3
    model.freeze_backbone()
    model.layer1[0].conv1.weight.requires_grad_(True)
    model.fc.bias.requires_grad_(False)
    model.save(tmp_path / "f.safetensors")
    again = tvc_core.load(tmp_path / "f.safetensors")
    trainable = [name for name, p in again.named_parameters() if p.requires_grad]
    assert trainable == ["layer1.0.conv1.weight", "fc.weight"]


def test_a_file_says_the_license_and_the_versions(
    builder: Any, made_up: Any, tmp_path: Path
) -> None:
    made_up("mobilenet_v3_small")
    model = builder.from_backbone("mobilenet_v3_small", patches={"features.3": {"wrap": "se"}})
    model.save(tmp_path / "m.safetensors")
    content, _ = taken_apart(tmp_path / "m.safetensors")
    weights = model._hybrid.plan.weights
    assert content["license"] == (weights.license or None)
    assert {"tvc-core", "torch", "torchvision", "tvc-attention"} <= content["versions"].keys()
    assert "saved" not in content


@pytest.mark.parametrize("value", [{1: "a"}, {"x": {(1, 2): 3}}, deep(5000), float("nan"), {1, 2}])
def test_what_json_would_change_is_refused(tiny: Any, tmp_path: Path, value: Any) -> None:
    with pytest.raises(WeightsError, match="JSON"):
        tiny().save(tmp_path / "m.safetensors", metadata={"value": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [".", "..", "/", "m.pth", "m"])
def test_a_name_that_is_none_of_a_model_is_refused(tiny: Any, path: str) -> None:
    with pytest.raises(WeightsError, match="the name says so"):
        tiny().save(path)


def test_tensors_without_values_are_refused_before_anything_is_written(
    tiny: Any, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="meta"):
        tiny().to("meta").save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


# -- how it is written -----------------------------------------------------------------------------


def test_links_are_followed_and_permissions_kept(tiny: Any, lab: Any, tmp_path: Path) -> None:
    model, real = tiny(), tmp_path / "there" / "real.safetensors"
    real.parent.mkdir()
    (tmp_path / "link.safetensors").symlink_to(real)
    model.save(tmp_path / "link.safetensors")
    assert real.is_file() and (tmp_path / "link.safetensors").is_symlink()
    real.chmod(0o600)
    model.save(tmp_path / "link.safetensors", metadata={"n": 2})
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert lab().load(real).metadata == {"n": 2}
    assert [each.name for each in real.parent.iterdir()] == ["real.safetensors"]


def test_what_is_no_regular_file_is_written_to_and_stays(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "null.safetensors").symlink_to(os.devnull)
    tiny().save(tmp_path / "null.safetensors")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    (tmp_path / "full.safetensors").symlink_to("/dev/full")
    with pytest.raises(WeightsError, match="No space left"):
        tiny().save(tmp_path / "full.safetensors")


def test_leftovers_of_a_kill_are_removed_and_those_of_the_living_stay(
    tiny: Any, tmp_path: Path
) -> None:
    import fcntl

    left, alive = (tmp_path / f".m.safetensors.0123456{n}.tmp" for n in "78")
    other = tmp_path / ".m.safetensors.swp"
    for path in (left, alive, other):
        path.write_bytes(b"half")
    with alive.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        tiny().save(tmp_path / "m.safetensors")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"m.safetensors", alive.name, other.name}


def test_nothing_fails_after_the_file_is_in_its_place(
    tiny: Any, lab: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """What can warn, and so raise, does so before; the file is closed before it is moved."""
    model, path = tiny(), tmp_path / "m.safetensors"
    model.save(path)
    real, events = os.close, []
    monkeypatch.setattr("os.close", lambda number: (events.append("close"), real(number)))
    replace = Path.replace
    monkeypatch.setattr(
        "pathlib.Path.replace",
        lambda self, other: (events.append("replace"), replace(self, other))[1],
    )
    model.save(path)
    assert events[0] == "close" and events.count("replace") == 1
    assert events.index("replace") == 1
