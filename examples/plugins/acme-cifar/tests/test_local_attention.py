"""Efficient local attention against its paper, written out by hand."""

from __future__ import annotations

from math import gcd

import numpy as np
import pytest
import torch
from acme_cifar.local_attention import EfficientLocalAttention

# kernel size, channels of a group of the convolution, groups of the normalization: section 3.3
VARIANTS = {"tiny": (5, 1, 32), "base": (7, 1, 16), "small": (5, 8, 16), "large": (7, 8, 16)}


def strip_gate(
    strip: np.ndarray, weight: np.ndarray, scale: np.ndarray, shift: np.ndarray, groups: int
) -> np.ndarray:
    """Return sigmoid(groupnorm(conv(strip))) for one strip [C, L]."""
    C, L = strip.shape
    _, width, K = weight.shape
    mixed = np.zeros((C, L))
    for c in range(C):
        first = c // width * width  # of the channels that c's group of the convolution sees
        for i in range(L):
            for k in range(K):
                j = i + k - K // 2
                if 0 <= j < L:
                    mixed[c, i] += weight[c, :, k] @ strip[first : first + width, j]
    for part in np.split(mixed, groups):  # views
        part -= part.mean()
        part /= np.sqrt((part**2).mean() + 1e-5)
    return 1 / (1 + np.exp(-(mixed * scale[:, None] + shift[:, None])))


def by_hand(block: EfficientLocalAttention, x: np.ndarray, groups: int) -> np.ndarray:
    """Return x * y_h * y_w for a map [N, C, H, W], sample by sample."""
    weight, scale, shift = (
        p.detach().numpy() for p in (block.conv.weight, block.norm.weight, block.norm.bias)
    )
    results = []
    for image in x:
        rows = strip_gate(image.mean(2), weight, scale, shift, groups)
        columns = strip_gate(image.mean(1), weight, scale, shift, groups)
        results.append(image * rows[:, :, None] * columns[:, None, :])
    return np.stack(results)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("channels", "size"), [(32, (6, 9)), (24, (5, 4)), (7, (3, 11))])
def test_it_is_the_papers_formula(variant: str, channels: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = EfficientLocalAttention(channels, variant).double()
    with torch.no_grad():
        block.norm.weight.normal_()
        block.norm.bias.normal_()
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    groups = gcd(channels, VARIANTS[variant][2])
    np.testing.assert_allclose(
        block(x).detach().numpy(), by_hand(block, x.numpy(), groups), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_the_papers_widths_the_hyperparameters_are_the_papers(variant: str) -> None:
    kernel_size, width, norm_groups = VARIANTS[variant]
    block = EfficientLocalAttention(256, variant)
    assert (block.conv.kernel_size, block.conv.groups, block.norm.num_groups) == (
        (kernel_size,),
        256 // width,
        norm_groups,
    )
    assert sum(p.numel() for p in block.parameters()) == 256 * width * kernel_size + 2 * 256


def test_base_is_the_default() -> None:
    assert EfficientLocalAttention(64).conv.kernel_size == (7,)


def test_one_pixel_of_one_image_has_the_constant_gate_of_the_shift() -> None:
    block = EfficientLocalAttention(16)  # 16 groups of one channel
    x = torch.randn(1, 16, 1, 1)
    torch.testing.assert_close(block(x), x / 4)  # sigmoid(0) twice


def test_another_variant_is_refused_with_the_four() -> None:
    with pytest.raises(ValueError, match="one of tiny, base, small, large, not 'huge'"):
        EfficientLocalAttention(16, "huge")
