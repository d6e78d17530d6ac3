"""Read checkpoints in the layout of a model's own repository, as timm does when it loads them.

timm's models have functions that rename, merge and resample the tensors of the published files:
ConvNeXt's and BEiT's of FAIR and Microsoft, CLIP's visual towers, DeiT's layer scale, position
embeddings of another size.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models import load_pretrained
from torch import Tensor, nn

from tvc_core import BackboneSpec

__all__ = ["migrate"]


def migrate(
    spec: BackboneSpec, network: nn.Module, tensors: Mapping[str, Tensor]
) -> Mapping[str, Tensor] | None:
    """Return a checkpoint's tensors as timm would load them into a model; None where timm has
    nothing to do for this model.

    Args:
        spec: of the model.
        network: the model.
        tensors: by the checkpoint's names.
    """
    found = _filter_of(spec.name.partition("/")[2].partition(".")[0])
    if found is None:
        return None
    both = len(inspect.signature(found).parameters) > 1
    state = dict(tensors)
    new: Mapping[str, Tensor] = found(state, network) if both else found(state)
    return new


@lru_cache(maxsize=64)
def _filter_of(arch: str) -> Callable[..., Any] | None:
    """Return the function that timm passes a model's published files through, if it has one."""
    # timm hands that function to `load_pretrained` and keeps it nowhere: for some models it is made
    # on the way, with arguments of this one architecture. So a state dict that cannot be loaded is
    # handed over, and the function is read off the frame in which that failed.
    with torch.device("meta"):
        first = next(iter(timm.create_model(arch).state_dict()))
        overlay = {"state_dict": {first: None}, "source": "", "custom_load": False}
        try:
            timm.create_model(arch, pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception as error:
            for frame, _ in traceback.walk_tb(error.__traceback__):
                if frame.f_code is load_pretrained.__code__:
                    found: Callable[..., Any] | None = frame.f_locals.get("filter_fn")
                    return found
    return None
