"""Random maps for looks at a network: the same at each call, wherever the network is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["first_float", "image_for", "noise", "noise_source"]


def noise_source() -> torch.Generator:
    """Return a generator for several calls of `noise`."""
    return torch.Generator("cpu").manual_seed(0)


def noise(shape: Sequence[int], source: torch.Generator | None = None) -> Tensor:
    """Return normal numbers, float32, on the CPU: also where torch's default is another device,
    whose numbers would be others.

    Args:
        shape: of the tensor.
        source: goes on with these numbers; by default the same ones at each call.
    """
    source = source or noise_source()
    return torch.randn(tuple(shape), generator=source, dtype=torch.float32, device="cpu")


def first_float(module: nn.Module) -> Tensor:
    """Return the first parameter of floating-point numbers, whose type and device are those of a
    network; an empty tensor of float32 on the CPU where there is none.
    """
    found = (each for each in module.parameters() if each.is_floating_point())
    return next(found, torch.empty(0, device="cpu"))


def image_for(network: nn.Module, shape: Sequence[int]) -> Tensor:
    """Return an image for a network, the same for the same shape, of its type and on its device."""
    like = first_float(network)
    return noise(shape).to(dtype=like.dtype, device=like.device)
