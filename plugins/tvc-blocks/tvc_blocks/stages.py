"""Blocks that networks are made of, to put in the place of a block or of a whole stage.

Where torchvision has the block, it is torchvision's own class, so its tensors have torchvision's
names and weights copy; `depth` blocks in a row are a Sequential, as torchvision's stages are. All
start as their network does in torchvision, which draws their weights in the network's own
constructor.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models import convnext, efficientnet, mobilenetv2, resnet

from .checks import ACTIVATIONS, check_counts, check_positive, check_probabilities, choose

__all__ = [
    "BasicBlock", "Bottleneck", "DepthwiseSeparableConv", "basic_block", "bottleneck",
    "convnext_block", "depthwise_separable_conv", "fused_mbconv", "inverted_residual", "mbconv",
]  # fmt: skip

MakeBlock = Callable[[int, int], nn.Module]
"""Makes a block of an incoming width and a stride [channels, pixels]."""


class BasicBlock(resnet.BasicBlock):  # type: ignore[misc]  # torchvision has no types
    """ResNet's block of two 3x3 convolutions. Maps [N, in_channels, H, W] to [N, channels, ceil(H /
    stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride, _projection(in_channels, channels, stride))


class Bottleneck(resnet.Bottleneck):  # type: ignore[misc]  # torchvision has no types
    """ResNet's block of a 1x1, a 3x3 and a 1x1 convolution. Maps [N, in_channels, H, W] to [N,
    channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, hidden_channels: int, groups: int
    ) -> None:
        # torchvision's own takes a width that is a quarter of the outgoing one, which not every
        # width has
        nn.Module.__init__(self)
        hidden = hidden_channels
        self.conv1 = resnet.conv1x1(in_channels, hidden)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = resnet.conv3x3(hidden, hidden, stride, groups)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = resnet.conv1x1(hidden, channels)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, channels, stride)
        self.stride = stride


class DepthwiseSeparableConv(nn.Module):
    """Depthwise and pointwise convolution, each with normalization and activation. Maps [N,
    in_channels, H, W] to [N, channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        stride: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        around = (kernel_size - 1) // 2
        self.conv_dw = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, around, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = activation()
        self.conv_pw = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Filter each channel, then mix them."""
        x = self.act1(self.bn1(self.conv_dw(x)))
        x = self.act2(self.bn2(self.conv_pw(x)))
        return x


def basic_block(
    in_channels: int, channels: int | None = None, stride: int = 1, depth: int = 1
) -> nn.Module:
    """ResNet's basic block: relu(shortcut(x) + BN(conv3x3(relu(BN(conv3x3(x)))))), with a 1x1
    convolution and BN as shortcut where the shape changes, else x.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the outgoing map; None for in_channels [channels].
        stride: of the first convolution [pixels].
        depth: blocks in a row; the first has stride and change of width [blocks].

    Raises:
        ValueError: a parameter is no whole number of at least 1.

    Source: He et al. 2016, arXiv:1512.03385, section 3.3; torchvision.models.resnet.BasicBlock.
    """
    out_channels = _width(in_channels, channels, stride=stride, depth=depth)

    def make(width: int, step: int) -> nn.Module:
        return BasicBlock(width, out_channels, step)

    return _kaiming(_in_a_row(make, in_channels, out_channels, stride, depth))


def bottleneck(
    in_channels: int,
    channels: int | None = None,
    hidden_channels: int | None = None,
    stride: int = 1,
    groups: int = 1,
    depth: int = 1,
) -> nn.Module:
    """ResNet's bottleneck: as `basic_block`, with the branch BN(conv1x1(relu(BN(conv3x3(relu(BN(
    conv1x1(x)))))))). With groups it is ResNeXt's. The stride is at the 3x3 convolution, as in
    torchvision ("ResNet v1.5"); the paper has it at the first 1x1 convolution.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the outgoing map; None for in_channels [channels].
        hidden_channels: width of the 3x3 convolution; None for channels // 4, at least `groups`
            and a multiple of it [channels].
        stride: of the 3x3 convolution [pixels].
        groups: of channels of the 3x3 convolution that see each other only.
        depth: blocks in a row; the first has stride and change of width [blocks].

    Raises:
        ValueError: a parameter is no whole number of at least 1, or `groups` does not divide
            `hidden_channels`.

    Source: He et al. 2016, arXiv:1512.03385, section 4.1; Xie et al. 2017, arXiv:1611.05431,
        section 3 (groups); torchvision.models.resnet.Bottleneck.
    """
    out_channels = _width(in_channels, channels, stride=stride, groups=groups, depth=depth)
    hidden = hidden_channels
    if hidden is None:
        hidden = max(out_channels // 4 // groups, 1) * groups
    check_counts(hidden_channels=hidden)
    if hidden % groups:
        raise ValueError(
            f"groups is a number that divides hidden_channels, which is {hidden}, not {groups}"
        )

    def make(width: int, step: int) -> nn.Module:
        return Bottleneck(width, out_channels, step, hidden, groups)

    return _kaiming(_in_a_row(make, in_channels, out_channels, stride, depth))


def inverted_residual(
    in_channels: int,
    channels: int | None = None,
    stride: int = 1,
    expand_ratio: float = 6,
    depth: int = 1,
) -> nn.Module:
    """MobileNetV2's block: 1x1 convolution to a larger width, depthwise 3x3 convolution, 1x1
    convolution back without an activation; added to x where the shape stays.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the outgoing map; None for in_channels [channels].
        stride: of the depthwise convolution, 1 or 2 [pixels].
        expand_ratio: width of the depthwise convolution divided by that of the incoming map.
        depth: blocks in a row; the first has stride and change of width [blocks].

    Raises:
        ValueError: a parameter is no number of that range, or `expand_ratio` leaves no channel.

    Source: Sandler et al. 2018, arXiv:1801.04381, section 3 and table 1;
        torchvision.models.mobilenetv2.InvertedResidual.
    """
    out_channels = _width(in_channels, channels, stride=stride, depth=depth)
    _check_expansion(stride, expand_ratio)
    if round(min(in_channels, out_channels) * expand_ratio) < 1:
        raise ValueError(f"expand_ratio is too small: {expand_ratio!r} leaves no channel")

    def make(width: int, step: int) -> nn.Module:
        block: nn.Module = mobilenetv2.InvertedResidual(width, out_channels, step, expand_ratio)
        return block

    return _kaiming(_in_a_row(make, in_channels, out_channels, stride, depth))


def mbconv(
    in_channels: int,
    channels: int | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    expand_ratio: float = 6,
    stochastic_depth_prob: float = 0.0,
    depth: int = 1,
) -> nn.Module:
    """EfficientNet's block: an inverted residual with SiLU, and squeeze-excite before the last
    convolution, whose hidden layer has a quarter of the incoming map's width.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the outgoing map; None for in_channels [channels].
        kernel_size: side of the depthwise kernel, odd [pixels].
        stride: of the depthwise convolution, 1 or 2 [pixels].
        expand_ratio: width of the depthwise convolution divided by that of the incoming map; the
            product is rounded to a multiple of 8, as in torchvision.
        stochastic_depth_prob: probability that a sample skips the branch, in training.
        depth: blocks in a row; the first has stride and change of width [blocks].

    Raises:
        ValueError: a parameter is no number of that range.

    Source: Tan and Le 2019, arXiv:1905.11946, section 4; torchvision.models.efficientnet.MBConv.
    """
    return _efficientnet(
        efficientnet.MBConv, in_channels, channels, kernel_size, stride, expand_ratio,
        stochastic_depth_prob, depth,
    )  # fmt: skip


def fused_mbconv(
    in_channels: int,
    channels: int | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    expand_ratio: float = 4,
    stochastic_depth_prob: float = 0.0,
    depth: int = 1,
) -> nn.Module:
    """EfficientNetV2's block for early stages: one convolution to a larger width in the place of
    `mbconv`'s 1x1 and depthwise convolution, and no squeeze-excite. The parameters are `mbconv`'s.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the outgoing map; None for in_channels [channels].
        kernel_size: side of the first kernel, odd [pixels].
        stride: of the first convolution, 1 or 2 [pixels].
        expand_ratio: width between the convolutions divided by that of the incoming map; the
            product is rounded to a multiple of 8, as in torchvision.
        stochastic_depth_prob: probability that a sample skips the branch, in training.
        depth: blocks in a row; the first has stride and change of width [blocks].

    Raises:
        ValueError: a parameter is no number of that range.

    Source: Tan and Le 2021, arXiv:2104.00298, section 3.2;
        torchvision.models.efficientnet.FusedMBConv.
    """
    return _efficientnet(
        efficientnet.FusedMBConv, in_channels, channels, kernel_size, stride, expand_ratio,
        stochastic_depth_prob, depth,
    )  # fmt: skip


def convnext_block(
    in_channels: int,
    channels: int | None = None,
    stride: int = 1,
    layer_scale: float = 1e-6,
    stochastic_depth_prob: float = 0.0,
    depth: int = 1,
) -> nn.Module:
    """ConvNeXt's block: depthwise 7x7 convolution, layer normalization, linear layer to four times
    the width, GELU, linear layer back, layer scale; added to x.

    Where stride or width change, LayerNorm and a convolution with kernel `stride` come before it,
    as between ConvNeXt's stages; a map that the stride does not divide gets zeros at its last
    borders.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the outgoing map; None for in_channels [channels].
        stride: of the convolution before the first block [pixels].
        layer_scale: start of the factor of each channel of the branch.
        stochastic_depth_prob: probability that a sample skips the branch, in training.
        depth: blocks in a row [blocks].

    Raises:
        ValueError: a parameter is no number of that range.

    Source: Liu et al. 2022, arXiv:2201.03545, section 2 and figure 4;
        torchvision.models.convnext.CNBlock.
    """
    out_channels = _width(in_channels, channels, stride=stride, depth=depth)
    check_positive(layer_scale=layer_scale)
    check_probabilities(stochastic_depth_prob=stochastic_depth_prob)

    def make(width: int, step: int) -> nn.Module:
        block: nn.Module = convnext.CNBlock(out_channels, layer_scale, stochastic_depth_prob)
        if width == out_channels and step == 1:
            return block
        before = (
            convnext.LayerNorm2d(width, eps=1e-6),
            _PatchConv2d(width, out_channels, step, step),
        )
        return nn.Sequential(nn.Sequential(*before), block)

    made = _in_a_row(make, in_channels, out_channels, stride, depth)
    for module in made.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return made


def depthwise_separable_conv(
    in_channels: int,
    channels: int | None = None,
    kernel_size: int = 3,
    stride: int = 1,
    activation: str = "relu",
    depth: int = 1,
) -> nn.Module:
    """Depthwise and pointwise convolution, each with batch normalization and activation, as in
    MobileNet. Tensors have the names of timm's DepthwiseSeparableConv, which it is with
    noskip=True and pw_act=True.

    Args:
        in_channels: width of the incoming map [channels].
        channels: width of the outgoing map; None for in_channels [channels].
        kernel_size: side of the depthwise kernel, odd [pixels].
        stride: of the depthwise convolution [pixels].
        activation: as for conv_bn_act.
        depth: blocks in a row; the first has stride and change of width [blocks].

    Raises:
        ValueError: a parameter is no whole number of that range, or the name is unknown.

    Source: Howard et al. 2017, arXiv:1704.04861, sections 3.1 and 3.2.
    """
    out_channels = _width(in_channels, channels, stride=stride, depth=depth)
    _check_kernel(kernel_size)
    layer = choose("activation", activation, ACTIVATIONS) or nn.Identity

    def make(width: int, step: int) -> nn.Module:
        return DepthwiseSeparableConv(width, out_channels, kernel_size, step, layer)

    return _kaiming(_in_a_row(make, in_channels, out_channels, stride, depth))


class _PatchConv2d(nn.Conv2d):
    """Convolution whose kernel is its stride, of maps of any size."""

    def forward(self, input: Tensor) -> Tensor:
        step = self.stride[0]
        # what is left to the next multiple, as a remainder of numbers that are never negative, so
        # that ONNX computes the same
        right, below = (step - 1 - (side - 1) % step for side in (input.shape[3], input.shape[2]))
        return super().forward(pad(input, (0, right, 0, below)) if step > 1 else input)


def _efficientnet(
    kind: type[nn.Module],
    in_channels: int,
    channels: int | None,
    kernel_size: int,
    stride: int,
    expand_ratio: float,
    stochastic_depth_prob: float,
    depth: int,
) -> nn.Module:
    out_channels = _width(in_channels, channels, stride=stride, depth=depth)
    _check_kernel(kernel_size)
    _check_expansion(stride, expand_ratio)
    check_probabilities(stochastic_depth_prob=stochastic_depth_prob)

    def make(width: int, step: int) -> nn.Module:
        # for MBConv too: MBConvConfig would round the widths to multiples of 8
        shape = efficientnet.FusedMBConvConfig(
            expand_ratio, kernel_size, step, width, out_channels, 1
        )
        return kind(shape, stochastic_depth_prob, nn.BatchNorm2d)

    return _kaiming(_in_a_row(make, in_channels, out_channels, stride, depth))


def _in_a_row(
    make: MakeBlock, in_channels: int, channels: int, stride: int, depth: int
) -> nn.Module:
    first = make(in_channels, stride)
    rest = [make(channels, 1) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest) if rest else first


def _projection(in_channels: int, channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(resnet.conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels))


def _kaiming(made: nn.Module) -> nn.Module:
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return made


def _width(in_channels: int, channels: int | None, **counts: int) -> int:
    out_channels = in_channels if channels is None else channels
    check_counts(channels=out_channels, **counts)
    return out_channels


def _check_kernel(kernel_size: int) -> None:
    check_counts(kernel_size=kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is odd, not {kernel_size}")


def _check_expansion(stride: int, expand_ratio: float) -> None:
    check_positive(expand_ratio=expand_ratio)
    if stride > 2:
        raise ValueError(f"stride is 1 or 2, not {stride}")
