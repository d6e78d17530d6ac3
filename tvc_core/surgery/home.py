"""On which device models are made, and where they go then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["at_home", "on_the_cpu", "out_of_inference"]

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Let tensors that are made inside be on the CPU, where files are read to and random numbers
    are the same on every machine, also where torch's default is another device; but meta.
    """
    away = torch.get_default_device().type not in ("cpu", "meta")
    with out_of_inference(), torch.device("cpu") if away else nullcontext():
        yield


def out_of_inference() -> AbstractContextManager[Any]:
    """Leave torch's inference mode, in which no gradient shows that a new block learns, and no
    tensor counts what was written into it.
    """
    # only where it is on, since leaving it switches gradients on as well
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def at_home(model: Model) -> Model:
    """Move a new model to torch's default device, where torchvision's builders make theirs."""
    home = torch.get_default_device()
    return model if home.type in ("cpu", "meta") else model.to(home)
