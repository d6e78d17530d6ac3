"""The hash inside tvc's own files: of their content and of every tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError

__all__ = ["check_digest", "digest_of", "digest_of_tensors"]


def digest_of(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a file's content and tensors."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors, such as a model's `state_dict()`: of their names, types,
    shapes and values, wherever they are and however they lie in memory.

    Args:
        tensors: plain tensors by their names.
    """
    plain = {
        name: each.detach().cpu().resolve_conj().resolve_neg().contiguous()
        for name, each in tensors.items()
    }
    return digest_of({}, plain)


def check_digest(
    path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor], sha256: object
) -> None:
    """Compare a file's content and tensors with the hash inside.

    Raises:
        WeightsError: they have another one.
    """
    if digest_of(content, tensors) != sha256:
        raise WeightsError(
            f"{path}: damaged: its content does not have the hash that it was written with"
        )
