"""One file for a whole model: read back bit for bit, or refused; written whole, or not at all."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import tvc_core
from tvc_core import (
    BlockSpec,
    HybridBuilder,
    HybridModel,
    ParameterError,
    UnknownNameError,
    WeightsError,
    check_target,
    write_file,
)

PATCHES = {
    "layer2": [
        {"wrap": "gate"},
        {"inject": {"type": "conv", "position": "before", "params": {"kernel_size": 5}}},
    ],
    "layer3.0.conv": {"replace": "conv"},
}


@pytest.fixture
def reload(lab: Any, tmp_path: Path) -> Callable[[HybridModel], HybridModel]:
    """Return a function that saves a model and reads it back."""

    def save_and_load(model: HybridModel) -> HybridModel:
        model.save(tmp_path / "model.safetensors")
        return lab().load(tmp_path / "model.safetensors")

    return save_and_load


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(a: HybridModel, b: HybridModel, images: Tensor) -> None:
    x, y = a.state_dict(), b.state_dict()
    assert list(x) == list(y)
    assert [k for k in x if x[k].dtype != y[k].dtype or bits(x[k]) != bits(y[k])] == []
    assert [(n, p.requires_grad) for n, p in a.named_parameters()] == [
        (n, p.requires_grad) for n, p in b.named_parameters()
    ]
    assert (
        a.class_names == b.class_names
        and a.freeze_state() == b.freeze_state()
        and a.explain() == b.explain()
    )
    modes = [module.training for module in a.modules()]
    a.eval(), b.eval()
    dtype = next(a.parameters()).dtype
    assert torch.equal(a(images.to(dtype)), b(images.to(dtype)))
    a.train(), b.train()
    assert (
        [module.training for module in a.modules()]
        == [module.training for module in b.modules()]
        == modes
    )


def disturb(model: HybridModel) -> HybridModel:
    """Give every tensor values that no build gives."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
            else:
                tensor.add_(3)
    return model


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"patches": PATCHES},
        {"patches": {"layer2": {"wrap": {"type": "gate", "init": "paper", "name": "mine"}}}},
        {"num_classes": 3, "class_names": ["a", "b", "ü"], "dropout": 0.3},
        {"freeze_backbone": True, "unfreeze_stages": [-1], "patches": PATCHES},
        {"options": {"num_classes": 11}},
    ],
)
def test_a_saved_model_is_read_back_bit_for_bit(
    tiny: Any, reload: Any, images: Tensor, arguments: Any
) -> None:
    model = disturb(tiny(**arguments))
    assert_same(model, reload(model), images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_of_a_model_is_kept(
    tiny: Any, reload: Any, images: Tensor, dtype: torch.dtype
) -> None:
    model = disturb(tiny(PATCHES)).to(dtype)
    assert_same(model, reload(model), images)


def test_what_changed_after_the_build_is_kept(tiny: Any, reload: Any, images: Tensor) -> None:
    model = tiny(PATCHES, num_classes=3, class_names=["a", "b", "c"])
    model.reset_classifier(5, dropout=0.25)
    model.freeze_backbone(unfreeze_stages=[1], head="none", freeze_patches=True)
    model.class_names = list("vwxyz")
    again = reload(model)
    assert_same(model, again, images)
    assert again.num_classes == 5 and again.class_names == tuple("vwxyz")
    assert [m.p for m in again.fc.modules() if isinstance(m, nn.Dropout)] == [0.25]
    model.unfreeze_all()
    model.class_names = None
    assert_same(model, reload(model), images)


def test_memory_format_and_shared_memory_do_not_matter(tiny: Any, reload: Any) -> None:
    model = disturb(tiny()).to(memory_format=torch.channels_last)
    model.layer1.norm.weight = model.layer1.norm.bias  # one tensor under two names
    found, expected = reload(model).state_dict(), model.state_dict()
    assert found.keys() == expected.keys() and all(
        bits(found[name]) == bits(expected[name]) for name in found
    )


def test_a_model_read_back_is_ready_for_use(tiny: Any, reload: Any) -> None:
    assert not any(module.training for module in reload(tiny().train()).modules())


def test_reading_needs_no_weight_file(
    builder: HybridBuilder, made_up: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    files = made_up("mobilenet_v3_small")
    model = builder.from_backbone("mobilenet_v3_small", num_classes=3)
    model.save(tmp_path / "m.safetensors")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    again = tvc_core.load(tmp_path / "m.safetensors")
    assert next(iter(files.values())).exists() and torch.equal(
        again.classifier[3].weight, model.classifier[3].weight
    )
    assert "file hash not compared" in again.explain() and again.recipe.weights == "IMAGENET1K_V1"


def test_any_reader_of_safetensors_gets_the_tensors(tiny: Any, tmp_path: Path) -> None:
    model = tiny(PATCHES)
    model.save(tmp_path / "m.safetensors")
    found = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert found.keys() == model.state_dict().keys()


def test_a_file_that_needs_a_missing_plugin_names_it(tiny: Any, lab: Any, tmp_path: Path) -> None:
    model = tiny(
        {"layer2": {"wrap": "extra"}},
        BlockSpec(name="extra", factory=lambda in_channels: nn.Identity()),
    )
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(UnknownNameError, match="lab:extra"):
        lab().load(tmp_path / "m.safetensors")


# -- damage ----------------------------------------------------------------------------------------


def load_bytes(data: bytes, folder: Path, registry: Any) -> HybridModel:
    (folder / "damaged.safetensors").write_bytes(data)
    return tvc_core.load(folder / "damaged.safetensors", registry=registry)


def test_every_truncation_is_refused(tiny: Any, lab: Any, tmp_path: Path) -> None:
    tiny(PATCHES, num_classes=3).save(tmp_path / "m.safetensors")
    data, registry = (tmp_path / "m.safetensors").read_bytes(), lab().registry
    header = 8 + int.from_bytes(data[:8], "little")
    lengths = {
        0,
        1,
        7,
        8,
        9,
        header - 1,
        header,
        header + 1,
        len(data) - 1,
        *range(0, len(data), len(data) // 60),
    } - {len(data)}
    for length in sorted(lengths):
        with pytest.raises(WeightsError, match=r"damaged\.safetensors"):
            load_bytes(data[:length], tmp_path, registry)
    with pytest.raises(WeightsError):
        load_bytes(data + b"\0", tmp_path, registry)


def test_no_flipped_bit_gives_another_model(
    tiny: Any, lab: Any, tmp_path: Path, images: Tensor
) -> None:
    model = disturb(
        tiny(
            {"layer2": {"wrap": "gate"}},
            num_classes=3,
            class_names=["a", "b", "c"],
            freeze_backbone=True,
        )
    )
    model.save(tmp_path / "m.safetensors")
    data, registry = (tmp_path / "m.safetensors").read_bytes(), lab().registry
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(0)
    places = [rng.randrange(header) for _ in range(400)] + [
        rng.randrange(header, len(data)) for _ in range(100)
    ]
    refused = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        try:
            found = load_bytes(bytes(flipped), tmp_path, registry)
        except WeightsError:
            refused += 1
            continue
        assert_same(model, found, images)
    assert refused > 450


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no recipe"),
        ({"format": "pt"}, "no recipe"),
        ({"tvc": "null"}, "no recipe|damaged"),
        ({"tvc": "[1]"}, "damaged"),
        ({"tvc": "{"}, "damaged"),
        ({"tvc": '{"format": 99}'}, "99"),
        ({"tvc": '{"format": NaN, "x": "\\ud800"}'}, "damaged"),
    ],
)
def test_a_foreign_file_is_refused_and_says_what_it_is(
    tmp_path: Path, metadata: Any, message: str
) -> None:
    safetensors.torch.save_file(
        {"fc.weight": torch.zeros(2, 2)}, tmp_path / "m.safetensors", metadata=metadata
    )
    with pytest.raises(WeightsError, match=message):
        tvc_core.load(tmp_path / "m.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.pth")
    (tmp_path / "text.safetensors").write_text("hello, this is no model at all")
    for name in ("m.pth", "text.safetensors", "absent.safetensors", "."):
        with pytest.raises(WeightsError):
            tvc_core.load(tmp_path / name)


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["os.fsync", "pathlib.Path.replace", "os.fchmod"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tiny: Any, lab: Any, tmp_path: Path, monkeypatch: Any, place: str
) -> None:
    model = tiny(num_classes=3)
    path = tmp_path / "m.safetensors"
    model.save(path)
    before = path.read_bytes()

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(place, fails)
        with pytest.raises(WeightsError, match="No space left on device"):
            disturb(model).save(path)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == [
        "m.safetensors"
    ]


def test_an_interrupted_write_leaves_nothing_behind(
    tiny: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny().save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_synced_does_not_fail_a_written_file(
    tiny: Any, lab: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    tiny().save(tmp_path / "m.safetensors")
    assert len(calls) == 2 and lab().load(tmp_path / "m.safetensors")


def test_a_folder_that_is_not_there_is_a_weights_error(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be written"):
        tiny().save(tmp_path / "absent" / "m.safetensors")
    with pytest.raises(WeightsError, match="safetensors"):
        tiny().save(tmp_path)


def test_a_value_that_no_file_can_hold_is_refused_before_anything_is_written(
    builder: HybridBuilder, tmp_path: Path
) -> None:
    model = builder.from_backbone("resnet18", None, options={"norm_layer": nn.InstanceNorm2d})
    with pytest.raises(WeightsError, match="JSON"):
        model.save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_file_has_the_permissions_of_the_process(tiny: Any, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        tiny().save(tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_load_that_fails_leaves_the_random_state(tiny: Any, lab: Any, tmp_path: Path) -> None:
    tiny().save(tmp_path / "m.safetensors")
    data = bytearray((tmp_path / "m.safetensors").read_bytes())
    data[-1] ^= 1
    before = torch.get_rng_state()
    with pytest.raises(WeightsError):
        load_bytes(bytes(data), tmp_path, lab().registry)
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_written_is_said_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    check_target(path, suffix=".html")
    assert not [*tmp_path.iterdir()]
    path.write_bytes(b"old")
    check_target(path, force=True)
    places = {
        "does not end in .csv": ({"suffix": ".csv", "force": True}, path),
        "exists: --force": ({}, path),
        "is a folder": ({"force": True}, tmp_path),
        "/no' does not exist": ({}, tmp_path / "no" / "a.html"),
        "'/proc/self' cannot be written to": ({}, "/proc/self/a.html"),  # nor by root
    }
    for said, (options, place) in places.items():
        if "/proc" not in said or Path("/proc/self").is_dir():
            with pytest.raises(ParameterError, match=re.escape(said)):
                check_target(place, **options)  # type: ignore[arg-type]

    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, pieces())
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]
    write_file(path, [b"ne", b"", b"w"])
    assert path.read_bytes() == b"new" and [*tmp_path.iterdir()] == [path]


def test_inference_mode_changes_no_model(lab: Any, tmp_path: Path, images: Tensor) -> None:
    build = partial(lab().from_backbone, "tiny", weights=None, patches=PATCHES, seed=0)
    usual = build().train()
    usual.save(tmp_path / "model.safetensors")
    with torch.inference_mode():  # in it no tensor knows a gradient or counts its changes
        built, loaded = build(), lab().load(tmp_path / "model.safetensors")
        filled = build()
        filled.fc.weight.zero_()
        assert tvc_core.partial_load(filled, dict(usual.state_dict())).loaded
    for model in (built, loaded, filled):
        assert_same(usual, model.train(), images)
        assert not any(each.is_inference() for each in model.state_dict(keep_vars=True).values())
