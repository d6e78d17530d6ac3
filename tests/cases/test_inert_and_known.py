"""Nothing that is inert is silent; things are known by what they are; what builds also trains."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from case_tools import BESIDE, difference, gates, open_gates, ready, steps
from torch import Tensor, nn

import tvc_core
from tvc_core import BlockSpec, HybridBuilder, HybridModel, LocalPlugin, TvcError, audit

X = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(5))


def resnet18(**arguments: Any) -> HybridModel:
    arguments.setdefault("num_classes", 10)
    return HybridBuilder().from_torchvision("resnet18", None, **arguments)


# -- regularizers ----------------------------------------------------------------------------------

REGULARIZERS: list[dict[str, Any]] = [
    {"type": "drop_block", "params": {"p": 0.4, "block_size": 3}},
    {"type": "drop_block", "params": {"p": 0.4, "block_size": 2}},
    {"type": "stochastic_depth", "params": {"p": 0.5}},
    {"type": "stochastic_depth", "params": {"p": 0.5, "mode": "batch"}},
]


@pytest.mark.parametrize("block", REGULARIZERS, ids=lambda b: f"{b['type']}-{len(b['params'])}")
@pytest.mark.parametrize(
    "place",
    [
        "layer2",
        *(pytest.param(p, marks=pytest.mark.sweep) for p in ("layer2.0.conv1", "bn1", "layer3.1")),
    ],
)
def test_regularizers_act_from_the_first_step(block: Any, place: str) -> None:
    model = resnet18(patches={place: {"wrap": block}})
    plain = torchvision.models.resnet18(num_classes=10)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "patches" not in k})
    assert torch.equal(model.eval()(X), plain.eval()(X))
    maps: list[Tensor] = []
    model.get_submodule(place).register_forward_hook(lambda m, a, out: maps.append(out.clone()))
    model.train()
    x = torch.randn(6, 3, 48, 48)
    for _ in range(6):
        model(x)
    assert max(difference(each, maps[0]) for each in maps[1:]) > 0.1
    assert not gates(model)  # noise has no gate that could learn to close


def test_a_block_that_starts_as_the_identity_by_itself_has_no_gate() -> None:
    plugin = LocalPlugin("acme")

    class LayerScale(nn.Module):
        def __init__(self, in_channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(in_channels, in_channels, 1)
            self.scale = nn.Parameter(torch.zeros(in_channels, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * self.conv(x)

    class ZeroBeside(nn.Module):
        def __init__(self, in_channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(in_channels, in_channels, 1)
            self.last = nn.Conv2d(in_channels, in_channels, 1, bias=False)
            nn.init.zeros_(self.last.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.conv(x)))

    class Liar(nn.Conv2d):
        def __init__(self, in_channels: int) -> None:
            super().__init__(in_channels, in_channels, 1)

    plugin.add(
        BlockSpec(name="scaled", factory=LayerScale, starts_as="identity"),
        BlockSpec(name="beside", factory=ZeroBeside, starts_as="zero"),
        BlockSpec(name="liar", factory=Liar, starts_as="identity"),
    )
    build = HybridBuilder(plugins=[plugin]).from_torchvision
    patches = {
        "layer2": {"wrap": "scaled"},
        "layer3.1": {"inject": {"type": "beside", "position": "parallel"}},
    }
    model = build("resnet18", None, patches=patches, num_classes=10)
    assert gates(model) == {}
    plain = torchvision.models.resnet18(num_classes=10)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "patches" not in k})
    assert difference(model.eval()(X), plain.eval()(X)) < 1e-6
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "patches" in n}
    steps(model)
    moved = {n for n, p in model.named_parameters() if n in before and not p.equal(before[n])}
    assert moved == set(before)
    with pytest.raises(TvcError, match=r"liar"):
        build("resnet18", None, patches={"layer2": {"wrap": "liar"}}, num_classes=10)


# -- zeros -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "patch"),
    [
        ("layer3", {"inject": {**BESIDE, "init": "zero"}}),
        ("layer3.1", {"inject": {"type": "deform_conv", "position": "parallel", "init": "zero"}}),
        (
            "layer2.1.conv1",
            {
                "inject": {
                    "type": "conv_bn_act",
                    "position": "parallel",
                    "init": "zero",
                    "params": {"channels": 128},
                }
            },
        ),
        ("layer2", {"wrap": {"type": "conv_bn_act", "init": "zero", "params": {"channels": 128}}}),
        ("layer2", {"wrap": {"type": "se", "init": "zero"}}),
        ("layer3.0", {"inject": {"type": "cbam_block", "init": "zero", "position": "before"}}),
        ("layer4", {"wrap": {"type": "eca", "init": "zero"}}),
    ],
    ids=["stage", "block", "convolution", "wrapped", "two of four", "before", "one weight"],
)
def test_a_start_that_cannot_learn_is_refused_or_learns(target: str, patch: Any) -> None:
    try:
        model = resnet18(patches={target: patch})
    except TvcError as error:
        assert target in str(error)
        return
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "patches" in n}
    steps(model, 4, rate=0.1)
    still = {n for n, p in model.named_parameters() if n in before and p.equal(before[n])}
    assert not {n for n in still if n.endswith("weight")}


@pytest.mark.parametrize(
    ("down", "up", "stuck"), [(0, 0, "down.weight, up.weight"), (0, 1, ""), (1, 0, "")], ids=str
)
def test_two_factors_of_which_one_is_not_zero_learn(down: int, up: int, stuck: str) -> None:
    """As the two of LoRA: the second step moves what the first could not."""
    plugin = LocalPlugin("acme")

    @plugin.block
    class Factors(nn.Module):
        def __init__(self, in_channels: int) -> None:
            super().__init__()
            self.down = nn.Conv2d(in_channels, 4, 1, bias=False)
            self.up = nn.Conv2d(4, in_channels, 1)
            for layer, scale in ((self.down, down), (self.up, up)):
                with torch.no_grad():
                    layer.weight.mul_(scale)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.up(self.down(x))

    def build() -> HybridModel:
        patches = {"layer2": {"wrap": "factors"}}
        return HybridBuilder(plugins=[plugin]).from_torchvision(
            "resnet18", None, patches=patches, num_classes=10
        )

    if stuck:
        with pytest.raises(TvcError, match=f"acme:factors would never learn.* its {stuck}, since"):
            build()
        return
    model = build()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "patches" in n}
    start = {n: p for n, p in before.items() if n.endswith("weight")}
    assert [bool(p.any()) for p in start.values()] == [bool(down), bool(up)], "put back"
    steps(model, 6, rate=0.1)
    assert not [n for n, p in model.named_parameters() if n in start and p.equal(start[n])]


def test_audit_names_what_another_tool_silenced() -> None:
    model = ready("resnet18", {"layer2": {"wrap": "se"}, "layer3": {"wrap": "eca"}})
    for module in model.modules():
        if isinstance(module, tvc_core.Patch) and "SqueezeExcite" in repr(module):
            module.block.fc2.weight.data.zero_()  # a gate that says 1 / 2 everywhere
            module.block.fc1.weight.data.zero_()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()
    with audit(model, optimizer) as report:
        loss = nn.functional.cross_entropy(model(X), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not report.ok
    assert "fc1" in str(report)


# -- reports ---------------------------------------------------------------------------------------


def test_patch_report_of_batches_and_loaders() -> None:
    patches = {
        "layer1": {"inject": {"type": "se", "position": "before"}},
        "layer2.1": {"wrap": {"type": "se", "position": "branch"}},
        "layer3": {"inject": BESIDE},
        "layer4": {"wrap": "cbam_block"},
        "layer4.0.bn1": {"wrap": {"type": "frozen_batch_norm", "init": "paper"}},
    }
    model = ready("resnet18", patches)
    model.train()
    x, y = torch.randn(8, 3, 64, 64), torch.arange(8)
    dataset = torch.utils.data.TensorDataset(x, y)
    before = {n: b.clone() for n, b in model.state_dict().items()}
    whole = model.patch_report((x, y))
    loader = model.patch_report(torch.utils.data.DataLoader(dataset, batch_size=3))
    only = model.patch_report(x)
    assert all(torch.equal(b, before[n]) for n, b in model.state_dict().items())
    assert model.training
    assert [e.target for e in whole.patches] == [e.target for e in loader.patches]
    assert len(whole.patches) == 5
    for one, other, third in zip(whole.patches, loader.patches, only.patches, strict=True):
        for field in ("map_change", "logits_change", "loss_without"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-3, abs=1e-6)
        assert third.loss is None and third.logits_change == pytest.approx(one.logits_change)
        assert one.map_change > 0
        assert str(one.target) in str(whole)
    assert whole.num_images == loader.num_images == 8


def test_patch_report_refuses_nothing_and_nonsense() -> None:
    model = ready("resnet18", {"layer4": {"wrap": "se"}})
    for bad in ([], None, "images", torch.utils.data.DataLoader([]) if False else ()):
        with pytest.raises(TvcError):
            model.patch_report(bad)


# -- known by what it is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        "BatchNormAct2d",
        "GroupNormAct",
        "LayerNormAct2d",
        "EvoNorm2dS0",
        "EvoNorm2dB0",
        "LayerNorm2d",
        "RmsNorm",
        "FilterResponseNormTlu2d",
        "GroupNorm1",
        "FrozenBatchNormAct2d",
    ],
)
def test_normalizations_of_timm(layer: str) -> None:
    layers = pytest.importorskip("timm.layers")
    if not hasattr(layers, layer):
        pytest.skip(f"this timm has no {layer}")
    make = getattr(layers, layer)
    groups = {"GroupNormAct": {"num_groups": 4}, "EvoNorm2dS0": {"groups": 4}}
    norm = make(16, **groups.get(layer, {}))

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
            self.norm = norm
            self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.stem(x))
            if layer == "RmsNorm":
                y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            else:
                y = self.norm(y)
            return self.fc(self.pool(y).flatten(1))

    model = HybridBuilder().from_module(Last(), stem="stem", stages=[("conv", "norm")], head="fc")
    count = sum(p.numel() for p in model.norm.parameters())
    model.freeze_backbone(head="none", normalization="eval")
    assert model.count_parameters(trainable_only=True) == count
    assert "norm" in {n.path for part in model.freeze_report().parts for n in part.normalizations}


def test_exotic_normalizations_of_torch() -> None:
    class Own(nn.GroupNorm):
        """Somebody's, with a child."""

        def __init__(self, channels: int) -> None:
            super().__init__(4, channels)
            self.act = nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))

    for norm in (
        nn.SyncBatchNorm(16),
        nn.InstanceNorm2d(16, affine=True),
        nn.GroupNorm(4, 16),
        Own(16),
    ):
        network = nn.Sequential()
        network.stem = nn.Conv2d(3, 16, 3, 2, 1)
        network.stage = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), norm)
        network.pool, network.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        network.fc = nn.Linear(16, 4)
        model = HybridBuilder().from_module(network, stem="stem", stages=["stage"], head="fc")
        model.freeze_backbone(head="none", normalization="eval")
        assert model.count_parameters(trainable_only=True) == 32, type(norm)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16", "timm/test_vit"])
def test_heads_without_a_layer(name: str, tmp_path: Path) -> None:
    options = {"image_size": 32} if "vit" in name else {}
    model = HybridBuilder().from_backbone(name, None, num_classes=4, **options).eval()
    head = {"resnet18": "fc", "mobilenet_v3_small": "classifier", "vit_b_16": "heads"}.get(name)
    setattr(model, head or "head", nn.Identity())
    x = torch.randn(1, 3, 32, 32)
    out = model(x)
    assert out.shape[1] > 4
    assert model.num_classes == 0
    model.freeze_backbone()
    assert model.count_parameters(trainable_only=True) == 0
    model.unfreeze_all()
    assert model.train().training
    assert model.eval().explain()
    assert model.freeze_report().parts[-1].num_parameters == 0
    assert len(model.get_stage_outputs(x)) > 1
    loose = copy.deepcopy(model)
    assert torch.equal(loose(x), out)
    try:
        model.save(tmp_path / "m.safetensors")
    except tvc_core.WeightsError as error:
        assert (head or "head") in str(error)
    else:
        assert torch.equal(tvc_core.load(tmp_path / "m.safetensors")(x), out)


def test_the_model_without_a_classifier_says_so() -> None:
    model = resnet18(num_classes=0)
    assert model.num_classes == 0
    model.freeze_backbone()
    assert model.eval()(X).shape == (2, 512)


EXCHANGES: dict[str, tuple[str, str, Any]] = {
    "stem pooling": ("resnet18", "maxpool", lambda m: nn.Identity()),
    "first stage": ("resnet18", "layer1", lambda m: nn.Sequential(m.layer1[0])),
    "last stage": ("resnet18", "layer4", lambda m: nn.Conv2d(256, 512, 1, 2)),
    "stem convolution": ("resnet18", "conv1", lambda m: nn.Conv2d(3, 64, 3, 1, 1, bias=False)),
    "stem activation": ("resnet18", "relu", lambda m: nn.SiLU()),
    "a block": ("mobilenet_v3_small", "features.12", lambda m: nn.Conv2d(96, 576, 1)),
    "timm's stem": ("timm/test_resnet", "maxpool", lambda m: nn.Identity()),
    "timm's stage": ("timm/test_resnet", "layer4", lambda m: copy.deepcopy(m.layer4)),
}


@pytest.mark.parametrize("case", EXCHANGES, ids=lambda case: case.replace(" ", "-"))
def test_exchanged_stems_and_stages_give_their_maps(case: str) -> None:
    """Right is what stands there now, or an error that names it."""
    name, path, make = EXCHANGES[case]
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    model = HybridBuilder().from_backbone(name, None, num_classes=4).eval()
    count = len(model.get_stage_outputs(X))
    new = make(model).eval()
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
    seen: list[Tensor] = []
    new.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    for call in ("get_stage_outputs", "pyramid", "forward_features"):
        seen.clear()
        try:
            found = getattr(model, call)(X)
        except TvcError as error:
            assert path in str(error)
            continue
        if call == "get_stage_outputs":
            assert len(found) == count
        if path.startswith("layer"):
            maps = (
                found
                if isinstance(found, list)
                else [*found.values()]
                if isinstance(found, dict)
                else [found]
            )
            if call != "forward_features" or path == "layer4":
                assert any(
                    m.shape == seen[-1].shape and difference(m, seen[-1]) < 1e-6 for m in maps
                )
    assert model(X).shape == (2, 4)


def test_tied_modules_in_one_network() -> None:
    """One module that runs twice, under one name or two."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
            self.again = self.block
            self.stage = nn.Conv2d(8, 16, 3, 2, 1)
            self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stage(self.again(self.block(self.stem(x))))
            return self.fc(self.pool(x).flatten(1))

    network = Twice()
    count = sum(p.numel() for p in network.parameters())
    try:
        model = HybridBuilder().from_module(
            network, stem="stem", stages=[("block", "stage")], head="fc"
        )
    except TvcError as error:
        assert "again" in str(error) or "block" in str(error)
        return
    assert model.count_parameters() == count
    model.freeze_backbone(head="none")
    assert model.count_parameters(trainable_only=True) == 0


# -- taking parts out ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["layer2", "layer2.0", "layer2.0.conv1", "layer2.1.bn2", "conv1"])
@pytest.mark.parametrize("position", ["after", "before", "parallel"])
def test_a_patch_that_runs_outside_of_its_model_is_named_once(place: str, position: str) -> None:
    if position == "parallel" and place in ("layer2", "layer2.0", "layer2.0.conv1", "conv1"):
        pytest.skip("another shape beside it")
    block = "eca" if place == "conv1" and position == "before" else "se"
    model = ready("resnet18", {place: {"inject": {"type": block, "position": position}}})
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    part = nn.Sequential(stem, model.layer1, model.layer2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        part(X)
        part(X)
        model(X)
    ours = [str(w.message) for w in caught if "feature_extractor" in str(w.message)]
    assert len(ours) == 1
    assert place in ours[0]


def test_nothing_is_said_inside_of_the_model() -> None:
    model = ready("resnet18", {"layer2": {"wrap": "se"}})
    average = torch.optim.swa_utils.AveragedModel(model)
    wrapped = nn.Sequential(model, nn.Softmax(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X)
        model.forward(X)
        model.get_stage_outputs(X)
        model.forward_head(model.forward_features(X))
        average(X)
        wrapped(X)
        copy.deepcopy(model)(X)
        torch.func.functional_call(model, dict(model.named_parameters()), (X,))
        model.feature_extractor(["layer2", "layer4.0.conv1"])(X)


@pytest.mark.parametrize(
    "nodes", [["layer1", "layer3"], ["layer3.0.conv1"], ["layer2.1.bn2", "avgpool"], ["conv1"]]
)
def test_torchvisions_extractor_at_other_nodes(nodes: list[str]) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    patches = {
        "layer2.1.bn2": {"wrap": "se"},
        "layer3.0.conv1": {"wrap": "eca"},
        "layer3": {"wrap": "se"},
        "conv1": {"wrap": "se"},
        "layer1.0": {"inject": {"type": "se", "position": "before"}},
    }
    model = ready("resnet18", patches)
    right: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(node).register_forward_hook(
            lambda m, a, out, node=node: right.update({node: out.clone()})
        )
        for node in nodes
    ]
    model(X)
    for handle in handles:
        handle.remove()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = create_feature_extractor(model, nodes)(X)
    for node in nodes:
        named = any(node in str(w.message) for w in caught)
        assert named or difference(found[node], right[node]) < 1e-5, node


def test_an_extractor_owns_what_it_runs() -> None:
    patches = {"layer2": {"wrap": "se"}, "layer3": {"inject": BESIDE}}
    model = ready("resnet18", patches)
    right = model.get_stage_outputs(X)
    extractor = model.feature_extractor({"layer2": "fine", "layer3": "coarse"})
    found = extractor(X)
    assert list(found) == ["fine", "coarse"]
    assert difference(found["fine"], right[2]) < 1e-6
    assert difference(found["coarse"], right[3]) < 1e-6
    names = dict(extractor.named_parameters())
    assert any("se" in n and n.endswith("alpha") for n in names)
    net = nn.Sequential(extractor)
    loss = sum(each.square().mean() for each in net(X).values())
    loss.backward()
    assert all(
        p.grad is not None
        for p in model.parameters()
        if p is gates(model).get("x")
        or "patches" in "".join(n for n, q in model.named_parameters() if q is p)
    )
    copied = copy.deepcopy(net).double()
    assert copied(X.double())["fine"].dtype == torch.float64
    assert difference(extractor(X)["fine"], right[2]) < 1e-6
    for bad in ([], ["layer9"], {"nowhere": "x"}):
        with pytest.raises(TvcError):
            model.feature_extractor(bad)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(extractor)).eval()
    assert difference(converted(X)["coarse"], right[3]) < 1e-6


# -- what builds also trains -----------------------------------------------------------------------

NETWORKS = [
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "efficientnet_b0",
    "regnet_y_400mf",
    "regnet_x_400mf",
    "densenet121",
    "googlenet",
    "alexnet",
    "vgg11_bn",
    "convnext_tiny",
    "swin_t",
    "efficientnet_lite0",
    "vit_b_16",
    "maxvit_t",
]
SMALL = [
    "resnet18",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "regnet_x_400mf",
]
SIDES = {"vit_b_16": 64, "maxvit_t": 224}  # ViT is built for its size


def random_patch(rng: random.Random, paths: list[str], blocks: list[str]) -> tuple[str, Any]:
    op = rng.choice(["wrap", "inject", "replace"])
    block: dict[str, Any] = {"type": rng.choice(blocks)}
    if op != "replace":
        block["position"] = rng.choice(["after", "before", "parallel", "branch"])
        if op == "wrap" and block["position"] not in ("after", "branch"):
            block["position"] = "after"
    if rng.random() < 0.3:
        block["init"] = rng.choice(["paper", "zero", "kaiming", "xavier", "identity"])
    return rng.choice(paths), {op: block}


def random_patches(name: str, number: int, seed: int, side: int) -> tuple[int, list[str]]:
    """Return how many random patches build, and what is wrong with those that do."""
    rng = random.Random(f"{name} {seed}")
    builder = HybridBuilder()
    options: dict[str, Any] = {"image_size": side} if name == "vit_b_16" else {}
    paths = [path for path, _ in builder.from_backbone(name, None).named_modules() if path]
    built, wrong = 0, []
    for index in range(number):
        target, patch = random_patch(rng, paths, builder.list_blocks())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                classes = None if index % 2 else 3
                model = builder.from_backbone(
                    name, None, patches={target: patch}, num_classes=classes, **options
                )
        except TvcError as error:
            if len(str(error)) > 4000:
                wrong.append(f"{name} {target} {patch}: long error")
            continue
        except Exception as error:
            wrong.append(f"{name} {target} {patch}: raw {error!r:.200}")
            continue
        built += 1
        try:
            # clipped: a pooling in the place of a normalization makes gradients of 1e11
            losses = steps(model, 3, side, 3, rate=1e-3, batch=2, clip=1.0)
            if not all(torch.tensor(losses).isfinite()):
                wrong.append(f"{name} {target} {patch}: {losses}")
        except Exception as error:
            wrong.append(f"{name} {target} {patch}: {error!r:.200}")
    return built, wrong


@pytest.mark.parametrize("name", SMALL)
def test_a_few_random_patches_that_build_also_train(name: str) -> None:
    _, wrong = random_patches(name, 5, seed=0, side=64)
    assert wrong == []


@pytest.mark.sweep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NETWORKS)
def test_100_random_patches_that_build_also_train(name: str) -> None:
    built, wrong = random_patches(name, 100, seed=1, side=SIDES.get(name, 96))
    assert wrong == []
    assert built >= 15


@pytest.mark.parametrize(
    ("name", "patches", "side"),
    [
        ("alexnet", {"features.5": {"wrap": "drop_block"}}, 224),
        ("resnet18", {"layer3": {"wrap": {"type": "drop_block", "params": {"block_size": 4}}}}, 64),
        ("resnet18", {"layer4.*": {"wrap": {"type": "drop_block", "position": "branch"}}}, 64),
        ("squeezenet1_1", {"classifier.1": {"wrap": "se"}}, 64),
        ("squeezenet1_1", {"classifier.1": {"inject": {"type": "se", "position": "before"}}}, 64),
        ("resnet18", {"layer1.0.relu": {"wrap": "se"}}, 64),
        ("resnet18", {"layer1.1.bn1": {"replace": "frozen_batch_norm"}}, 64),
        (
            "vgg11_bn",
            {"features.1": {"replace": {"type": "conv_bn_act", "params": {"channels": 64}}}},
            64,
        ),
        ("mobilenet_v3_small", {"classifier.0": {"wrap": "mlp"}}, 64),
        ("densenet121", {"features.norm5": {"wrap": "se"}}, 64),
    ],
)
def test_training_steps_of_awkward_places(name: str, patches: Any, side: int) -> None:
    try:
        model = HybridBuilder().from_backbone(name, None, patches=patches, num_classes=3)
    except TvcError as error:
        assert next(iter(patches)) in str(error)
        return
    assert all(torch.tensor(steps(model, 2, side, 3, rate=1e-3, batch=2)).isfinite())


def test_densenets_last_map_is_what_is_pooled() -> None:
    """torchvision's forward: relu(features(x)), then pooling."""
    model = HybridBuilder().from_torchvision("densenet121", None, num_classes=3).eval()
    expected = torch.relu(model.features(X))
    assert difference(model.forward_features(X), expected) < 1e-6
    assert difference(model.get_stage_outputs(X, [-1])[0], expected) < 1e-6
    assert float(model.get_stage_outputs(X)[4].min()) >= 0
    patched = open_gates(
        HybridBuilder()
        .from_torchvision("densenet121", None, num_classes=3, patches={"stage:-1": {"wrap": "se"}})
        .eval()
    )
    assert difference(patched.forward_head(patched.forward_features(X)), patched(X)) < 1e-6
