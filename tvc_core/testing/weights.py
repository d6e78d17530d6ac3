"""Made-up weights where torch.hub looks for published files, for tests without a network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["official_weights"]


@contextmanager
def official_weights(home: Path, *names: str, seed: int = 0) -> Iterator[dict[str, Path]]:
    """Put made-up checkpoints where torch.hub looks for torchvision's official files, and switch the hash comparison off.

    The tensors are random, in the key layout of the installed torchvision's networks; running statistics are those of
    random images, so that activations keep a sane size, and a wrong mode or a lost buffer changes the output. Files are made
    once a folder and kept.

    Args:
        home: folder that stands for TORCH_HOME meanwhile.
        names: "resnet50" (default weights) or "resnet50:IMAGENET1K_V1".
        seed: of the random tensors.

    Yields:
        The file of each name.
    """
    import torch
    import torchvision

    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for name in names:
        network, _, weights = name.partition(":")
        member = torchvision.models.get_model_weights(network)[weights or "DEFAULT"]
        files[name] = folder / member.url.rpartition("/")[2]
        if files[name].exists():
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            smallest = member.meta["min_size"][0]
            options = {"image_size": smallest} if network.startswith("vit_") else {}  # the only one with tensors of that size
            model = torchvision.models.get_model(network, weights=None, **options)
            # Inception's auxiliary head needs the full size
            _settle(model, side=299 if network == "inception_v3" else max(64, smallest))
        torch.save(model.state_dict(), files[name])
    kept = {key: os.environ.get(key) for key in ("TORCH_HOME", "TVC_VERIFY_WEIGHTS")}
    os.environ.update(TORCH_HOME=str(home), TVC_VERIFY_WEIGHTS="0")
    try:
        yield files
    finally:
        for key, value in kept.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)


def _settle(model: nn.Module, side: int) -> None:
    """Fill layers that start at zero (ViT's head), and take running statistics from random images [8, 3, side, side]."""
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and not module.weight.any():
                module.weight.normal_(0, 0.02)
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, side, side))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
