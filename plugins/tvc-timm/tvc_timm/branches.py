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
    """Tell every known block of a network where its branch ends; which of the names it has depends
    on the options of the network. A subclass is known as long as it has the same forward.
    """
    for module in network.modules():
        for cls in type(module).__mro__:
            names = BRANCHES.get(f"{cls.__module__}.{cls.__qualname__}", ())
            end = next((name for name in names if module._modules.get(name) is not None), None)
            if end is not None and type(module).forward is getattr(cls, "forward", None):
                module.tvc_branch = end  # type: ignore[assignment]
                break
