"""The core's initializers. Each fills parameters by their role: weights of layers, biases, scales
of normalizations.

The gate of a `Patch` is no one's to fill: it is the proof that a patch starts as the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .patch import Patch

__all__ = ["identity", "is_normalization", "kaiming", "paper", "xavier", "zero"]

_NORMALIZATIONS = (
    nn.modules.batchnorm._NormBase,  # batch and instance normalization, lazy, synchronized or not
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)


def identity(module: nn.Module) -> None:
    """Start as the identity.

    A `Patch` is the identity by its gate, and its block keeps the start that its constructor gave
    it. In other modules square convolutions and linear layers become the identity, biases 0,
    normalizations scale by 1; layers that are not square keep their start.
    """
    if isinstance(module, Patch):
        return
    with torch.no_grad():
        for layer, weight in _layers(module):
            if (
                isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
                and layer.in_channels == layer.out_channels
            ):
                nn.init.dirac_(weight, groups=layer.groups)
            elif isinstance(layer, nn.Linear) and layer.in_features == layer.out_features:
                nn.init.eye_(weight)
    _fill_rest(module)


def paper(module: nn.Module) -> None:
    """Keep the start that the block's authors published, without the identity gate."""
    if isinstance(module, Patch):
        module.ungate()


def kaiming(module: nn.Module) -> None:
    """Fill weights of convolutions from a normal distribution of variance 2 / fan_out (He et al.
    2015, section 2.2), as torchvision does.

    Linear layers get torch's own start, of variance 1 / (3 fan_in): a classifier's fan_out is its
    number of classes, so that the rule for convolutions gives few classes large logits.
    """

    def fill(layer: nn.Module, weight: Tensor) -> None:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(weight, a=5**0.5)
        else:
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")

    _fill(module, fill)


def xavier(module: nn.Module) -> None:
    """Fill weights from a uniform distribution of variance 2 / (fan_in + fan_out) (Glorot and
    Bengio 2010, 4.2.1).
    """
    _fill(module, lambda _, weight: nn.init.xavier_uniform_(weight))


def zero(module: nn.Module) -> None:
    """Fill weights and biases with 0; normalizations scale by 1, since a scale of 0 would cut the
    network.
    """
    _fill(module, lambda _, weight: nn.init.zeros_(weight))


def is_normalization(module: nn.Module) -> bool:
    """Tell whether a module normalizes: then its weight is a scale around 1, and it may have
    running statistics.

    Torch's classes are known, and so is what derives from them, with whatever children. Others are
    known by what all have: an `eps`, a class or base class that has "norm" in its name, and no
    parameters but vectors. Children that have parameters make it a block with a normalization
    inside.
    """
    # Freezing and decay depend on this, so a wrong answer does harm both ways: a normalization that
    # is missed keeps moving its statistics, and a block that is taken for one gets its weights at
    # 1. A name alone is not enough (NormedConv has a matrix), and an `eps` alone is neither.
    if isinstance(module, _NORMALIZATIONS):
        return True
    if not isinstance(getattr(module, "eps", None), float):
        return False
    kinds = type(module).__mro__
    named = any("norm" in kind.__name__.lower() for kind in kinds)
    # torch's spectral normalization of a weight also has eps and a name: it is part of a layer
    of_weights = any(kind.__module__.startswith("torch.nn.utils") for kind in kinds)
    own = set(module.parameters(recurse=False))
    vectors = all(parameter.ndim <= 1 for parameter in own)
    return named and vectors and not of_weights and own == set(module.parameters())


def _fill(module: nn.Module, fill_weight: Callable[[nn.Module, Tensor], object]) -> None:
    for layer, weight in _layers(module):
        fill_weight(layer, weight)
    _fill_rest(module)


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Yield modules and their weights that multiply: of convolutions, linear layers and
    their like.
    """
    # By shape, not by class: any parameter called `weight` with two or more axes multiplies, so
    # layers of others (a deformable convolution, a linear layer of PEFT's) are filled as well.
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim >= 2 and not is_normalization(layer):
            yield layer, weight


def _fill_rest(module: nn.Module) -> None:
    """Biases 0; normalizations at scale 1, shift 0 and fresh statistics."""
    for layer in module.modules():
        if is_normalization(layer):
            if isinstance(layer, nn.modules.batchnorm._NormBase):
                layer.reset_running_stats()
            if isinstance(scale := getattr(layer, "weight", None), Tensor):
                nn.init.ones_(scale)
        if isinstance(bias := getattr(layer, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)
