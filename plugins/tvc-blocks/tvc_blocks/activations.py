"""Activations, to take the place of others. They do not depend on the width, so one also takes the
place of an activation that a block shares among maps of several widths.

None writes into its input, also where the one that it replaces does: what else reads the map does
not change.
"""

from __future__ import annotations

from torch import nn

from .checks import check_numbers, check_positive

__all__ = [
    "elu", "gelu", "hardsigmoid", "hardswish", "leaky_relu", "mish", "prelu", "relu", "relu6",
    "selu", "sigmoid", "silu", "softplus", "tanh",
]  # fmt: skip


def relu(in_channels: int) -> nn.Module:
    """Return max(0, x)."""
    return nn.ReLU()


def relu6(in_channels: int) -> nn.Module:
    """Return min(max(0, x), 6)."""
    return nn.ReLU6()


def leaky_relu(in_channels: int, negative_slope: float = 0.01) -> nn.Module:
    """Return x where it is positive, and negative_slope * x elsewhere.

    Args:
        in_channels: any.
        negative_slope: factor of negative values.

    Raises:
        ValueError: `negative_slope` is no finite number.
    """
    check_numbers(negative_slope=negative_slope)
    return nn.LeakyReLU(negative_slope)


def prelu(in_channels: int, init: float = 0.25) -> nn.Module:
    """Return x where it is positive, and a * x elsewhere, with one learned factor a for all
    channels.

    Args:
        in_channels: any.
        init: start of the factor.

    Raises:
        ValueError: `init` is no finite number.
    """
    check_numbers(init=init)
    return nn.PReLU(1, init)


def elu(in_channels: int, alpha: float = 1.0) -> nn.Module:
    """Return x where it is positive, and alpha * (exp(x) - 1) elsewhere.

    Args:
        in_channels: any.
        alpha: minus the limit for small x.

    Raises:
        ValueError: `alpha` is no finite number.
    """
    check_numbers(alpha=alpha)
    return nn.ELU(alpha)


def selu(in_channels: int) -> nn.Module:
    """Return the scaled exponential linear unit."""
    return nn.SELU()


def gelu(in_channels: int, approximate: str = "none") -> nn.Module:
    """Return x times the normal distribution's share below x.

    Args:
        in_channels: any.
        approximate: "none", or "tanh" for the formula with the hyperbolic tangent.

    Raises:
        ValueError: `approximate` is something else.
    """
    if approximate not in ("none", "tanh"):  # torch says so in the first forward pass only
        raise ValueError(f"approximate is 'none' or 'tanh', not {approximate!r}")
    return nn.GELU(approximate)


def silu(in_channels: int) -> nn.Module:
    """Return x * sigmoid(x), also known as swish."""
    return nn.SiLU()


def mish(in_channels: int) -> nn.Module:
    """Return x * tanh(softplus(x))."""
    return nn.Mish()


def hardswish(in_channels: int) -> nn.Module:
    """Return x * min(max(0, x + 3), 6) / 6."""
    return nn.Hardswish()


def hardsigmoid(in_channels: int) -> nn.Module:
    """Return min(max(0, x + 3), 6) / 6."""
    return nn.Hardsigmoid()


def sigmoid(in_channels: int) -> nn.Module:
    """Return 1 / (1 + exp(-x))."""
    return nn.Sigmoid()


def softplus(in_channels: int, beta: float = 1.0) -> nn.Module:
    """Return log(1 + exp(beta * x)) / beta.

    Args:
        in_channels: any.
        beta: how sharp the bend at zero is.

    Raises:
        ValueError: `beta` is no finite number above 0.
    """
    check_positive(beta=beta)
    return nn.Softplus(beta)


def tanh(in_channels: int) -> nn.Module:
    """Return the hyperbolic tangent."""
    return nn.Tanh()
