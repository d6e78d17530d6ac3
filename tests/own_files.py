"""Take files that `save` wrote apart, put them together with other content, and mark what shows a
figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from torch import Tensor

from tvc_core.weights.digest import digest_of

__all__ = ["FIGURE", "forge", "metadata_of", "taken_apart"]

FIGURE = (pytest.mark.sweep, pytest.mark.figure, pytest.mark.timeout(7200))
"""Of a test that shows a figure of docs/explanation/security.md in full."""


def taken_apart(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says beside its tensors, and the tensors."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["tvc"]), safetensors.torch.load(data)


def forge(path: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write a file with an honest hash."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    content["sha256"] = digest_of(content, tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata={"tvc": json.dumps(content)}))
    return path


def metadata_of(path: Path) -> Any:
    """Return the user's own metadata of a file that is whole."""
    content, tensors = taken_apart(path)
    sha256 = content.pop("sha256")
    assert digest_of(content, tensors) == sha256
    return content["metadata"]
