"""What this plugin offers."""

from __future__ import annotations

from tvc_core import BlockSpec, PatchOpSpec, hookimpl

TVC_API = (1, 1)

_LAST = ("NHWC", "NLC", "NC")
"""Channels last: of a map [N, C, H, W] the block gets a view, which costs no copy."""


@hookimpl
def tvc_blocks() -> list[BlockSpec]:
    """Offer adapters."""
    return [
        BlockSpec(
            name="conv_adapter",
            category="adapter",
            factory="tvc_adapters.conv_adapter:conv_adapter",
            for_target="tvc_adapters.conv_adapter:conv_adapter_for_target",
            positions=("parallel",),
            starts_as="zero",
            preserves_shape=False,
            summary="Depthwise and pointwise convolution beside a convolution or a block.",
            source="Chen et al. 2022, arXiv:2208.07463",
        ),
        BlockSpec(
            name="lora",
            category="adapter",
            factory="tvc_adapters.low_rank:lora",
            for_target="tvc_adapters.low_rank:lora_for_target",
            positions=("parallel",),
            layouts=_LAST,
            starts_as="zero",
            summary="Low-rank update beside a Conv2d or Linear, which folds into its weight.",
            source="Hu et al. 2021, arXiv:2106.09685",
        ),
        BlockSpec(
            name="ssf",
            category="adapter",
            factory="tvc_adapters.scale_shift:ScaleShift",
            positions=("after", "branch", "before"),
            layouts=_LAST,
            starts_as="identity",
            summary="Scale and shift each channel; folds into the layer before it.",
            source="Lian et al. 2022, arXiv:2210.08823",
        ),
    ]


@hookimpl
def tvc_patch_ops() -> list[PatchOpSpec]:
    """Offer the operation that inserts nothing."""
    return [
        PatchOpSpec(
            name="bias",
            takes_block=False,
            factory="tvc_adapters.thawing:bias",
            options={"norms": True},
            summary="Keep biases and normalizations trainable where the backbone is frozen.",
            source="Ben Zaken et al. 2022, arXiv:2106.10199",
        )
    ]
