"""Specs: what they refuse, and that they can be copied and pickled."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

from tvc_core import BackboneSpec, BlockSpec, InitializerSpec, PatchOpSpec, Registry, WeightsSpec
from tvc_core.specs import Spec, normalize

EXAMPLES: list[Spec | WeightsSpec] = [
    WeightsSpec(name="V1", crop_size=240, mean=(0.5, 0.5, 0.5)),
    BackboneSpec(
        name="net",
        factory="acme.net:build",
        weights=(WeightsSpec(name="V1"), WeightsSpec(name="V2", num_classes=None)),
        default_weights="V2",
        stem=("conv1",),
        stages=("layer1", ("layer2", "layer3")),
        head="fc",
        options={"width": 1.0, "blocks": (2, 2)},
    ),
    BlockSpec(
        name="gate",
        factory="acme.blocks:Gate",
        category="attention",
        layouts=("NCHW", "NHWC"),
        gated=True,
    ),
    PatchOpSpec(name="twice", factory="acme.ops:twice", options={"position": "after"}),
    InitializerSpec(name="orthogonal", factory="acme.init:orthogonal", source="Saxe et al. 2014"),
]
NAMES = [type(example).__name__ for example in EXAMPLES]


@pytest.mark.parametrize("spec", EXAMPLES, ids=NAMES)
@pytest.mark.parametrize(
    "twin",
    [copy.copy, copy.deepcopy, lambda spec: pickle.loads(pickle.dumps(spec))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copied_spec_equals_the_original_field_by_field(
    spec: Any, twin: Callable[[Any], Any]
) -> None:
    other = twin(spec)
    assert type(other) is type(spec)
    for field in dataclasses.fields(spec):
        assert getattr(other, field.name) == getattr(spec, field.name), field.name


def test_every_installed_spec_survives_pickle_and_deepcopy() -> None:
    kinds: tuple[type[Spec], ...] = (BackboneSpec, BlockSpec, PatchOpSpec, InitializerSpec)
    offers = [offer for kind in kinds for offer in Registry().all(kind)]
    assert len(offers) > 40
    for offer in offers:
        for twin in (pickle.loads(pickle.dumps(offer)), copy.deepcopy(offer)):
            assert (twin.owner, twin.spec, twin.qualified) == (
                offer.owner,
                offer.spec,
                offer.qualified,
            )


@pytest.mark.parametrize("spec", EXAMPLES, ids=NAMES)
def test_a_spec_cannot_be_changed(spec: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"


def test_options_are_a_read_only_copy_of_what_was_given() -> None:
    given = {"width": 1.0}
    spec = BackboneSpec(name="net", factory="a:b", options=given)
    given["width"] = 2.0
    assert spec.options["width"] == 1.0
    with pytest.raises(TypeError):
        spec.options["width"] = 3.0  # type: ignore[index]


def test_lists_become_tuples_so_that_nobody_can_append() -> None:
    spec = BackboneSpec(
        name="net", factory="a:b", stem=["conv1"], stages=["layer1", ["layer2", "layer3"]]
    )  # type: ignore[arg-type]
    assert spec.stem == ("conv1",)
    assert spec.stages == (("layer1",), ("layer2", "layer3"))
    assert BlockSpec(name="gate", factory="a:b", layouts=["NHWC"]).layouts == ("NHWC",)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["SE", "se-block", "3x3", "", "s e", "se:x", "sé", "se\n", "_se"])
def test_a_name_that_is_not_lower_case_snake_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name is lower-case letters"):
        BlockSpec(name=name, factory="a:b")


@pytest.mark.parametrize(
    "factory",
    [
        "acme.blocks",
        "acme blocks:Gate",
        ":Gate",
        "acme:",
        "acme:Gate()",
        "acme:a:b",
        "../acme:b",
        "",
    ],
)
def test_a_factory_string_that_is_not_module_and_attribute_is_refused(factory: str) -> None:
    with pytest.raises(ValueError, match=r"package\.module:attribute"):
        BlockSpec(name="gate", factory=factory)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (BlockSpec, {"name": 3}),
        (BlockSpec, {"factory": 3}),
        (BlockSpec, {"summary": None}),
        (BlockSpec, {"source": 1}),
        (BlockSpec, {"category": None}),
        (BlockSpec, {"layouts": "NCHW"}),
        (BlockSpec, {"gated": "yes"}),
        (PatchOpSpec, {"takes_block": None}),
        (PatchOpSpec, {"options": ["position"]}),
        (PatchOpSpec, {"options": {"not a name": 1}}),
        (BackboneSpec, {"family": None}),
        (BackboneSpec, {"origin": None}),
        (BackboneSpec, {"head": ("fc",)}),
        (BackboneSpec, {"stem": "conv1"}),
        (BackboneSpec, {"stages": "layer1"}),
        (BackboneSpec, {"stages": ("layer1", 2)}),
        (BackboneSpec, {"stages": (("layer1", 2),)}),
        (BackboneSpec, {"weights": ("IMAGENET1K_V1",)}),
        (BackboneSpec, {"options": {3: 1}}),
        (BackboneSpec, {"min_size": "32"}),
        (BackboneSpec, {"num_channels": True}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.__name__,
)
def test_a_field_of_the_wrong_type_is_refused_when_the_spec_is_made(
    kind: type[Spec], wrong: dict[str, Any]
) -> None:
    with pytest.raises(
        TypeError, match=rf"{kind.__name__} .*({next(iter(wrong))}|tuples of paths)"
    ):
        kind(**{"name": "thing", "factory": "a:b", **wrong})


@pytest.mark.parametrize("key", ["type", "params", "init", "name"])
def test_an_operation_cannot_take_an_option_that_patches_use_themselves(key: str) -> None:
    with pytest.raises(ValueError, match="meaning of their own"):
        PatchOpSpec(name="twice", factory="a:b", options={key: None})


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="CHWN"):
        BlockSpec(name="gate", factory="a:b", layouts=("CHWN",))


def test_default_weights_must_be_one_of_the_weights() -> None:
    with pytest.raises(ValueError, match=r"default_weights 'V3' is not one of \['V1'\]"):
        BackboneSpec(
            name="net", factory="a:b", weights=(WeightsSpec(name="V1"),), default_weights="V3"
        )


def test_two_weights_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same weights name twice"):
        BackboneSpec(
            name="net", factory="a:b", weights=(WeightsSpec(name="V1"), WeightsSpec(name="V1"))
        )


def test_an_interpolation_that_torchvision_presets_do_not_use_is_refused() -> None:
    with pytest.raises(ValueError, match="nearest"):
        WeightsSpec(name="V1", interpolation="nearest")


@pytest.mark.parametrize(
    ("kind", "field", "value", "wanted"),
    [
        (WeightsSpec, "crop_size", 0, "1 or more"),
        (WeightsSpec, "test_resize_size", -1, "1 or more"),
        (WeightsSpec, "num_classes", -1, "0 or more"),
        (WeightsSpec, "gflops", float("nan"), "0 or more"),
        (WeightsSpec, "std", (0.2, 0.0, 0.2), "a number above 0 for each of mean"),
        (WeightsSpec, "std", (0.2,), "a number above 0 for each of mean"),
        (WeightsSpec, "std", (), "a number above 0 for each of mean"),
        (WeightsSpec, "std", (float("nan"),) * 3, "a number above 0 for each of mean"),
        (BackboneSpec, "num_channels", -1, "1 or more"),
        (BackboneSpec, "min_size", 0, "1 or more"),
    ],
)
def test_a_number_that_cannot_be_is_refused(kind: Any, field: str, value: Any, wanted: str) -> None:
    """A size of 0 divides by it later, and a deviation of 0 makes images that are infinite."""
    given = {} if kind is WeightsSpec else {"factory": "a:b"}
    said = re.escape(f"{kind.__name__} 'thing': {field} {value!r} is not {wanted}")
    with pytest.raises(ValueError, match=said):
        kind(name="thing", **given, **{field: value})
    assert kind(name="thing", **given)
    with pytest.raises(ValueError, match="std"):
        WeightsSpec(name="thing", mean=(float("nan"), 0.0, 0.0))


def test_normalized_names_agree_with_the_packaging_library() -> None:
    utils = pytest.importorskip("packaging.utils")
    for name in ("tvc-resnet", "Tvc_ResNet", "acme.blocks", "A__b--c..d", "x"):
        assert normalize(name) == utils.canonicalize_name(name)
