"""The listing methods: on the class what is installed, on an instance its own registry, typed for
users.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

from tvc_core import BackboneSpec, BlockSpec, HybridBuilder, Registry, UnknownNameError, hookimpl


def net(name: str, origin: str = "acme") -> BackboneSpec:
    return BackboneSpec(
        name=name, factory="acme.net:build", origin=origin, stages=("layer1",), head="fc"
    )


class Alpha:
    @hookimpl
    def tvc_backbones(self) -> list[BackboneSpec]:
        return [net("net10"), net("net9"), net("other", origin="torchvision"), net("shared")]

    @hookimpl
    def tvc_blocks(self) -> list[BlockSpec]:
        return [
            BlockSpec(name="gate", factory="acme:Gate", category="attention"),
            BlockSpec(name="conv", factory="acme:Conv", category="convolution"),
        ]


class Beta:
    @hookimpl
    def tvc_backbones(self) -> list[BackboneSpec]:
        return [net("shared"), net("only_beta")]


def builder(**more: Any) -> HybridBuilder:
    return HybridBuilder(registry=Registry([Alpha(), Beta()], installed=False, **more))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["net9", "net10", "only_beta", "other", "alpha:shared", "beta:shared"]),
        ({"pattern": "net*"}, ["net9", "net10"]),
        ({"pattern": "net?"}, ["net9"]),
        ({"pattern": "NET*"}, []),
        ({"pattern": "shared"}, ["alpha:shared", "beta:shared"]),
        ({"pattern": "beta:*"}, ["only_beta", "beta:shared"]),
        ({"origin": "torchvision"}, ["other"]),
        ({"owner": "beta"}, ["only_beta", "beta:shared"]),
        ({"owner": "Beta", "pattern": "s*"}, ["beta:shared"]),
        ({"owner": "beta", "origin": "torchvision"}, []),
    ],
)
def test_the_filters_of_backbones(arguments: dict[str, str], expected: list[str]) -> None:
    assert builder().list_backbones(**arguments) == expected


def test_a_filter_by_plugin_shows_what_a_preference_hides_behind_the_short_name() -> None:
    preferring = builder(prefer="alpha")
    assert preferring.list_backbones(owner="beta") == ["only_beta", "beta:shared"]
    assert preferring.list_backbones(owner="alpha", pattern="shared") == ["shared"]


def test_the_filter_of_blocks() -> None:
    assert builder().list_blocks() == ["conv", "gate"]
    assert (
        builder().list_blocks("attention")
        == builder().list_blocks(category="attention")
        == ["gate"]
    )


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        (
            "list_backbones",
            {"origin": "torchvison"},
            "no installed plugin has the origin 'torchvison'. Did you mean 'torchvision'",
        ),
        ("list_backbones", {"owner": "bata"}, "No plugin 'bata' is installed. Did you mean 'beta'"),
        (
            "list_blocks",
            {"category": "atention"},
            "category 'atention'. Did you mean 'attention'? There is attention, convolution.",
        ),
    ],
)
def test_a_misspelt_filter_is_an_error_and_not_an_empty_list(
    method: str, arguments: dict[str, str], said: str
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        getattr(builder(), method)(**arguments)
    assert said in str(caught.value)


def test_operations_and_initializers_come_through_the_same_hooks_as_everything() -> None:
    assert builder().list_patch_ops() == ["inject", "replace", "wrap"]
    assert builder().list_initializers() == ["identity", "kaiming", "paper", "xavier", "zero"]


def test_the_class_lists_what_is_installed_now(fake_distribution: Any) -> None:
    before = HybridBuilder.list_blocks()
    assert {"se", "cbam_block", "eca", "channel_attention", "spatial_attention"} <= set(
        HybridBuilder.list_blocks("attention")
    )
    source = (
        "from tvc_core import BlockSpec, hookimpl\nTVC_API = (1, 0)\n"
        "@hookimpl\ndef tvc_blocks():\n    return [BlockSpec(name='acme_gate', "
        "factory='acme:Gate')]\n"
    )
    fake_distribution("acme-blocks", source)
    assert sorted(HybridBuilder.list_blocks()) == sorted([*before, "acme_gate"])
    assert "acme_gate" not in builder().list_blocks()


def test_an_instance_keeps_the_registry_that_it_was_made_with(fake_distribution: Any) -> None:
    made_before = HybridBuilder()
    fake_distribution("acme-blocks", "raise OSError")
    assert all(info.owner != "acme-blocks" for info in made_before.registry.plugins)


def test_the_listing_of_torchvisions_names_agrees_with_torchvision() -> None:
    models = pytest.importorskip("torchvision.models")
    assert set(HybridBuilder.list_backbones(origin="torchvision")) <= set(
        models.list_models(module=models)
    )
    assert HybridBuilder.list_backbones("resnet*", owner="tvc-resnet") == sorted(
        (name for name in models.list_models(module=models) if name.startswith("resnet")),
        key=lambda name: int(name[6:]),
    )


def test_the_listings_have_names_and_help() -> None:
    for name in ("list_backbones", "list_blocks", "list_patch_ops", "list_initializers"):
        for method in (getattr(HybridBuilder, name), getattr(builder(), name)):
            assert method.__name__ == name and method.__doc__.startswith("Return the names of")


SAMPLE = """
from tvc_core import HybridBuilder, Patches, Recipe, Registry, UnknownNameError, Weights

names: list[str] = HybridBuilder.list_backbones()
names = HybridBuilder.list_backbones("resnet*", origin="torchvision", owner="tvc-resnet")
names = HybridBuilder().list_backbones(pattern="resnet*")
names = HybridBuilder.list_blocks("attention") + HybridBuilder().list_blocks(category="attention")
preferring = HybridBuilder(prefer=("tvc-attention",))
names = HybridBuilder.list_patch_ops() + preferring.list_initializers()
builder = HybridBuilder(registry=Registry(installed=False))
first: str = builder.list_backbones()[0]
patches: Patches = {"layer3": {"wrap": "se"}, "layer4": [{"wrap": {"type": "se"}}, {"add": "eca"}]}
weights: Weights = None
model = builder.from_torchvision("resnet18", weights, patches=patches, class_names=("cat", "dog"))
model = builder.from_backbone(
    "resnet18", "DEFAULT", patches={"layer3": {"wrap": "se"}}, unfreeze_stages=-1,
    freeze_backbone={"head": "last"}, options={"width": 2}, in_channels_policy=["r", 2],
)
plain = {"layer3": {"wrap": "se"}}
model = builder.from_backbone("resnet18", patches=plain)
recipe: Recipe = Recipe.from_mapping({"backbone": "resnet50"})
classes: int | None = recipe.num_classes
text: str = recipe.to_yaml()
try:
    model = builder.build(recipe)
except UnknownNameError as error:
    message: str = str(error)
"""


WRONG_RESULT = SAMPLE + "wrong: list[int] = HybridBuilder.list_backbones()\n"
WRONG = {
    'HybridBuilder.list_backbones(patern="resnet*")': 'Unexpected keyword argument "patern"',
    'builder.list_blocks(catgory="attention")': 'Unexpected keyword argument "catgory"',
    'builder.list_patch_ops("wrap")': "Too many arguments",
    'builder.from_torchvision("resnet18", freez_backbone=True)': '"freez_backbone"; did you mean',
    'builder.from_backbone("resnet18", None, {"layer3": {"wrap": "se"}})': "Too many positional",
    'builder.from_backbone("resnet18", weights=3)': 'Argument "weights" has incompatible',
    'builder.from_backbone("resnet18", patches=["layer3"])': 'Argument "patches" has incompatible',
    'builder.from_backbone("resnet18", patches={"layer3": "se"})': "Dict entry 0 has incompatible",
    'builder.from_backbone("resnet18", image_size="224")': 'Argument "image_size" has incompatible',
    'builder.from_module(object(), "a", ["b"], "c", weights=None)': '"weights"  [call-arg]',
}


@pytest.fixture(scope="module")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says about each of three files, in one run: reading tvc takes it most of a run."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("mypy")
    sources = {
        "right": SAMPLE,
        "wrong_result": WRONG_RESULT,
        "wrong_arguments": SAMPLE + "\n".join(WRONG) + "\n",
    }
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    settings = (
        "[mypy]\nfollow_imports = silent\n[mypy-torch.*,torchvision.*]\nfollow_imports = skip\n"
    )
    # torch's own types take 20 s, and no listing has them
    (folder / "mypy.ini").write_text(settings)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *(f"{name}.py" for name in sources)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1 and lines[-1].endswith("(checked 3 source files)"), lines
    return {name: [line for line in lines if line.startswith(f"{name}.py:")] for name in sources}


def test_a_users_sample_passes_strict_type_checking(mypy: dict[str, list[str]]) -> None:
    assert mypy["right"] == []


def test_strict_type_checking_would_see_a_wrong_result_type(mypy: dict[str, list[str]]) -> None:
    (said,) = (line for line in mypy["wrong_result"] if ": error: " in line)
    assert said.startswith(f"wrong_result.py:{WRONG_RESULT.count(chr(10))}:")
    assert 'expression has type "list[str]"' in said


def test_strict_type_checking_sees_every_wrong_argument(mypy: dict[str, list[str]]) -> None:
    output = mypy["wrong_arguments"]
    first = SAMPLE.count("\n") + 1
    for line, (source, said) in enumerate(WRONG.items(), first):
        of_line = [text for text in output if text.startswith(f"wrong_arguments.py:{line}:")]
        assert of_line and said in of_line[0], f"{source}\n{output}"


def test_the_listing_methods_say_what_they_take() -> None:
    for holder in (HybridBuilder, builder()):
        assert list(inspect.signature(holder.list_backbones).parameters) == [
            "pattern",
            "origin",
            "owner",
        ]
        assert str(inspect.signature(holder.list_patch_ops)) == "() -> 'list[str]'"


def test_a_method_is_also_a_function_of_a_builder() -> None:
    """As tools that wrap it, and subclasses that name their base, call it."""
    builder = HybridBuilder(registry=Registry(installed=False))
    assert HybridBuilder.list_blocks(builder) == [] != HybridBuilder.list_blocks()
    with pytest.raises(UnknownNameError):
        HybridBuilder.from_backbone(builder, "resnet18", None)
