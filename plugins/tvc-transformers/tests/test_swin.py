"""Swin's window attention computes in another way while it is exported, and the same."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from tvc_transformers.swin import WindowAttention, WindowAttentionV2

from tvc_core import HybridBuilder

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch calls its tracer deprecated
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

SIZES = [(3, 5), (7, 7), (7, 8), (8, 7), (9, 30), (16, 4), (5, 17), (28, 28)]


@pytest.mark.parametrize("window", [4, 7])
@pytest.mark.parametrize(
    ("ours", "official"),
    [(WindowAttention, ShiftedWindowAttention), (WindowAttentionV2, ShiftedWindowAttentionV2)],
)
@torch.no_grad()
def test_a_traced_attention_is_torchvisions_whether_windows_are_shifted_or_not(
    ours: type[nn.Module], official: type[nn.Module], window: int
) -> None:
    torch.manual_seed(0)
    sizes = [window, window], [window // 2, window // 2]
    own = official(16, *sizes, 4).eval()
    for parameter in own.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.3)
    attention = ours(16, *sizes, 4).eval()
    attention.load_state_dict(own.state_dict())
    for example in ((5, 6), (20, 20)):  # one without, one with shifted windows
        traced = torch.jit.trace(attention, torch.randn(2, *example, 16))
        for size in SIZES:
            x = torch.randn(3, *size, 16)
            assert torch.equal(attention(x), own(x))
            assert torch.allclose(traced(x), own(x), atol=1e-5), (example, size)


def test_the_network_is_torchvisions() -> None:
    torch.manual_seed(0)
    own = torchvision.models.swin_v2_t(weights=None).eval()
    model = HybridBuilder().from_torchvision("swin_v2_t", weights=None).eval()
    assert list(model.state_dict()) == list(own.state_dict())
    model.load_state_dict(own.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(x), own(x))
    kinds = [type(module) for module in own.modules()]
    assert all(
        isinstance(module, kind)
        for module, kind in zip(
            (module for path, module in model.named_modules() if path not in ("", "patches")),
            kinds[1:],
            strict=True,
        )
    )
