"""BitFit: train the biases alone, and the normalizations.

Source: Ben Zaken et al. 2022, arXiv:2106.10199, section 3: all bias terms of a frozen network
learn. In convolutional networks most layers have none: their normalizations have, whose scales
learn as well unless `norms` is false.
"""

from __future__ import annotations

from torch import nn

from tvc_core import Target, TargetError, is_normalization

__all__ = ["bias"]


def bias(target: Target, norms: bool = True) -> nn.Module:
    """Keep the biases of the target trainable where `freeze_backbone` freezes its part, and scale
    and shift of its normalizations. Running statistics stay fixed with the part.

    Args:
        target: where: a layer, a block, a stage.
        norms: the scales of normalizations learn as well; their shifts are biases.

    Raises:
        TargetError: there is neither bias nor normalization in the target.
    """
    names = []
    for path, module in target.module.named_modules():
        own = [name for name, each in module._parameters.items() if each is not None]
        learns = norms and is_normalization(module)
        names += [
            f"{path}.{name}".lstrip(".")
            for name in own
            if learns or name == "bias" or name.endswith("_bias")
        ]
    if not names:
        raise TargetError(
            f"nothing in {target.path!r} ({type(target.module).__name__}) is a bias"
            f"{' or belongs to a normalization' if norms else ''}: choose a layer that has one, or "
            "the blocks of a stage ('stage:*.*')"
        )
    target.thaw(names)
    return target.module
