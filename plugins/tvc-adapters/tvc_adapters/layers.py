"""Layers like the one that an adapter stands beside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["add_", "check_layer", "conv_like"]

_EXACT = (nn.Conv2d.forward, nn.Linear.forward)


def conv_like(
    conv: nn.Conv2d, in_channels: int, out_channels: int, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Return a new convolution that looks at the same pixels as another one: with its kernel size,
    stride, padding and dilation.

    One of a class of its own, which may pad for the size of each map (TensorFlow's "same"), gets
    that class and its settings.

    Args:
        conv: the other one.
        in_channels: of the new one [channels].
        out_channels: of the new one [channels].
        groups: of the new one.
        bias: the new one has a bias.
    """
    kernel: Any = conv.kernel_size
    new = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    if type(conv) is not nn.Conv2d:
        _become(new, conv)
    return new


def _become(new: nn.Module, old: nn.Module) -> None:
    """Give a module the class of another one, and the settings that its own class does not know."""
    new.__class__ = type(old)
    for name, value in vars(old).items():
        new.__dict__.setdefault(name, value)


def check_layer(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Refuse a layer whose output is not linear in a weight of its own.

    Raises:
        ValueError: it is of another kind, its weight is quantized or made by a parametrization, or
            its class does something else with the weight.
    """
    name, wanted = type(layer).__name__, kind.__name__
    if not isinstance(layer, kind):
        raise ValueError(f"it takes a {wanted}, not a {name}")
    weight = layer._parameters.get("weight")
    own = {key for key, each in {**layer._parameters, **layer._buffers}.items() if each is not None}
    if weight is None or not weight.is_floating_point():
        raise ValueError(f"the weight of this {name} is no floating-point parameter of its own")
    if own - {"weight", "bias"} or layer._modules:
        more = ", ".join(sorted((own | set(layer._modules)) - {"weight", "bias"}))
        raise ValueError(f"this {name} has more than a weight and a bias: {more}")
    if type(layer).forward not in _EXACT and not _is_additive(layer):
        raise ValueError(f"what this {name} computes is not linear in its weight")


def _is_additive(layer: nn.Module) -> bool:
    """Return whether two weights together give the sum of what each gives.

    A class with a forward of its own may pad in another way, which does no harm, or standardize
    the weight, into which no update can be folded. It is tried with random numbers, since code does
    not tell.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    with torch.device("cpu"):
        if isinstance(layer, nn.Conv2d):
            width = layer.in_channels // layer.groups
            probe: nn.Conv2d | nn.Linear = (
                conv_like(layer, width, 2).to_empty(device="cpu").double()
            )
            sides = zip(layer.dilation, layer.kernel_size, strict=True)
            x = random(1, width, *(step * (size - 1) + 2 for step, size in sides))
        else:
            assert isinstance(layer, nn.Linear)
            probe = nn.Linear(layer.in_features, 2, bias=False, dtype=torch.float64)
            _become(probe, layer)
            x = random(3, layer.in_features)
    weights = [random(*probe.weight.shape), random(*probe.weight.shape)]
    found = []
    try:
        with torch.no_grad():
            for weight in (*weights, weights[0] + weights[1]):
                probe.weight.copy_(weight)
                found.append(probe(x))
    except Exception:  # foreign code may raise anything
        return False
    return torch.allclose(found[0] + found[1], found[2])


def add_(weight: Tensor, change: Tensor) -> None:
    """Add a change of a weight, computed in float64, and round once."""
    weight.copy_((weight.double() + change).to(weight.dtype))
