"""A U-Net on a hybrid: what it computes, at any size of the images, and that it learns."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import timm
import torch
import torchvision
from planted import CLASSES, intersection_over_union, learn
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor
from tvc_dense import UNet, unet

from tvc_core import HybridBuilder, HybridModel, ParameterError

FIVE = {
    "resnet18": (80, 3e-3),
    "efficientnet_b0": (60, 3e-3),
    "convnext_tiny": (60, 2e-3),
    "swin_t": (80, 2e-3),
    "timm/regnety_002": (60, 3e-3),
}
"""Steps and largest rate."""


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(0)


def hybrid(name: str, **arguments: Any) -> HybridModel:
    return HybridBuilder().from_backbone(name, None, **arguments)


def settle(network: nn.Module) -> nn.Module:
    """Give every normalization statistics, scale and shift of its own."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*network.named_buffers(), *network.named_parameters()]:
        if tensor.dim() == 1 and tensor.is_floating_point():
            value = torch.rand(tensor.shape, generator=generator)
            tensor.data.copy_(value + 0.5 if "var" in name or "weight" in name else value - 0.5)
    return network.eval()


# -- it learns -------------------------------------------------------------------------------------


def check_that_it_learns(name: str, steps: int, rate: float) -> None:
    model = hybrid(name, num_classes=0)
    network = unet(model, CLASSES, decoder_channels=[64, 48, 32, 16, 16])
    learn(network, steps, rate)
    assert intersection_over_union(network, 48, 48) >= 0.9
    assert intersection_over_union(network, 79, 53) >= 0.9


def test_it_learns_to_find_shapes() -> None:
    check_that_it_learns("timm/test_efficientnet", 40, 5e-3)


@pytest.mark.sweep
@pytest.mark.parametrize("name", FIVE)
def test_five_backbones_learn_to_find_shapes(name: str) -> None:
    check_that_it_learns(name, *FIVE[name])


# -- what it computes ------------------------------------------------------------------------------


def of_torchvision(name: str, paths: Sequence[str], last_axis: bool = False) -> Any:
    def make(state: dict[str, Tensor]) -> Callable[[Tensor], list[Tensor]]:
        network = torchvision.models.get_model(name).eval()
        assert all(
            key.startswith(("fc.", "classifier.", "head."))
            for key in network.load_state_dict(state, strict=False).missing_keys
        )
        extractor = create_feature_extractor(network, {path: path for path in paths})

        def maps(x: Tensor) -> list[Tensor]:
            found = extractor(x).values()
            return [each.permute(0, 3, 1, 2) if last_axis else each for each in found]

        return maps

    return make


def of_timm(name: str) -> Any:
    def make(state: dict[str, Tensor]) -> Callable[[Tensor], list[Tensor]]:
        network = timm.create_model(name, features_only=True).eval()
        keys = network.state_dict()
        network.load_state_dict(
            {key: state[re.sub("^(stem|stages)_", r"\1.", key)] for key in keys}
        )
        return lambda x: [
            each
            for each, reduction in zip(network(x), network.feature_info.reduction(), strict=True)
            if reduction in (2, 4, 8, 16, 32)
        ]

    return make


REFERENCES: dict[str, tuple[list[int], Any]] = {
    "resnet18": ([4, 8, 16, 32], of_torchvision("resnet18", [f"layer{i}" for i in range(1, 5)])),
    "mobilenet_v3_small": (
        [2, 4, 8, 16, 32],
        of_torchvision("mobilenet_v3_small", [f"features.{i}" for i in (0, 1, 3, 8, 12)]),
    ),
    "swin_t": (
        [4, 8, 16, 32],
        of_torchvision("swin_t", ["features.1", "features.3", "features.5", "norm"], True),
    ),
    "timm/test_convnext": ([4, 8, 16, 32], of_timm("test_convnext")),
}


def at(x: Tensor, height: int, width: int, factor: int) -> Tensor:
    """Return a map in which pixel i is cell i // factor, or the last where there is none."""
    rows = [min(i // factor, x.shape[2] - 1) for i in range(height)]
    columns = [min(i // factor, x.shape[3] - 1) for i in range(width)]
    return x[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("name", REFERENCES)
def test_it_is_what_is_written_out_by_hand(name: str) -> None:
    network = unet(hybrid(name, num_classes=0), 5, decoder_channels=[40, 32, 24, 16, 8])
    settle(network)
    strides, make = REFERENCES[name]
    maps_of = make(network.body.state_dict())
    state = network.state_dict()

    def convolve(x: Tensor, key: str) -> Tensor:
        x = F.conv2d(x, state[f"{key}.0.weight"], padding=1)
        norm = [state[f"{key}.1.{each}"] for each in ("running_mean", "running_var", "weight")]
        return F.relu(F.batch_norm(x, *norm, state[f"{key}.1.bias"]))

    for size in ((64, 96), (71, 45), (33, 66)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            maps = dict(zip(strides, maps_of(x), strict=True))
            y = maps[32]
            for index, stride in enumerate((16, 8, 4, 2, 1)):
                height, width = (-(-side // stride) for side in size)
                y = at(y, height, width, 2)
                if stride in maps:
                    y = torch.cat([y, at(maps[stride], height, width, 1)], 1)
                y = convolve(convolve(y, f"decoder.{index}.conv1"), f"decoder.{index}.conv2")
            expected = F.conv2d(y, state["head.weight"], state["head.bias"], padding=1)
            found = network(x)
        assert found.shape == (2, 5, *size)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


class Patches(nn.Module):
    """Leaves the last pixels of an image out, and sees nothing beyond a cell."""

    def __init__(self, side: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, side, side)
        self.stage1 = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 12, 2, 2))
        self.stage2 = nn.Sequential(nn.ReLU(), nn.Conv2d(12, 16, 2, 2))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stage2(self.stage1(self.stem(x))))
        return self.fc(x.flatten(1))


def patches(side: int = 4, stages: Sequence[str] = ("stage1", "stage2")) -> HybridModel:
    return HybridBuilder().from_module(Patches(side), stem="stem", stages=list(stages), head="fc")


@pytest.mark.parametrize("side", [97, 101, 103, 111])
def test_a_pixel_does_not_depend_on_where_the_image_ends(side: int) -> None:
    """What is near to one corner stays as it is when pixels are added at the other; were maps
    stretched to each other's sizes, all of it would move.
    """
    network = unet(patches(), 3)
    settle(network)
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(
            network(x)[:, :, :32, :32], network(x[:, :, :96, :96])[:, :, :32, :32]
        )


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("densenet121", [(65, 33), (47, 80)]),
        ("squeezenet1_1", [(37, 64), (65, 50)]),  # cuts borders off
        ("shufflenet_v2_x0_5", [(1, 31), (33, 64)]),
        ("timm/test_vit", [(160, 160)]),  # one scale, one size
        ("timm/test_efficientnet", [(31, 1), (100, 75)]),
        ("alexnet", [(65, 97), (80, 63)]),
    ],
)
def test_logits_have_the_size_of_the_images(name: str, sizes: list[tuple[int, int]]) -> None:
    network = unet(hybrid(name, num_classes=0), 2).eval()
    with torch.no_grad():
        for size in sizes:
            assert network(torch.randn(1, 3, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize(
    ("model", "strides", "channels", "skips"),
    [
        (lambda: hybrid("resnet18"), [16, 8, 4, 2, 1], [256, 128, 64, 32, 16], [256, 128, 64]),
        (
            lambda: hybrid("timm/test_efficientnet"),
            [16, 8, 4, 2, 1],
            [256, 128, 64, 32, 16],
            [48, 32, 24, 16],
        ),
        (lambda: hybrid("timm/test_vit"), [8, 4, 2, 1], [128, 64, 32, 16], []),
        (lambda: patches(5), [10, 5, 3, 2, 1], [160, 80, 48, 32, 16], [12, 8]),
        (lambda: patches(1), [2, 1], [32, 16], [12, 8]),
    ],
)
def test_each_step_halves_the_stride_and_takes_the_map_that_is_there(
    model: Callable[[], HybridModel], strides: list[int], channels: list[int], skips: list[int]
) -> None:
    network = unet(model(), 4)
    assert [block.stride for block in network.decoder] == strides
    assert [block.conv2[0].out_channels for block in network.decoder] == channels
    inputs = [block.conv1[0].in_channels for block in network.decoder]
    before = [network.body.pyramid_info[-1].channels, *channels[:-1]]
    found = [a - b for a, b in zip(inputs, before, strict=True)]
    assert [each for each in found if each] == skips
    assert network.head.in_channels == channels[-1] and network.head.out_channels == 4


def test_the_normalization_can_be_chosen() -> None:
    network = unet(patches(), 2, norm_layer=lambda channels: nn.GroupNorm(4, channels))
    kinds = {type(each) for each in network.decoder.modules()}
    assert nn.GroupNorm in kinds and nn.BatchNorm2d not in kinds
    bare = unet(patches(), 2, norm_layer=None).decoder
    assert nn.BatchNorm2d not in {type(each) for each in bare.modules()}
    assert bare[0].conv1[0].bias is not None


# -- the hybrid inside -----------------------------------------------------------------------------


def step(network: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    F.cross_entropy(network(x), torch.randint(2, (len(x), *x.shape[2:]))).backward()
    missing = [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, "DistributedDataParallel refuses parameters without gradient"
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet18", "layer4"),
        ("timm/test_convnext", "stages.3"),
        pytest.param("efficientnet_b0", "features.8", marks=pytest.mark.sweep),
        pytest.param("swin_t", "norm", marks=pytest.mark.sweep),
        pytest.param("densenet121", "features.relu5", marks=pytest.mark.sweep),
        pytest.param("convnext_tiny", "features.7", marks=pytest.mark.sweep),
    ],
)
def test_patches_learn_and_frozen_stages_stay_until_they_are_thawed(name: str, last: str) -> None:
    model = hybrid(name, patches={last: {"wrap": "se"}}, freeze_backbone=True, unfreeze_stages=[-1])
    network = unet(model, 2, decoder_channels=[16] * 5).train()
    x = torch.randn(2, 3, 64, 64)

    def moved() -> set[str]:
        before = copy.deepcopy(network.state_dict())
        step(network, x)
        after = network.state_dict().items()
        return {key for key, value in after if not torch.equal(value, before[key])}

    first, *_, end = model.stage_info
    trained = moved()
    assert f"body.patches.{last}.se.alpha" in trained
    parts = {key.split(".")[0] for key in trained}
    assert parts == {"body", "decoder", "head"}
    thawed = tuple(f"body.{path}." for path in end.paths)
    inside = {key for key in trained if key.startswith("body.")}
    assert any(key.startswith(thawed) for key in inside)
    assert all(key.startswith((*thawed, "body.patches.")) for key in inside)
    assert not model.get_submodule(first.paths[-1]).training

    model.freeze_backbone(unfreeze_stages=[0, -1], head="none")
    network.train()
    assert any(key.startswith(tuple(f"body.{path}." for path in first.paths)) for key in moved())


def test_it_owns_what_it_runs() -> None:
    model = hybrid("resnet18", patches={"layer3": {"wrap": "se"}}, num_classes=0)
    network = unet(model, 2)
    assert network.body is model and isinstance(network, UNet)
    keys = list(network.state_dict())
    assert [key for key in keys if key.startswith("body.")] == [
        f"body.{key}" for key in model.state_dict()
    ]
    assert "body.patches.layer3.se.alpha" in keys and "body.fc.weight" not in keys
    assert {key.split(".")[0] for key in keys} == {"body", "decoder", "head"}
    assert all(parameter.requires_grad for parameter in network.parameters())
    settle(network)
    x = torch.randn(1, 3, 40, 56)
    another = hybrid("resnet18", patches={"layer3": {"wrap": "se"}}, num_classes=0)
    loaded = unet(another, 2).eval()
    loaded.load_state_dict(network.state_dict())
    for twin in (loaded, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), network(x))


def test_a_classifier_that_is_there_is_frozen() -> None:
    model = hybrid("mobilenet_v3_small")
    unet(model, 2)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not name.startswith("classifier."), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes is a whole number of at least 1, not 0"),
        ({"num_classes": True}, "not True"),
        ({"decoder_channels": [64, 32]}, r"the 5 steps of this one are to the strides 16, 8, 4, 2"),
        ({"decoder_channels": [64, 32, 16, 8, 0]}, "each of decoder_channels is a whole number"),
        ({"decoder_channels": 64.5}, "decoder_channels is a list of one number for each step"),
        ({"norm_layer": "bn"}, "norm_layer is a class or a function"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_has_changed(
    arguments: dict[str, Any], message: str
) -> None:
    model = hybrid("resnet18")
    state = model.freeze_state()
    with pytest.raises(ParameterError, match=message):
        unet(model, **{"num_classes": 3, **arguments})
    assert model.freeze_state() == state


def test_a_plain_network_is_refused() -> None:
    with pytest.raises(ParameterError, match="unet takes a model that HybridBuilder"):
        unet(torchvision.models.resnet18(), 2)  # type: ignore[arg-type]


# -- compiled and exported -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [patches, pytest.param(lambda: hybrid("resnet18"), marks=pytest.mark.sweep)]
)
def test_an_exported_program_takes_images_of_any_size(model: Callable[[], HybridModel]) -> None:
    network = unet(model(), 2)
    settle(network)
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        network, (torch.randn(2, 3, 70, 90),), dynamic_shapes=({0: free, 2: free, 3: free},)
    )
    for size in ((64, 64), (65, 97), (47, 79)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(program.module()(x), network(x))


def test_it_compiles_whole() -> None:
    torch._dynamo.reset()
    network = unet(patches(), 2)
    settle(network)
    x = torch.randn(2, 3, 47, 79)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), network(x))
