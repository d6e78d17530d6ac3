"""Every classifier of torchvision keeps the two promises. `make test` runs a small one of each family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tvc_core import BackboneSpec, HybridBuilder, HybridModel, Registry, WeightsSpec

SMALLEST = (
    *("resnet18", "efficientnet_b0", "convnext_tiny", "mobilenet_v3_small", "alexnet", "vgg11", "squeezenet1_1", "densenet121"),
    *("googlenet", "inception_v3", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_x_400mf", "vit_b_32", "swin_t", "maxvit_t"),
)
BLOCKS = ("se", "eca", "cbam_block")

NAMES = [offer.spec.name for offer in Registry().all(BackboneSpec) if offer.spec.origin == "torchvision"]
LARGE = ("vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_128gf")


def marks(name: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a swept backbone: the largest run one after the other, since two at once need too much memory."""
    group = [pytest.mark.xdist_group("large")] if name in LARGE else []
    return [pytest.mark.sweep, pytest.mark.timeout(3600), *group]


CASES = [name if name in SMALLEST else pytest.param(name, marks=marks(name)) for name in NAMES]


@pytest.fixture
def official(made_up: Callable[..., dict[str, Path]], request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a backbone whose made-up official file is there during the test, and deleted after it if it is a big one."""
    name = request.param
    files = made_up(f"{name}:{chosen_weights(name).name}")
    yield name
    if name not in SMALLEST:
        for path in files.values():
            path.unlink()


def spec_of(name: str) -> BackboneSpec:
    return Registry().resolve(BackboneSpec, name).spec


def chosen_weights(name: str) -> WeightsSpec:
    """Return the default weights, or those for the smallest image where a network accepts one size only."""
    spec = spec_of(name)
    default = spec.find_weights(spec.default_weights or "")
    assert default is not None
    return min(spec.weights, key=lambda weights: weights.crop_size) if spec.fixed_size else default


def images(name: str, seed: int = 0) -> Tensor:
    """Return images [2, 3, side, side] of a side that the backbone accepts, small where it has a choice."""
    spec = spec_of(name)
    needs_all = spec.fixed_size or name == "inception_v3"  # whose auxiliary head in training needs more than the network
    side = chosen_weights(name).crop_size if needs_all else max(64, spec.min_size)
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def torchvisions_own(name: str) -> nn.Module:
    trained = chosen_weights(name)
    url = torchvision.models.get_model_weights(name)[trained.name].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    model = torchvision.models.get_model(name, weights=None, **trained.options)
    tensors = torch.load(file, weights_only=True)
    own = model.state_dict()
    own.update({key: value for key, value in tensors.items() if key in own})  # pretrained, auxiliary heads are dropped
    model.load_state_dict(own)
    return model


def stage_paths(name: str) -> list[str]:
    return [paths[-1] for paths in spec_of(name).stage_paths]


def fully_patched(name: str) -> HybridModel:
    patches = {path: [{"wrap": block} for block in BLOCKS] for path in stage_paths(name)}
    return HybridBuilder().from_torchvision(name, chosen_weights(name).name, patches=patches)


def test_every_classifier_of_the_installed_torchvision_has_a_plugin() -> None:
    assert sorted(NAMES) == sorted(torchvision.models.list_models(module=torchvision.models))
    assert len(NAMES) >= 80


@pytest.mark.parametrize("official", CASES, indirect=True)
def test_a_backbone_keeps_the_promises(official: str) -> None:
    """One test for each backbone, since building the large ones is what takes the time."""
    own = torchvisions_own(official).eval()
    plain = HybridBuilder().from_torchvision(official, chosen_weights(official).name).eval()
    x = images(official)
    with torch.no_grad():
        expected = own(x)
        assert torch.equal(plain(x), expected), "an unpatched hybrid computes something else than torchvision's network"
    assert list(plain.state_dict()) == list(own.state_dict())
    assert isinstance(plain, type(own))
    del plain

    model = fully_patched(official).eval()
    check_keys(model, own)
    check_identity_and_effect(model, x, expected)
    check_features(model, x)
    check_partition(model)
    check_freezing(fully_patched(official), own, official)


def check_keys(model: HybridModel, own: nn.Module) -> None:
    result = model.load_state_dict(own.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys and all(key.startswith("patches.") for key in result.missing_keys)
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in own.state_dict().items())


@torch.no_grad()
def check_identity_and_effect(model: HybridModel, x: Tensor, expected: Tensor) -> None:
    assert torch.equal(model(x), expected), "the patched hybrid does not start as its backbone"
    assert model.step0_difference == 0.0
    assert len(model.patch_records) == len(BLOCKS) * len(model.stage_info)
    for record in model.patch_records:
        (path,) = record.paths
        patch = model.get_submodule(path)
        ran: list[str] = []
        handle = patch.register_forward_hook(lambda *_, ran=ran: ran.append("ran"))
        model(x)
        handle.remove()
        assert ran == ["ran"], f"{path} did not run once in a forward pass"
        patch.alpha.fill_(0.5)
        opened = model(x)
        assert not torch.equal(opened, expected), f"opening the gate of {path} changes nothing"
        kept = [parameter.clone() for parameter in patch.block.parameters()]
        for parameter in patch.block.parameters():
            parameter.add_(0.5)
        assert not torch.equal(model(x), opened), f"perturbing the parameters of {path} changes nothing"
        for parameter, value in zip(patch.block.parameters(), kept, strict=True):
            parameter.copy_(value)
        patch.alpha.zero_()
    assert torch.equal(model(x), expected)


@torch.no_grad()
def check_features(model: HybridModel, x: Tensor) -> None:
    features = model.get_stage_outputs(x)
    assert len(features) == len(model.stage_info) + 1
    for info in model.stage_info:
        feature = features[info.index + 1]
        assert feature.ndim == 4
        assert feature.shape[1] == info.channels
        for side, found in zip(x.shape[2:], feature.shape[2:], strict=True):
            assert abs(found - side / info.stride) <= 3, "layers without padding cut off at most the border"
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))


def check_partition(model: HybridModel) -> None:
    spec = spec_of(model.recipe.backbone)
    paths = [*spec.stem, *(path for stage in spec.stage_paths for path in stage), *spec.auxiliary, spec.head]
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        owners = [path for path in paths if name == path or name.startswith(f"{path}.")]
        assert name.startswith("patches.") or len(owners) == 1, f"{name} belongs to {owners}"


def check_freezing(model: HybridModel, own: nn.Module, name: str) -> None:
    spec = spec_of(model.recipe.backbone)
    model.train()
    model.freeze_backbone()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {name for name, _ in model.named_parameters() if name.startswith(("patches.", f"{spec.head}."))}
    assert trainable == expected
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        output = model(images(name, seed=step))
        logits = output if isinstance(output, Tensor) else output[0]  # Inception in training adds its auxiliary logits
        nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
        optimizer.step()
        model.train()
    after = model.state_dict()
    for name in own.state_dict():
        if not name.startswith(f"{spec.head}."):
            assert torch.equal(after[name], before[name]), f"the frozen {name} moved"
    assert all(not torch.equal(after[name], before[name]) for name in trainable if name.endswith("alpha"))
    counts = []
    for first in range(len(spec.stage_paths), -1, -1):
        model.freeze_backbone(unfreeze_stages=list(range(first, len(spec.stage_paths))))
        counts.append(model.count_parameters(trainable_only=True))
    model.unfreeze_all()
    counts.append(model.count_parameters(trainable_only=True))
    assert counts == sorted(set(counts)), "thawing one more stage does not strictly increase what is trainable"
    assert counts[-1] == model.count_parameters()
