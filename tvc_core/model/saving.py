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
import warnings
from collections.abc import Iterable, Mapping
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
from ..local import OWN
from ..recipe import Plan
from ..specs import FROM_MODULE
from ..surgery.head import dropout_of, find_heads, find_last_layer, num_classes_of
from ..version import __version__
from ..weights.digest import digest_of
from . import freezing
from .fingerprint import changes
from .settling import settle
from .state import HybridState

__all__ = ["FORMAT", "KEYS", "MODULE_KEY", "how_to_load", "save"]

FORMAT = 3
_KEYS = ("format", "recipe", "freeze", "class_names", "step0_difference", "verified", "sha256")
_LATER = (*_KEYS, "versions", "saved", "preprocessing", "metadata")
KEYS = {1: _KEYS, 2: _LATER, 3: _LATER}
"""The keys of each format that a reader knows. Since format 3, replacements keep settings of what
they replace.
"""

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
    # A file holds a recipe and tensors. If another tool has exchanged modules, what the recipe
    # builds has other ones, and the file would load without an error and compute something else. So
    # that is found out now, while the user can still do something about it. Copies on the CPU,
    # contiguous and each its own: the format knows no views, and refuses tensors that share memory.
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
    _tell_own(state, path)


def _tell_own(state: HybridState, path: Path) -> None:
    """Say what has to be handed over to load a model with blocks that no plugin offers."""
    own = {
        plan.block.spec.name: plan.block.spec.factory
        for plan in state.plan.patches
        if plan.block is not None and plan.block.owner == OWN
    }
    if own:
        warnings.warn(
            f"{path}: the blocks {join_names(own)} are your own, which the file names and does not "
            f"hold. {how_to_load(own, path)}",
            UserWarning,
            stacklevel=4,
        )


def how_to_load(names: Iterable[str], path: Path) -> str:
    """Say how a model with blocks of the user's own is loaded."""
    blocks = [f"plugin.block(name={name!r})(...)" for name in names]
    return (
        "To load it, hand over what makes them, each a class or function of the number of "
        f"channels: plugin = LocalPlugin({OWN!r}); {'; '.join(blocks)}; "
        f"HybridBuilder(plugins=[plugin]).load({path.name!r})"
    )


def _check_unchanged(network: nn.Module, state: HybridState, path: Path) -> None:
    """Refuse a model that its recipe does not build any more.

    Raises:
        PatchError: a patch has lost its place.
        WeightsError: a module, a forward or a tensor has changed since the build.
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
    recipe["head"] = _head(network, anatomy.head, recipe.get("head", {}))
    names = {name: list(each) for name, each in state.class_names.items()}
    content: dict[str, Any] = {
        "format": FORMAT,
        "recipe": recipe,
        "freeze": freezing.as_data(state),
        "class_names": names if state.head_widths else names.get(""),
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


def _head(network: nn.Module, path: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a recipe describes the head as it is now; class names stand beside the recipe."""
    head = {key: value for key, value in written.items() if key != "class_names"}
    dropout = dropout_of(network, path)
    if dropout is not None and 0 <= dropout < 1:
        head["dropout"] = dropout
    if several := find_heads(network, path):
        head["heads"] = {
            name: _head(network, each, head["heads"][name]) for name, each in several.items()
        }
    else:
        last = find_last_layer(network, path)
        head["num_classes"] = num_classes_of(last[1]) if last else 0
    return head


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
        # A new file beside the old one, whole and on the disk before it takes the old one's name:
        # whatever interrupts this, `path` is the old file or the new one. It is closed first, since
        # Windows neither renames nor replaces a file that is open.
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115
            dir=path.parent, prefix=f".{path.name}.", delete=False
        )
        temporary = Path(file.name)
        try:
            with file:
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
