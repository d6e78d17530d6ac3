"""What the conformance kit tries operations and initializers on: three small networks and two
blocks. Imports no torch.
"""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..specs import BackboneSpec, BlockSpec

__all__ = ["HOSTS", "TVC_API", "TVC_OWNER", "tvc_backbones", "tvc_blocks"]

TVC_API = (1, 0)
TVC_OWNER = "tvc-kit"

HOSTS = ("tvc-kit:maps", "tvc-kit:channels_last", "tvc-kit:tokens")
"""Networks whose stages are [N, C, H, W], [N, H, W, C] and [N, tokens, C]."""


@hookimpl
def tvc_backbones() -> list[BackboneSpec]:
    """Offer the networks."""
    home = "tvc_core.testing.toy_networks"
    return [
        BackboneSpec(
            name="maps",
            factory=f"{home}:maps",
            summary="Residual blocks of convolutions.",
            stem=("stem",),
            stages=("layer1", "layer2", "layer3"),
            head="fc",
            min_size=8,
        ),
        BackboneSpec(
            name="channels_last",
            factory=f"{home}:channels_last",
            summary="Multilayer perceptrons over the channels of each position.",
            stem=("patches_of",),
            stages=("stage1", ("merge", "stage2", "norm")),
            head="head",
            min_size=16,
        ),
        BackboneSpec(
            name="tokens",
            factory=f"{home}:tokens",
            summary="Attention over the tokens of an image, with a class token.",
            stem=("class_token", "positions", "embed"),
            stages=("layers.0", ("layers.1", "norm")),
            head="head",
            min_size=32,
            fixed_size=True,
        ),
    ]


@hookimpl
def tvc_blocks() -> list[BlockSpec]:
    """Offer the blocks."""
    home = "tvc_core.testing.toy_networks"
    return [
        BlockSpec(
            name="gate",
            factory=f"{home}:Gate",
            category="attention",
            gated=True,
            layouts=("NCHW",),
            summary="Scale each channel by a gate computed from all channels' means.",
        ),
        BlockSpec(
            name="mix",
            factory=f"{home}:Mix",
            category="convolution",
            summary="Convolution and normalization.",
        ),
    ]
