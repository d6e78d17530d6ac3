"""Where the residual branches of timm's blocks end: what the position "branch" of a patch needs to
know.
"""

from __future__ import annotations

from torch import nn

__all__ = ["BRANCHES", "declare_branches"]

BRANCHES: dict[str, tuple[str, ...]] = {
    "timm.models.resnet.BasicBlock": ("se", "bn2"),
    "timm.models.resnet.Bottleneck": ("se", "bn3"),
    "timm.models.regnet.Bottleneck": ("conv3",),
    "timm.models.res2net.Bottle2neck": ("se", "bn3"),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": ("bn2",),
    "timm.models._efficientnet_blocks.InvertedResidual": ("bn3",),
    "timm.models._efficientnet_blocks.EdgeResidual": ("bn2",),
    "timm.models.convnext.ConvNeXtBlock": ("mlp",),
    "timm.models.vision_transformer.Block": ("mlp",),
    "timm.models.swin_transformer.SwinTransformerBlock": ("mlp",),
    "timm.models.swin_transformer_v2.SwinTransformerV2Block": ("norm2",),
    "timm.models.mlp_mixer.MixerBlock": ("mlp_channels",),
}
"""Class of a block -> names in it, of which the first that the block has is the end of its last
branch: what follows is layer scale, stochastic depth and the addition."""


def declare_branches(network: nn.Module) -> None:
    """Tell every known block of a network where its branch ends. Subclasses are not known: their
    forward may differ.
    """
    for module in network.modules():
        cls = type(module)
        for name in BRANCHES.get(f"{cls.__module__}.{cls.__qualname__}", ()):
            if module._modules.get(name) is not None:
                module.tvc_branch = name  # type: ignore[assignment]
                break
