"""The user's guide: every code block runs as written, and what its sentences promise holds.

The guide lies beside the project, not in it; the blocks are read from there at run time. The tests
of its promises need no guide: they say each promise in code.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import torchvision_customizer
import yaml
from torch import Tensor, nn
from torchvision_customizer import (
    BackboneSpec,
    HybridBuilder,
    HybridModel,
    PatchError,
    Recipe,
    Registry,
    TargetError,
    UnknownNameError,
    WeightsError,
    partial_load,
    transfer_weights,
)
from torchvision_customizer.recipe import load_yaml_recipe

from tvc_core.testing import official_weights

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDE = REPOSITORY.parent / "shared" / "guide.rst"
RECIPE = REPOSITORY / "examples" / "recipes" / "hybrid_model.yaml"
ATTENTION = ["se", "cbam_block", "eca", "channel_attention", "spatial_attention"]
FILES = {
    "Working with Different Backbones": [
        "resnet18",
        "resnet101:IMAGENET1K_V2",
        "wide_resnet50_2:IMAGENET1K_V2",
        "efficientnet_b0:IMAGENET1K_V1",
        "efficientnet_b4:IMAGENET1K_V1",
        "convnext_tiny:IMAGENET1K_V1",
        "mobilenet_v3_large:IMAGENET1K_V1",
    ]
}
"""Official weight files that a section of the guide opens; the others open resnet50's."""


# -- the guide's blocks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One code block: the headings above it, outermost first, its language and its text."""

    headings: tuple[str, ...]
    language: str
    text: str
    line: int


def read_blocks(text: str) -> list[Block]:
    """Return the code blocks of a reStructuredText document."""
    lines = text.splitlines()
    marks: list[str] = []
    headings: list[str] = []
    blocks: list[Block] = []
    for number, line in enumerate(lines):
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if (
            line.strip()
            and not line.startswith(" ")
            and re.fullmatch(r"([=\-^~])\1{2,}", below)
            and len(below) >= len(line)
        ):
            if below[0] not in marks:
                marks.append(below[0])
            headings[marks.index(below[0]) :] = [line.strip()]
        if found := re.fullmatch(r"\.\. code-block:: (\w+)", line):
            body = []
            for inner in lines[number + 1 :]:
                if inner.strip() and not inner.startswith(" "):
                    break
                body.append(inner)
            blocks.append(
                Block(
                    tuple(headings),
                    found.group(1),
                    textwrap.dedent("\n".join(body)).strip("\n"),
                    number + 1,
                )
            )
    return blocks


def sections() -> list[Any]:
    """Return the guide's sections, each with its blocks, as parameters."""
    if not GUIDE.exists():
        return [
            pytest.param(None, marks=pytest.mark.skip(reason="the guide is not beside the project"))
        ]
    found: dict[str, list[Block]] = {}
    for block in read_blocks(GUIDE.read_text(encoding="utf-8")):
        found.setdefault(block.headings[1], []).append(block)
    return [
        pytest.param(blocks, id=title.lower().replace(" ", "-")) for title, blocks in found.items()
    ]


class LeaveOut(ast.NodeTransformer):
    """Drop the literal `...` from the arguments of calls."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.args = [
            arg for arg in node.args if not (isinstance(arg, ast.Constant) and arg.value is ...)
        ]
        return node


def names_needed(source: str, known: dict[str, Any]) -> list[str]:
    """Return the names that a block reads and neither it, nor a block before it, nor Python
    defines.
    """
    symbols = symtable.symtable(source, "block", "exec").get_symbols()
    free = [
        s.get_name()
        for s in symbols
        if s.is_referenced() and not s.is_assigned() and not s.is_imported()
    ]
    return [name for name in free if name not in known and not hasattr(builtins, name)]


def supplied() -> dict[str, Callable[[], Any]]:
    """Return what the test supplies for names that the guide does not define."""
    resnet18 = torchvision.models.resnet18
    return {
        "builder": HybridBuilder,
        "torch": lambda: torch,
        "model": lambda: HybridBuilder().from_torchvision(
            "resnet18", weights=None, patches={"layer3": {"wrap": "se"}}, num_classes=10
        ),
        "checkpoint_state_dict": lambda: resnet18(weights=None).state_dict(),
        "pretrained_model": lambda: resnet18(weights=None),
        "custom_model": lambda: HybridBuilder().from_torchvision(
            "resnet18", weights=None, patches={"layer3": {"wrap": "se"}}, num_classes=10
        ),
    }


def checked(build: Callable[..., HybridModel]) -> Callable[..., HybridModel]:
    """Return `from_torchvision` with a look at every model that it builds: torchvision's network
    with the asked head.
    """

    def from_torchvision(self: HybridBuilder, name: str, *args: Any, **kwargs: Any) -> HybridModel:
        model = build(self, name, *args, **kwargs)
        with torch.device("meta"):
            network = torchvision.models.get_model(name, weights=None)
        assert isinstance(model, type(network))
        found = {
            key: value.shape
            for key, value in model.state_dict().items()
            if not key.startswith("patches.")
        }
        if not any(record.replaced for record in model.patch_records):
            assert list(found) == list(network.state_dict())
        assert {shape[0] for key, shape in list(found.items())[-2:]} == {model.num_classes}
        assert model.num_classes == kwargs.get("num_classes", model.num_classes)
        return model

    return from_torchvision


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"a test wanted to download {url}")

    monkeypatch.setattr("tvc_core.weights.cache.download", refuse)


@pytest.mark.parametrize("blocks", sections())
def test_the_blocks_of_a_section_run(
    blocks: list[Block],
    made_up: Callable[..., Any],
    offline: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_up(*FILES.get(blocks[0].headings[1], ["resnet50:IMAGENET1K_V2"]))
    monkeypatch.setattr(HybridBuilder, "from_torchvision", checked(HybridBuilder.from_torchvision))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        if block.language == "yaml":
            Path(block.text.splitlines()[0].lstrip("# ")).write_text(block.text, encoding="utf-8")
            continue
        assert block.language == "python"
        for name in names_needed(block.text, names):
            names[name] = supplied()[name]()
        before = names.get("patches")
        tree = ast.fix_missing_locations(LeaveOut().visit(ast.parse(block.text)))
        exec(compile(tree, f"{GUIDE.name}, line {block.line}", "exec"), names)
        if names.get("patches") is not before:
            backbone = "efficientnet_b0" if "EfficientNet Family" in block.headings else "resnet18"
            model = names["builder"] if "builder" in names else HybridBuilder()
            records = model.from_torchvision(
                backbone, weights=None, patches=names["patches"]
            ).patch_records
            assert [record.target for record in records] == list(names["patches"])
    printed = capsys.readouterr().out
    if "Fine-tuning Strategies" in blocks[0].headings:
        assert "Trainable: 20,490\n" in printed  # 2048 inputs and a bias for each of 10 classes
    if "Weight Utilities" in blocks[0].headings:
        # resnet18 has 122; fc's two differ, se has four and a gate
        assert printed.startswith("loaded 120 of 127 tensors")


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not beside the project")
def test_no_block_of_the_guide_is_overlooked() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    blocks = read_blocks(text)
    assert len(blocks) == len(re.findall(r"code-block::", text)) >= 17
    assert all(len(block.headings) >= 2 and block.text for block in blocks)
    indented = [line for line in text.splitlines() if line.startswith("   ") and line.strip()]
    troubles = text.partition("Troubleshooting\n")[2].count("\n   ")
    assert (
        sum(len([line for line in block.text.splitlines() if line.strip()]) for block in blocks)
        == len(indented) - troubles
    )


def test_the_parser_keeps_headings_languages_and_dots() -> None:
    text = (
        "Title\n=====\n\nOne\n---\n\n.. code-block:: python\n\n   f(a, ...)\n\n   "
        "g()\n\nTwo\n---\n\nA\n^\n^^^\n"
    )
    (block,) = read_blocks(text)
    assert (block.headings, block.language, block.text) == (
        ("Title", "One"),
        "python",
        "f(a, ...)\n\ng()",
    )
    assert ast.unparse(LeaveOut().visit(ast.parse(block.text))) == "f(a)\ng()"


# -- getting started and attention -----------------------------------------------------------------


@pytest.fixture(scope="module")
def official(torch_home: Path) -> Iterator[dict[str, Tensor]]:
    """The state dict of a made-up official file of resnet50, which builds of this module load."""
    with official_weights(torch_home, "resnet50:IMAGENET1K_V2") as files:
        yield torch.load(files["resnet50:IMAGENET1K_V2"], weights_only=True)


@pytest.fixture
def resnet50(
    official: dict[str, Tensor], offline: None, made_up: Callable[..., Any]
) -> Callable[..., HybridModel]:
    """Return a function that builds resnet50 from the made-up official file."""
    made_up("resnet50:IMAGENET1K_V2")
    return lambda **arguments: HybridBuilder().from_torchvision(
        "resnet50", weights="IMAGENET1K_V2", **arguments
    )


def image(size: int = 64, batch: int = 2) -> Tensor:
    return torch.randn((batch, 3, size, size), generator=torch.Generator().manual_seed(1))


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_only_the_head_changes(
    resnet50: Callable[..., HybridModel], official: dict[str, Tensor]
) -> None:
    model = resnet50(num_classes=10)
    assert model.eval()(image()).shape == (2, 10)
    own = model.state_dict()
    assert list(own) == list(official)
    assert [key for key in own if not torch.equal(own[key], official[key])] == [
        "fc.weight",
        "fc.bias",
    ]


def test_attention_keeps_every_pretrained_tensor(
    resnet50: Callable[..., HybridModel], official: dict[str, Tensor]
) -> None:
    model = resnet50(
        patches={"layer3": {"wrap": "se"}, "layer4": {"wrap": "cbam_block"}}, num_classes=100
    )
    own = model.state_dict()
    kept = [key for key in official if not key.startswith("fc.")]
    assert all(torch.equal(own[key], official[key]) for key in kept)
    assert model.eval()(image()).shape == (2, 100)
    assert [(record.target, record.block) for record in model.patch_records] == [
        ("layer3", "tvc-attention:se"),
        ("layer4", "tvc-attention:cbam_block"),
    ]


def test_the_available_attention_blocks() -> None:
    assert set(ATTENTION) <= set(HybridBuilder.list_blocks(category="attention"))


@pytest.mark.parametrize("operation", ["wrap", "inject"])
@pytest.mark.parametrize("block", ATTENTION)
def test_every_attention_block_goes_behind_a_layer(operation: str, block: str) -> None:
    model = (
        HybridBuilder()
        .from_torchvision(
            "resnet18",
            weights=None,
            patches={"layer3": {operation: {"type": block, "init": "paper"}}},
        )
        .eval()
    )
    plain = torchvision.models.resnet18(weights=None).eval()
    plain.load_state_dict(
        {key: value for key, value in model.state_dict().items() if not key.startswith("patches.")}
    )
    inserted = model.get_submodule(model.patch_records[0].paths[0])
    with torch.no_grad():
        x = plain.layer2(plain.layer1(plain.maxpool(plain.relu(plain.bn1(plain.conv1(image()))))))
        original = plain.layer3(x)
        wanted = inserted.block(original)
        found = model.get_stage_outputs(image())[3]
    assert torch.equal(found, wanted)
    assert not torch.equal(wanted, original)


# -- patch operations ------------------------------------------------------------------------------


def test_wrap_takes_the_parameters_of_its_block() -> None:
    patches = {"layer3": {"wrap": {"type": "se", "params": {"reduction": 16}}}}
    model = HybridBuilder().from_torchvision("resnet50", weights=None, patches=patches)
    widths = [
        tuple(layer.weight.shape[:2])
        for layer in model.patches.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    assert widths == [(64, 1024), (1024, 64)]


def test_replace_puts_the_block_in_the_place_of_the_layer() -> None:
    patches = {"layer1": {"replace": {"type": "conv_bn_act", "params": {"channels": 64}}}}
    model = HybridBuilder().from_torchvision("resnet18", weights=None, patches=patches)
    layers = [layer for layer in model.layer1.modules() if not layer._modules]
    assert [type(layer) for layer in layers[:2]] == [nn.Conv2d, nn.BatchNorm2d]
    assert layers[0].weight.shape[:2] == (64, 64)
    assert not any(
        isinstance(layer, torchvision.models.resnet.BasicBlock) for layer in model.layer1.modules()
    )
    assert "patches" not in dict(model.named_children())
    with torch.no_grad():
        stem, first, *_ = model.eval().get_stage_outputs(image())
        assert torch.equal(model.layer1(stem), first)


def test_replace_on_a_wider_network_says_what_would_fit() -> None:
    patches = {"layer1": {"replace": {"type": "conv_bn_act", "params": {"channels": 64}}}}
    with pytest.raises(PatchError, match=r"Shape mismatch.*channels=256 would fit"):
        HybridBuilder().from_torchvision("resnet50", weights=None, patches=patches)
    patches["layer1"]["replace"]["params"]["channels"] = 256
    assert HybridBuilder().from_torchvision("resnet50", weights=None, patches=patches).eval()(
        image()
    ).shape == (2, 1000)


# -- fine-tuning -----------------------------------------------------------------------------------


def test_a_frozen_backbone_trains_only_its_head(
    resnet50: Callable[..., HybridModel], official: dict[str, Tensor]
) -> None:
    model = resnet50(num_classes=10, freeze_backbone=True).train()
    assert trainable(model) == {"fc.weight", "fc.bias"}
    assert model.count_parameters(trainable_only=True) == 2048 * 10 + 10
    # torchvision's documented size
    assert model.count_parameters() == 25_557_032 - (2048 * 1000 + 1000) + 2048 * 10 + 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    nn.functional.cross_entropy(model(image()), torch.tensor([0, 1])).backward()
    fc = model.fc.weight.clone()
    optimizer.step()
    own = model.state_dict()
    assert not torch.equal(own["fc.weight"], fc)
    assert all(
        torch.equal(own[key], official[key]) for key in official if not key.startswith("fc.")
    )


def test_partial_unfreezing_trains_the_last_two_layers(
    resnet50: Callable[..., HybridModel],
) -> None:
    model = resnet50(num_classes=10, freeze_backbone=True, unfreeze_stages=[2, 3])
    assert {name.partition(".")[0] for name in trainable(model)} == {"layer3", "layer4", "fc"}
    wanted = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("layer3.", "layer4.", "fc."))
    }
    assert trainable(model) == wanted


def test_progressive_unfreezing(resnet50: Callable[..., HybridModel]) -> None:
    model = resnet50(num_classes=10, freeze_backbone=True)
    head = {"fc.weight", "fc.bias"}
    assert trainable(model) == head
    model.freeze_backbone(unfreeze_stages=[3])
    assert trainable(model) == head | {
        name for name, _ in model.named_parameters() if name.startswith("layer4.")
    }
    model.unfreeze_all()
    assert trainable(model) == {name for name, _ in model.named_parameters()}
    assert all(module.training for module in model.train().modules())


# -- backbones -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("efficientnet_b0", "classifier"),
        ("convnext_tiny", "classifier"),
        ("mobilenet_v3_large", "classifier"),
    ],
)
def test_each_family_gets_a_new_last_layer(name: str, head: str) -> None:
    model = HybridBuilder().from_torchvision(name, weights=None, num_classes=10).eval()
    assert model(image()).shape == (2, 10)
    with torch.device("meta"):
        plain = torchvision.models.get_model(name, weights=None, num_classes=10)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert isinstance(model, type(plain))
    model.freeze_backbone()
    assert {name.partition(".")[0] for name in trainable(model)} == {head}


def test_efficientnet_is_patched_by_its_own_names() -> None:
    patches = {"features.5": {"wrap": {"type": "eca", "init": "paper"}}}
    model = (
        HybridBuilder().from_torchvision("efficientnet_b0", weights=None, patches=patches).eval()
    )
    plain = torchvision.models.efficientnet_b0(weights=None).eval()
    plain.load_state_dict(
        {key: value for key, value in model.state_dict().items() if not key.startswith("patches.")}
    )
    (path,) = model.patch_records[0].paths
    with torch.no_grad():
        wanted = plain.features[6:](model.get_submodule(path).block(plain.features[:6](image())))
        assert torch.equal(model.forward_features(image()), wanted)


def test_every_backbone_that_the_guide_names_is_there() -> None:
    named = {
        "resnet18",
        "resnet50",
        "resnet101",
        "wide_resnet50_2",
        "efficientnet_b0",
        "efficientnet_b4",
    }
    assert named | {"convnext_tiny", "mobilenet_v3_large"} <= set(HybridBuilder.list_backbones())


def test_weights_say_the_resolution_of_their_training() -> None:
    spec = Registry().resolve(BackboneSpec, "efficientnet_b4").spec
    assert spec.find_weights("IMAGENET1K_V1").crop_size == 380
    assert Registry().resolve(BackboneSpec, "resnet50").spec.default_weights == "IMAGENET1K_V2"


# -- weight utilities ------------------------------------------------------------------------------


@pytest.fixture
def custom() -> HybridModel:
    return HybridBuilder().from_torchvision(
        "resnet18", weights=None, patches={"layer3": {"wrap": "se"}}, num_classes=10
    )


@pytest.fixture
def checkpoint() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    own = torchvision.models.resnet18(weights=None).state_dict()
    return {
        key: torch.rand(value.shape, generator=generator).to(value.dtype)
        for key, value in own.items()
    }


def test_partial_load_loads_what_fits_and_reports_the_rest(
    custom: HybridModel, checkpoint: dict[str, Tensor]
) -> None:
    torch.manual_seed(0)
    report = partial_load(custom, checkpoint, ignore_mismatch=True, init_new_layers="kaiming")
    own = custom.state_dict()
    assert [mismatch.key for mismatch in report.mismatched] == ["fc.weight", "fc.bias"]
    assert set(report.missing) == {key for key in own if key.startswith("patches.")}
    assert set(report.loaded) == {key for key in checkpoint if not key.startswith("fc.")}
    assert all(torch.equal(own[key], checkpoint[key]) for key in report.loaded)
    # a classifier starts as torch's own linear layers, uniform within 1 / sqrt(fan_in)
    assert own["fc.weight"].abs().max().item() == pytest.approx(512**-0.5, rel=0.01)
    assert own["fc.bias"].eq(0).all()
    # convolutions as in He et al. 2015: variance 2 / fan_out
    second = own["patches.layer3.se.block.fc2.weight"]
    assert second.std().item() == pytest.approx((2 / second.shape[0]) ** 0.5, rel=0.05)
    assert own["patches.layer3.se.alpha"].item() == 0


def test_the_summary_names_what_a_reader_wants_to_know(
    custom: HybridModel, checkpoint: dict[str, Tensor]
) -> None:
    checkpoint["aux.weight"] = torch.zeros(3)
    report = partial_load(custom, checkpoint, ignore_mismatch=True, init_new_layers="kaiming")
    first, *rest = report.summary().splitlines()
    assert first == f"loaded 120 of 127 tensors ({120 / 127:.1%})"
    said = {line.strip().partition(":")[0]: line for line in rest}
    assert "fc.weight: checkpoint [1000, 512], model [10, 512]" in said["mismatched"]
    assert "patches.layer3.se.alpha" in said["missing"]
    assert "aux.weight" in said["unexpected"]
    assert "initialized: 6 " in said["initialized"]


def test_transfer_leaves_the_classifier_alone(custom: HybridModel) -> None:
    # would fit, so that only the pattern keeps it out
    pretrained = torchvision.models.resnet18(weights=None, num_classes=10)
    fc = custom.fc.weight.clone()
    transfer_weights(source=pretrained, target=custom, exclude_patterns=["fc", "classifier"])
    own, given = custom.state_dict(), pretrained.state_dict()
    assert torch.equal(own["fc.weight"], fc)
    assert not torch.equal(fc, given["fc.weight"])
    assert all(torch.equal(own[key], given[key]) for key in given if not key.startswith("fc."))


def test_transfer_excludes_layers_and_not_letters() -> None:
    patches = {"features.5": {"wrap": "se"}}
    source, target = (
        HybridBuilder().from_torchvision("mobilenet_v3_small", weights=None, patches=patches)
        for _ in range(2)
    )
    report = transfer_weights(source=source, target=target, exclude_patterns=["fc", "classifier"])
    assert {key.partition(".")[0] for key in report.excluded} == {"classifier"}
    assert "patches.features.5.se.block.fc1.weight" in report.loaded
    assert report.unmatched_patterns == ("fc",)


# -- features --------------------------------------------------------------------------------------


def test_five_features_of_resnet50(
    resnet50: Callable[..., HybridModel], official: dict[str, Tensor]
) -> None:
    model = resnet50().eval()
    plain = torchvision.models.resnet50(weights=None).eval()
    plain.load_state_dict(official)
    x = image(224, 1)
    with torch.no_grad():
        features = model.get_stage_outputs(x)
        map_ = plain.maxpool(plain.relu(plain.bn1(plain.conv1(x))))
        wanted = [map_]
        for layer in (plain.layer1, plain.layer2, plain.layer3, plain.layer4):
            wanted.append(map_ := layer(map_))
        final = model.forward_features(x)
        logits = model.forward_head(final)
        assert torch.equal(logits, model(x))
    assert [tuple(feature.shape) for feature in features] == [
        (1, 64, 56, 56),
        (1, 256, 56, 56),
        (1, 512, 28, 28),
        (1, 1024, 14, 14),
        (1, 2048, 7, 7),
    ]
    assert all(torch.equal(found, want) for found, want in zip(features, wanted, strict=True))
    assert torch.equal(final, wanted[-1])


def test_features_include_the_patches() -> None:
    model = (
        HybridBuilder()
        .from_torchvision(
            "resnet18", weights=None, patches={"layer4": {"wrap": {"type": "se", "init": "paper"}}}
        )
        .eval()
    )
    with torch.no_grad():
        outside = model.get_stage_outputs(image())
        inside = model.get_submodule("patches.layer4.se").block(
            nn.Sequential.forward(model.layer4, outside[3])
        )
    assert torch.equal(outside[4], inside)


# -- recipes ---------------------------------------------------------------------------------------


def test_the_yaml_recipe(
    official: dict[str, Tensor], made_up: Callable[..., Any], offline: None
) -> None:
    made_up("resnet50:IMAGENET1K_V2")
    model = load_yaml_recipe(RECIPE)
    assert model.recipe.name == yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["name"]
    own = model.state_dict()
    assert all(
        torch.equal(own[key], official[key]) for key in official if not key.startswith("fc.")
    )
    assert own["fc.weight"].shape == (100, 2048)
    assert own["patches.layer3.se.block.fc1.weight"].shape == (1024 // 16, 1024, 1, 1)
    assert own["patches.layer4.cbam_block.block.channel.fc1.weight"].shape[1] == 2048


def test_the_dropout_of_the_recipe_acts_on_the_head_in_training_only() -> None:
    recipe = replace(
        Recipe.from_mapping(yaml.safe_load(RECIPE.read_text(encoding="utf-8"))), weights=None
    )
    model = HybridBuilder().build(recipe)
    seen: list[Tensor] = []
    model.fc.register_forward_hook(lambda _, args, output: seen.append(args[0]))
    torch.manual_seed(0)
    model.train().fc(torch.ones(64, 2048))
    model.eval().fc(torch.ones(64, 2048))
    trained, evaluated = seen
    assert trained.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert trained.eq(0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert evaluated.eq(1).all()


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not beside the project")
def test_the_example_recipe_is_of_the_guides_kind() -> None:
    (block,) = [
        block
        for block in read_blocks(GUIDE.read_text(encoding="utf-8"))
        if block.language == "yaml"
    ]
    written, ours = yaml.safe_load(block.text), yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    assert {**ours, "name": written["name"]} == written


def test_the_import_name_of_the_guide_carries_the_core() -> None:
    import tvc_core

    assert all(
        getattr(torchvision_customizer, name) is getattr(tvc_core, name)
        for name in tvc_core.__all__
    )


# -- troubleshooting -------------------------------------------------------------------------------


def test_unknown_backbone() -> None:
    with pytest.raises(UnknownNameError, match=r"^Unknown backbone 'resnet5O'.*resnet50") as caught:
        HybridBuilder().from_torchvision("resnet5O")
    assert "list_backbones()" in str(caught.value)
    assert "resnet50" in HybridBuilder.list_backbones() == HybridBuilder().list_backbones()


def test_target_not_found() -> None:
    with pytest.raises(
        TargetError, match=r"Target not found: 'layer_3'.*layer3.*named_children\(\)"
    ):
        HybridBuilder().from_torchvision(
            "resnet18", weights=None, patches={"layer_3": {"wrap": "se"}}
        )
    names = [
        name for name, _ in HybridBuilder().from_torchvision("resnet18", None).named_children()
    ]
    patches = {
        name: {"wrap": "spatial_attention"} for name in names if name not in ("avgpool", "fc")
    }
    records = (
        HybridBuilder().from_torchvision("resnet18", weights=None, patches=patches).patch_records
    )
    assert [record.target for record in records] == [
        "conv1",
        "bn1",
        "relu",
        "maxpool",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    ]


def test_shape_mismatch(custom: HybridModel, checkpoint: dict[str, Tensor]) -> None:
    before = {key: value.clone() for key, value in custom.state_dict().items()}
    with pytest.raises(WeightsError, match=r"^Shape mismatch.*fc\.weight.*ignore_mismatch=True"):
        partial_load(custom, checkpoint)
    assert all(torch.equal(value, before[key]) for key, value in custom.state_dict().items())
    assert len(partial_load(custom, checkpoint, ignore_mismatch=True).loaded) == len(checkpoint) - 2


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients() -> None:
    model = (
        HybridBuilder()
        .from_torchvision(
            "resnet18", weights=None, patches={"layer3": {"wrap": "se"}}, num_classes=10
        )
        .train()
    )

    def step() -> tuple[int, dict[str, Tensor]]:
        model.zero_grad()
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor.detach()  # else an output is held by its own graph

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(image()).square().sum()
        loss.backward()
        return sum(kept.values()), {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
        }

    everything, wanted = step()
    model.set_grad_checkpointing()
    less, found = step()
    assert less < everything / 2
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
