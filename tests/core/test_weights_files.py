"""Weight files: the hash comes first, nothing is run, and what torchvision's builders do around a
load is kept.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from tvc_core import HybridBuilder, TvcError, WeightsError, read_state_dict
from tvc_core.weights import download, verified
from tvc_core.weights.cache import hash_in_name
from tvc_core.weights.torchvision import class_names_of, find_member, transforms_of

MadeUp = Callable[..., dict[str, Path]]


class Exploit:
    """Leaves a mark when it is unpickled by code that runs what it reads."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.mark),))


def test_a_made_up_file_under_an_official_name_is_refused(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up("resnet18")
    monkeypatch.delenv("TVC_VERIFY_WEIGHTS")
    with pytest.raises(
        WeightsError,
        match=r"SHA-256 starts with [0-9a-f]{8}, its name promises f37072fd.*TVC_VERIFY_WEIGHTS=0",
    ):
        HybridBuilder().from_torchvision("resnet18")


def test_a_file_with_the_hash_in_its_name_is_accepted(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "raw")
    data = (tmp_path / "raw").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    path = tmp_path / f"net-{digest[:8]}.pth"
    path.write_bytes(data)
    assert hash_in_name(path.name) == digest[:8]
    assert read_state_dict(path, sha256=digest[:8])["a"].tolist() == [1, 1]


@pytest.mark.parametrize("value", ["1", "", "true", "no"])
def test_only_0_switches_the_comparison_off(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    made_up("resnet18")
    monkeypatch.setenv("TVC_VERIFY_WEIGHTS", value)
    with pytest.raises(WeightsError, match="SHA-256"):
        HybridBuilder().from_torchvision("resnet18")


def test_the_switch_warns_once_a_process_and_explain_shows_it(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up("resnet18")
    monkeypatch.setattr(verified, "_warned", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = HybridBuilder().from_torchvision("resnet18")
        HybridBuilder().from_torchvision("resnet18")
    assert len([entry for entry in caught if "TVC_VERIFY_WEIGHTS" in str(entry.message)]) == 1
    assert "hash not compared (TVC_VERIFY_WEIGHTS=0)" in model.explain()


def test_the_switch_skips_nothing_but_the_comparison(made_up: MadeUp, tmp_path: Path) -> None:
    (file,) = made_up("resnet34").values()
    content = file.read_bytes()
    try:
        mark = tmp_path / "mark"
        file.write_bytes(pickle.dumps({"conv1.weight": Exploit(mark)}))
        with pytest.raises(WeightsError, match="never runs code"):
            HybridBuilder().from_torchvision("resnet34")
        assert not mark.exists()
    finally:
        file.write_bytes(content)


def test_every_truncation_of_a_cached_file_is_refused(made_up: MadeUp) -> None:
    (file,) = made_up("mobilenet_v3_small").values()
    content = file.read_bytes()
    try:
        for part in (0, 1, 7, 100, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:part])
            with pytest.raises(WeightsError, match=file.name):
                HybridBuilder().from_torchvision("mobilenet_v3_small")
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "an empty dict"),
        ([1, 2], "a list"),
        ({"epoch": 3, "model": {"a": torch.ones(1)}}, r"checkpoint\['model'\]"),
        ({"a": 3}, "no tensors: 'a' \\(a int\\)"),
        ({"a": torch.eye(2).to_sparse()}, "sparse"),
    ],
)
def test_what_is_no_state_dict_is_refused_with_advice(
    tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "file.pt")


@pytest.mark.parametrize("name", ["file.pt", "file.safetensors"])
def test_foreign_bytes_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GIF89a" + bytes(range(256)) * 4)
    with pytest.raises(WeightsError, match=name):
        read_state_dict(tmp_path / name)


def test_a_missing_file_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No such file"):
        read_state_dict(tmp_path / "absent.pt")


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "file.safetensors")
    assert read_state_dict(tmp_path / "file.safetensors")["a"].tolist() == [0, 1, 2]


def test_a_file_of_the_right_kind_and_another_network_is_refused(made_up: MadeUp) -> None:
    small, large = made_up("resnet18", "resnet34").values()
    content = large.read_bytes()
    try:
        large.write_bytes(small.read_bytes())
        with pytest.raises(WeightsError, match="does not fit resnet34"):
            HybridBuilder().from_torchvision("resnet34")
    finally:
        large.write_bytes(content)


def test_a_failed_download_says_where_the_file_would_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(download, "urlopen", unreachable)
    with pytest.raises(
        WeightsError, match=r"resnet18-f37072fd.pth cannot be downloaded.*weights=None"
    ):
        HybridBuilder().from_torchvision("resnet18")


@pytest.mark.parametrize(
    "given",
    [
        "IMAGENET1K_V1",
        "DEFAULT",
        "ResNet18_Weights.IMAGENET1K_V1",
        torchvision.models.ResNet18_Weights.DEFAULT,
    ],
)
def test_weights_are_named_as_torchvision_names_them(made_up: MadeUp, given: object) -> None:
    (file,) = made_up("resnet18").values()
    model = HybridBuilder().from_torchvision("resnet18", given)
    assert torch.equal(model.conv1.weight, torch.load(file, weights_only=True)["conv1.weight"])
    assert model.recipe.weights == "IMAGENET1K_V1"


@pytest.mark.parametrize(
    "given",
    [
        torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
        "ResNet50_Weights.IMAGENET1K_V1",
        "imagenet1k_v1",
    ],
)
def test_weights_of_another_network_or_misspelt_ones_are_refused(given: object) -> None:
    with pytest.raises(TvcError, match="IMAGENET1K_V1"):
        HybridBuilder().from_torchvision("resnet18", given)


def test_every_weights_spec_says_what_torchvision_says(builder: HybridBuilder) -> None:
    """Name, preprocessing, class count, default: torchvision's own table is the second
    derivation.
    """
    from tvc_core import BackboneSpec

    offers = [
        offer for offer in builder.registry.all(BackboneSpec) if offer.spec.origin == "torchvision"
    ]
    assert len(offers) >= 28
    for offer in offers:
        members = torchvision.models.get_model_weights(offer.spec.name)
        assert {weights.name for weights in offer.spec.weights} == set(members.__members__) - {
            "DEFAULT"
        }
        assert offer.spec.default_weights == members.DEFAULT.name
        assert members.__name__.lower() == f"{offer.spec.name}_weights", "what binds a name asks"
        for weights in offer.spec.weights:
            member = find_member(offer.spec, weights)
            assert repr(transforms_of(weights)) == repr(member.transforms())
            categories = member.meta["categories"]  # None for VGG-16's features alone
            assert weights.num_classes == (len(categories) if categories else None)
            assert list(class_names_of(weights) or ()) == (categories or [])
        smallest = min(member.meta["min_size"][0] for member in members)
        # says the size it was trained at, and pads whatever it gets
        swin = offer.spec.family == "swin"
        assert offer.spec.min_size >= (1 if swin else smallest)


def test_options_are_those_that_torchvisions_builders_take(builder: HybridBuilder) -> None:
    """Every declared option is accepted with its declared default, and changes nothing then."""
    from tvc_core import BackboneSpec

    for name in (
        "resnet18",
        "efficientnet_b0",
        "convnext_tiny",
        "mobilenet_v2",
        "mobilenet_v3_small",
    ):
        spec = builder.registry.resolve(BackboneSpec, name).spec
        options = {key: value for key, value in spec.options.items() if value is not None}
        torch.manual_seed(0)
        with_options = builder.from_torchvision(name, None, options=options)
        torch.manual_seed(0)
        own = torchvision.models.get_model(name, weights=None)
        assert str([type(m) for m in with_options.modules()][1:]) == str(
            [type(m) for m in own.modules()][1:]
        )
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                with_options.state_dict().values(), own.state_dict().values(), strict=True
            )
        )
        dropouts = [[m.p for m in net.modules() if hasattr(m, "p")] for net in (with_options, own)]
        assert dropouts[0] == dropouts[1]
