"""Offers building blocks that torchvision.ops has. Light: imports no torch."""

from __future__ import annotations

from tvc_core import BlockSpec, hookimpl

TVC_API = (1, 1)


@hookimpl
def tvc_blocks() -> list[BlockSpec]:
    """Offer convolutions, a multilayer perceptron, regularizers and what else
    torchvision.ops has.
    """
    home = "tvc_blocks.adapters"
    return [
        BlockSpec(
            name="conv_bn_act",
            category="convolution",
            preserves_shape=False,
            factory=f"{home}:conv_bn_act",
            summary="Convolution, normalization and activation.",
            source="torchvision.ops.Conv2dNormActivation",
        ),
        BlockSpec(
            name="deform_conv",
            category="convolution",
            preserves_shape=False,
            factory=f"{home}:DeformConv",
            summary="Convolution that samples at learned offsets.",
            source="torchvision.ops.DeformConv2d; Zhu et al. 2019, arXiv:1811.11168",
        ),
        BlockSpec(
            name="squeeze_excitation",
            category="attention",
            factory=f"{home}:squeeze_excitation",
            summary="torchvision's squeeze-excite, with its choice of activations.",
            source="torchvision.ops.SqueezeExcitation; Hu et al. 2018, arXiv:1709.01507",
        ),
        BlockSpec(
            name="mlp",
            category="mlp",
            layouts=("NHWC", "NLC", "NC"),
            factory=f"{home}:mlp",
            summary="Multilayer perceptron over the channels of each position.",
            source="torchvision.ops.MLP",
        ),
        BlockSpec(
            name="drop_block",
            category="regularization",
            starts_as="identity",
            factory=f"{home}:DropBlock",
            summary="Zero contiguous squares of the map, in training.",
            source="torchvision.ops.DropBlock2d; Ghiasi et al. 2018, arXiv:1810.12890",
        ),
        BlockSpec(
            name="stochastic_depth",
            category="regularization",
            layouts=("NCHW", "NHWC", "NLC", "NC"),
            starts_as="identity",
            factory=f"{home}:stochastic_depth",
            summary="Zero the whole map of random samples, in training; belongs in a residual "
            "branch.",
            source="torchvision.ops.StochasticDepth; Huang et al. 2016, arXiv:1603.09382",
        ),
        BlockSpec(
            name="frozen_batch_norm",
            category="normalization",
            factory=f"{home}:frozen_batch_norm",
            summary="Batch normalization with constant statistics, scale and shift.",
            source="torchvision.ops.FrozenBatchNorm2d",
        ),
        BlockSpec(
            name="identity",
            category="identity",
            layouts=("NCHW", "NHWC", "NLC", "NC"),
            starts_as="identity",
            factory=f"{home}:identity",
            summary="Nothing: with replace, takes a module out.",
            source="torch.nn.Identity",
        ),
    ]
