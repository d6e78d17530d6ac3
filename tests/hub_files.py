"""Take a saved model apart and put it together with other content and an honest hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor


def digest(content: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return the hash inside a file, as its format says."""
    found = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        each = tensors[name]
        found.update(json.dumps([name, str(each.dtype), list(each.shape)]).encode())
        found.update(each.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def taken_apart(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["tvc"]), safetensors.torch.load(data)


def forged(data: bytes, **recipe: Any) -> bytes:
    """Return a file with another recipe: keys as a__b for what stands in a, and content__b for
    what stands beside the recipe.
    """
    content, tensors = taken_apart(data)
    assert digest({k: v for k, v in content.items() if k != "sha256"}, tensors) == content["sha256"]
    for key, value in recipe.items():
        *way, last = key.split("__")
        place = content if way == ["content"] else content["recipe"]
        way = [each for each in way if each != "content"]
        for each in way:
            place = place.setdefault(each, {})
        place[last] = value
    del content["sha256"]
    content["sha256"] = digest(content, tensors)
    return safetensors.torch.save(tensors, metadata={"tvc": json.dumps(content)})


def with_header(data: bytes, change: Any) -> bytes:
    """Return a file whose header a function has changed, as text."""
    length = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + length].decode()).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def saved(path: Path) -> bytes:
    """Save a small model with two patches whose gates are open."""
    from tvc_core import HybridBuilder

    torch.manual_seed(0)
    model = HybridBuilder().from_backbone(
        "squeezenet1_1",
        weights=None,
        patches={"features.3": {"wrap": "se"}, "features.6": {"wrap": "eca"}},
        num_classes=3,
        class_names=["cat", "dog | fox", "<b>owl</b>"],
    )
    with torch.no_grad():
        model.get_parameter("patches.features.3.se.alpha").fill_(0.1)
        model.get_parameter("patches.features.6.eca.alpha").fill_(-0.7)
    model.save(path, metadata={"accuracy": 0.93, "data": "pets, spring"})
    return path.read_bytes()
