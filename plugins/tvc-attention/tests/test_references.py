"""Every block in float64 against an independent reference: timm's, with the same weights, where
timm has the block and means the paper's; else the paper's equations, written here in numpy with
loops over channels and neighbors.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
from torch import Tensor, nn

from tvc_core import BlockSpec, HybridBuilder

BUILDER = HybridBuilder()
SPECS = {
    named.spec.name: named.spec
    for named in BUILDER.registry.all(BlockSpec)
    if named.owner == "tvc-attention"
}
CHANNELS = 12
SIZES = ((5, 4), (1, 1), (1, 7), (9, 11))

Array = np.ndarray[Any, Any]
Reference = Callable[[Any, Array], Array]
"""Takes the block, for its parameters, and a map [N, C, H, W]; returns the block's result."""


# -- pieces ----------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def relu(x: Array) -> Array:
    return np.where(x > 0, x, 0.0)


def softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def of(parameter: Tensor) -> Array:
    return parameter.detach().numpy()


def convolve(x: Array, layer: Any, dilation: int = 1, groups: int = 1) -> Array:
    """Convolve a map [N, C, H, W] with zeros around it: for each output channel, the sum over its
    group's input channels and over the kernel's taps of shifted maps.
    """
    weight, bias = of(layer.weight), getattr(layer, "bias", None)
    outputs, inputs, rows, columns = weight.shape
    n, _, height, width = x.shape
    result = np.zeros((n, outputs, height, width))
    for o in range(outputs):
        first = o // (outputs // groups) * inputs
        for i, r, c in np.ndindex(inputs, rows, columns):
            down, right = dilation * (r - rows // 2), dilation * (c - columns // 2)
            top, bottom = max(0, -down), min(height, height - down)
            left, end = max(0, -right), min(width, width - right)
            if top < bottom and left < end:
                seen = x[:, first + i, top + down : bottom + down, left + right : end + right]
                result[:, o, top:bottom, left:end] += weight[o, i, r, c] * seen
        if bias is not None:
            result[:, o] += of(bias)[o]
    return result


def slide(x: Array, layer: Any, groups: int = 1) -> Array:
    """Convolve lines [N, C, L] with zeros before and after them."""
    flat = nn.Module()
    flat.weight = nn.Parameter(layer.weight[:, :, None, :])
    return convolve(x[:, :, None, :], flat, groups=groups)[:, :, 0]


def batch_norm(x: Array, layer: Any) -> Array:
    """Normalize each channel: by its mean and variance over the batch in training mode, where there
    is more than one value, else by the running ones.
    """
    result = np.empty_like(x)
    for c in range(x.shape[1]):
        mean, variance = of(layer.running_mean)[c], of(layer.running_var)[c]
        if layer.training and x[:, c].size > 1:
            mean = x[:, c].mean()
            variance = ((x[:, c] - mean) ** 2).mean()
        normed = (x[:, c] - mean) / np.sqrt(variance + 1e-5)
        result[:, c] = of(layer.weight)[c] * normed + of(layer.bias)[c]
    return result


def group_norm(x: Array, layer: Any, groups: int) -> Array:
    result = np.empty_like(x)
    width = x.shape[1] // groups
    for n, g in np.ndindex(x.shape[0], groups):
        own = slice(g * width, (g + 1) * width)
        part = x[n, own]
        normed = (part - part.mean()) / np.sqrt(((part - part.mean()) ** 2).mean() + 1e-5)
        for c in range(width):
            at = g * width + c
            result[n, at] = of(layer.weight)[at] * normed[c] + of(layer.bias)[at]
    return result


def means(x: Array) -> Array:
    return x.mean((2, 3), keepdims=True)


# -- the papers ------------------------------------------------------------------------------------


def channel_attention(block: Any, x: Array) -> Array:
    """Woo et al. 2018, equation (2)."""
    shared = lambda v: convolve(relu(convolve(v, block.fc1)), block.fc2)  # noqa: E731
    return x * sigmoid(shared(means(x)) + shared(x.max((2, 3), keepdims=True)))


def spatial_attention(block: Any, x: Array) -> Array:
    """Woo et al. 2018, equation (3)."""
    (conv,) = (module for module in block.modules() if isinstance(module, nn.Conv2d))
    pooled = np.concatenate([x.mean(1, keepdims=True), x.max(1, keepdims=True)], 1)
    return x * sigmoid(convolve(pooled, conv))


def cbam_block(block: Any, x: Array) -> Array:
    """Woo et al. 2018, equation (1)."""
    return spatial_attention(block.spatial, channel_attention(block.channel, x))


def bam(block: Any, x: Array) -> Array:
    """Park et al. 2018: F + F * M, M = sigmoid(M_c + M_s)."""
    convs = [module for module in block.spatial if isinstance(module, nn.Conv2d)]
    fc1, fc2 = (module for module in block.channel if isinstance(module, nn.Conv2d))
    channel = batch_norm(convolve(relu(convolve(means(x), fc1)), fc2), block.channel[-1])
    hidden = relu(convolve(x, convs[0]))
    hidden = relu(convolve(hidden, convs[1], dilation=4))
    hidden = relu(convolve(hidden, convs[2], dilation=4))
    spatial = batch_norm(convolve(hidden, convs[3]), block.spatial[-1])
    return x + x * sigmoid(channel + spatial)


def scse(block: Any, x: Array) -> Array:
    """Roy et al. 2018: the recalibrated maps of both gates, added."""
    _, fc1, _, fc2, _ = block.cSE
    by_channel = x * sigmoid(convolve(relu(convolve(means(x), fc1)), fc2))
    return by_channel + x * sigmoid(convolve(x, block.sSE[0]))


def simam(block: Any, x: Array) -> Array:
    """Yang et al. 2021: the inverse of the least energy, 4(v + l) / ((t - m)^2 + 2v + 2l)."""
    result = np.empty_like(x)
    for n, c in np.ndindex(x.shape[:2]):
        pixels = x[n, c]
        mean = pixels.mean()
        v = ((pixels - mean) ** 2).sum() / (pixels.size - 1) if pixels.size > 1 else 0.0
        energy = 4 * (v + 1e-4) / ((pixels - mean) ** 2 + 2 * v + 2e-4)
        result[n, c] = pixels * sigmoid(1 / energy)
    return result


def triplet_attention(block: Any, x: Array) -> Array:
    """Misra et al. 2021: turn the map, pool its first axis, weigh, turn back; the mean of three."""

    def branch(gate: Any, turned: Array) -> Array:
        pooled = np.stack([turned.max(1), turned.mean(1)], 1)
        return turned * sigmoid(batch_norm(convolve(pooled, gate.conv.conv), gate.conv.bn))

    channel_width = branch(block.cw, x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    height_channel = branch(block.hc, x.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
    return (channel_width + height_channel + branch(block.hw, x)) / 3


def gct(block: Any, x: Array) -> Array:
    """Yang et al. 2020: embedding by norms, normalization over channels, gate by tanh."""
    alpha, gamma, beta = (of(p)[0, :, 0, 0] for p in (block.alpha, block.gamma, block.beta))
    result = np.empty_like(x)
    for n in range(len(x)):
        s = np.array([a * np.sqrt((c * c).sum() + 1e-5) for a, c in zip(alpha, x[n], strict=True)])
        normed = s / np.sqrt((s * s).mean() + 1e-5)
        for c in range(len(s)):
            result[n, c] = x[n, c] * (1 + np.tanh(gamma[c] * normed[c] + beta[c]))
    return result


def srm(block: Any, x: Array) -> Array:
    """Lee et al. 2019: style pooling, then each channel's own linear layer and a normalization."""
    style = np.empty((*x.shape[:2], 2))
    for n, c in np.ndindex(x.shape[:2]):
        mean = x[n, c].mean()
        style[n, c] = mean, np.sqrt(((x[n, c] - mean) ** 2).mean() + 1e-5)
    integrated = np.einsum("ncs,cs->nc", style, of(block.cfc))[:, :, None, None]
    return x * sigmoid(batch_norm(integrated, block.bn))


def lka(block: Any, x: Array) -> Array:
    """Guo et al. 2022: a kernel of 21 taken apart with dilation 3, into 5, 7 and 1."""
    attention = convolve(x, block.conv0, groups=x.shape[1])
    attention = convolve(attention, block.conv_spatial, dilation=3, groups=x.shape[1])
    return x * convolve(attention, block.conv1)


def ema_attention(block: Any, x: Array) -> Array:
    """Ouyang et al. 2023, one image and one group of channels at a time."""
    result = np.empty_like(x)
    groups = 6
    width = x.shape[1] // groups
    for n, g in np.ndindex(len(x), groups):
        own = slice(g * width, (g + 1) * width)
        u = x[n : n + 1, own]
        rows = sigmoid(convolve(u.mean(3, keepdims=True), block.conv1x1))
        columns = sigmoid(convolve(u.mean(2, keepdims=True), block.conv1x1))
        a = group_norm(u * rows * columns, block.gn, groups=width)[0]
        b = convolve(u, block.conv3x3)[0]
        of_a, of_b = softmax(a.mean((1, 2)), 0), softmax(b.mean((1, 2)), 0)
        gate = sum(of_a[c] * b[c] + of_b[c] * a[c] for c in range(width))
        result[n, own] = u[0] * sigmoid(np.asarray(gate))
    return result


def mlca(block: Any, x: Array) -> Array:
    """Wan et al. 2023, part by part."""
    n, channels, height, width = x.shape

    def parts(length: int, num: int) -> Iterator[slice]:
        for i in range(num):
            yield slice(int(np.floor(i * length / num)), int(np.ceil((i + 1) * length / num)))

    def pooled(y: Array, rows: int, columns: int) -> Array:
        result = np.empty((n, channels, rows, columns))
        for i, r in enumerate(parts(y.shape[2], rows)):
            for j, c in enumerate(parts(y.shape[3], columns)):
                result[:, :, i, j] = y[:, :, r, c].mean((2, 3))
        return result

    local = pooled(x, 5, 5)
    line = np.stack([local[..., r, c] for r, c in np.ndindex(5, 5)], 1).reshape(n, 1, -1)
    local_gate = sigmoid(slide(line, block.conv_local)).reshape(n, 5, 5, channels)
    global_gate = sigmoid(slide(local.mean((2, 3))[:, None], block.conv))[:, 0, :, None, None]
    mixed = 0.5 * local_gate.transpose(0, 3, 1, 2) + 0.5 * global_gate
    return x * pooled(mixed, height, width)


def ela(block: Any, x: Array) -> Array:
    """Xu and Wan 2024, ELA-B: rows and columns share their layers."""
    channels = x.shape[1]

    def gate(strip: Array) -> Array:
        return sigmoid(group_norm(slide(strip, block.conv, groups=channels), block.gn, groups=4))

    return x * gate(x.mean(3))[..., None] * gate(x.mean(2))[:, :, None]


def timms(make: Callable[[], nn.Module]) -> Reference:
    """Return timm's block as a reference; its state dict must take the block's weights as they
    are.
    """

    def reference(block: Any, x: Array) -> Array:
        module = make().double().train(block.training)
        module.load_state_dict(block.state_dict())
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy()

    return reference


def timms_gather_excite() -> nn.Module:
    """Return timm's block, whose own way to its two layers fails in some versions."""
    module = layers.GatherExcite(CHANNELS, use_mlp=False)
    module.mlp = timm.layers.mlp.ConvMlp(CHANNELS, 5)
    return module


def coordinate_attention() -> nn.Module:
    timms = pytest.importorskip("timm.layers.coord_attn", reason="this timm has no such block")
    made: nn.Module = timms.CoordAttn(CHANNELS, rd_channels=5)
    return made


layers = timm.layers
CASES: dict[str, tuple[dict[str, Any], Reference]] = {
    "bam": ({"reduction": 4}, bam),
    "cbam_block": ({"reduction": 4, "kernel_size": 3}, cbam_block),
    "channel_attention": ({"reduction": 4}, channel_attention),
    "coord_attention": ({"hidden_channels": 5}, timms(coordinate_attention)),
    "eca": ({}, timms(lambda: layers.EcaModule(CHANNELS))),
    "ela": ({}, ela),
    "ema_attention": ({"factor": 6}, ema_attention),
    "ese": ({}, timms(lambda: layers.EffectiveSEModule(CHANNELS))),
    "gather_excite": ({"hidden_channels": 5}, timms(timms_gather_excite)),
    "gct": ({}, gct),
    "global_context": (
        {"hidden_channels": 5},
        timms(lambda: layers.GlobalContext(CHANNELS, rd_channels=5)),
    ),
    "lka": ({}, lka),
    "mlca": ({}, mlca),
    "non_local": (
        {"hidden_channels": 5},
        timms(lambda: layers.NonLocalAttn(CHANNELS, rd_channels=5)),
    ),
    "scse": ({"reduction": 3}, scse),
    "se": ({"hidden_channels": 5}, timms(lambda: layers.SEModule(CHANNELS, rd_channels=5))),
    "simam": ({}, simam),
    "spatial_attention": ({"kernel_size": 5}, spatial_attention),
    "srm": ({}, srm),
    "triplet_attention": ({}, triplet_attention),
}
"""For each block, parameters and the reference that means them."""

UNSEEN = {("non_local", "p.bias"), ("global_context", "conv_attn.bias")}
"""Parameters without effect: they add the same to all that a softmax compares."""

every_block = pytest.mark.parametrize("name", sorted(SPECS))


def away_from_start(block: Any) -> Any:
    """Return the block in float64 with parameters and statistics that are nowhere 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*block.parameters(), *block.buffers()):
            if value.is_floating_point():
                value += 0.3 * torch.rand(value.shape, generator=generator) + 0.05
    return block.double()


def make(name: str, channels: int = CHANNELS, **params: Any) -> Any:
    torch.manual_seed(0)
    return away_from_start(BUILDER.create_block(name, channels, **params))


def map_of(size: tuple[int, int], channels: int = CHANNELS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, *size, generator=generator, dtype=torch.float64)


def difference(block: Any, reference: Reference, x: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    expected = reference(block, x.numpy())  # first: in training mode the block updates statistics
    with torch.no_grad():
        found = block(x).numpy()
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_every_block_has_a_reference() -> None:
    assert set(SPECS) <= set(CASES)


@every_block
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_block_is_its_reference(name: str, size: tuple[int, int], training: bool) -> None:
    params, reference = CASES[name]
    block = make(name, **params).train(training)
    assert difference(block, reference, map_of(size)) < 1e-12


@every_block
def test_the_comparison_sees_every_parameter(name: str) -> None:
    """A reference that reads other weights is another function: nothing is left out of it."""
    params, reference = CASES[name]
    x = map_of(SIZES[0])
    names = [key for key, _ in make(name, **params).named_parameters()]
    for key in names:
        if (name, key) in UNSEEN:
            continue
        block, other = make(name, **params).eval(), make(name, **params).eval()
        with torch.no_grad():
            other.get_parameter(key).mul_(1.1)
        assert difference(block, lambda _, x, o=other: reference(o, x), x) > 1e-9, key


@every_block
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    block = make(name, 4).eval()
    x = map_of((3, 2), 4)[:2].requires_grad_()
    parameters = {key: value.detach().requires_grad_() for key, value in block.named_parameters()}

    def run(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(block, given, (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


# -- what the comparison would find ----------------------------------------------------------------

FAULTS = [
    ("bam", "1 + self.sigmoid(", "2 * self.sigmoid("),
    ("bam", "self.channel(x) + self.spatial(x)", "self.channel(x) * self.spatial(x)"),
    ("bam", "dilation: int = 4", "dilation: int = 2"),
    ("ela", "* self._weigh(x.mean(2))", "+ self._weigh(x.mean(2))"),
    ("ela", "gcd(in_channels, 16)", "1"),
    ("ema_attention", "weights_of_b, weights_of_a =", "weights_of_a, weights_of_b ="),
    ("ema_attention", ".softmax(1)", ".sigmoid()"),
    ("ema_attention", "u * rows * columns", "u * rows + columns"),
    ("gct", "embedded.square().mean(1", "embedded.square().sum(1"),
    ("gct", "1 + torch.tanh", "torch.tanh"),
    ("lka", "padding = size // 2 * dilation", "padding, dilation = size // 2, 1"),
    ("mlca", ".flatten(2).transpose(1, 2).reshape(", ".flatten(2).reshape("),
    ("mlca", "((part + 1) * size + parts - 1) // parts", "((part + 1) * size) // parts + 1"),
    ("mlca", "whole * (1 - self.local_weight)", "whole"),
    ("non_local", "in_channels**-0.5", "1.0"),
    ("non_local", ".softmax(2)", ".softmax(1)"),
    ("scse", "channels + self.sSE(x)", "channels * self.sSE(x)"),
    ("simam", "+ 0.5)", "+ 0.6)"),
    ("simam", "x.shape[3] - 1, 1)", "x.shape[3], 1)"),
    ("srm", "+ self.eps).sqrt()", "+ self.eps)"),
    ("srm", "weights[:, 1] * std", "weights[:, 0] * std"),
    ("triplet_attention", "self.hc(x, 3)", "self.cw(x, 3)"),
    ("triplet_attention", "[x.amax(pooled), x.mean(pooled)]", "[x.mean(pooled), x.amax(pooled)]"),
    ("triplet_attention", "height_width) / 3", "height_width) / 2"),
]


@pytest.mark.parametrize(("name", "right", "wrong"), FAULTS)
def test_a_broken_equation_is_seen(name: str, right: str, wrong: str) -> None:
    module_name, _, class_name = str(SPECS[name].factory).partition(":")
    spec = importlib.util.find_spec(module_name)
    assert spec is not None and spec.origin is not None
    module = importlib.util.module_from_spec(spec)
    source = Path(spec.origin).read_text()
    assert source.count(right) == 1
    exec(compile(source.replace(right, wrong), spec.origin, "exec"), module.__dict__)
    params, reference = CASES[name]
    torch.manual_seed(0)
    block = away_from_start(getattr(module, class_name)(CHANNELS, **params)).eval()
    assert max(difference(block, reference, map_of(size)) for size in SIZES) > 1e-6
