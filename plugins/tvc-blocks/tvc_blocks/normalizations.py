"""Normalizations, which take scale and shift over from the one whose place they take.

Of a normalization that runs more after it (timm's BatchNormAct2d has a dropout and an activation),
these parts go along. What is not taken over: running statistics, where the new one has none.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchvision import ops

from .checks import check_numbers

__all__ = [
    "FrozenBatchNorm2d", "GroupNorm", "LayerNorm2d", "frozen_batch_norm",
    "frozen_batch_norm_in_place_of", "group_norm", "group_norm_in_place_of", "layer_norm_2d",
    "layer_norm_2d_in_place_of",
]  # fmt: skip

_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_PARTS = ("drop", "act")
"""What timm's normalizations run after themselves, in this order."""


class _ThenParts(nn.Module):
    """Runs its children after itself."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)  # type: ignore[misc]  # of the class beside this one
        for part in self.children():
            x = part(x)
        return x


class _GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        # not nn.functional's, which refuses a group of a single value; its result is the shift
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class GroupNorm(_ThenParts, _GroupNorm):
    """Group normalization, and then its children."""


class FrozenBatchNorm2d(_ThenParts, ops.FrozenBatchNorm2d):  # type: ignore[misc]  # has no types
    """Batch normalization with constant statistics, scale and shift, and then its children."""


class _LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


class LayerNorm2d(_ThenParts, _LayerNorm2d):
    """Layer normalization over the channels of each pixel of [N, C, H, W], and then its
    children.
    """


def group_norm(
    in_channels: int, num_groups: int = 32, group_size: int | None = None, eps: float | None = None
) -> nn.Module:
    """Group normalization of [N, C, H, W].

    In the place of another normalization it keeps that one's scale and shift, not its running
    statistics: so what it computes is another function, which has to be trained.

    Args:
        in_channels: C [channels].
        num_groups: groups of channels that are normalized together; 1 for all channels of an image.
        group_size: width of a group, instead of `num_groups`: for networks whose widths differ
            [channels].
        eps: is added to the variance; None for that of the replaced normalization, or else 1e-5.

    Raises:
        ValueError: the groups do not divide C, or `eps` is no finite number of at least 0.

    Source: Wu and He 2018, arXiv:1803.08494; torch.nn.GroupNorm.
    """
    _check_eps(eps)
    name, given = ("num_groups", num_groups) if group_size is None else ("group_size", group_size)
    if isinstance(given, bool) or not isinstance(given, int) or given < 1 or in_channels % given:
        fits = [size for size in range(1, in_channels + 1) if in_channels % size == 0]
        raise ValueError(
            f"{name} is a number that divides the {in_channels} channels there, one of "
            f"{', '.join(map(str, fits))}, not {given!r}; with group_size the number of groups "
            "follows from the width"
        )
    groups = given if group_size is None else in_channels // given
    return GroupNorm(groups, in_channels, eps=1e-5 if eps is None else eps)


def group_norm_in_place_of(
    original: nn.Module,
    in_channels: int,
    num_groups: int = 32,
    group_size: int | None = None,
    eps: float | None = None,
) -> nn.Module | None:
    """Return a group normalization with the scale and shift of another normalization."""
    if not _is_plain_norm(original, in_channels):
        return None
    new = group_norm(in_channels, num_groups, group_size, _eps(original) if eps is None else eps)
    return _fill(new, original, "group_norm")


def layer_norm_2d(in_channels: int, eps: float | None = None) -> nn.Module:
    """Layer normalization over the channels of each pixel of [N, C, H, W], as in ConvNeXt.

    In the place of another normalization it keeps that one's scale and shift, not its running
    statistics: so what it computes is another function, which has to be trained.

    Args:
        in_channels: C [channels].
        eps: is added to the variance; None for that of the replaced normalization, or else 1e-6.

    Raises:
        ValueError: `eps` is no finite number of at least 0.

    Source: Liu et al. 2022, arXiv:2201.03545; torchvision.models.convnext.LayerNorm2d.
    """
    _check_eps(eps)
    return LayerNorm2d(in_channels, eps=1e-6 if eps is None else eps)


def layer_norm_2d_in_place_of(
    original: nn.Module, in_channels: int, eps: float | None = None
) -> nn.Module | None:
    """Return a layer normalization with the scale and shift of another normalization."""
    if not _is_plain_norm(original, in_channels):
        return None
    new = layer_norm_2d(in_channels, _eps(original) if eps is None else eps)
    return _fill(new, original, "layer_norm_2d")


def frozen_batch_norm(in_channels: int, eps: float | None = None) -> nn.Module:
    """Batch normalization of [N, C, H, W] with constant statistics, scale and shift.

    In the place of a batch normalization it keeps all of these, and computes what that one does in
    eval mode; by itself it starts as the identity.

    Args:
        in_channels: C [channels].
        eps: is added to the variance; None for that of the replaced normalization, or else 1e-5.

    Raises:
        ValueError: `eps` is no finite number of at least 0.

    Source: torchvision.ops.FrozenBatchNorm2d.
    """
    _check_eps(eps)
    return FrozenBatchNorm2d(in_channels, 1e-5 if eps is None else eps)


def frozen_batch_norm_in_place_of(
    original: nn.Module, in_channels: int, eps: float | None = None
) -> nn.Module | None:
    """Return a frozen batch normalization that computes what a batch normalization does in eval
    mode.

    Raises:
        ValueError: a normalization without running statistics, which it could not stand for.
    """
    if not _is_plain_norm(original, in_channels):
        return None
    if getattr(original, "running_mean", None) is None:
        raise ValueError(
            f"it would compute something other than {type(original).__name__}, which has no "
            "running statistics: it takes the place of batch normalizations; init: paper lets it "
            "start as the identity"
        )
    new = frozen_batch_norm(in_channels, _eps(original) if eps is None else eps)
    return _fill(new, original, "frozen_batch_norm")


def _is_plain_norm(module: nn.Module, channels: int) -> bool:
    """Return whether a module is a normalization with nothing but a scale, a shift and statistics
    for each channel.
    """
    named = any("norm" in kind.__name__.lower() for kind in type(module).__mro__)
    tensors = {
        name: tensor
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    vectors = all(tensor.shape in ((channels,), ()) for tensor in tensors.values())
    return named and vectors and set(tensors) <= _TENSORS


def _check_eps(eps: float | None) -> None:
    if eps is not None:
        check_numbers(0, eps=eps)


def _eps(original: nn.Module) -> float | None:
    eps = getattr(original, "eps", None)
    return eps if isinstance(eps, float) else None


def _fill(new: nn.Module, original: nn.Module, what: str) -> nn.Module:
    """Give a normalization the tensors of another one, and the parts that run after it."""
    own = _named(new)
    like = next((t for t in _named(original).values() if t.is_floating_point()), None)
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    with torch.no_grad():
        for name, tensor in _named(original).items():
            if name in own:
                own[name].copy_(tensor)
    parts = {
        name: part for name, part in original.named_children() if not isinstance(part, nn.Identity)
    }
    _check_parts(parts, original, what)
    for name, part in parts.items():
        new.add_module(name, copy.deepcopy(part))
    return new


def _named(module: nn.Module) -> dict[str, Tensor]:
    return dict((*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)))


def _check_parts(parts: Iterable[str], original: nn.Module, what: str) -> None:
    unknown = [name for name in parts if name not in _PARTS]
    if unknown:
        raise ValueError(
            f"{type(original).__name__} has parts of its own, {', '.join(unknown)}, and {what} "
            "does not know what they do there"
        )
