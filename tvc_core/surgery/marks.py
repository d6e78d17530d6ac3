"""What a hybrid is known by."""

from __future__ import annotations

from ..errors import ParameterError

__all__ = ["check_hybrid", "is_hybrid"]


def is_hybrid(module: object) -> bool:
    """Return whether a module is a hybrid already."""
    return hasattr(type(module), "_hybrid_base")  # the mark of the classes made for hybrids


def check_hybrid(model: object, what: str) -> None:
    """Refuse what is not a hybrid.

    Args:
        model: what was given.
        what: the function that takes a hybrid, for the error.

    Raises:
        ParameterError: it is not a model that HybridBuilder made.
    """
    if not is_hybrid(model):
        raise ParameterError(
            f"{what} takes a model that HybridBuilder made, not {type(model).__name__}; of a "
            "wrapped one, what is inside: ddp.module, compiled._orig_mod"
        )
