"""Shapes are measured, and measuring leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tvc_core import BackboneError, BackboneSpec, HybridBuilder, PatchError, TargetError
from tvc_core.surgery.layouts import LayoutView, layout_of
from tvc_core.surgery.probing import probing
from tvc_core.surgery.sites import Probe, locate

IMAGE = (64, 96)


# -- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((1, 64, 32, 48), "NCHW"),
        ((1, 768, 2, 3), "NCHW"),
        ((1, 2, 3, 768), "NHWC"),
        ((1, 16, 24, 96), "NHWC"),
        ((1, 96, 16, 24), "NCHW"),
        ((1, 64, 96, 32), "NHWC"),
        ((1, 1280, 1, 1), "NCHW"),
        ((1, 1, 1, 1280), "NHWC"),
        ((1, 8, 29, 45), "NCHW"),  # without padding: 7x7 after a stride of 2
        ((1, 2048, 1, 3), "NCHW"),
        ((1, 197, 768), "NLC"),
        ((1, 1000), "NC"),
        ((1, 3, 4, 5, 6), None),
        ((7,), None),
    ],
)
def test_the_layout_follows_from_the_axes_that_shrink_like_the_image(
    shape: tuple[int, ...], layout: str | None
) -> None:
    assert layout_of(shape, IMAGE) == layout


@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_convolutions_without_padding_give_maps_whatever_their_width(
    kernel: int, stride: int
) -> None:
    # 40 channels of 60x92 have the image's ratio in their first two axes, by chance
    height, width = ((side - kernel) // stride + 1 for side in IMAGE)
    found = {layout_of((1, channels, height, width), IMAGE) for channels in range(1, 300)}
    assert found == {"NCHW"}


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3, 16, 24, 40, 96, 1000])
@pytest.mark.parametrize("image", [(64, 96), (96, 144), (128, 192)])
def test_padded_convolutions_of_any_width_and_stride_are_told_from_their_transposes(
    image: tuple[int, int], channels: int, stride: int
) -> None:
    x = torch.zeros(1, 1, *image, device="meta")
    y = nn.functional.conv2d(
        x, torch.zeros(channels, 1, 3, 3, device="meta"), stride=stride, padding=1
    )
    height, width = y.shape[2:]
    assert layout_of((1, channels, height, width), image) == "NCHW"
    if abs(channels / width - 1.5) > 0.5:  # else both readings are true
        assert layout_of((1, height, width, channels), image) == "NHWC"


def test_channels_are_measured_where_attributes_lie(lab: Any) -> None:
    class Lies(nn.Module):
        """Says 4 and makes 12, as a DenseNet layer does."""

        def __init__(self) -> None:
            super().__init__()
            self.out_channels = 4
            self.conv = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.conv(x)], 1)

    def build(spec: BackboneSpec, *, weights: Any) -> nn.Module:
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            Lies(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 3),
        )
        network.add_module("head", network._modules.pop("4"))
        return network

    spec = BackboneSpec(name="dense", factory=build, stem=("0",), stages=("1",), head="head")
    model = lab(spec).from_backbone("dense", weights=None, patches={"1": {"wrap": "gate"}})
    assert model.patches.get_submodule("1.gate").block.fc.in_channels == 12
    assert model.stage_info[0].channels == 12


def test_stage_info_is_what_a_forward_pass_shows(builder: HybridBuilder) -> None:
    info = builder.from_backbone("resnet18", None).stage_info
    assert [(s.stage, s.module, s.channels, s.stride, s.layout) for s in info] == [
        (0, "layer1", 64, 4, "NCHW"),
        (1, "layer2", 128, 8, "NCHW"),
        (2, "layer3", 256, 16, "NCHW"),
        (3, "layer4", 512, 32, "NCHW"),
    ]


# -- locating --------------------------------------------------------------------------------------


def test_an_unknown_path_gets_near_ones() -> None:
    with pytest.raises(TargetError, match=r"Target not found: 'layer5'.*layer4.*named_children"):
        locate(torchvision.models.resnet18(), "layer5", name="resnet18")


@pytest.mark.parametrize(
    "path",
    ["conv1.weight", "layer1.2", "layer1.", "", ".layer1", "forward", "training", "layer1.-1"],
)
def test_what_is_no_module_is_no_target(path: str) -> None:
    network = torchvision.models.resnet18()
    children = list(network.named_modules())
    with pytest.raises(TargetError, match="Target not found"):
        locate(network, path, name="resnet18")
    assert list(network.named_modules()) == children


# -- probing leaves no trace -----------------------------------------------------------------------


class Restless(nn.Module):
    """Changes everything that a forward pass can change, whatever the mode."""

    counter: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.idle = nn.Dropout().eval()
        self.head = nn.Linear(4, 2)
        self.register_buffer("counter", torch.tensor([0.0, float("nan")]))
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.counter += 1  # in place
        self.total = self.total + torch.rand(())  # another tensor
        x = nn.functional.batch_norm(
            self.conv(x), self.norm.running_mean, self.norm.running_var, training=True
        )
        return self.head(x.mean((2, 3)))


def snapshot(network: nn.Module) -> dict[str, Any]:
    return {
        "state": {key: value.clone() for key, value in network.state_dict().items()},
        "buffers": [id(buffer) for buffer in network.buffers()],
        "modes": [module.training for module in network.modules()],
        "random": torch.get_rng_state(),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        "grad": [parameter.grad for parameter in network.parameters()],
    }


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    for key, value in a["state"].items():
        torch.testing.assert_close(b["state"][key], value, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(a["random"], b["random"])
    for key in ("buffers", "modes", "hooks", "grad"):
        assert a[key] == b[key], key


def test_probing_leaves_buffers_mode_and_random_state() -> None:
    network = Restless()
    before = snapshot(network)
    probe = Probe.of(network, BackboneSpec(name="x", factory=Restless))
    probe.run(network)
    probe.sites(network, ["conv", "norm", "head"])
    assert_same(before, snapshot(network))


def test_probing_leaves_no_trace_of_a_pass_that_fails() -> None:
    network = Restless()
    before = snapshot(network)
    with pytest.raises(RuntimeError), probing(network):
        network(torch.zeros(1, 3, 8, 8))
        network(torch.zeros(1, 5, 8, 8))
    assert_same(before, snapshot(network))


def test_a_build_changes_no_buffer(tiny: Any, plain: Any) -> None:
    model = tiny({"layer1": {"wrap": "conv"}, "layer2": {"wrap": "gate"}}, dropout=0.5)
    expected = dict(plain().named_buffers())
    found = {
        name: buffer for name, buffer in model.named_buffers() if not name.startswith("patches.")
    }
    assert found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in found
    )
    block = model.get_submodule(model.patch_records[0].paths[0]).block
    assert block.norm.num_batches_tracked == 0 and block.norm.running_var.tolist() == [1.0] * 8
    assert all(module.training for module in model.modules())


def test_a_network_that_accepts_no_image_is_refused_with_all_tries(lab: Any) -> None:
    def build(spec: BackboneSpec, *, weights: Any) -> nn.Module:
        network = nn.Sequential(nn.Conv2d(5, 4, 1))
        network.add_module("head", nn.Linear(1, 1))
        return network

    spec = BackboneSpec(name="five", factory=build, stem=("0",), stages=("0",), head="head")
    with pytest.raises(BackboneError):
        lab(spec).from_backbone("five", None)
    with pytest.raises(BackboneError, match=r"64x96.*64x64.*224x224"):
        Probe.of(nn.Conv2d(5, 4, 1), spec)


def test_a_network_of_one_size_is_probed_at_that_size() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2:] == (224, 224)
            return x.mean((2, 3))

    assert Probe.of(Fixed(), BackboneSpec(name="fixed", factory=Fixed)).size == (224, 224)


# -- places where nothing can be inserted ----------------------------------------------------------


class Places(nn.Module):
    """A call of every kind that a block cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.never = nn.Conv2d(8, 8, 1)
        self.pair = Pair()
        self.same = nn.ReLU()
        self.widths = nn.ReLU()
        self.sizes = nn.ReLU()
        self.named = nn.ReLU()
        self.wide = nn.Conv2d(8, 16, 1)
        self.body = nn.Identity()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.named(input=self.same(self.same(self.stem(x))))
        x, _ = self.pair([x, x])
        x = self.sizes(nn.functional.max_pool2d(self.sizes(x), 2))
        x = self.widths(self.wide(self.widths(x)))
        return self.head(self.body(x).mean((2, 3)))


class Pair(nn.Module):
    def forward(self, pair: list[Tensor]) -> tuple[Tensor, Tensor]:
        return pair[0], pair[1]


PLACES = BackboneSpec(
    name="places",
    factory=lambda spec, weights: Places(),
    stem=("stem", "never", "pair", "same", "widths", "sizes", "named", "wide"),
    stages=("body",),
    head="head",
)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"never": {"wrap": "gate"}}, "never called in a forward pass"),
        ({"never": {"replace": "conv"}}, "never called in a forward pass"),
        ({"pair": {"wrap": "gate"}}, "its output is a tuple"),
        ({"pair": {"inject": {"type": "gate", "position": "before"}}}, "its input is a list"),
        ({"named": {"inject": {"type": "gate", "position": "before"}}}, "is a keyword argument"),
        (
            {"widths": {"wrap": "gate"}},
            r"2 times with different output shapes \[1, 8, 16, 24\], \[1, 16, 16, 24\]",
        ),
    ],
)
def test_a_place_where_nothing_can_be_inserted_is_refused_with_what_was_seen(
    lab: Any, patch: Any, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        lab(PLACES).from_backbone("places", weights=None, patches=patch)


@pytest.mark.parametrize("place", ["same", "sizes"])
def test_a_module_called_twice_with_one_width_runs_its_block_twice(
    lab: Any, images: Tensor, place: str
) -> None:
    model = (
        lab(PLACES).from_backbone("places", weights=None, patches={place: {"wrap": "gate"}}).eval()
    )
    runs: list[int] = []
    model.patches.get_submodule(f"{place}.gate").register_forward_hook(lambda *_: runs.append(1))
    model(images)
    assert len(runs) == 2


def test_the_relu_of_a_bottleneck_is_refused_and_that_of_a_basic_block_is_not(
    builder: HybridBuilder,
) -> None:
    assert (
        builder.from_backbone(
            "resnet18", weights=None, patches={"layer1.0.relu": {"wrap": "se"}}
        ).step0_difference
        == 0.0
    )
    with pytest.raises(TargetError, match=r"3 times with different output shapes.*64.*64.*256"):
        builder.from_backbone("resnet50", weights=None, patches={"layer1.0.relu": {"wrap": "se"}})


@pytest.mark.parametrize("prefix", [0, 1])
def test_a_block_on_tokens_leaves_their_order_in_memory(prefix: int) -> None:
    """Another order changes the rounding of what comes next, and with it the proof that a hybrid
    starts as its backbone.
    """
    view = LayoutView("NLC", "NCHW", prefix, 2, 3)
    for x in (torch.randn(2, 6 + prefix, 4), torch.randn(2, 4, 6 + prefix).transpose(1, 2)):
        y = view.run(lambda map_: map_ * 1, x)
        assert torch.equal(y, x)
        assert prefix or y.stride() == x.stride()


@pytest.mark.parametrize("tokens", [6, 8, 13])
def test_tokens_of_an_image_of_another_size_are_refused(tokens: int) -> None:
    with pytest.raises(
        PatchError, match=rf"got {tokens} tokens, .* built for 2x3 of an image's and 1 before them"
    ):
        LayoutView("NLC", "NCHW", 1, 2, 3).run(nn.Identity(), torch.zeros(1, tokens, 4))
