"""One file for a whole model, or for what differs from another file: tensors in safetensors format,
and what is needed to build it again. What stands beside the tensors, `content` says.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError, join_names, short_repr
from ..recipe import Recipe
from ..specs import OWN
from ..surgery.marks import is_hybrid
from ..surgery.sites import plain_name
from ..weights.container import pack
from ..weights.content import BASE_KEY, check_content
from ..weights.digest import digest_of
from ..weights.ownfile import open_own
from ..written.rules import is_file
from .content import content_of
from .fingerprint import changes, foreign_hooks
from .settling import settle
from .state import HybridState, state_of
from .writing import write_file

__all__ = ["how_to_load", "save"]


def save(
    network: nn.Module,
    state: HybridState,
    path: Path,
    metadata: Mapping[str, Any] | None,
    base: str | Path | nn.Module | None,
) -> None:
    """Write a model, whole or not at all, after everything that `load` will ask has been looked
    at.
    """
    if path.suffix != ".safetensors":
        named = path.with_suffix(".safetensors").name if path.name else "model.safetensors"
        raise WeightsError(
            f"{path}: a model is saved in safetensors format, and the name says so: {named!r}"
        )
    # A file holds a recipe and tensors. If another tool has exchanged modules, what the recipe
    # builds has other ones, and the file would load without an error and compute something else. So
    # that is found out now, while the user can still do something about it. Copies on the CPU,
    # contiguous and each its own: the format knows no views, and refuses tensors that share memory.
    _check_unchanged(network, state, path)
    tensors = _tensors(network, path)
    try:
        content = content_of(network, state, metadata)
        if base is not None:
            known, content[BASE_KEY] = _base(base, path)
            tensors = {k: t for k, t in tensors.items() if not _alike(t, known.get(k))}
        content["sha256"] = digest_of(content, tensors)
        text = json.dumps(content, allow_nan=False)
        check_content(content)
        Recipe.from_mapping(json.loads(text)["recipe"])
        pieces = list(pack(tensors, {"format": "pt", "tvc": text}))
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} is not written, since the recipe or the metadata has a value that no file can "
            f"hold as JSON: {error}"
        ) from error
    _tell_own(state, path)
    _tell_hooks(network, state, path)
    try:
        write_file(path, pieces)
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"{path}: the model cannot be written: {reason}") from error


def _tensors(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the tensors as they are to be written, each with memory of its own."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not plain or tensor.is_meta or tensor.is_quantized:
            what = f"a {type(tensor).__name__}"
            if isinstance(tensor, Tensor):
                what = f"on the {tensor.device} device, {tensor.layout}, {tensor.dtype}"
            raise WeightsError(
                f"{path} is not written: {name!r} is no plain tensor with values, but {what}"
            )
        copy = tensor.detach().to("cpu").contiguous()
        tensors[plain_name(name)] = copy.resolve_conj().resolve_neg()
    return tensors


def _base(base: str | Path | nn.Module, path: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Return the tensors of a base, and what the file says of it."""
    if isinstance(base, nn.Module):
        if not is_hybrid(base):
            raise WeightsError(f"{path}: a base is a hybrid or a file, not {short_repr(base)}")
        recipe = state_of(base).plan.recipe
        plain = Recipe(backbone=recipe.backbone, weights=recipe.weights, options=recipe.options)
        is_named = recipe.weights is not None and not is_file(recipe.weights)
        if not is_named or replace(recipe, name=None) != plain:
            raise WeightsError(
                f"{path}: a model can be a base if it is as from_backbone(name, weights) makes it, "
                "with pretrained weights and nothing else, since it is built again to read the "
                "file. Save this one, and give the path"
            )
        known = _tensors(base, path)
        return known, {"recipe": plain.to_mapping(), "sha256": digest_of({}, known)}
    base = Path(base)
    if base.resolve() == path.resolve():
        raise WeightsError(f"{path}: cannot be the base of itself")
    with open_own(base) as file:
        if BASE_KEY in file.content:
            raise WeightsError(
                f"{base}: holds only what differs from its own base, and cannot be one; give that"
            )
        known = file.read()
    return known, {"name": base.name, "sha256": digest_of({}, known)}


def _alike(a: Tensor, b: Tensor | None) -> bool:
    """Return whether two tensors have the same bits."""
    if b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (each.reshape(-1).view(torch.uint8) for each in (a, b))
    return torch.equal(a, b)


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


def _tell_hooks(network: nn.Module, state: HybridState, path: Path) -> None:
    """Say which forward hooks stay behind: whether one changes a map, only its author knows."""
    built = state.hooks
    found = [
        where or "the model"
        for where, number in foreign_hooks(network).items()
        if number > built.get(where, 0)
    ]
    if found:
        warnings.warn(
            f"{path}: forward hooks of other code run at {join_names(found, most=4)}, and no file "
            "holds them. If one changes what a module gets or returns, the loaded model computes "
            "something else: make the change a patch, or remove the hook first",
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
