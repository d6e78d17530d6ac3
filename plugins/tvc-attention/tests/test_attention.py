"""Each block against a second derivation: the paper by hand, torchvision or timm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
import torchvision
from timm.layers.cbam import CbamModule
from timm.layers.gather_excite import GatherExcite
from torch import Tensor, nn

from tvc_core import HybridBuilder, ParameterError

BLOCKS = (
    "se", "ese", "eca", "cbam_block", "channel_attention", "spatial_attention", "coord_attention",
    "gather_excite", "global_context",
)  # fmt: skip
GATED = BLOCKS


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make(name: str, in_channels: int, **params: Any) -> Any:
    return HybridBuilder().create_block(name, in_channels, **params)


def maps(
    channels: int = 32, size: tuple[int, int] = (7, 5), dtype: torch.dtype = torch.float64
) -> Tensor:
    return torch.randn(3, channels, *size, dtype=dtype)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# -- against other libraries -----------------------------------------------------------------------


def test_se_is_torchvisions_squeeze_excitation() -> None:
    block, reference = (
        make("se", 32, reduction=4).double(),
        torchvision.ops.SqueezeExcitation(32, 8).double(),
    )
    reference.load_state_dict(block.state_dict())
    x = maps()
    torch.testing.assert_close(block(x), reference(x), rtol=1e-12, atol=1e-12)


def test_se_with_hidden_channels_is_timms() -> None:
    reference = timm.layers.SEModule(40, rd_ratio=1 / 16).double()
    block = make("se", 40, hidden_channels=reference.fc1.out_channels).double()
    block.load_state_dict(reference.state_dict())
    x = maps(40)
    assert reference.fc1.out_channels != 40 // 16
    torch.testing.assert_close(block(x), reference(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [16, 64, 100, 512])
def test_eca_is_timms(channels: int) -> None:
    block, reference = make("eca", channels).double(), timm.layers.EcaModule(channels).double()
    reference.load_state_dict(block.state_dict())
    x = maps(channels)
    torch.testing.assert_close(block(x), reference(x), rtol=1e-12, atol=1e-12)


def test_cbam_without_bias_is_timms() -> None:
    block, reference = make("cbam_block", 64).double(), CbamModule(64, rd_ratio=1 / 16).double()
    with torch.no_grad():
        reference.channel.fc1.weight.copy_(block.channel.fc1.weight)
        reference.channel.fc2.weight.copy_(block.channel.fc2.weight)
        reference.spatial.conv.conv.weight.copy_(block.spatial.conv.weight)
    reference.spatial.conv.bn = nn.Identity()  # timm's own addition
    for layer in (reference.channel.fc1, reference.channel.fc2):
        assert layer.bias is None
    x = maps(64)
    torch.testing.assert_close(block(x), reference(x), rtol=1e-12, atol=1e-12)


def test_cbam_takes_timms_names() -> None:
    block, reference = make("cbam_block", 64).double(), CbamModule(64, rd_ratio=1 / 16).double()
    reference.spatial.conv.bn = nn.Identity()  # timm's own addition
    block.load_state_dict(reference.state_dict())
    x = maps(64)
    torch.testing.assert_close(block(x), reference(x), rtol=1e-12, atol=1e-12)


def timms(name: str, channels: int) -> tuple[Any, Any]:
    """Our block and timm's, with options that make them the same."""
    if name == "ese":
        return make("ese", channels), timm.layers.EffectiveSEModule(channels)
    if name == "ese, sigmoid":
        reference = timm.layers.EffectiveSEModule(channels, gate_layer="sigmoid")
        return make("ese", channels, hard=False), reference
    if name == "coord_attention":
        timms = pytest.importorskip("timm.layers.coord_attn", reason="this timm has no such block")
        reference = timms.CoordAttn(channels)
        return make(name, channels, hidden_channels=reference.conv1.out_channels), reference
    if name == "global_context":
        reference = timm.layers.GlobalContext(channels)
        width = reference.mlp_scale.fc1.out_channels
        return make(name, channels, hidden_channels=width), reference
    if name == "global_context, add":
        reference = timm.layers.GlobalContext(channels, fuse_add=True, fuse_scale=False)
        width = reference.mlp_add.fc1.out_channels
        return make("global_context", channels, fusion="add", hidden_channels=width), reference
    extent = int(name[-1])
    reference = GatherExcite(channels, extent=extent, use_mlp=False)
    block = make("gather_excite", channels, extent=extent, use_mlp=bool(name.startswith("mlp")))
    if name.startswith("mlp"):  # which timm 1.0.31 cannot build: it hands over `act_layer` twice
        reference.mlp = timm.layers.ConvMlp(channels, block.mlp.fc1.out_channels)
    return block, reference


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [24, 64])
@pytest.mark.parametrize(
    "name",
    [
        "ese", "ese, sigmoid", "coord_attention", "global_context", "global_context, add",
        "extent 0", "extent 2", "extent 4", "mlp, extent 0", "mlp, extent 4",
    ],
)  # fmt: skip
def test_blocks_are_timms_with_its_weights(name: str, channels: int, training: bool) -> None:
    block, reference = (each.double().train(training) for each in timms(name, channels))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    block.load_state_dict(reference.state_dict())
    x = maps(channels).requires_grad_()
    y, expected = block(x), reference(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(x)
    torch.testing.assert_close(
        torch.autograd.grad(y, x, grad)[0],
        torch.autograd.grad(expected, x, grad)[0],
        rtol=1e-10,
        atol=1e-7 if name == "ese" else 1e-10,  # torch's hard sigmoid has 1 / 6 in float32
    )
    assert block.state_dict().keys() == reference.state_dict().keys()


def test_gathering_by_convolutions_is_a_chain_of_them() -> None:
    block, x = make("gather_excite", 6, extent=4, extra_params=True, use_mlp=False), maps(6, (8, 8))
    block = block.double().eval()
    z, names = x, [name for name, _ in block.gather.named_children()]
    assert names == ["conv1", "norm1", "act1", "conv2", "norm2"]
    for number in (1, 2):
        weight = block.gather.get_submodule(f"conv{number}").weight
        z = torch.conv2d(z, weight, stride=2, padding=1, groups=6) / (1 + 1e-5) ** 0.5
        z = z.relu() if number == 1 else z
    assert z.shape == (3, 6, 2, 2)
    gate = z.sigmoid().repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(block(x), x * gate, rtol=1e-12, atol=1e-12)


# -- against the papers ----------------------------------------------------------------------------


def channel_gate_by_hand(block: Any, x: np.ndarray) -> np.ndarray:
    """Equation (2) of Woo et al.: sigmoid(W1(relu(W0(avg))) + W1(relu(W0(max))))."""
    w0, w1 = (layer.weight.detach().numpy()[:, :, 0, 0] for layer in (block.fc1, block.fc2))

    def shared(v: np.ndarray) -> np.ndarray:
        return np.einsum("ch,nh->nc", w1, np.maximum(np.einsum("hc,nc->nh", w0, v), 0))

    return sigmoid(shared(x.mean((2, 3))) + shared(x.max((2, 3))))[:, :, None, None]


def spatial_gate_by_hand(block: Any, x: np.ndarray) -> np.ndarray:
    """Equation (3): sigmoid(f7x7([avg; max])), the convolution written as sums over shifted
    maps.
    """
    weight = block.conv.weight.detach().numpy()[0]
    k = weight.shape[-1]
    stacked = np.pad(
        np.stack([x.mean(1), x.max(1)], 1), ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2))
    )
    H, W = x.shape[2:]
    total = np.zeros((len(x), H, W))
    for i in range(k):
        for j in range(k):
            total += np.einsum("c,nchw->nhw", weight[:, i, j], stacked[:, :, i : i + H, j : j + W])
    return sigmoid(total)[:, None]


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (2, 9)])
def test_cbam_is_equations_1_to_3(size: tuple[int, int]) -> None:
    block, x = make("cbam_block", 32, reduction=4, kernel_size=3).double(), maps(32, size)
    refined = channel_gate_by_hand(block.channel, x.numpy()) * x.numpy()
    expected = spatial_gate_by_hand(block.spatial, refined) * refined
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_the_parts_of_cbam_are_blocks_of_their_own() -> None:
    x = maps()
    channel, spatial = (
        make("channel_attention", 32).double(),
        make("spatial_attention", 32).double(),
    )
    np.testing.assert_allclose(
        channel.gate(x).detach().numpy(), channel_gate_by_hand(channel, x.numpy()), rtol=1e-12
    )
    np.testing.assert_allclose(
        spatial.gate(x).detach().numpy(), spatial_gate_by_hand(spatial, x.numpy()), rtol=1e-12
    )
    assert spatial.conv.kernel_size == (7, 7) and channel.fc1.out_channels == 2


def test_se_is_its_papers_formula() -> None:
    block, x = make("se", 32, reduction=8).double(), maps()
    w1, b1, w2, b2 = (
        p.detach().numpy().squeeze()
        for p in (block.fc1.weight, block.fc1.bias, block.fc2.weight, block.fc2.bias)
    )
    hidden = np.maximum(x.numpy().mean((2, 3)) @ w1.T + b1, 0)
    expected = x.numpy() * sigmoid(hidden @ w2.T + b2)[:, :, None, None]
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-12)


def test_eca_mixes_neighboring_channels_with_zeros_beyond_the_ends() -> None:
    block, x = make("eca", 6, kernel_size=3).double(), maps(6)
    weight, means = block.conv.weight.detach().numpy().ravel(), x.numpy().mean((2, 3))
    padded = np.pad(means, ((0, 0), (1, 1)))
    gate = sigmoid(sum(weight[k] * padded[:, k : k + 6] for k in range(3)))
    np.testing.assert_allclose(
        block(x).detach().numpy(), x.numpy() * gate[:, :, None, None], rtol=1e-12
    )


# |log2(C) / 2 + 1 / 2|, the nearest odd number as the authors' code takes it: truncated, and one
# more if that is even C = 16: 2.5 -> 2 -> 3; 64: 3.5 -> 3; 128: 4 -> 5; 256: 4.5 -> 4 -> 5; 512: 5
# -> 5; 1024: 5.5 -> 5; 2048: 6 -> 7
@pytest.mark.parametrize(
    ("channels", "size"),
    [(1, 1), (8, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_ecas_kernel_size_is_equation_12(channels: int, size: int) -> None:
    assert make("eca", channels).conv.kernel_size == (size,)


def test_gamma_and_b_change_the_kernel_size() -> None:
    assert make("eca", 256, gamma=1).conv.kernel_size == (9,)  # 8 + 1
    assert make("eca", 256, gamma=4, b=4).conv.kernel_size == (3,)  # 2 + 1


# -- what every block promises ---------------------------------------------------------------------


@pytest.mark.parametrize("name", GATED)
def test_the_gate_is_what_forward_multiplies_with(name: str) -> None:
    block, x = make(name, 32).double(), maps()
    gate = block.gate(x)
    torch.testing.assert_close(block(x), x * gate, rtol=1e-12, atol=1e-12)
    assert ((gate >= 0) & (gate <= 1)).all()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("se", {"reduction": 0}, "reduction is a whole number from 1"),
        ("se", {"reduction": 33}, "33"),
        ("se", {"reduction": 2.5}, r"2\.5"),
        ("se", {"reduction": True}, "True"),
        ("se", {"hidden_channels": 0}, "hidden_channels is a whole number of at least 1"),
        ("se", {"ratio": 4}, "unknown parameter 'ratio'.*reduction"),
        ("se", {"reducton": 4}, "Did you mean 'reduction'"),
        ("cbam_block", {"kernel_size": 4}, "odd number"),
        ("cbam_block", {"reduction": -1}, "-1"),
        ("spatial_attention", {"kernel_size": 0}, "odd number"),
        ("spatial_attention", {"kernel_size": "7"}, "odd number"),
        ("eca", {"kernel_size": 2}, "odd number"),
        ("eca", {"gamma": 0}, "gamma"),
        ("channel_attention", {"hidden_channels": True}, "hidden_channels"),
        ("coord_attention", {"reduction": 33}, "33"),
        ("gather_excite", {"extent": 3}, "extent is 0 or a power of 2"),
        ("gather_excite", {"extent": 1}, "extent is 0 or a power of 2"),
        ("gather_excite", {"extra_params": True}, "needs an extent"),
        ("global_context", {"fusion": "both"}, "'scale' or 'add', not 'both'"),
        ("global_context", {"hidden_channels": 0}, "hidden_channels"),
        ("bam", {"reduction": 0}, "reduction is a whole number from 1"),
        ("bam", {"dilation": 0}, "dilation is a whole number of at least 1"),
        ("bam", {"dilatation": 2}, "unknown parameter 'dilatation'.*Did you mean 'dilation'"),
        ("ela", {"kernel_size": 4}, "kernel_size is an odd number"),
        ("ela", {"groups": 5}, r"groups divides in_channels \(32\), and 5 does not"),
        ("ela", {"num_groups": 0}, "num_groups divides in_channels"),
        ("ema_attention", {"factor": 3}, "factor divides in_channels"),
        ("ema_attention", {"groups": 4}, "unknown parameter 'groups'.*factor"),
        ("gct", {"eps": 0}, "eps is a number above 0, not 0"),
        ("gct", {"eps": "small"}, "eps is a number above 0"),
        ("lka", {"kernel_size": 20}, "kernel_size is an odd number"),
        ("lka", {"kernel_size": 11, "dilation": 3}, "11 with dilation 3 needs a kernel of 4"),
        ("lka", {"dilation": True}, "dilation is a whole number"),
        ("mlca", {"local_size": 0}, "local_size is a whole number of at least 1"),
        ("mlca", {"local_weight": 1.5}, "local_weight is a number above 0 and up to 1, not 1.5"),
        ("mlca", {"local_weight": float("nan")}, "local_weight is a number above 0"),
        ("mlca", {"kernel_size": 2}, "kernel_size is an odd number"),
        ("non_local", {"reduction": 64}, "reduction is a whole number from 1"),
        ("non_local", {"use_scale": "no"}, "use_scale is True or False, not 'no'"),
        ("scse", {"hidden_channels": 0}, "hidden_channels is a whole number"),
        ("simam", {"e_lambda": -1}, "e_lambda is a number above 0, not -1"),
        ("simam", {"e_lambda": float("inf")}, "e_lambda is a number above 0, not inf"),
        ("srm", {"eps": None}, "eps is a number above 0, not None"),
        ("triplet_attention", {"kernel_size": 6}, "kernel_size is an odd number"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_is_right(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=f"tvc-attention:{name}.*{message}"):
        make(name, 32, **params)


def test_a_narrow_map_keeps_one_hidden_channel() -> None:
    assert make("se", 8).fc1.out_channels == 1  # 8 // 16, but not none


def test_the_plugin_offers_attention_blocks_with_their_sources() -> None:
    from tvc_attention import plugin

    specs = {spec.name: spec for spec in plugin.tvc_blocks()}
    assert set(BLOCKS) < set(specs) <= set(HybridBuilder().list_blocks(category="attention"))
    assert all(spec.source[-1].isdigit() or "section" in spec.source for spec in specs.values())
    assert all(spec.summary.endswith(".") for spec in specs.values())
    assert all(specs[name].gated for name in GATED)
