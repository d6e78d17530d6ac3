"""The kind `method`: ways to fine-tune that plugins offer. Light: imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvc_core import Spec, hookspec

__all__ = ["MethodSpec", "tvc_train_methods"]


@dataclass(frozen=True, kw_only=True)
class MethodSpec(Spec):
    """A way to fine-tune, named under `training.methods` of a recipe.

    The factory is a subclass of `tvc_train.Method`, or a function that returns one. It is called
    with the values that the recipe gives to it, as keywords.
    """

    kind: ClassVar[str] = "method"


@hookspec
def tvc_train_methods() -> list[MethodSpec]:
    """Offer methods. Must not import torch. Since tvc-train 0.1.

    Example:

        from tvc_core import hookimpl

        TVC_API = (1, 1)

        @hookimpl(optionalhook=True)  # works where tvc-train is not installed
        def tvc_train_methods():
            from tvc_train import MethodSpec

            return [
                MethodSpec(
                    name="noise",
                    factory="acme_noise.methods:Noise",
                    summary="Add noise to gradients.",
                    source="Neelakantan et al. 2015, arXiv:1511.06807",
                )
            ]
    """
    raise NotImplementedError
