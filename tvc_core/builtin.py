"""The core's own plugin: its operations and initializers, offered through hooks like all others."""

from __future__ import annotations

from typing import Any

from .hookspecs import hookimpl
from .specs import InitializerSpec, PatchOpSpec

TVC_API = (1, 0)

_OPERATIONS = {
    "wrap": "Make a block the last part of the target, or of its residual branch.",
    "inject": "Add a block as a step after, before or parallel to the target, or in its branch.",
    "replace": "Put a block in the target's place.",
}
_OPTIONS: dict[str, dict[str, Any]] = {"wrap": {"position": None}, "inject": {"position": None}}
_INITIALIZERS = {
    "identity": "Start as the identity: a patch by its gate, other layers by Dirac weights.",
    "paper": "Keep the published start of a block, without the identity gate.",
    "kaiming": "Normal weights scaled by fan-out; biases 0, norms 1 and 0.",
    "xavier": "Uniform weights scaled by both fans; biases 0, norms 1 and 0.",
    "zero": "Weights and biases 0; norms 1 and 0.",
}
_SOURCES = {
    "kaiming": "He et al. 2015, arXiv:1502.01852, section 2.2",
    "xavier": "Glorot and Bengio 2010, section 4.2.1",
}


@hookimpl
def tvc_patch_ops() -> list[PatchOpSpec]:
    """Offer wrap, inject and replace."""
    home = "tvc_core.surgery.operations"
    return [
        PatchOpSpec(name=n, factory=f"{home}:{n}", summary=text, options=_OPTIONS.get(n, {}))
        for n, text in _OPERATIONS.items()
    ]


@hookimpl
def tvc_initializers() -> list[InitializerSpec]:
    """Offer identity, paper, kaiming, xavier and zero."""
    home = "tvc_core.surgery.initializers"
    return [
        InitializerSpec(name=n, factory=f"{home}:{n}", summary=text, source=_SOURCES.get(n, ""))
        for n, text in _INITIALIZERS.items()
    ]
