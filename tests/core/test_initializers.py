"""What counts as a normalization, whatever its class, its children or the tool that made it."""

from __future__ import annotations

import pytest
import timm.layers as tl
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations

from tvc_core import HybridBuilder
from tvc_core.surgery.initializers import is_normalization, kaiming

NORMALIZATIONS = [
    nn.BatchNorm1d(4),
    nn.BatchNorm2d(4),
    nn.SyncBatchNorm(4),
    nn.LazyBatchNorm2d(),
    nn.InstanceNorm2d(4, affine=True),
    nn.InstanceNorm2d(4),
    nn.GroupNorm(2, 4),
    nn.LayerNorm(4),
    nn.LayerNorm(4, elementwise_affine=False),
    nn.LayerNorm((4, 3, 3)),  # its scale is no vector
    nn.RMSNorm(4),
    nn.LocalResponseNorm(2),
    torchvision.ops.FrozenBatchNorm2d(4),
    torchvision.models.convnext.LayerNorm2d(4),
    tl.GroupNormAct(4, 2),
    tl.GroupNorm1(4),
    tl.LayerNormAct(4),
    tl.LayerNormAct2d(4),
    tl.LayerNorm2d(4),
    tl.RmsNorm(4),
    tl.RmsNorm2d(4),
    tl.BatchNormAct2d(4),
    tl.BatchNormAct2d(4, act_layer=nn.PReLU),
    tl.FrozenBatchNormAct2d(4),
    tl.EvoNorm2dB0(4),
    tl.EvoNorm2dS0(4),
    tl.FilterResponseNormTlu2d(4),
    tl.FilterResponseNormAct2d(4),
    torch.ao.nn.quantized.LayerNorm(
        (4,), nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4)), 1.0, 0
    ),
    parametrizations.weight_norm(nn.LayerNorm((4, 3)), "weight"),
]


class NormedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps, self.scale = 1e-5, nn.Parameter(torch.ones(4))
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)


class CosineNormLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps, self.weight = 1e-5, nn.Parameter(torch.ones(4, 4))


class NormWrapper(nn.Module):
    """As PEFT's: answers for the layer inside."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.eps = layer, 1e-5


OTHERS = [
    nn.Conv2d(4, 4, 3),
    nn.PReLU(),
    nn.Identity(),
    tl.ConvNormAct(4, 4),
    tl.StdConv2d(4, 4, 3),
    tl.ScaledStdConv2d(4, 4, 3),
    tl.NormMlpClassifierHead(4, 3),
    torchvision.ops.Conv2dNormActivation(4, 4),
    parametrizations.spectral_norm(nn.Linear(4, 4)),
    parametrizations.spectral_norm(nn.Linear(4, 4)).parametrizations.weight[0],
    parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    NormedBlock(),
    CosineNormLinear(),
    NormWrapper(nn.Linear(4, 4)),
    NormWrapper(nn.BatchNorm2d(4)),
]


@pytest.mark.parametrize("module", NORMALIZATIONS, ids=lambda module: type(module).__name__)
def test_a_normalization_is_known_by_what_it_is(module: nn.Module) -> None:
    assert is_normalization(module)


@pytest.mark.parametrize("module", OTHERS, ids=lambda module: type(module).__name__)
def test_what_only_has_one_inside_or_a_name_is_not_one(module: nn.Module) -> None:
    assert not is_normalization(module)


@pytest.mark.parametrize(
    ("name", "count"), [("timm/resnet50_gn", 53120), ("timm/resnetv2_50d_gn", 45568)]
)
def test_freezing_finds_normalizations_with_an_activation(
    name: str, count: int, builder: HybridBuilder
) -> None:
    model = builder.from_backbone(name, None)
    norms = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
    by_hand = sum(
        p.numel() for m in model.modules() if isinstance(m, norms) for p in m.parameters()
    )
    found = []
    for normalization in ("frozen", "eval", "train"):
        model.freeze_backbone(head="none", normalization=normalization)
        found.append(model.count_parameters(trainable_only=True))
    assert found == [0, by_hand, by_hand] and by_hand == count


def test_an_initializer_scales_such_a_normalization_by_one() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 3), tl.GroupNormAct(4, 2), tl.LayerNormAct2d(4))
    for parameter in block.parameters():
        nn.init.constant_(parameter, 0.3)
    kaiming(block)
    assert [block[i].weight.tolist() + block[i].bias.tolist() for i in (1, 2)] == 2 * [
        [1.0] * 4 + [0.0] * 4
    ]
