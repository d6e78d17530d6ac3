"""Modules of torchvision.ops under names and parameters for recipes: the core gives each its input
channels, torchvision does the work.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision import ops

from .checks import ACTIVATIONS, NORMALIZATIONS, check_counts, check_probabilities, choose

__all__ = [
    "DeformConv",
    "DropBlock",
    "conv_bn_act",
    "identity",
    "mlp",
    "squeeze_excitation",
    "stochastic_depth",
]


def conv_bn_act(
    in_channels: int,
    channels: int | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    groups: int = 1,
    normalization: str | None = "batch",
    activation: str | None = "relu",
) -> nn.Module:
    """Convolution, normalization and activation.

    Maps [N, in_channels, H, W] to [N, channels, ceil(H / stride), ceil(W / stride)] with the
    default padding and an odd kernel.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the outgoing map; None for in_channels [channels].
        kernel_size: side of the kernel [pixels].
        stride: step of the kernel [pixels].
        padding: on each side; None for (kernel_size - 1) // 2 * dilation [pixels].
        dilation: distance of the kernel's points [pixels].
        groups: of channels that see each other only.
        normalization: "batch", "instance" or None.
        activation: "relu", "relu6", "silu", "gelu", "hardswish", "leaky_relu", "sigmoid",
            "hardsigmoid" or None.

    Raises:
        ValueError: a size is not positive, `groups` does not divide both widths, or a name is
            unknown.

    Source: torchvision.ops.Conv2dNormActivation.
    """
    out_channels = in_channels if channels is None else channels
    check_counts(
        channels=out_channels,
        kernel_size=kernel_size,
        stride=stride,
        dilation=dilation,
        groups=groups,
    )
    if padding is not None:
        check_counts(0, padding=padding)
    activation_layer = choose("activation", activation, ACTIVATIONS)
    return ops.Conv2dNormActivation(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding,
        groups,
        norm_layer=choose("normalization", normalization, NORMALIZATIONS),
        activation_layer=activation_layer,
        dilation=dilation,
        inplace=True
        if activation_layer in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU)
        else None,
    )


class DeformConv(nn.Module):
    """Modulated deformable convolution, which starts as the plain convolution with its weights
    halved.

    Offsets and modulation come from a convolution of the same input, zero at first: no offset,
    modulation sigmoid(0). Maps [N, in_channels, H, W] to [N, channels, ceil(H / stride), ceil(W /
    stride)] for an odd kernel.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the outgoing map; None for in_channels [channels].
        kernel_size: side of the kernel, odd [pixels].
        stride: step of the kernel [pixels].
        dilation: distance of the kernel's points [pixels].
        groups: of channels that see each other only.

    Raises:
        ValueError: a size is not positive, the kernel is even, or `groups` does not divide both
            widths.

    Source: Zhu et al. 2019, arXiv:1811.11168, section 3.2; torchvision.ops.DeformConv2d.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        out_channels = in_channels if channels is None else channels
        check_counts(
            channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            groups=groups,
        )
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is odd, not {kernel_size}")
        padding = (kernel_size - 1) // 2 * dilation
        points = kernel_size * kernel_size
        self.offset = nn.Conv2d(in_channels, 3 * points, kernel_size, stride, padding, dilation)
        nn.init.zeros_(self.offset.weight)
        if self.offset.bias is not None:
            nn.init.zeros_(self.offset.bias)
        self.conv = _DeformConv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        )
        self.points = points

    def forward(self, x: Tensor) -> Tensor:
        """Compute offsets and modulation, then sample."""
        offset, mask = self.offset(x).split([2 * self.points, self.points], dim=1)
        y: Tensor = self.conv(x, offset, mask.sigmoid())
        return y


class _DeformConv2d(ops.DeformConv2d):  # type: ignore[misc]
    """torchvision's for all dtypes and orders of memory."""

    tvc_computes_as = ops.DeformConv2d

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        # torchvision has no kernel for bfloat16
        dtype = torch.float64 if input.dtype is torch.float64 else torch.float32
        x, shifts, weight, bias, factors = (
            None if each is None else each.to(dtype)
            for each in (input, offset, self.weight, self.bias, mask)
        )
        y = ops.deform_conv2d(
            x, shifts, weight, bias, self.stride, self.padding, self.dilation, factors
        )
        # torchvision's operator loses the order of memory
        last = torch.channels_last
        is_last = input.is_contiguous(memory_format=last) and not input.is_contiguous()
        return y.to(input.dtype, memory_format=last if is_last else torch.preserve_format)


def squeeze_excitation(
    in_channels: int,
    squeeze_channels: int | None = None,
    activation: str = "relu",
    scale_activation: str = "sigmoid",
) -> nn.Module:
    """torchvision's squeeze-excite. Maps [N, C, H, W] to the same shape.

    Args:
        in_channels: C [channels].
        squeeze_channels: width of the hidden layer; None for C // 16, at least 1 [channels].
        activation: of the hidden layer, as for conv_bn_act.
        scale_activation: of the gate, "sigmoid" or "hardsigmoid" as a rule.

    Raises:
        ValueError: `squeeze_channels` is not positive, or a name is unknown.

    Source: torchvision.ops.SqueezeExcitation.
    """
    squeeze = max(in_channels // 16, 1) if squeeze_channels is None else squeeze_channels
    check_counts(squeeze_channels=squeeze)
    hidden, scale = (
        choose("activation", activation, ACTIVATIONS),
        choose("scale_activation", scale_activation, ACTIVATIONS),
    )
    return ops.SqueezeExcitation(in_channels, squeeze, hidden or nn.Identity, scale or nn.Identity)


def mlp(
    in_channels: int,
    hidden_channels: int | None = None,
    activation: str = "gelu",
    dropout: float = 0.0,
) -> nn.Module:
    """Multilayer perceptron over the last axis. Maps [..., C] to the same shape.

    Args:
        in_channels: C [channels].
        hidden_channels: width of the hidden layer; None for 4 C [channels].
        activation: of the hidden layer, as for conv_bn_act.
        dropout: probability after each layer.

    Raises:
        ValueError: `hidden_channels` is not positive, `dropout` no probability, or the activation
            unknown.

    Source: torchvision.ops.MLP.
    """
    hidden = 4 * in_channels if hidden_channels is None else hidden_channels
    check_counts(hidden_channels=hidden)
    check_probabilities(dropout=dropout)
    layer = choose("activation", activation, ACTIVATIONS) or nn.Identity
    return ops.MLP(
        in_channels, [hidden, in_channels], activation_layer=layer, inplace=None, dropout=dropout
    )


class DropBlock(ops.DropBlock2d):  # type: ignore[misc]  # torchvision has no types
    """Zero contiguous squares of [N, C, H, W] in training, and scale the rest.

    Args:
        in_channels: C; what is dropped does not depend on it.
        p: probability of an entry to be dropped.
        block_size: largest side of the squares; the side is the largest odd number that is not
            above it and fits into the map [pixels].

    Raises:
        ValueError: `p` is no probability, or `block_size` is not positive.

    Source: Ghiasi et al. 2018, arXiv:1810.12890; torchvision.ops.DropBlock2d.
    """

    def __init__(self, in_channels: int, p: float = 0.1, block_size: int = 7) -> None:
        check_probabilities(p=p)
        check_counts(block_size=block_size)
        super().__init__(p, block_size)

    def forward(self, x: Tensor) -> Tensor:
        """Drop in training mode; give the map back in eval mode."""
        # torchvision's function shrinks a square to the map, and then refuses an even side
        fits = min(self.block_size, *x.shape[-2:])
        return ops.drop_block2d(x, self.p, fits - (fits + 1) % 2, training=self.training)


def stochastic_depth(in_channels: int, p: float = 0.1, mode: str = "row") -> nn.Module:
    """Zero the whole map of random samples in training, and scale the rest.

    Args:
        in_channels: C; what is dropped does not depend on it.
        p: probability of a sample to be dropped.
        mode: "row" decides for each sample, "batch" for all together.

    Raises:
        ValueError: `p` is no probability, or `mode` unknown.

    Source: torchvision.ops.StochasticDepth.
    """
    check_probabilities(p=p)
    if mode not in ("row", "batch"):
        raise ValueError(f"mode is 'row' or 'batch', not {mode!r}")
    return ops.StochasticDepth(p, mode)


def identity(in_channels: int) -> nn.Module:
    """Return the module that gives back its input, whatever its shape."""
    return nn.Identity()
