"""AlexNet's and VGG's pooling computes in another way while it is exported, and the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from tvc_convnets.pooling import AdaptiveAvgPool2d

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch calls its tracer deprecated
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

SIZES = [(1, 2), (3, 9), (6, 7), (13, 20), (14, 49), (40, 5)]


@pytest.mark.parametrize("places", [(6, 6), (7, 7), (2, 5)])
def test_a_traced_pooling_is_torchs_for_any_size(places: tuple[int, int]) -> None:
    pool = AdaptiveAvgPool2d(places)
    traced = torch.jit.trace(pool, torch.randn(2, 3, 12, 14))
    for size in SIZES:
        x = torch.randn(1, 4, *size)
        expected = nn.functional.adaptive_avg_pool2d(x, places)
        assert torch.equal(pool(x), expected)
        assert torch.allclose(traced(x), expected, atol=1e-6)
