"""Where the residual branch of a block ends: the table behind the position "branch"."""

from __future__ import annotations

from torch import nn

__all__ = ["BRANCHES", "branch_of", "known_blocks"]

BRANCHES = {
    "torchvision.models.resnet.BasicBlock": "bn2",
    "torchvision.models.resnet.Bottleneck": "bn3",
    "torchvision.models.regnet.ResBottleneckBlock": "f",
    "torchvision.models.mobilenetv2.InvertedResidual": "conv",
    "torchvision.models.mobilenetv3.InvertedResidual": "block",
    "torchvision.models.mnasnet._InvertedResidual": "layers",
    "torchvision.models.efficientnet.MBConv": "block",
    "torchvision.models.efficientnet.FusedMBConv": "block",
    "torchvision.models.convnext.CNBlock": "block",
    "torchvision.models.maxvit.MBConv": "layers",
    "torchvision.models.swin_transformer.SwinTransformerBlock": "mlp",
    "torchvision.models.swin_transformer.SwinTransformerBlockV2": "norm2",
    "torchvision.models.vision_transformer.EncoderBlock": "mlp",
}
"""Class of a block -> path in it of the module whose output is the end of its branch: what follows
is layer scale, stochastic depth and the addition. Of the two branches of a transformer's block it
is the last, the MLP's. A class is in it with its module: timm has a `BasicBlock`, and ShuffleNet an
`InvertedResidual`, that compute something else."""


def branch_of(module: nn.Module) -> str | None:
    """Return the path of the end of a block's branch, relative to the block; None for what is no
    known block.

    A class or block of one's own says it by an attribute, `tvc_branch = "bn2"`. A subclass of a
    known block is known as long as it has the same forward.
    """
    declared = getattr(module, "tvc_branch", None)
    if isinstance(declared, str):
        return declared
    for cls in type(module).__mro__:
        end = BRANCHES.get(f"{cls.__module__}.{cls.__qualname__}")
        if end is not None and type(module).forward is vars(cls)["forward"]:
            return end
    return None


def known_blocks() -> list[str]:
    """Return the names of the known blocks, such as "BasicBlock (resnet)"."""
    split = [name.split(".") for name in BRANCHES]
    return [f"{parts[-1]} ({parts[-2]})" for parts in split]
