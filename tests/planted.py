"""Pictures with planted shapes, which a segmenter has to find: a red disc and a blue square on
noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CLASSES", "intersection_over_union", "learn", "pictures"]

CLASSES = 3
_COLORS = torch.tensor([[1.5, 0.0, 0.0], [0.0, 0.0, 1.5]])


def pictures(count: int, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images [N, 3, H, W] and for every pixel 0, or 1 in the disc, or 2 in the square."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.4 * torch.randn(count, 3, height, width, generator=generator)
    labels = torch.zeros(count, height, width, dtype=torch.long)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    for image, label in zip(images, labels, strict=True):
        for kind, color in enumerate(_COLORS, start=1):
            radius, y, x = torch.rand(3, generator=generator)
            radius = (0.2 + 0.12 * radius) * min(height, width)
            down, right = (rows - y * height).abs(), (columns - x * width).abs()
            inside = down**2 + right**2 < radius**2 if kind == 1 else down.max(right) < radius
            noise = 0.4 * torch.randn(3, int(inside.sum()), generator=generator)
            image[:, inside], label[inside] = color[:, None] + noise, kind
    return images, labels


def learn(network: nn.Module, steps: int, rate: float, side: int = 48) -> None:
    """Train a segmenter on square pictures, none of them twice, and leave it in eval mode."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.2
    )
    network.train()
    for step in range(steps):
        images, labels = pictures(8, side, side, seed=1000 + step)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        schedule.step()
    network.eval()


def intersection_over_union(network: nn.Module, height: int, width: int) -> float:
    """Return that of the class where it is smallest, over 32 pictures that were not trained on."""
    images, labels = pictures(32, height, width, seed=0)
    with torch.no_grad():
        found = network(images).argmax(1)
    return min(
        float(((found == k) & (labels == k)).sum() / ((found == k) | (labels == k)).sum())
        for k in range(CLASSES)
    )
