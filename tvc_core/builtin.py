"""The core's own plugin: its operations and initializers, offered through hooks like all others."""

from __future__ import annotations

from .hookspecs import hookimpl
from .specs import InitializerSpec, PatchOpSpec

TVC_API = (1, 0)

_POSITION = {"position": "after"}
_OPERATIONS = {
    "wrap": ("Make a block the last part of the target, or of its residual branch.", _POSITION),
    "inject": (
        "Add a block as a step of its own after, before or parallel to the target, or in its "
        "residual branch.",
        _POSITION,
    ),
    "replace": ("Put a block in the target's place.", {}),
}
_INITIALIZERS = {
    "identity": (
        "Start as the identity: a patch by its gate, other layers by Dirac and identity weights.",
        "",
    ),
    "paper": ("Keep the published start of a block, without the identity gate.", ""),
    "kaiming": (
        "Normal weights scaled by fan-out; biases 0, norms 1 and 0.",
        "He et al. 2015, arXiv:1502.01852, section 2.2",
    ),
    "xavier": (
        "Uniform weights scaled by both fans; biases 0, norms 1 and 0.",
        "Glorot and Bengio 2010, section 4.2.1",
    ),
    "zero": ("Weights and biases 0; norms 1 and 0.", ""),
}


@hookimpl
def tvc_patch_ops() -> list[PatchOpSpec]:
    """Offer wrap, inject and replace."""
    home = "tvc_core.surgery.operations"
    return [
        PatchOpSpec(name=name, factory=f"{home}:{name}", summary=summary, options=options)
        for name, (summary, options) in _OPERATIONS.items()
    ]


@hookimpl
def tvc_initializers() -> list[InitializerSpec]:
    """Offer identity, paper, kaiming, xavier and zero."""
    home = "tvc_core.surgery.initializers"
    return [
        InitializerSpec(name=name, factory=f"{home}:{name}", summary=summary, source=source)
        for name, (summary, source) in _INITIALIZERS.items()
    ]
