"""Train ResNet-20 with efficient local attention on scikit-learn's digits, enlarged to 32x32.

The blocks start as the identity, so the patched network starts where the plain one does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from tvc_core import HybridBuilder, param_groups

RECIPE = Path(__file__).resolve().parents[1] / "recipe.yaml"


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images [N, 3, 32, 32] in [-1, 1] and labels [N], for training and for testing."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    images = F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target)
    train, test = train_test_split(
        range(len(labels)), test_size=0.3, random_state=0, stratify=labels
    )
    return images[train], labels[train], images[test], labels[test]


def main(steps: int) -> None:
    """Train for some steps, and print the accuracy on digits that were not seen."""
    torch.manual_seed(0)
    model = HybridBuilder().build(RECIPE)
    print(model.explain())
    images, labels, test_images, test_labels = load()
    optimizer = torch.optim.AdamW(param_groups(model, lr=3e-3, weight_decay=0.01))
    model.train()
    for step in range(steps):
        batch = torch.randint(len(labels), (64,))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    model.eval()
    with torch.no_grad():
        right = (model(test_images).argmax(1) == test_labels).float().mean().item()
    gates = [
        abs(value.item()) for name, value in model.named_parameters() if name.endswith(".alpha")
    ]
    print(f"accuracy after {steps} steps: {right:.1%} of {len(test_labels)} unseen digits")
    print(f"gates of the {len(gates)} blocks: 0 -> {min(gates):.4f} to {max(gates):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
