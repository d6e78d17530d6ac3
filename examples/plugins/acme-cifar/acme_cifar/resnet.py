"""Residual networks for 32x32 images.

He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2: a 3x3
convolution, three stages of n blocks with 16, 32 and 64 channels, the mean over the map, a linear
layer; with n = 3, 5, 7, 9 these are 20, 32, 44 and 56 layers. Shortcuts have no parameters (the
paper's option A).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvc_core import BackboneSpec

__all__ = ["BasicBlock", "CifarResNet", "build"]


class Shortcut(nn.Module):
    """Take every `stride`-th pixel, and append channels of zeros: a shortcut without parameters.

    Maps [N, C, H, W] to [N, C + extra_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels, self.stride = extra_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller, wider map."""
        return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, 0, self.extra_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Maps [N, C, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)].

    Args:
        in_channels: C, the width of the incoming map [channels].
        out_channels: width of the result, at least C [channels].
        stride: of the first convolution [pixels].
    """

    tvc_branch = "bn2"  # where the branch ends, so that tvc can patch before the addition

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes = stride > 1 or out_channels > in_channels
        self.shortcut = Shortcut(out_channels - in_channels, stride) if changes else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add branch and shortcut."""
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu(branch + self.shortcut(x))
        return result


class CifarResNet(nn.Module):
    """The network of 6 n + 2 layers. Maps [N, 3, H, W] to logits [N, 10].

    Args:
        num_blocks: n, blocks in each of the three stages.
    """

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.stage1 = _stage(16, 16, 1, num_blocks)
        self.stage2 = _stage(16, 32, 2, num_blocks)
        self.stage3 = _stage(32, 64, 2, num_blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return logits


def _stage(in_channels: int, out_channels: int, stride: int, num_blocks: int) -> nn.Sequential:
    blocks = [BasicBlock(in_channels, out_channels, stride)]
    blocks += [BasicBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


def build(spec: BackboneSpec, *, weights: None) -> CifarResNet:
    """Return the network whose number of layers, 6 n + 2, ends the spec's name. There are no
    pretrained weights.
    """
    return CifarResNet((int(spec.name.removeprefix("cifar_resnet")) - 2) // 6)
