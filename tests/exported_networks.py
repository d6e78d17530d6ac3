"""Networks that export in a second, and some whose forward decides by the size of its image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tvc_core import HybridBuilder, HybridModel

__all__ = [
    "EvenDiffers", "LargeDiffers", "OneSize", "Planted", "Small", "SquareDiffers", "lively",
    "opened", "planted", "residual", "small",
]  # fmt: skip


class Small(nn.Module):
    """A network that takes 0.1 s to export."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.last = nn.Conv2d(16, 24, 3, 2, 1)
        self.head = nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.stage(self.stem(x))).amax((2, 3)))


def opened(model: HybridModel) -> HybridModel:
    """Open the gates, so that patches do something."""
    for name, parameter in model.named_parameters():
        if name.endswith(".alpha"):
            nn.init.constant_(parameter, 0.3)
    return model.eval()


def lively(model: HybridModel) -> HybridModel:
    """Make the answers of random weights depend on the image, so that equal ones show something:
    ViT's head starts as 0, and GoogLeNet's and ShuffleNet's answers are hardly more than the biases
    of theirs.
    """
    # Statistics of normalizations from noise would do it as well, but then torch's own answers are
    # 1.4e-5 off those in float64 on GoogLeNet.
    for each in model.modules():
        if isinstance(each, nn.Linear) and each.out_features == model.num_classes:
            if not each.weight.any():
                nn.init.normal_(each.weight, std=0.02)
            if each.bias is not None:
                nn.init.zeros_(each.bias)
    return model


def small(*, is_open: bool = True) -> HybridModel:
    """Return a network with two patches."""
    torch.manual_seed(0)
    patches = {"stage": {"wrap": "se"}, "last": {"wrap": "eca"}}
    model = HybridBuilder().from_module(
        Small(), stem="stem", stages=["stage", "last"], head="head", patches=patches
    )
    return opened(model) if is_open else model


class Residual(Small):
    """Adds what comes from before a stage to it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(16, 16, 3, 1, 1)
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.stem(x))
        return self.head((x + self.last(x)).mean((2, 3)))


def residual() -> HybridModel:
    """Return a network with a sum, with a patch inside it."""
    torch.manual_seed(2)
    return opened(
        HybridBuilder().from_module(
            Residual(),
            stem="stem",
            stages=["stage", "last"],
            head="head",
            patches={
                "last": {"inject": {"type": "se", "position": "after"}},
                "stem": {"wrap": "cbam_block"},
            },
        )
    )


class Planted(nn.Module):
    """A network whose forward decides by the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.stage(self.stem(x))).mean((2, 3)))


class LargeDiffers(Planted):
    """Computes something else for high images."""

    def features(self, x: Tensor) -> Tensor:
        return x.relu() if x.shape[2] > 100 else x.sigmoid()


class EvenDiffers(Planted):
    """Computes something else for an odd width."""

    def features(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[3] % 2 == 0 else x.square()


class SquareDiffers(Planted):
    """Computes something else for images of as many rows as columns."""

    def features(self, x: Tensor) -> Tensor:
        return x.tanh() if x.shape[2] == x.shape[3] else x.relu()


class OneSize(Planted):
    """Takes one height only."""

    def features(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[2] == 64, "64 only")
        return x.relu()


def planted(kind: type[Planted]) -> HybridModel:
    """Return a hybrid of a network that decides by sizes."""
    torch.manual_seed(0)
    return HybridBuilder().from_module(kind(), stem="stem", stages=["stage"], head="head")
