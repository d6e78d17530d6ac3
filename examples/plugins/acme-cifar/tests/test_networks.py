"""The networks against section 4.2 of their paper, and a second forward pass written with
functions.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from acme_cifar import plugin
from torch import Tensor
from torch.nn import functional as F

from tvc_core import HybridBuilder, Registry

RECIPE = Path(__file__).resolve().parents[1] / "recipe.yaml"
MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85}  # table 6


@pytest.fixture
def builder() -> HybridBuilder:
    """A builder that sees this plugin alone, installed or not."""
    return HybridBuilder(registry=Registry(plugins=[plugin], installed=False))


def counted(num_blocks: int) -> int:
    """Return the number of parameters: 3x3 weights, scale and shift of each normalization, the
    linear layer.
    """
    convolutions = [(3, 16)]
    for width, before in ((16, 16), (32, 16), (64, 32)):
        convolutions += [(before, width)] + [(width, width)] * (2 * num_blocks - 1)
    return sum(9 * i * o + 2 * o for i, o in convolutions) + 64 * 10 + 10


def forward_by_hand(state: dict[str, Tensor], x: Tensor, num_blocks: int) -> Tensor:
    """Return the logits, in eval mode."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var, scale, shift = (
            state[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
        )
        shape = (1, -1, 1, 1)
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * scale.view(
            shape
        ) + shift.view(shape)

    x = conv_norm(x, "conv1", "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(num_blocks):
            path = f"stage{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            branch = conv_norm(x, f"{path}.conv1", f"{path}.bn1", stride).clamp(min=0)
            branch = conv_norm(branch, f"{path}.conv2", f"{path}.bn2")
            # option A: every second pixel, zeros for the new channels
            short = x[:, :, ::stride, ::stride]
            zeros = branch.new_zeros(len(x), branch.shape[1] - x.shape[1], *branch.shape[2:])
            x = (branch + torch.cat([short, zeros], 1)).clamp(min=0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("depth", MILLIONS)
def test_the_number_of_parameters_is_the_papers(builder: HybridBuilder, depth: int) -> None:
    count = builder.from_backbone(f"cifar_resnet{depth}", None).count_parameters()
    assert count == counted((depth - 2) // 6)
    assert round(count / 1e6, 2) == MILLIONS[depth]


@pytest.mark.parametrize("depth", MILLIONS)
def test_the_number_of_layers_with_weights_is_in_the_name(
    builder: HybridBuilder, depth: int
) -> None:
    model = builder.from_backbone(f"cifar_resnet{depth}", None)
    assert (
        sum(isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) for module in model.modules())
        == depth
    )


@pytest.mark.parametrize("size", [(32, 32), (17, 30)])
def test_the_forward_pass_is_the_one_written_by_hand(
    builder: HybridBuilder, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = builder.from_backbone("cifar_resnet20", None).double()
    model.train()(torch.randn(8, 3, 32, 32, dtype=torch.float64))  # statistics that are not 0 and 1
    model.eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(
        model(x), forward_by_hand(model.state_dict(), x, 3), rtol=1e-10, atol=1e-10
    )


def test_the_maps_have_32_16_and_8_pixels_a_side(builder: HybridBuilder) -> None:
    model = builder.from_backbone("cifar_resnet20", None)
    assert [(stage.channels, 32 // stage.stride) for stage in model.stage_info] == [
        (16, 32),
        (32, 16),
        (64, 8),
    ]


def test_the_recipe_builds_starts_as_the_plain_network_and_learns(builder: HybridBuilder) -> None:
    torch.manual_seed(0)
    model = builder.build(RECIPE)
    assert model.step0_difference == 0.0
    assert len(model.patch_records) == 6
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(
        value.item() != 0 for name, value in model.named_parameters() if name.endswith(".alpha")
    )
