"""The core's own plugin: its operations and initializers, offered through the same hooks as
everybody's.
"""

from __future__ import annotations

from .hookspecs import hookimpl
from .specs import InitializerSpec, PatchOpSpec

TVC_API = (1, 0)


@hookimpl
def tvc_patch_ops() -> list[PatchOpSpec]:
    """Offer wrap, inject and replace."""
    home = "tvc_core.surgery.operations"
    return [
        PatchOpSpec(
            name="wrap",
            factory=f"{home}:wrap",
            summary="Make a block the last part of the target, or of its residual branch.",
            options={"position": "after"},
        ),
        PatchOpSpec(
            name="inject",
            factory=f"{home}:inject",
            summary="Add a block as a step of its own after, before or parallel to the target, or "
            "in its residual branch.",
            options={"position": "after"},
        ),
        PatchOpSpec(
            name="replace", factory=f"{home}:replace", summary="Put a block in the target's place."
        ),
    ]


@hookimpl
def tvc_initializers() -> list[InitializerSpec]:
    """Offer identity, paper, kaiming, xavier and zero."""
    home = "tvc_core.surgery.initializers"
    return [
        InitializerSpec(
            name="identity",
            factory=f"{home}:identity",
            summary="Start as the identity: a patch by its gate, other layers by Dirac and "
            "identity weights.",
        ),
        InitializerSpec(
            name="paper",
            factory=f"{home}:paper",
            summary="Keep the published start of a block, without the identity gate.",
        ),
        InitializerSpec(
            name="kaiming",
            factory=f"{home}:kaiming",
            summary="Normal weights scaled by fan-out; biases 0, norms 1 and 0.",
            source="He et al. 2015, arXiv:1502.01852, section 2.2",
        ),
        InitializerSpec(
            name="xavier",
            factory=f"{home}:xavier",
            summary="Uniform weights scaled by both fans; biases 0, norms 1 and 0.",
            source="Glorot and Bengio 2010, section 4.2.1",
        ),
        InitializerSpec(
            name="zero", factory=f"{home}:zero", summary="Weights and biases 0; norms 1 and 0."
        ),
    ]
