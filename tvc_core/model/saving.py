"""One file for a whole model: tensors in safetensors format, and what is needed to build it again.

The file's metadata has one entry "tvc": a JSON object with the format version, the recipe with
qualified names, the freeze state, the class names, the step-0 difference, whether the hash of the
pretrained weights had been compared, the versions of what wrote it, the preprocessing of its
images, the user's own metadata, and the SHA-256 of all of these and of every tensor's name, type,
shape and bytes. A reader MUST refuse a file whose hash differs, and MUST NOT import anything that
it names.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import nn

from ..errors import WeightsError, join_names
from ..from_module import described
from ..recipe import Plan
from ..specs import FROM_MODULE
from ..surgery.head import dropout_of
from ..version import __version__
from ..weights.digest import digest_of
from . import freezing
from .fingerprint import changes
from .settling import settle
from .state import HybridState, num_classes

__all__ = ["FORMAT", "KEYS", "MODULE_KEY", "save"]

FORMAT = 2
KEYS = {
    1: ("format", "recipe", "freeze", "class_names", "step0_difference", "verified", "sha256"),
    2: (
        "format", "recipe", "freeze", "class_names", "step0_difference", "verified", "versions",
        "saved", "preprocessing", "metadata", "sha256",
    ),
}  # fmt: skip
"""The keys of each format that a reader knows."""

MODULE_KEY = "module"
"""Only in files of models that were made from a user's module: what `from_module` was told."""


def save(
    network: nn.Module, state: HybridState, path: Path, metadata: Mapping[str, Any] | None
) -> None:
    """Write a model, whole or not at all: into a file beside it first, which takes its place."""
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path}: a model is saved in safetensors format, and the name says so: "
            f"{path.with_suffix('.safetensors').name!r}"
        )
    _check_unchanged(network, state, path)
    tensors = {
        name: tensor.detach().to("cpu").contiguous().clone()
        for name, tensor in network.state_dict().items()
    }
    try:
        content = _content(network, state, metadata)
        content["sha256"] = digest_of(content, tensors)
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: the recipe or the metadata has a value that cannot be written as JSON: "
            f"{error}"
        ) from error
    _write(path, safetensors.torch.save(tensors, metadata={"tvc": text}))


def _check_unchanged(network: nn.Module, state: HybridState, path: Path) -> None:
    """Refuse a model that its recipe does not build any more.

    Raises:
        PatchError: a patch has lost its place.
        WeightsError: a module, a forward or a tensor is not as it was built.
    """
    settle(network, state)
    found = changes(network, state.modules)
    if found:
        raise WeightsError(
            f"{path} is not written, since reading it would build another model: "
            f"{join_names(found, most=4)}. It was changed after the build, by hand or by another "
            "tool. Make the change a patch, reset_classifier or from_module; undo it (merge "
            "adapters, remove parametrizations and pruning masks); or keep the state dict alone by "
            "safetensors.torch.save_file(model.state_dict(), ...)"
        )


def _content(
    network: nn.Module, state: HybridState, metadata: Mapping[str, Any] | None
) -> dict[str, Any]:
    plan, anatomy = state.plan, state.anatomy
    recipe = plan.recipe.to_mapping()
    head: dict[str, Any] = {"num_classes": num_classes(network, state)}
    dropout = dropout_of(network, anatomy.head)
    if dropout is not None and 0 <= dropout < 1:
        head["dropout"] = dropout
    recipe["head"] = {**recipe.get("head", {}), **head}
    recipe["head"].pop("class_names", None)
    content: dict[str, Any] = {
        "format": FORMAT,
        "recipe": recipe,
        "freeze": freezing.as_data(state),
        "class_names": None if state.class_names is None else list(state.class_names),
        "step0_difference": repr(state.step0_difference),
        "verified": state.verified,
        "versions": {
            "tvc-core": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "saved": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "preprocessing": _preprocessing(plan),
        "metadata": {**state.metadata, **(metadata or {})},
    }
    if plan.backbone.owner == FROM_MODULE:
        content[MODULE_KEY] = described(plan.backbone.spec, network)
    return content


def _preprocessing(plan: Plan) -> dict[str, Any] | None:
    """Return how images are prepared for the weights, or for those that would be the default."""
    spec = plan.backbone.spec
    weights = plan.weights or spec.find_weights(spec.default_weights or "")
    if weights is None:
        return None
    names = ("crop_size", "resize_size", "squash", "interpolation", "mean", "std")
    found = {name: getattr(weights, name) for name in names}
    return {name: list(each) if isinstance(each, tuple) else each for name, each in found.items()}


def _write(path: Path, data: bytes) -> None:
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise WeightsError(
            f"{path}: the model cannot be written: {error.strerror or error}"
        ) from error
    # the file is whole and in its place; not every file system can sync a folder
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
