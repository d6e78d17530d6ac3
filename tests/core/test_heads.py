"""Classes by name, heads of several layers, and several heads: in keywords, recipes and files."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

from tvc_core import (
    BlockSpec,
    HeadError,
    HybridBuilder,
    HybridModel,
    ParameterError,
    Recipe,
    RecipeError,
    audit,
    fold_patches,
    load,
    param_groups,
    partial_load,
)

from .conftest import TINY, Tiny

IMAGENET = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]


def outputs(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return model.eval()(x)


@pytest.fixture(scope="module")
def builder() -> HybridBuilder:
    return HybridBuilder()


def again(model: HybridModel, tmp_path: Path, **options: Any) -> HybridModel:
    model.save(tmp_path / "model.safetensors")
    return load(tmp_path / "model.safetensors", **options)


# -- classes by name -------------------------------------------------------------------------------


def test_classes_of_the_same_name_keep_their_logits(tiny: Any, images: Tensor) -> None:
    model = tiny(class_names=NAMES)
    before = outputs(model, images)
    report = model.reset_classifier(["yak", "cat", "ant", "zebu", "gnu"])
    assert report.kept == ("cat", "ant", "gnu") and report.new == ("yak", "zebu")
    assert report.dropped == ("bee", "dog", "elk", "fox") and report.num_classes == 5
    assert str(report).startswith("5 classes: 3 kept (cat, ant, gnu); 2 new (yak, zebu); 4 dropped")
    now = outputs(model, images)
    torch.testing.assert_close(now[:, [1, 2, 4]], before[:, [2, 0, 6]])
    assert model.class_names == ("yak", "cat", "ant", "zebu", "gnu")
    assert "3 with the weights of before: cat, ant, gnu" in model.explain()


def test_a_number_keeps_nothing_and_forgets_the_names(tiny: Any, images: Tensor) -> None:
    model = tiny(class_names=NAMES)
    report = model.reset_classifier(7)
    assert (report.kept, report.new, report.dropped) == ((), (), tuple(NAMES))
    assert model.class_names is None


def test_without_names_of_before_all_is_new(tiny: Any) -> None:
    model = tiny()
    report = model.reset_classifier(NAMES)
    assert report.new == tuple(NAMES) and not report.kept and model.class_names == tuple(NAMES)


NETWORKS = {
    "squeezenet1_1": {},
    "mobilenet_v2": {},
    "googlenet": {"aux_logits": True},
    "timm/ghostnet_050": {},
    "timm/regnetx_002": {},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_kept_in_every_head(builder: HybridBuilder, name: str) -> None:
    """Linear layers and convolutions, auxiliary heads; the layers are read by torch alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = builder.from_backbone(
            name, None, class_names=["a", "b", "c"], options=NETWORKS[name]
        )

    def of(outputs: int) -> list[nn.Module]:
        found = []
        for module in model.modules():
            widths = getattr(module, "out_features", None), getattr(module, "out_channels", None)
            found += [module] if outputs in widths and len(module._parameters) else []
        return found

    before = [copy.deepcopy(layer) for layer in of(3)]
    model.reset_classifier(["c", "x", "y", "z", "a"])
    after = of(5)
    assert len(before) == len(after) == (3 if name == "googlenet" else 1)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new.weight[[0, 4]], old.weight[[2, 0]])  # type: ignore[index]
        assert torch.equal(new.bias[[0, 4]], old.bias[[2, 0]])  # type: ignore[index]
        assert not torch.equal(new.weight[1], old.weight[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def plain_lite0(builder: HybridBuilder) -> HybridModel:
    """Pretrained, since its weights are in its distribution."""
    return builder.from_backbone("efficientnet_lite0").eval()


def test_a_build_takes_over_the_pretrained_classes_by_name(
    builder: HybridBuilder, plain_lite0: HybridModel
) -> None:
    rows = [IMAGENET.index(name) for name in ("tabby", "goldfish")]
    model = builder.from_backbone("efficientnet_lite0", class_names=["tabby", "mine", "goldfish"])
    old, new = plain_lite0.get_classifier(), model.get_classifier()
    assert model.num_classes == 3 and model.recipe.num_classes == 3
    assert torch.equal(new.weight[[0, 2]], old.weight[rows])  # type: ignore[index]
    assert torch.equal(new.bias[[0, 2]], old.bias[rows])  # type: ignore[index]
    assert "2 with the weights of before: tabby, goldfish" in model.explain()
    x = torch.randn(2, 3, 64, 64)
    found, right = outputs(model, x)[:, [0, 2]], outputs(plain_lite0, x)[:, rows]
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


def test_as_many_names_as_outputs_only_name_them(
    builder: HybridBuilder, plain_lite0: HybridModel
) -> None:
    weight = plain_lite0.get_classifier().weight
    own = builder.from_backbone("efficientnet_lite0", class_names=[f"c{i}" for i in range(1000)])
    assert torch.equal(own.get_classifier().weight, weight)  # type: ignore[arg-type]
    # its own names in another order are these classes
    names = plain_lite0.class_names
    assert names is not None
    moved = builder.from_backbone("efficientnet_lite0", class_names=names[::-1])
    assert torch.equal(moved.get_classifier().weight, weight.flip(0))  # type: ignore[arg-type, operator]


def test_heads_take_over_pretrained_classes_by_name(
    builder: HybridBuilder, plain_lite0: HybridModel
) -> None:
    heads = {"fish": ["goldfish", "other"], "age": {"num_classes": 1, "hidden": 4}}
    model = builder.from_backbone("efficientnet_lite0", heads=heads)
    fish = model.get_classifier().get_submodule("fish")
    row = plain_lite0.get_classifier().weight[IMAGENET.index("goldfish")]  # type: ignore[index]
    assert torch.equal(fish.weight[0], row)  # type: ignore[index]


def test_weights_that_cannot_be_read_are_not_lost_silently(tiny: Any, images: Tensor) -> None:
    model = tiny(class_names=NAMES).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    layer = model.fc
    with pytest.raises(HeadError, match="cannot be taken over by class name"):
        model.reset_classifier(["ant", "x"])
    assert model.fc is layer and model.class_names == tuple(NAMES)
    assert model.reset_classifier(["x", "y"]).new == ("x", "y")


def test_pruned_rows_are_kept_as_they_compute(tiny: Any, images: Tensor) -> None:
    model = tiny(class_names=NAMES)
    prune.l1_unstructured(model.fc, "weight", 0.5)
    before = outputs(model, images)
    model.reset_classifier([*NAMES, "yak"])
    torch.testing.assert_close(outputs(model, images)[:, :7], before)
    assert type(model.fc) is nn.Linear


@pytest.mark.parametrize("classes", [NAMES[::-1], [*NAMES[:6], "yak"]])
@pytest.mark.parametrize("block", ["lora", "ssf"])
def test_classes_do_not_move_under_a_patch_that_learned_for_them(
    builder: HybridBuilder, block: str, classes: list[str], images: Tensor
) -> None:
    """A block after the last layer, or beside it, has weights for each output, in their order."""
    model = builder.from_module(
        Tiny(num_classes=7),
        patches={"fc": {"inject": block}},
        stem="stem",
        stages=["layer1", "layer2", "layer3"],
        head="fc",
        class_names=NAMES,
    )
    with torch.no_grad():
        for parameter in model.get_submodule("patches").parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    layer, before = model.fc, outputs(model, images)
    with pytest.raises(HeadError, match=r"'fc' has learned for the classes as they are now.*fold"):
        model.reset_classifier(classes)
    assert model.fc is layer and model.class_names == tuple(NAMES)
    assert model.reset_classifier(NAMES).kept == tuple(NAMES)
    fold_patches(model)
    model.reset_classifier(classes)
    kept = [name for name in classes if name in NAMES]
    now = outputs(model, images)[:, [classes.index(name) for name in kept]]
    torch.testing.assert_close(now, before[:, [NAMES.index(name) for name in kept]])


@pytest.mark.parametrize("wrong", [["a", "a"], ["a", 1], [], "ab", {"a": 1}, {}, -1])
def test_wrong_classes_change_nothing(tiny: Any, wrong: Any) -> None:
    model = tiny(class_names=NAMES)
    layer = model.fc
    with pytest.raises(HeadError):
        model.reset_classifier(wrong, dropout=0.5)
    assert model.fc is layer and model.class_names == tuple(NAMES) and not len(layer._modules)


# -- hidden layers ---------------------------------------------------------------------------------


def test_hidden_layers_are_torchvisions_mlp(tiny: Any, images: Tensor) -> None:
    model = tiny(num_classes=5, hidden=[16, 12], activation="gelu", dropout=0.2)
    mlp = torchvision.ops.MLP(32, [16, 12, 5], activation_layer=nn.GELU, inplace=None, dropout=0.2)
    assert list(mlp.state_dict()) == list(model.fc.state_dict())
    mlp.load_state_dict(model.fc.state_dict())
    reference = Tiny()
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if "fc" not in k}, False)
    reference.fc = nn.Sequential(*list(mlp)[:-1])  # MLP has a dropout after the last layer
    assert torch.equal(outputs(model, images), outputs(reference, images))
    assert [m.p for m in model.fc.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.2]
    assert "hidden layers of 16, 12 with GELU, 5 classes, dropout 0.2" in model.explain()
    assert model.get_classifier() is model.fc[6] and model.num_classes == 5


def test_hidden_layers_before_a_convolution_are_convolutions(builder: HybridBuilder) -> None:
    model = builder.from_torchvision("squeezenet1_0", None, num_classes=4, hidden=8)
    mlp = model.classifier[1]
    assert [type(mlp[i]) for i in (0, 3)] == [nn.Conv2d, nn.Conv2d]
    assert (mlp[0].in_channels, mlp[0].out_channels, mlp[3].out_channels) == (512, 8, 4)
    assert outputs(model, torch.randn(2, 3, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize("how", ["built", "copied", "pickled", "saved", "built again", "compiled"])
def test_hidden_layers_survive(
    tiny: Any, lab: Any, images: Tensor, how: str, tmp_path: Path
) -> None:
    model = tiny(num_classes=5, hidden=[16], activation="silu", dropout=0.25, class_names=NAMES[:5])
    right = outputs(model, images)
    keys = list(model.state_dict())
    if how == "copied":
        model = copy.deepcopy(model)
    elif how == "pickled":
        model = pickle.loads(pickle.dumps(model))
    elif how == "saved":
        model = again(model, tmp_path, registry=lab().registry)
    elif how == "built again":
        state = model.state_dict()
        model = lab().build(Recipe.from_mapping(model.recipe.to_mapping()))
        model.load_state_dict(state)
    elif how == "compiled":
        compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), right)
    assert torch.equal(outputs(model, images), right) and list(model.state_dict()) == keys
    assert model.class_names == tuple(NAMES[:5]) and model.fc[2].p == 0.25
    model.reset_classifier(["bee", "yak"])
    torch.testing.assert_close(outputs(model, images)[:, 0], right[:, 1])
    assert len(model.fc) == 4
    other = again(model, tmp_path, registry=lab().registry)
    assert torch.equal(outputs(other, images), outputs(model, images))


def test_new_layers_learn_where_only_the_last_layer_is_to_learn(tiny: Any, images: Tensor) -> None:
    """A hidden layer that stays random would be of no use."""
    model = tiny(hidden=[16], freeze_backbone={"head": "last"})
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == ["fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"]
    groups = param_groups(model, lr=0.1)
    assert sum(len(group["params"]) for group in groups) == 4
    assert {group["name"].partition(",")[0] for group in groups} == {"head"}
    model.train()
    optimizer = torch.optim.SGD(groups)
    with audit(model, optimizer) as report:
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
            optimizer.step()
    assert report.ok and report.num_trainable == 4
    model.freeze_backbone(head="none")
    assert not any(p.requires_grad for p in model.parameters())


def test_features_and_logits_come_apart(tiny: Any, images: Tensor) -> None:
    model = tiny(hidden=[16]).eval()
    with torch.no_grad():
        features = model.forward_features(images)
        assert torch.equal(model.forward_head(features), model(images))
        hidden = model.forward_head(features, pre_logits=True)
        assert hidden.shape == (4, 16) and torch.equal(model.fc[3](hidden), model(images))


def test_a_plain_checkpoint_fills_all_but_the_head(tiny: Any) -> None:
    model = tiny(hidden=[16])
    report = partial_load(model, Tiny().state_dict())
    assert set(report.missing) == {"fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"}
    assert set(report.unexpected) == {"fc.weight", "fc.bias"}


DENSE = BlockSpec(
    name="dense",
    factory=lambda in_channels, width=32: nn.Linear(in_channels, width),
    layouts=("NC",),
)


def test_patches_at_the_last_layer_stay_there(tiny: Any, images: Tensor) -> None:
    patch = {"fc": {"inject": {"type": "dense", "position": "before"}}}
    model = tiny(patch, DENSE, hidden=[16])
    gate = model.patches.fc.dense
    right = outputs(model, images)
    with torch.no_grad():
        gate.alpha.fill_(1)
    assert not torch.equal(outputs(model, images), right)


def test_a_replaced_last_layer_does_not_come_back_without_its_layers(tiny: Any) -> None:
    patch = {"fc": {"replace": {"type": "dense", "params": {"width": 7}}}}
    model = tiny(patch, DENSE, hidden=[16])
    with pytest.raises(HeadError, match="cannot come back"):
        model.unpatch()
    assert len(model.fc) == 4


# -- several heads ---------------------------------------------------------------------------------

HEADS = {"breed": ["pug", "beagle", "collie"], "age": {"num_classes": 1, "hidden": [8]}}


def test_several_heads_are_hand_made_ones(tiny: Any, plain: Any, images: Tensor) -> None:
    model = tiny(heads=HEADS)
    found = outputs(model, images)
    network = plain()
    network.fc = nn.Identity()
    features = outputs(network, images)
    breed = nn.Linear(32, 3)
    breed.load_state_dict(model.fc.breed.state_dict())
    age = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 1)).eval()
    age.load_state_dict(model.fc.age.state_dict())
    assert list(found) == ["breed", "age"] and found["age"].shape == (4, 1)
    torch.testing.assert_close(found["breed"], breed(features).detach())
    torch.testing.assert_close(found["age"], age(features).detach())
    assert model.num_classes == 4 and model.class_names is None
    infos = {info.name: (info.num_classes, info.class_names) for info in model.head_info}
    assert infos == {"breed": (3, ("pug", "beagle", "collie")), "age": (1, None)}
    assert "head age: fc.age.3 (Linear), hidden layers of 8 with ReLU, 1 class," in model.explain()


@pytest.mark.parametrize(
    "name",
    [
        "squeezenet1_1",
        "densenet121",
        pytest.param("timm/efficientnet_lite0", marks=pytest.mark.sweep),
        pytest.param("timm/levit_128s", marks=pytest.mark.sweep),
    ],
)
def test_several_heads_on_other_networks(builder: HybridBuilder, name: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 224 if "levit" in name else 64, 224 if "levit" in name else 64)
    model = builder.from_backbone(name, None, hidden=[6], heads={"a": 2, "b": ["x", "y", "z"]})
    found = outputs(model, x)
    assert {key: tuple(value.shape) for key, value in found.items()} == {"a": (2, 2), "b": (2, 3)}
    same = outputs(again(model, tmp_path), x)
    assert all(torch.equal(same[key], value) for key, value in found.items())


def test_auxiliary_heads_give_a_dict_each(builder: HybridBuilder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = builder.from_torchvision(
            "googlenet", None, heads={"a": 2, "b": 3}, hidden=[6], options={"aux_logits": True}
        ).train()
    found = model(torch.randn(2, 3, 64, 64))
    assert type(found).__name__ == "GoogLeNetOutputs"
    assert [{k: tuple(v.shape) for k, v in each.items()} for each in found] == [
        {"a": (2, 2), "b": (2, 3)}
    ] * 3
    rows = model.aux1.fc2.b.weight.detach().clone()
    model.reset_classifier({"a": 5})
    assert torch.equal(model.aux1.fc2.b.weight, rows) and model.aux1.fc2.a.out_features == 5


@pytest.mark.parametrize("how", ["copied", "pickled", "saved", "compiled", "exported", "unpatched"])
def test_several_heads_survive(
    tiny: Any, lab: Any, images: Tensor, how: str, tmp_path: Path
) -> None:
    model = tiny({"layer3": {"wrap": "gate"}}, heads=HEADS, hidden=[16], dropout=0.1).eval()
    right = outputs(model, images)
    if how == "copied":
        model = copy.deepcopy(model)
    elif how == "pickled":
        model = pickle.loads(pickle.dumps(model))
    elif how == "saved":
        model = again(model, tmp_path, registry=lab().registry)
    elif how == "unpatched":
        model.unpatch()
    elif how == "compiled":
        found = torch.compile(model, backend="eager", fullgraph=True)(images)
        torch.testing.assert_close(found, right)
    elif how == "exported":
        found = torch.export.export(model, (images,)).module()(images)
        torch.testing.assert_close(found, right)
    found = outputs(model, images)
    assert list(found) == list(right)
    assert all(torch.equal(found[key], value) for key, value in right.items())
    with torch.no_grad():
        apart = model.forward_head(model.forward_features(images))
    assert all(torch.equal(apart[key], value) for key, value in right.items())


def test_one_of_several_heads_gets_other_classes(
    tiny: Any, lab: Any, images: Tensor, tmp_path: Path
) -> None:
    model = tiny(heads=HEADS, freeze_backbone=True)
    right = outputs(model, images)
    reports = model.reset_classifier({"breed": ["collie", "mutt"]})
    assert {name: (r.kept, r.new) for name, r in reports.items()} == {
        "breed": (("collie",), ("mutt",))
    }
    found = outputs(model, images)
    torch.testing.assert_close(found["breed"][:, 0], right["breed"][:, 2])
    assert torch.equal(found["age"], right["age"]) and found["breed"].shape == (4, 2)
    model.class_names = {"age": ["years"]}
    other = again(model, tmp_path, registry=lab().registry)
    assert other.head_info == model.head_info and other.head_info[1].class_names == ("years",)
    assert all(torch.equal(outputs(other, images)[k], v) for k, v in found.items())
    assert all(p.requires_grad == n.startswith("fc") for n, p in other.named_parameters())


@pytest.mark.parametrize(
    "wrong", [3, 0, ["a", "b"], {"bred": 3}, {"breed": 0}, {}, {"breed": "ab"}]
)
def test_wrong_classes_of_several_heads_change_nothing(
    tiny: Any, images: Tensor, wrong: Any
) -> None:
    model = tiny(heads=HEADS)
    before, right = model.head_info, outputs(model, images)
    with pytest.raises(HeadError):
        model.reset_classifier(wrong)
    assert model.head_info == before
    assert all(torch.equal(outputs(model, images)[k], v) for k, v in right.items())


def test_patch_report_reads_several_heads(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer3": {"wrap": {"type": "gate", "init": "paper"}}}, heads=HEADS)
    plain = model.patch_report(images).patches[0]
    assert plain.logits_change > 0 and plain.loss is None
    batch = images, torch.tensor([0, 1, 2, 0])

    def loss(logits: dict[str, Tensor], targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits["breed"], targets)

    found = model.patch_report(batch, loss).patches[0].loss
    right = loss(outputs(model, images), batch[1])
    assert found == pytest.approx(float(right))
    with pytest.raises(Exception, match="give loss="):
        model.patch_report(batch)


def test_patch_report_takes_targets_of_any_kind_with_a_loss(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer3": {"wrap": {"type": "gate", "init": "paper"}}}, heads=HEADS)
    targets = {"breed": torch.tensor([0, 1, 2, 0]), "age": torch.rand(4, 1)}

    def loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        breed = nn.functional.cross_entropy(logits["breed"], targets["breed"])
        return breed + nn.functional.mse_loss(logits["age"], targets["age"])

    found = model.patch_report([(images, targets)], loss).patches[0].loss
    assert found == pytest.approx(float(loss(outputs(model, images), targets)))
    with pytest.raises(ParameterError, match="targets of another kind need loss="):
        model.patch_report((images, targets))


class Softly(Tiny):
    """Does more with its logits than to return them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1, keepdim=True)


def test_a_network_that_mixes_its_logits_has_one_head(builder: HybridBuilder) -> None:
    with pytest.raises(HeadError, match="does more with the logits"):
        builder.from_module(
            Softly(), "stem", ["layer1", "layer2", "layer3"], "fc", heads={"a": 2, "b": 3}
        )


# -- what is written -------------------------------------------------------------------------------

RECIPE = """\
backbone:
  name: tiny
  weights: null
head:
  hidden: [16]
  activation: gelu
  dropout: 0.2
  heads:
    breed: [pug, beagle]
    age:
      num_classes: 1
      hidden: 8
"""


def test_a_file_and_keywords_build_the_same(lab: Any, tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    model = lab().build(tmp_path / "recipe.yaml")
    other = tiny(
        hidden=[16],
        activation="gelu",
        dropout=0.2,
        heads={"breed": ["pug", "beagle"], "age": {"num_classes": 1, "hidden": [8]}},
    )
    assert model.recipe == other.recipe and model.head_info == other.head_info
    assert repr(model.fc) == repr(other.fc)
    (tmp_path / "again.yaml").write_text(model.recipe.to_yaml())
    assert lab().build(tmp_path / "again.yaml").recipe == model.recipe


WRONG = {
    "hidden: [16]": [
        ("hidden: [0]", "5: hidden is a list of layer widths, such as"),
        ("hidden: wide", "5: hidden is a list of layer widths"),
        ("hidden: null", "6: activation is that of hidden layers"),
        ("hiden: [16]", "5: unknown key 'hiden' in 'head'. Did you mean 'hidden'?"),
        ("hidden: [16]\n  num_classes: 3", "9: each of the heads has its own classes"),
    ],
    "activation: gelu": [
        ("activation: gellu", "6: activation is one of relu, gelu"),
        ("activation: [gelu]", "6: activation is one of relu"),
    ],
    "breed: [pug, beagle]": [
        ("breed: [pug, pug]", "9: class_names is a list of different names"),
        ("breed: 0", "9: num_classes is a whole number from 1 to"),
        ("breed: {}", "9: the head 'breed' has no classes"),
        ("breed: pug", "9: num_classes is a whole number"),
        ("no-name: 2", "8: the name of a head is one part of a path, letters, digits and"),
    ],
    "hidden: 8": [
        ("widths: 8", "12: unknown key 'widths' in the head 'age'"),
        ("activation: relu", "12: activation is that of hidden layers"),
        ("class_names: [a, b]", "12: class_names has 2 entries"),
    ],
}


@pytest.mark.parametrize(
    ("old", "new", "said"), [(old, *each) for old, all_ in WRONG.items() for each in all_]
)
def test_a_wrong_head_is_named_by_its_line(
    lab: Any, tmp_path: Path, old: str, new: str, said: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace(old, new))
    line, said = said.split(": ", 1)
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:{line}:\d+: head\.") as caught:
        lab().build(tmp_path / "recipe.yaml")
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["type", "names", "forward"])
def test_a_head_cannot_have_the_name_of_an_attribute(tiny: Any, name: str) -> None:
    with pytest.raises(HeadError, match=f"cannot be called '{name}'"):
        tiny(heads={name: 2, "b": 3})


@pytest.mark.parametrize("name", ["a.b", "two words", "", 1])
def test_a_wrong_name_of_a_head_is_named(tiny: Any, name: Any) -> None:
    with pytest.raises(RecipeError, match=f"the name of a head is one part .* not {name!r}"):
        tiny(heads={name: 2, "b": 3})


# -- what was done by hand -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exchanged", "grown", "pruned", "several"])
def test_a_head_changed_by_hand_is_not_saved(
    builder: HybridBuilder, how: str, tmp_path: Path
) -> None:
    model = builder.from_backbone("timm/mobilenetv3_small_050", None, num_classes=4)
    last = model.get_classifier()
    if how == "exchanged":
        model.classifier = nn.Linear(last.in_features, 6)
    elif how == "grown":
        model.classifier = nn.Sequential(nn.Linear(last.in_features, 8), nn.ReLU(), nn.Linear(8, 4))
    elif how == "pruned":
        prune.random_unstructured(last, "weight", 0.5)
    else:
        model = builder.from_backbone("mnasnet0_5", None, heads={"a": 2, "b": 2})
        model.classifier[1].a = nn.Linear(1280, 3)
    with pytest.raises(Exception, match="reading it would build another model: classifier"):
        model.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_nothing_changes_without_these_options(tiny: Any, plain: Any) -> None:
    model = tiny()
    assert list(model.state_dict()) == list(plain().state_dict()) and type(model.fc) is nn.Linear
    assert [(i.name, i.module, i.num_classes) for i in model.head_info] == [("", "fc", 7)]
    assert TINY.head == "fc"
