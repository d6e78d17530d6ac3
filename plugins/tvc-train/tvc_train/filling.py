"""Fill a model with tensors by their names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["fill"]


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into all parameters and buffers of a model.

    Args:
        model: which has them.
        tensors: of its state dict, each under its name, from a file or computed.
    """
    found = OrderedDict(tensors)
    # without the versions of modules that a state dict has beside its tensors, MNASNet refuses it
    found._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(found)
