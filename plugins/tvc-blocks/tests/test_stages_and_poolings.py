"""Blocks that networks are made of compute what timm's do with the same weights, take any map, and
take the place of stages and poolings.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm.layers
import timm.models.convnext
import timm.models.resnet
import torch
import torchvision
from timm.models import _efficientnet_blocks as efficientnet_blocks
from torch import Tensor, nn

from tvc_core import BlockSpec, HybridBuilder, ParameterError, PatchError, Registry, load

STAGES = (
    "basic_block", "bottleneck", "convnext_block", "depthwise_separable_conv", "fused_mbconv",
    "inverted_residual", "mbconv",
)  # fmt: skip
ALL = (*STAGES, "gem", "blur_pool", "layer_scale")


def some(*chosen: Any, of: tuple[Any, ...]) -> list[Any]:
    """Return all values; those that are not chosen are left to the sweep."""
    return [v if v in chosen else pytest.param(v, marks=pytest.mark.sweep) for v in of]


def create(name: str, width: int, **params: Any) -> nn.Module:
    torch.manual_seed(0)
    return HybridBuilder().create_block(name, width, **params).eval()


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give a module parameters and statistics that are not those of the start."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.numel() and not _is_kernel(module, tensor):
            spread = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data = spread * 0.5 + 0.2 if tensor.ndim < 2 else spread - 0.5
    return module.eval()


def _is_kernel(module: nn.Module, tensor: Tensor) -> bool:
    return any(tensor is kernel for name, kernel in module.named_buffers() if "kernel" in name)


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


# -- equations -------------------------------------------------------------------------------------


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module | None:
    if (in_channels, stride) == (channels, 1):
        return None
    conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


def _basic(inside: int, out: int, stride: int) -> nn.Module:
    return timm.models.resnet.BasicBlock(inside, out, stride, _shortcut(inside, out, stride))


def _bottleneck(inside: int, out: int, stride: int, groups: int = 1) -> nn.Module:
    kind = timm.models.resnet.Bottleneck
    return kind(
        inside, out // 4, stride, _shortcut(inside, out, stride), groups, 64 // groups
    )  # fmt: skip


def _inverted(inside: int, out: int, stride: int, **more: Any) -> nn.Module:
    return efficientnet_blocks.InvertedResidual(inside, out, stride=stride, exp_ratio=6, **more)


SQUEEZE = partial(efficientnet_blocks.SqueezeExcite, rd_ratio=1 / 4 / 6)
# name, its parameters, timm's block for (incoming width, outgoing width, stride)
TIMM: list[tuple[str, dict[str, Any], Callable[..., nn.Module]]] = [
    ("basic_block", {}, _basic),
    ("bottleneck", {}, _bottleneck),
    ("bottleneck", {"groups": 2}, partial(_bottleneck, groups=2)),
    ("inverted_residual", {}, partial(_inverted, act_layer=nn.ReLU6)),
    ("mbconv", {}, partial(_inverted, act_layer=nn.SiLU, se_layer=SQUEEZE)),
    (
        "mbconv",
        {"kernel_size": 5},
        partial(_inverted, dw_kernel_size=5, act_layer=nn.SiLU, se_layer=SQUEEZE),
    ),
    (
        "fused_mbconv",
        {},
        lambda inside, out, stride: efficientnet_blocks.EdgeResidual(
            inside, out, 3, stride, exp_ratio=4, act_layer=nn.SiLU
        ),
    ),
    (
        "depthwise_separable_conv",
        {},
        lambda inside, out, stride: efficientnet_blocks.DepthwiseSeparableConv(
            inside, out, stride=stride, noskip=True, pw_act=True
        ),
    ),
]


def pair(
    name: str, params: dict[str, Any], theirs: Callable[..., nn.Module], out: int, stride: int
) -> tuple[nn.Module, nn.Module]:
    """Return our block and timm's with the same values in the same order."""
    ours = stirred(create(name, 16, channels=out, stride=stride, **params)).double()
    reference = theirs(16, out, stride).double().eval()
    values = list(ours.state_dict().values())
    keys = list(reference.state_dict())
    assert len(keys) == len(values)
    reference.load_state_dict(dict(zip(keys, values, strict=True)))
    return ours, reference


@torch.no_grad()
@pytest.mark.parametrize(("out", "stride"), [(16, 1), (24, 2), (24, 1)])
@pytest.mark.parametrize(("name", "params", "theirs"), TIMM)
def test_a_block_is_timms(
    name: str, params: dict[str, Any], theirs: Callable[..., nn.Module], out: int, stride: int
) -> None:
    ours, reference = pair(name, params, theirs, out, stride)
    x = images(2, 16, 7, 6)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("name", "params", "theirs"), TIMM)
def test_a_reference_with_another_equation_is_told_apart(
    name: str, params: dict[str, Any], theirs: Callable[..., nn.Module]
) -> None:
    ours, reference = pair(name, params, theirs, 16, 1)
    x = images(2, 16, 7, 6)
    kinds = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Sigmoid)
    paths = [path for path, module in reference.named_modules() if isinstance(module, kinds)]
    assert paths
    for path in paths:
        broken = copy.deepcopy(reference)
        broken.set_submodule(path, nn.Softsign())
        assert not torch.allclose(ours(x), broken(x), rtol=1e-10, atol=1e-10), path


@torch.no_grad()
@pytest.mark.parametrize("broken", [None, "approximate", "norm", "scale"])
def test_a_convnext_block_is_timms(broken: str | None) -> None:
    ours = stirred(create("convnext_block", 8)).double()
    gelu = partial(nn.GELU, approximate="tanh") if broken == "approximate" else nn.GELU
    theirs = timm.models.convnext.ConvNeXtBlock(8, act_layer=gelu, conv_mlp=False).double().eval()
    values = [value.flatten() for value in ours.state_dict().values()]
    state = theirs.state_dict()
    theirs.load_state_dict(
        {key: value.view_as(state[key]) for key, value in zip(state, values, strict=True)}
    )
    if broken == "norm":
        theirs.norm.eps = 1e-3
    if broken == "scale":
        theirs.gamma.data.mul_(1.001)
    x = images(2, 8, 9, 5)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-9, atol=1e-9) is (broken is None)


@torch.no_grad()
def test_between_convnexts_stages_stands_torchvisions_downsampling() -> None:
    network = stirred(torchvision.models.convnext_tiny())
    ours = create("convnext_block", 96, channels=192, stride=2, depth=3)
    theirs = nn.Sequential(network.features[2], network.features[3])
    states = ours.state_dict(), theirs.state_dict()
    ours.load_state_dict(dict(zip(states[0], states[1].values(), strict=True)))
    x = images(1, 96, 8, 6, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "width", "params", "network", "path"),
    [
        ("basic_block", 64, {"channels": 128, "stride": 2, "depth": 2}, "resnet18", "layer2"),
        ("bottleneck", 64, {"channels": 256, "depth": 3}, "resnet50", "layer1"),
        (
            "bottleneck",
            256,
            {"channels": 512, "stride": 2, "groups": 32, "hidden_channels": 256, "depth": 4},
            "resnext50_32x4d",
            "layer2",
        ),
        ("mbconv", 16, {"channels": 24, "stride": 2, "depth": 2}, "efficientnet_b0", "features.2"),
        (
            "fused_mbconv",
            24,
            {"channels": 48, "stride": 2, "depth": 4},
            "efficientnet_v2_s",
            "features.2",
        ),
        ("inverted_residual", 24, {"channels": 32, "stride": 2}, "mobilenet_v2", "features.4"),
        ("convnext_block", 96, {"depth": 3}, "convnext_tiny", "features.1"),
    ],
)
def test_keys_and_start_are_those_of_torchvisions_stage(
    name: str, width: int, params: dict[str, Any], network: str, path: str
) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(network, weights=None).get_submodule(path)
    ours = create(name, width, **params)
    shapes = [
        {key: value.shape for key, value in module.state_dict().items()}
        for module in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


def test_convolutions_start_as_in_their_network() -> None:
    """torchvision draws them in the network, not in the block."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    ours = create("basic_block", 256, channels=512, stride=2, depth=2)
    for key, weight in network.layer4.state_dict().items():
        if weight.ndim == 4:
            spread = float(ours.state_dict()[key].std())
            assert spread == pytest.approx(float(weight.std()), rel=0.02), key
    spread = float(create("convnext_block", 96).block[3].weight.detach().std())
    assert spread == pytest.approx(0.02, rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize("p", [1.0, 2.5, 3.0])
def test_gem_is_the_mean_of_powers(p: float) -> None:
    x = images(2, 3, 4, 5)
    y = create("gem", 3, p=p).double()(x)
    assert y.shape == (2, 3, 1, 1)
    for n in range(2):
        for c in range(3):
            powers = [max(value, 1e-6) ** p for value in x[n, c].flatten().tolist()]
            assert float(y[n, c]) == pytest.approx((sum(powers) / len(powers)) ** (1 / p))
    assert float((y - create("gem", 3, p=p + 0.01).double()(x)).abs().min()) > 1e-4


def test_the_start_of_gem() -> None:
    assert create("gem", 5).p.tolist() == [3.0]
    assert create("gem", 5, per_channel=True, p=2).p.tolist() == [2.0] * 5


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_blur_pooling_is_timms(kernel_size: int, stride: int) -> None:
    x = images(2, 3, 11, 8)
    ours = create("blur_pool", 3, kernel_size=kernel_size, stride=stride).double()
    theirs = timm.layers.BlurPool2d(3, kernel_size, stride).double()
    theirs.padding = [(kernel_size - 1) // 2] * 4  # timm's own grows with the stride
    torch.testing.assert_close(ours(x), theirs(x))
    assert not ours.state_dict()
    other = timm.layers.BlurPool2d(3, kernel_size, stride, pad_mode="replicate").double()
    assert not torch.allclose(ours(x), other(x)) if stride < 3 else True


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [1, 2, 4, 6])
def test_an_even_blur_is_a_sum_over_its_neighbors(kernel_size: int) -> None:
    """Padded as in the paper's code: one pixel more after than before."""
    x, weights = images(1, 2, 9, 8), {1: [1], 2: [1, 1], 4: [1, 3, 3, 1], 6: [1, 5, 10, 10, 5, 1]}
    y = create("blur_pool", 2, kernel_size=kernel_size).double()(x)
    row, before = weights[kernel_size], (kernel_size - 1) // 2

    def mirrored(index: int, size: int) -> int:
        index = abs(index)
        return min(index, 2 * (size - 1) - index)

    for i in range(5):
        for j in range(4):
            total = 0.0
            for a, first in enumerate(row):
                for b, second in enumerate(row):
                    at = mirrored(2 * i + a - before, 9), mirrored(2 * j + b - before, 8)
                    total += first * second * float(x[0, 1, at[0], at[1]])
            assert float(y[0, 1, i, j]) == pytest.approx(total / sum(row) ** 2)


@torch.no_grad()
def test_layer_scale_is_timms_in_every_layout() -> None:
    ours = stirred(create("layer_scale", 6)).double()
    for kind, x in (
        (timm.layers.LayerScale2d, images(2, 6, 5, 4)),
        (timm.layers.LayerScale, images(2, 7, 6)),
        (timm.layers.LayerScale, images(2, 6)),
    ):
        theirs = kind(6).double()
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))
        assert not torch.allclose(ours(x), x)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_the_function(name: str) -> None:
    params = {"per_channel": True} if name == "gem" else {}
    module = stirred(create(name, 4, **params)).double()
    x = images(1, 4, 4, 3).requires_grad_()
    x.data[x.data.abs() < 0.05] = 0.3  # away from where ReLU bends
    inputs = (x, *(parameter for parameter in module.parameters() if parameter.ndim < 2))
    function = lambda x, *_: module(x)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    if name in ("gem", "layer_scale", "blur_pool", "convnext_block"):
        assert torch.autograd.gradgradcheck(function, inputs[:2], atol=1e-4)


# -- any map ---------------------------------------------------------------------------------------


def takes_any_map(module: nn.Module, width: int, num: int, side: tuple[int, int]) -> Tensor:
    """Run a block in every type and order of memory, and return what it makes of a map."""
    x = images(num, width, *side, dtype=torch.float32)
    y: Tensor = module(x)
    assert y.isfinite().all()
    last = module(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, y, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x).isfinite().all()
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(module).to(dtype)(x.to(dtype))
        assert half.dtype == dtype and half.isfinite().all()
    if num == 3:
        torch.testing.assert_close(module(x[1:2]), y[1:2], rtol=1e-3, atol=1e-4)
    return y


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", some(1, 97, of=(1, 3, 16, 97)))
def test_a_block_takes_any_map(name: str, stride: int, width: int) -> None:
    params = {} if name in ("gem", "layer_scale") else {"stride": stride}
    module = stirred(create(name, width, **params))
    for side in ((1, 1), (1, 9), (7, 5), (2, 3), (14, 14)):
        expected = tuple(-(-size // stride) if params else size for size in side)
        expected = (1, 1) if name == "gem" else expected
        for num in (0, 1, 3):
            y = takes_any_map(module, width, num, side)
            assert y.shape == (num, width, *expected)


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 97])
@pytest.mark.parametrize(
    "name",
    [
        offer.spec.name
        for offer in Registry().all(BlockSpec)
        if offer.owner == "tvc-blocks"
        and offer.spec.name not in ALL
        and "NCHW" in offer.spec.layouts
        and offer.spec.category != "activation"
    ],
)
def test_so_do_the_other_blocks_of_the_plugin(name: str, width: int) -> None:
    module = stirred(create(name, width, **({"num_groups": 1} if name == "group_norm" else {})))
    for side in ((1, 1), (1, 9), (7, 5)):
        for num in (0, 1, 3):
            assert takes_any_map(module, width, num, side).shape == (num, width, *side)


@torch.no_grad()
@pytest.mark.parametrize("name", some("gem", "blur_pool", "convnext_block", of=ALL))
def test_a_block_is_exported_with_its_sizes_open(name: str, tmp_path: Path) -> None:
    params = {} if name in ("gem", "layer_scale") else {"stride": 2}
    module = stirred(create(name, 4, **params))
    x, auto = images(2, 4, 12, 10, dtype=torch.float32), torch.export.Dim.AUTO
    file = tmp_path / "block.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (x,),
            file,
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: auto, 2: auto, 3: auto},),
        )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for shape in ((1, 4, 9, 16), (3, 4, 7, 7), (5, 4, 32, 5)):
        other = images(*shape, dtype=torch.float32)
        (y,) = session.run(None, {given.name: other.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), module(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_block_compiles_without_a_graph_break_and_runs_under_vmap(name: str) -> None:
    module = stirred(create(name, 4))
    x = images(3, 2, 4, 6, 5, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x[0]), module(x[0]))
    with torch.no_grad():
        expected = torch.stack([module(entry) for entry in x])
        torch.testing.assert_close(torch.func.vmap(module)(x), expected, rtol=1e-4, atol=1e-5)


# -- in networks -----------------------------------------------------------------------------------


def trains(model: Any) -> None:
    """Take three steps, in which every parameter of the replacements moves."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    homes = [record.target for record in model.patch_records]
    before = {
        k: v.detach().clone() for k, v in model.named_parameters() if k.startswith(tuple(homes))
    }
    for _ in range(3):
        optimizer.zero_grad()
        logits = model(images(4, 3, 64, 64, dtype=torch.float32))
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    after = dict(model.named_parameters())
    assert all(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", some("mbconv", "convnext_block", of=STAGES))
def test_a_stage_is_replaced_and_the_network_trains(name: str, tmp_path: Path) -> None:
    params: dict[str, Any] = {"channels": 256, "stride": 2, "depth": 2}
    if name == "convnext_block":
        params["layer_scale"] = 0.1  # from 1e-6 three steps lead nowhere in float32
    patches = {"layer3": {"replace": {"type": name, "params": params}}}
    model = HybridBuilder().from_backbone("resnet18", None, patches=patches, num_classes=3)
    assert model.stage_info[2].channels == 256 and model.stage_info[2].stride == 16
    trains(model)
    model.eval().save(tmp_path / "model.safetensors")
    x = images(1, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "model.safetensors").eval()(x), model(x))


@pytest.mark.parametrize("name", some("basic_block", "layer_scale", of=(*STAGES, "layer_scale")))
def test_an_inserted_block_starts_as_the_identity(name: str) -> None:
    patches = {"features.3": {"wrap": name}, "features.5": {"wrap": name}}
    model = HybridBuilder().from_backbone("mobilenet_v3_small", None, patches=patches)
    assert model.step0_difference == 0.0


def test_a_stage_of_another_shape_is_refused_with_what_fits() -> None:
    patches = {"layer3": {"replace": {"type": "mbconv", "params": {"stride": 2}}}}
    with pytest.raises(PatchError, match=r"channels=256 would fit"):
        HybridBuilder().from_backbone("resnet18", None, patches=patches)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "googlenet"])
def test_gem_in_the_place_of_average_pooling_starts_as_the_backbone(name: str) -> None:
    torch.manual_seed(0)
    options = {"aux_logits": False} if name == "googlenet" else {}
    plain = HybridBuilder().from_backbone(name, None, options=options).eval()
    torch.manual_seed(0)
    patches = {"avgpool": {"replace": "gem"}}
    model = HybridBuilder().from_backbone(name, None, patches=patches, options=options)
    model.eval()
    assert model.avgpool.p.tolist() == [1.0]
    x = images(2, 3, 64, 96, dtype=torch.float32)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch", [{"params": {"p": 3}}, {"init": "paper"}])
def test_gem_starts_as_in_the_paper_where_that_is_asked_for(patch: dict[str, Any]) -> None:
    patches = {"avgpool": {"replace": {"type": "gem", **patch}}}
    model = HybridBuilder().from_backbone("resnet18", None, patches=patches, num_classes=3)
    assert model.avgpool.p.tolist() == [3.0]
    with torch.no_grad():
        x = images(1, 512, 4, 4, dtype=torch.float32)
        expected = x.clamp(min=1e-6).pow(3).mean((2, 3), keepdim=True) ** (1 / 3)
        torch.testing.assert_close(model.avgpool(x), expected)
    trains(model)


def test_beside_an_average_pooling_gem_is_learned_from_an_unchanged_start() -> None:
    """Also where the map has negative entries, as after ConvNeXt's last stage."""
    patch = {"inject": {"type": "gem", "position": "parallel"}}
    model = HybridBuilder().from_backbone(
        "convnext_tiny", None, patches={"avgpool": patch}, num_classes=3
    )
    assert model.step0_difference == 0.0


@pytest.mark.parametrize(
    ("name", "path"), [("resnet18", "maxpool"), ("squeezenet1_1", "**.type:MaxPool2d")]
)
def test_a_maximum_pooling_is_evaluated_densely_and_then_blurred(name: str, path: str) -> None:
    patches = {path: {"replace": "blur_pool"}}
    model = HybridBuilder().from_backbone(name, None, patches=patches, num_classes=3)
    plain = torchvision.models.get_model(name, weights=None, num_classes=3)
    assert set(model.state_dict()) == set(plain.state_dict())
    for record in model.patch_records:
        old, new = plain.get_submodule(record.target), model.get_submodule(record.target)
        x = images(1, 4, 12, 15, dtype=torch.float32)
        new[-1].in_channels, new[-1].kernel = 4, new[-1].kernel[:4]
        assert new(x).shape == old(x).shape
        if not old.ceil_mode:
            dense = nn.functional.max_pool2d(x, old.kernel_size, 1, old.padding)
            torch.testing.assert_close(new(x), timm.layers.BlurPool2d(4)(dense))
    if name == "resnet18":
        model = HybridBuilder().from_backbone(name, None, patches=patches, num_classes=3)
        trains(model)


def test_where_nothing_is_subsampled_there_is_nothing_to_blur() -> None:
    patches = {"inception3a.branch4.0": {"replace": "blur_pool"}}
    build = partial(HybridBuilder().from_backbone, "googlenet", None, options={"aux_logits": False})
    with pytest.raises(ParameterError, match="stride is missing: MaxPool2d has 1 by 1; nothing"):
        build(patches=patches)
    patch = {"type": "blur_pool", "params": {"stride": 1}}
    build(patches={"inception3a.branch4.0": {"replace": patch}})


@pytest.mark.parametrize("position", ["branch", "after"])
def test_layer_scale_learns_from_the_first_step_without_a_gate(position: str) -> None:
    patch = {"inject": {"type": "layer_scale", "position": position}}
    model = HybridBuilder().from_backbone(
        "resnet18", None, patches={"layer3.1": patch}, num_classes=3
    )
    (home,) = model.patch_records[0].paths
    assert model.step0_difference == 0.0 and model.get_submodule(home).alpha is None
    model.train()(images(2, 3, 64, 64, dtype=torch.float32)).square().sum().backward()
    assert float(model.get_submodule(home).block.gamma.grad.abs().max()) > 0


def test_layer_scale_near_zero_starts_as_the_identity_by_a_gate() -> None:
    patch = {"inject": {"type": "layer_scale", "params": {"init_values": 1e-5}}}
    for name, path in (("resnet18", "layer3.1"), ("timm/test_vit", "blocks.1")):
        model = HybridBuilder().from_backbone(name, None, patches={path: patch})
        (home,) = model.patch_records[0].paths
        assert model.step0_difference == 0.0
        assert model.get_submodule(home).alpha.tolist() == [0.0]


# -- parameters ------------------------------------------------------------------------------------

NOT_COUNTS: tuple[Any, ...] = (0, -1, 1.5, True, "3")
WRONG = [
    *((name, {key: value}) for name in STAGES for key in ("channels", "stride", "depth")
      for value in NOT_COUNTS),
    *((name, {"kernel_size": value}) for value in (*NOT_COUNTS, 2)
      for name in ("mbconv", "fused_mbconv", "depthwise_separable_conv")),
    *((name, {"expand_ratio": value}) for value in (0, -2, float("inf"), float("nan"), "6", True)
      for name in ("mbconv", "fused_mbconv", "inverted_residual")),
    *((name, {"stride": 3}) for name in ("mbconv", "fused_mbconv", "inverted_residual")),
    *((name, {"stochastic_depth_prob": value}) for value in (-0.1, 1.1, "0", float("nan"))
      for name in ("mbconv", "fused_mbconv", "convnext_block")),
    *(("bottleneck", {key: value}) for value in NOT_COUNTS
      for key in ("hidden_channels", "groups")),
    ("bottleneck", {"groups": 3, "hidden_channels": 4}),
    ("inverted_residual", {"expand_ratio": 0.001}),
    *(("convnext_block", {"layer_scale": value}) for value in (0, -1, "1")),
    *(("depthwise_separable_conv", {"activation": value}) for value in ("rely", 3, ["relu"])),
    *(("gem", {key: value}) for key in ("p", "eps") for value in (0, -1, "3", float("nan"))),
    *(("blur_pool", {key: value}) for key in ("kernel_size", "stride") for value in NOT_COUNTS),
    *(("gem", {"per_channel": value}) for value in (1, "yes", None)),
    *((name, {"padding": value}) for value in (-1, 0.5, True)
      for name in ("conv2d", "conv_bn_act")),
    *(("conv2d", {"bias": value}) for value in (1, "False")),
    *((name, {"eps": value}) for value in (-1e-5, "1e-5", float("nan"))
      for name in ("frozen_batch_norm", "group_norm", "layer_norm_2d")),
    *((name, {key: value}) for value in ("1", True, float("inf"))
      for name, key in (("elu", "alpha"), ("leaky_relu", "negative_slope"), ("prelu", "init"),
                        ("softplus", "beta"))),
    *((name, {"p": value}) for value in (-0.1, 2, "0.1")
      for name in ("drop_block", "stochastic_depth")),
    *(("layer_scale", {"init_values": value}) for value in (0, -1, "1", True)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "params"), WRONG)
def test_a_wrong_parameter_is_refused_by_its_name(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=rf"ValueError: {next(iter(params))} is "):
        create(name, 8, **params)
