"""Every classifier of torchvision keeps the two promises. `make test` runs a few, `make sweep`
all.
"""

from __future__ import annotations

import copy
import gc
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import pytest
import torch
import torchvision
from sweep_page import CHECKS, as_row
from torch import Tensor, nn

from tvc_core import BackboneSpec, HybridBuilder, HybridModel, Registry, WeightsSpec

SMALLEST = (
    "resnet18", "mobilenet_v3_small", "squeezenet1_1", "densenet121", "googlenet",
    "shufflenet_v2_x0_5", "swin_t",
)  # fmt: skip
"""Of the families that differ most in what tvc does about them: their layouts, heads without a
linear layer or beside the path, names of files, functions behind the last stage.
"""

QUICK = ("logits", "keys", "head", "stages", "features", "se", "eca", "cbam_block", "freeze")
BLOCKS = ("se", "eca", "cbam_block")

NAMES = [
    offer.spec.name for offer in Registry().all(BackboneSpec) if offer.spec.origin == "torchvision"
]
LARGE = ("vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_128gf")
UNPADDED = ("alexnet", "squeezenet", "inception")
"""Families with layers that cut borders off, so that a map is not exactly side / stride."""


def marks(name: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a swept backbone: the largest run one after the other, since two at once
    need too much memory.
    """
    group = [pytest.mark.xdist_group("large")] if name in LARGE else []
    return [pytest.mark.sweep, pytest.mark.timeout(3600), *group]


@pytest.fixture
def official(
    made_up: Callable[..., dict[str, Path]], request: pytest.FixtureRequest
) -> Iterator[str]:
    """Name of a backbone whose made-up official file is there during the test, and deleted after it
    if it is a big one.
    """
    name = request.param
    files = made_up(f"{name}:{chosen_weights(name).name}")
    yield name
    gc.collect()
    if name not in SMALLEST:
        for path in files.values():
            path.unlink()


def spec_of(name: str) -> BackboneSpec:
    return Registry().resolve(BackboneSpec, name).spec


def chosen_weights(name: str) -> WeightsSpec:
    """Return the default weights, or those for the smallest image where a network accepts one size
    only.
    """
    spec = spec_of(name)
    default = spec.find_weights(spec.default_weights or "")
    assert default is not None
    return min(spec.weights, key=lambda weights: weights.crop_size) if spec.fixed_size else default


def images(height: int, width: int | None = None, count: int = 2, seed: int = 0) -> Tensor:
    """Return images [count, 3, height, width]."""
    return torch.randn(
        count, 3, height, width or height, generator=torch.Generator().manual_seed(seed)
    )


def torchvisions_own(name: str) -> nn.Module:
    """Return torchvision's network with the tensors of the made-up official file; made without
    drawing random ones first.
    """
    trained = chosen_weights(name)
    url = torchvision.models.get_model_weights(name)[trained.name].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    options = {
        **trained.options,
        **({"init_weights": False} if "init_weights" in spec_of(name).options else {}),
    }
    # RegNet computes its widths with tensors
    with nullcontext() if name.startswith("regnet") else torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **options)
    tensors = torch.load(file, weights_only=True)
    if name.startswith("densenet"):  # official files have older names, such as norm.1 for norm1
        parts = re.compile(r"\.(norm|conv)\.(?=[12]\.)")
        tensors = {parts.sub(r".\1", key): tensor for key, tensor in tensors.items()}
    # pretrained, auxiliary heads are dropped
    for key in [key for key in tensors if key.startswith(("aux", "AuxLogits"))]:
        if key not in model.state_dict():
            del tensors[key]  # in place: MNASNet needs the metadata of the state dict
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_()


class Network:
    """One backbone under test: torchvision's own, and hybrids of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec = spec_of(name)
        self.weights = chosen_weights(name)
        smallest = -(-max(64, self.spec.min_size) // 32) * 32
        self.side = self.weights.crop_size if self.spec.fixed_size else smallest
        # Inception's auxiliary head, which runs in training, needs more than the network
        self.training_side = 299 if name == "inception_v3" else self.side
        self.own: nn.Module | None = torchvisions_own(name).eval()
        self.x = images(self.side)
        with torch.no_grad():
            self.expected = self.own(self.x)

    @cached_property
    def model(self) -> HybridModel:
        """The hybrid with three blocks at every stage, in eval mode, all gates closed."""
        patches = {
            paths[-1]: [{"wrap": block} for block in BLOCKS] for paths in self.spec.stage_paths
        }
        return self.build(patches=patches).eval()

    def build(self, **arguments: object) -> HybridModel:
        return HybridBuilder().from_torchvision(self.name, self.weights.name, **arguments)  # type: ignore[arg-type]

    def open(self, alpha: float) -> None:
        """Open or close all gates."""
        with torch.no_grad():
            for record in self.model.patch_records:
                self.model.get_submodule(record.paths[0]).alpha.fill_(alpha)


# -- the checks, in the order of the table's columns -----------------------------------------------


def check_logits(network: Network) -> None:
    plain = network.build().eval()
    with torch.no_grad():
        assert torch.equal(plain(network.x), network.expected), (
            "an unpatched hybrid is not torchvision's network"
        )
        features = plain.forward_features(network.x)
        assert torch.equal(plain.forward_head(features), network.expected), (
            "forward_head(forward_features(x)) is not forward(x)"
        )
    assert isinstance(plain, type(network.own))
    assert list(plain.state_dict()) == list(network.own.state_dict())


def check_keys(network: Network) -> None:
    model, own = network.model, network.own
    result = model.load_state_dict(own.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys and all(key.startswith("patches.") for key in result.missing_keys)
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in own.state_dict().items())


def check_head(network: Network) -> None:
    own = network.own.state_dict()
    layers = [
        path
        for path, layer in network.own.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    new = [
        layers[-1],
        *(path for path in ("aux1.fc2", "aux2.fc2", "AuxLogits.fc") if path in layers),
    ]
    model = network.build(num_classes=7, freeze_backbone=True)
    state = model.state_dict()
    assert list(state) == list(own)
    for key, value in own.items():
        if key.rpartition(".")[0] in new:
            assert state[key].shape == (7, *value.shape[1:]), (
                f"{key} has the shape {list(state[key].shape)}"
            )
        else:
            assert torch.equal(state[key], value), f"{key} is not the pretrained one"
    before = {path: model.get_submodule(path).weight.detach().clone() for path in new}
    step(
        model,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
        network,
        classes=7,
    )
    assert all(
        not torch.equal(model.get_submodule(path).weight, weight) for path, weight in before.items()
    )
    with torch.no_grad():
        assert model.eval()(network.x).shape == (2, 7)


def check_stages(network: Network) -> None:
    spec, model = network.spec, network.model
    paths = [
        *spec.stem,
        *(path for stage in spec.stage_paths for path in stage),
        *spec.auxiliary,
        spec.head,
    ]
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        owners = [path for path in paths if name == path or name.startswith(f"{path}.")]
        assert name.startswith("patches.") or len(owners) == 1, f"{name} belongs to {owners}"
    count = len(spec.stage_paths)
    counts = []
    for first in range(count, -1, -1):
        model.freeze_backbone(unfreeze_stages=list(range(first, count)))
        thawed = [path for stage in spec.stage_paths[first:] for path in stage]
        # learns with the stage that it is for
        thawed += [path for path, stage in spec.auxiliary.items() if stage >= first]
        for name, parameter in model.named_parameters():
            inside = any(
                name == path or name.startswith(f"{path}.")
                for path in (*thawed, spec.head, "patches")
            )
            assert parameter.requires_grad == inside, f"{name} with the stages from {first} thawed"
        counts.append(model.count_parameters(trainable_only=True))
    model.unfreeze_all()
    counts.append(model.count_parameters(trainable_only=True))
    assert counts == sorted(set(counts)), (
        "thawing one more stage does not strictly increase what is trainable"
    )
    assert counts[-1] == model.count_parameters()


@torch.no_grad()
def check_features(network: Network) -> None:
    model, spec = network.model, network.spec
    side = network.side
    sizes = (
        [(side, side)]
        if spec.fixed_size
        else [(side, side), (side, side + 64), (side + 96, side + 32)]
    )
    for height, width in sizes:
        x = images(height, width, count=1, seed=height + width)
        features = model.get_stage_outputs(x)
        expected = maps_of_torchvisions(network, x)
        assert len(features) == len(expected) == len(model.stage_info) + 1
        for found, wanted in zip(features, expected, strict=True):
            assert torch.equal(found, wanted), (
                f"a map {list(found.shape)} is not torchvision's {list(wanted.shape)}"
            )
        for info in model.stage_info:
            feature = features[info.stage + 1]
            assert feature.shape[1] == info.channels
            for image, found in zip((height, width), feature.shape[2:], strict=True):
                if spec.family in UNPADDED:
                    assert abs(found - image / info.stride) <= 3, (
                        "layers without padding cut off more than the border"
                    )
                else:
                    assert found * info.stride == image, (
                        f"stage {info.stage}: {image} become {found}, stride {info.stride}"
                    )


def maps_of_torchvisions(network: Network, x: Tensor) -> list[Tensor]:
    """Return what stem and stages of torchvision's network return, copied before anything can
    overwrite it, as [N, C, H, W].
    """
    maps: list[Tensor] = []
    modules = dict(network.own.named_modules())
    last = [
        [path for path in paths if path in modules][-1]
        for paths in (network.spec.stem, *network.spec.stage_paths)
    ]
    handles = [
        modules[path].register_forward_hook(lambda _, args, output: maps.append(output.clone()))
        for path in last
    ]
    network.own(x)
    for handle in handles:
        handle.remove()
    if network.spec.family == "densenet":  # torchvision calls a function on what norm5 returns
        maps[-1] = torch.relu(maps[-1])
    if network.spec.family == "swin":
        return [found.permute(0, 3, 1, 2) for found in maps]
    if network.spec.family == "vit":  # behind the class token, row after row
        tokens = [found[:, 1:].transpose(1, 2) for found in maps]
        return [
            found.reshape(*found.shape[:2], *[round(found.shape[2] ** 0.5)] * 2) for found in tokens
        ]
    return maps


def check_block(block: str) -> Callable[[Network], None]:
    """Return the check of this block at every stage, by one forward and one backward pass: what the
    logits do not depend on has no gradient.
    """

    def check(network: Network) -> None:
        model = network.model
        with torch.no_grad():
            assert torch.equal(model(network.x), network.expected), (
                "the patched hybrid does not start as its backbone"
            )
        assert model.step0_difference == 0.0
        patches = {
            record.paths[0]: model.get_submodule(record.paths[0])
            for record in model.patch_records
            if record.block == f"tvc-attention:{block}"
        }
        assert len(patches) == len(model.stage_info)
        ran: list[str] = []
        handles = []
        for path, patch in patches.items():
            patch.alpha.data.fill_(0.5)
            handles.append(patch.register_forward_hook(lambda *_, path=path: ran.append(path)))
        opened = model(network.x[:1])
        for handle in handles:
            handle.remove()
        assert sorted(ran) == sorted(patches), "not every patch ran once in a forward pass"
        gate = {path: patch.alpha for path, patch in patches.items()}
        inside = {path: [*patch.block.parameters()] for path, patch in patches.items()}
        wanted = [*gate.values(), *(each for group in inside.values() for each in group)]
        direction = torch.randn(opened.shape, generator=torch.Generator().manual_seed(0))
        found = torch.autograd.grad(opened, wanted, direction, allow_unused=True)
        for patch in patches.values():
            patch.alpha.data.zero_()
        moves = {
            id(each): gradient is not None and bool(gradient.abs().max() > 0)
            for each, gradient in zip(wanted, found, strict=True)
        }
        for path in patches:
            assert moves[id(gate[path])], f"opening the gate of {path} changes nothing"
            # not of each: all of a narrow hidden layer can be dead on one image
            assert any(moves[id(each)] for each in inside[path]), (
                f"the parameters of {path} change nothing"
            )

    return check


@torch.no_grad()
def check_compile(network: Network) -> None:
    network.open(0.5)
    assert not torch.equal(network.model(network.x), network.expected)
    torch._dynamo.reset()
    compiled = torch.compile(network.model, fullgraph=True, backend="eager")
    same(compiled(network.x), network.model, network.x, "compiled")
    network.open(0.0)
    assert torch.equal(network.model(network.x), network.expected)
    same(compiled(network.x), network.model, network.x, "compiled, with gates closed again,")
    torch._dynamo.reset()


@torch.no_grad()
def check_export(network: Network) -> None:
    network.open(0.5)
    program = torch.export.export(
        network.model, (network.x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    x = images(network.side, count=3, seed=1)
    same(program.module()(x), network.model, x, "exported, with another batch size,")
    network.open(0.0)


def same(found: Tensor, model: nn.Module, x: Tensor, what: str) -> None:
    """Compare logits with a model's: equal up to the rounding of another order of sums."""
    expected = model(x)
    largest, difference = expected.abs().max(), (found - expected).abs().max()
    bound = 1e-5 * largest
    if difference >= bound:  # a deep network may magnify what its first layers round
        exact = copy.deepcopy(model).double()(x.double())
        bound = max(bound, 4 * (exact - expected).abs().max())
    said = f"{what} the logits differ by {difference / largest:.2g} of the largest"
    assert difference < bound, said


@torch.no_grad()
def check_pickle(network: Network) -> None:
    model = network.model
    network.open(0.5)
    model.freeze_backbone(unfreeze_stages=[-1])
    expected, frozen = (
        model(network.x),
        {name for name, p in model.named_parameters() if not p.requires_grad},
    )
    modes = [path for path, module in model.train().named_modules() if module.training]
    model.eval()
    for copied in (lambda: pickle.loads(pickle.dumps(model)), lambda: copy.deepcopy(model)):
        other = copied()
        state, theirs = model.state_dict(), other.state_dict()
        assert list(state) == list(theirs) and all(
            torch.equal(state[key], theirs[key]) for key in state
        )
        assert torch.equal(other(network.x), expected)
        assert other.patch_records == model.patch_records and other.stage_info == model.stage_info
        assert other.freeze_state() == model.freeze_state()
        assert {name for name, p in other.named_parameters() if not p.requires_grad} == frozen
        assert [path for path, module in other.train().named_modules() if module.training] == modes
        other.get_submodule(other.patch_records[0].paths[0]).alpha.zero_()
        assert not torch.equal(other.eval()(network.x), expected), (
            "the copy's hook runs somebody else's patch"
        )
        assert torch.equal(model(network.x), expected), "the copy shares tensors with the model"
        del other, theirs
        gc.collect()
    model.unfreeze_all()
    network.open(0.0)


def check_freeze(network: Network) -> None:
    model, spec = network.model, network.spec
    model.train()
    model.freeze_backbone()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    learns = ("patches.", f"{spec.head}.")
    assert trainable == {name for name, _ in model.named_parameters() if name.startswith(learns)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for seed in range(2):
        step(model, optimizer, network, seed=seed)
        model.train()
    after = model.state_dict()
    for name in before:
        if not name.startswith(learns):
            assert torch.equal(after[name], before[name]), f"the frozen {name} moved"
    assert all(
        not torch.equal(after[name], before[name]) for name in trainable if name.endswith("alpha")
    )
    model.unfreeze_all()


def step(
    model: HybridModel,
    optimizer: torch.optim.Optimizer,
    network: Network,
    classes: int = 1000,
    seed: int = 0,
) -> None:
    model.train()
    optimizer.zero_grad()
    output = model(images(network.training_side, seed=seed))
    logits = [output] if isinstance(output, Tensor) else list(output)  # auxiliary logits, too
    assert all(found.shape == (2, classes) for found in logits)
    sum(nn.functional.cross_entropy(found, torch.tensor([1, 2])) for found in logits).backward()
    optimizer.step()


FUNCTIONS: dict[str, Callable[[Network], None]] = {
    "logits": check_logits,
    "keys": check_keys,
    "head": check_head,
    "stages": check_stages,
    "features": check_features,
    **{block: check_block(block) for block in BLOCKS},
    "compile": check_compile,
    "export": check_export,
    "pickle": check_pickle,
    "freeze": check_freeze,
}
NEED_OWN = ("logits", "keys", "head", "features")


def failures(network: Network, checks: tuple[str, ...]) -> dict[str, str]:
    """Run checks and return those that fail, each with what it said."""
    found: dict[str, str] = {}
    for index, check in enumerate(checks):
        try:
            FUNCTIONS[check](network)
        except Exception as error:  # whatever a check raises is a failed cell
            found[check] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if not set(checks[index + 1 :]) & set(NEED_OWN):
            network.own = None  # the largest have 2.6 GB
        gc.collect()
    return found


# -- the tests -------------------------------------------------------------------------------------


def test_every_classifier_of_the_installed_torchvision_has_a_plugin() -> None:
    assert sorted(NAMES) == sorted(torchvision.models.list_models(module=torchvision.models))
    assert len(NAMES) >= 80


@pytest.mark.parametrize("official", SMALLEST, indirect=True)
def test_a_small_member_of_a_family_keeps_the_promises(official: str) -> None:
    assert failures(Network(official), QUICK) == {}


@pytest.mark.parametrize(
    "official", [pytest.param(name, marks=marks(name)) for name in NAMES], indirect=True
)
def test_a_backbone_keeps_the_promises(
    official: str, record_property: Callable[[str, object], None]
) -> None:
    """One test for each backbone, since building the large ones is what takes the time."""
    network = Network(official)
    found = failures(network, tuple(CHECKS))
    row = {
        "image": f"{network.side}x{network.side}",
        "patches": len(network.model.patch_records),
        "cells": ["**failed**" if check in found else "yes" for check in CHECKS],
        "failures": [f"{check}: {text}" for check, text in found.items()],
    }
    record_property(*as_row("classifiers", official, NAMES, **row))
    assert found == {}
