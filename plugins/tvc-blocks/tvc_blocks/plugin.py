"""Offers building blocks, and replacements for a network's own layers. Light: imports no torch."""

from __future__ import annotations

from tvc_core import BlockSpec, hookimpl

TVC_API = (1, 1)


@hookimpl
def tvc_blocks() -> list[BlockSpec]:
    """Offer what torchvision.ops has, the blocks that networks are made of, and what takes the
    place of a network's own convolutions, normalizations, poolings and activations.
    """
    return [*_from_torchvision(), *_of_stages(), *_with_weights(), *_activations()]


def _from_torchvision() -> list[BlockSpec]:
    home = "tvc_blocks.torchvision_ops"
    return [
        BlockSpec(
            name="conv_bn_act",
            category="convolution",
            preserves_shape=False,
            factory=f"{home}:conv_bn_act",
            summary="Convolution, normalization and activation.",
            source="torchvision.ops.Conv2dNormActivation; Ioffe and Szegedy 2015, arXiv:1502.03167",
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
            positions=("after", "branch", "before"),  # beside the target a closed gate would rule
            factory=f"{home}:DropBlock",
            summary="Zero contiguous squares of the map, in training.",
            source="torchvision.ops.DropBlock2d; Ghiasi et al. 2018, arXiv:1810.12890",
        ),
        BlockSpec(
            name="stochastic_depth",
            category="regularization",
            layouts=("NCHW", "NHWC", "NLC", "NC"),
            starts_as="identity",
            positions=("after", "branch", "before"),  # beside the target a closed gate would rule
            factory=f"{home}:stochastic_depth",
            summary="Zero the whole map of random samples, in training; belongs in a residual "
            "branch.",
            source="torchvision.ops.StochasticDepth; Huang et al. 2016, arXiv:1603.09382",
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


def _of_stages() -> list[BlockSpec]:
    return [
        BlockSpec(
            name="layer_scale",
            category="scale",
            layouts=("NCHW", "NLC", "NC"),
            gated=True,
            factory="tvc_blocks.scaling:LayerScale",
            summary="Scale each channel by a learned number; belongs in a residual branch.",
            source="Touvron et al. 2021, arXiv:2103.17239, section 2",
        ),
        *(
            BlockSpec(
                name=name,
                category="residual" if name != "depthwise_separable_conv" else "convolution",
                preserves_shape=False,
                factory=f"tvc_blocks.stages:{name}",
                summary=summary,
                source=source,
            )
            for name, summary, source in (
                (
                    "basic_block",
                    "ResNet's block of two 3x3 convolutions.",
                    "torchvision.models.resnet.BasicBlock; He et al. 2016, arXiv:1512.03385, "
                    "section 3.3",
                ),
                (
                    "bottleneck",
                    "ResNet's block of a 1x1, a 3x3 and a 1x1 convolution; ResNeXt's with groups.",
                    "torchvision.models.resnet.Bottleneck; He et al. 2016, arXiv:1512.03385, "
                    "section 4.1; Xie et al. 2017, arXiv:1611.05431, section 3",
                ),
                (
                    "convnext_block",
                    "ConvNeXt's block: depthwise 7x7 convolution and a multilayer perceptron.",
                    "torchvision.models.convnext.CNBlock; Liu et al. 2022, arXiv:2201.03545, "
                    "section 2",
                ),
                (
                    "depthwise_separable_conv",
                    "Depthwise and pointwise convolution, each with normalization and activation.",
                    "Howard et al. 2017, arXiv:1704.04861, section 3.1",
                ),
                (
                    "fused_mbconv",
                    "EfficientNetV2's block: MBConv with a full first convolution.",
                    "torchvision.models.efficientnet.FusedMBConv; Tan and Le 2021, "
                    "arXiv:2104.00298, section 3.2",
                ),
                (
                    "inverted_residual",
                    "MobileNetV2's block: wide inside, narrow outside.",
                    "torchvision.models.mobilenetv2.InvertedResidual; Sandler et al. 2018, "
                    "arXiv:1801.04381, section 3",
                ),
                (
                    "mbconv",
                    "EfficientNet's block: an inverted residual with squeeze-excite.",
                    "torchvision.models.efficientnet.MBConv; Tan and Le 2019, arXiv:1905.11946, "
                    "section 4",
                ),
            )
        ),
        BlockSpec(
            name="gem",
            category="pooling",
            preserves_shape=False,
            factory="tvc_blocks.pooling:GeM",
            in_place_of="tvc_blocks.pooling:gem_in_place_of",
            summary="Pool each channel by a generalized mean, with a learned exponent.",
            source="Radenovic et al. 2018, arXiv:1711.02512, section 3.2",
        ),
        BlockSpec(
            name="blur_pool",
            category="pooling",
            preserves_shape=False,
            factory="tvc_blocks.pooling:blur_pool",
            in_place_of="tvc_blocks.pooling:blur_pool_in_place_of",
            summary="Blur, then subsample: downsampling without aliasing.",
            source="Zhang 2019, arXiv:1904.11486, section 3.2",
        ),
    ]


def _with_weights() -> list[BlockSpec]:
    return [
        BlockSpec(
            name="conv2d",
            category="convolution",
            preserves_shape=False,
            factory="tvc_blocks.convolution:conv2d",
            in_place_of="tvc_blocks.convolution:conv2d_in_place_of",
            summary="Convolution; replacing one, it keeps the weights at another stride or kernel.",
            source="torch.nn.Conv2d; Beyer et al. 2022, arXiv:2212.08013",
        ),
        *(
            BlockSpec(
                name=name,
                category="normalization",
                factory=f"tvc_blocks.normalizations:{name}",
                in_place_of=f"tvc_blocks.normalizations:{name}_in_place_of",
                summary=summary,
                source=source,
            )
            for name, summary, source in (
                (
                    "frozen_batch_norm",
                    "Batch normalization with constant statistics; replacing one, it keeps all.",
                    "torchvision.ops.FrozenBatchNorm2d; Ioffe and Szegedy 2015, arXiv:1502.03167",
                ),
                (
                    "group_norm",
                    "Group normalization; replacing a normalization, it keeps scale and shift.",
                    "torch.nn.GroupNorm; Wu and He 2018, arXiv:1803.08494",
                ),
                (
                    "layer_norm_2d",
                    "Layer normalization of each pixel; replacing one, it keeps scale and shift.",
                    "torchvision.models.convnext.LayerNorm2d; Liu et al. 2022, arXiv:2201.03545",
                ),
            )
        ),
    ]


def _activations() -> list[BlockSpec]:
    return [
        BlockSpec(
            name=name,
            category="activation",
            layouts=("NCHW", "NHWC", "NLC", "NC"),
            factory=f"tvc_blocks.activations:{name}",
            summary=summary,
            source=f"torch.nn.{source}",
        )
        for name, summary, source in (
            ("elu", "Exponential linear unit.", "ELU; Clevert et al. 2015, arXiv:1511.07289"),
            ("gelu", "Gaussian error linear unit.", "GELU; Hendrycks 2016, arXiv:1606.08415"),
            ("hardsigmoid", "Sigmoid in three straight pieces.", "Hardsigmoid"),
            ("hardswish", "x times hardsigmoid.", "Hardswish; Howard 2019, arXiv:1905.02244"),
            ("leaky_relu", "ReLU with a slope for negative values.", "LeakyReLU; Maas et al. 2013"),
            ("mish", "x * tanh(softplus(x)).", "Mish; Misra 2019, arXiv:1908.08681"),
            ("prelu", "ReLU with a learned slope.", "PReLU; He et al. 2015, arXiv:1502.01852"),
            ("relu", "Rectified linear unit.", "ReLU; Nair and Hinton 2010"),
            ("relu6", "ReLU that ends at 6.", "ReLU6; Krizhevsky 2010"),
            ("selu", "Scaled exponential linear unit.", "SELU; Klambauer 2017, arXiv:1706.02515"),
            ("sigmoid", "Logistic function.", "Sigmoid"),
            ("silu", "x * sigmoid(x), or swish.", "SiLU; Ramachandran 2017, arXiv:1710.05941"),
            ("softplus", "Smooth ReLU.", "Softplus"),
            ("tanh", "Hyperbolic tangent.", "Tanh"),
        )
    ]
