"""Open a saved model: read the file, check it, build what its recipe describes, and fill it.

In this order, each step cheaper than what follows and none trusting a field for the hash beside it:
the header is counted, what the file says is checked, the network is built under a limit to the size
of its tensors, names and shapes are compared, and only then the tensors are read and hashed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .assemble import assemble
from .errors import (
    FreezeError,
    HeadError,
    RecipeError,
    StageError,
    TvcError,
    UnknownNameError,
    WeightsError,
    join_names,
    short_repr,
)
from .from_module import module_backbone
from .model.content import BASE_KEY, MODULE_KEY, prepared_as
from .model.fingerprint import fingerprint
from .model.hybrid import HybridModel
from .model.ownfile import OwnFile, open_own
from .model.saving import how_to_load
from .recipe import Plan, Recipe, make_plan
from .registry import Registry
from .specs import OWN, BlockSpec
from .surgery.gates import restore_gates
from .surgery.patches import rollback_on_error
from .weights.deferred import lend
from .weights.digest import digest_of
from .weights.limits import limit_tensors

__all__ = ["load", "open_model"]

_SOON_READ = 1 << 28
"""Size of a file that is read although it is refused already [bytes]."""

_MOST_IN_A_BASE = 1 << 28
"""Values of a tensor of a base that is built, for which no header speaks: VGG has 102 million."""


def load(
    path: str | Path,
    *,
    module: nn.Module | None = None,
    base: str | Path | None = None,
    registry: Registry | None = None,
) -> HybridModel:
    """Read a model that `HybridModel.save` wrote, and return it in eval mode.

    Nothing in the file is run; its names are looked up in the registry.

    Args:
        path: the file.
        module: for a model that `HybridBuilder.from_module` made: a new network of the same kind,
            which becomes the model.
        base: for a file that was saved with a `base`: where that is; by default it is looked for by
            its name in the file's folder, or built by its recipe.
        registry: where names are looked up; by default what is installed.

    Raises:
        WeightsError: the file is damaged, was not written by `save`, needs a module (or does not,
            and one was given), or its base is not there or is another one.
        UnknownNameError: it needs a plugin that is not installed.
    """
    return open_model(path, registry or Registry(), module, base)


def open_model(
    path: str | Path,
    registry: Registry,
    module: nn.Module | None = None,
    base: str | Path | None = None,
) -> HybridModel:
    """Read a model as `load` does, by the names of a registry."""
    if not isinstance(path, (str, PathLike)):
        what = "load takes the path of a file that HybridModel.save wrote"
        hint = ". A state dict goes into a model by partial_load" if isinstance(path, dict) else ""
        raise WeightsError(f"{what}, not {short_repr(path)}{hint}")
    path = Path(path)
    with open_own(path) as file:
        _check_module(path, file.content, module)
        with nullcontext() if module is None else rollback_on_error(module), _naming(file):
            return _load(file, registry, module, _base_of(file, base, registry))


@contextmanager
def _naming(file: OwnFile) -> Iterator[None]:
    """Put the path before every error about a file. That its head, its stages or what is frozen do
    not fit is a fault of the file; and what reads like a wrong name may be damage.
    """
    try:
        yield
    except TvcError as error:
        if not isinstance(error, WeightsError) and file.size <= _SOON_READ:
            file.read()  # says that it is damaged
        said = str(error) if str(file.path) in str(error) else f"{file.path}: {error}"
        of_file = isinstance(error, (FreezeError, HeadError, StageError))
        kind = WeightsError if of_file else type(error)
        if kind is type(error) and said == str(error):
            raise
        raise kind(said) from error


def _check_module(path: Path, content: Mapping[str, Any], module: nn.Module | None) -> None:
    own = content.get(MODULE_KEY)
    if own is not None and module is None:
        raise WeightsError(
            f"{path}: made from a module of your own ({short_repr(own.get('type'))[1:-1]}), which "
            "no file can rebuild: make a new one and "
            f"pass it: tvc_core.load({str(path)!r}, module=network)"
        )
    if own is None and module is not None:
        backbone = short_repr(content["recipe"].get("backbone"))
        raise WeightsError(f"{path}: rebuilds its own backbone, {backbone}; leave module out")


def _base_of(
    file: OwnFile, given: str | Path | None, registry: Registry
) -> dict[str, Tensor] | None:
    """Return the tensors of the base of a file; what the file says of it is a name in its own
    folder, or a recipe. None for a file that holds a whole model.
    """
    path, said = file.path, file.content.get(BASE_KEY)
    if said is None:
        if given is not None:
            raise WeightsError(f"{path}: holds the whole model; leave base out")
        return None
    if given is None and "recipe" in said:
        recipe = Recipe.from_mapping(said["recipe"], source=str(path))
        name = f"what {recipe.backbone} with the weights {recipe.weights} is here"
        with limit_tensors([_MOST_IN_A_BASE], f"{path}: does not fit its own recipe"):
            model = assemble(make_plan(recipe, registry))
        found: dict[str, Tensor] = {k: t.detach() for k, t in model.state_dict().items()}
    else:
        other = _beside(path, said) if given is None else Path(given)
        with open_own(other) as below:
            name, found = str(other), below.read()
    if digest_of({}, found) != said["sha256"]:
        raise WeightsError(
            f"{name} is not the base that {path} was saved with: its tensors have another hash"
        )
    return found


def _beside(path: Path, said: Mapping[str, Any]) -> Path:
    name = said.get("name", "")
    if not name or Path(name).name != name:
        raise WeightsError(f"{path}: its base {name[:80]!r} is outside of its folder")
    beside = path.with_name(name)
    if not beside.exists():
        raise WeightsError(
            f"{path}: holds only what differs from {name!r}, which is not beside it: put it there, "
            f"or say where it is: tvc_core.load({str(path)!r}, base=...)"
        )
    return beside


def _limited(file: OwnFile, base: Mapping[str, Tensor] | None) -> limit_tensors:
    """Return a context in which only tensors of the size of a file's are made."""
    sizes = [math.prod(entry.shape) for entry in file.entries.values()]
    sizes += [tensor.numel() for tensor in (base or {}).values()]
    return limit_tensors(sizes, f"{file.path}: does not fit its own recipe")


def _load(
    file: OwnFile, registry: Registry, module: nn.Module | None, base: dict[str, Tensor] | None
) -> HybridModel:
    # A file is data, and everything in it could be wrong: the recipe is read under the rules for
    # recipes, which reach nothing. Then the model is built without its pretrained weights, whose
    # place the file's tensors take, and compared with the file key by key and shape by shape before
    # one tensor is copied. What cannot be told from tensors (classes, freezing, the step-0
    # difference) comes last.
    path, content = file.path, file.content
    filling = _Filling(file) if module is None and base is None else None
    model = _build(file, base, registry, module, filling)
    own = model.state_dict()
    lent = {k: t for k, t in (base or {}).items() if k in own}
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in lent.items()}
    shapes |= {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()}
    _compare(path, own, shapes)
    lacking = list(own) if filling is None else filling.lacking(own)
    found = filling.tensors if filling and filling.tensors.keys() >= set(lacking) else file.read()
    tensors = {name: {**lent, **found}[name] for name in lacking}
    # Copying would convert a bfloat16 file back to float32 without a word. Where the types differ,
    # the file's tensors become the model's. Otherwise they are copied, so that the parameters stay
    # the objects that the build made and tied tensors stay tied.
    assign = any(own[k].dtype != t.dtype or own[k].is_meta for k, t in tensors.items())
    some = OrderedDict(tensors)
    # without the metadata of a state dict MNASNet refuses to load
    some._metadata = own._metadata  # type: ignore[attr-defined]
    model.load_state_dict(some, strict=False, assign=assign)
    model.class_names = content["class_names"] or None
    model.load_freeze_state(content["freeze"])
    _freeze_by_hand(model, content.get("by_hand", {}))
    state = model._hybrid
    state.originals = {}  # their weights are not in the file
    state.step0_difference = float(content["step0_difference"])
    state.verified = content["verified"]
    state.metadata = dict(content.get("metadata") or {})
    state.modules = fingerprint(model)
    model.eval()
    return model


class _Filling:
    """Gives a backbone that is being built the tensors that the file has for it, so that they are
    neither initialized nor copied.

    Args:
        file: the file.
    """

    def __init__(self, file: OwnFile) -> None:
        self.file = file
        self.tensors: dict[str, Tensor] = {}
        """What was read and is not the backbone's."""
        self._filled: dict[str, Tensor] = {}

    def __call__(self, network: nn.Module) -> None:
        # The file is read before the patches are in, so before all names and shapes have been
        # compared: of a file that is mostly another network's, nothing is read here.
        own, entries = network.state_dict(keep_vars=True), self.file.entries
        fits = [
            key
            for key, tensor in own.items()
            if key in entries
            and (entries[key].dtype, entries[key].shape) == (tensor.dtype, tuple(tensor.shape))
            and not tensor.is_meta
        ]
        if 2 * len(fits) < len(own):
            return
        with torch._C.DisableTorchFunction():
            self.tensors = self.file.read()
        lend(self.tensors[key] for key in fits)
        with torch.no_grad():
            for key in fits:
                own[key].copy_(self.tensors.pop(key))
        self._filled = {key: own[key] for key in fits}
        self._versions = {key: own[key]._version for key in fits}

    def lacking(self, own: Mapping[str, Tensor]) -> list[str]:
        """Return the names of the tensors that do not have the file's values, or may have others by
        now.
        """
        same = {
            key
            for key, tensor in self._filled.items()
            if key in own
            and own[key].data_ptr() == tensor.data_ptr()
            and tensor._version == self._versions[key]
        }
        return [key for key in own if key not in same]


def _build(
    file: OwnFile,
    base: dict[str, Tensor] | None,
    registry: Registry,
    module: nn.Module | None,
    filling: _Filling | None,
) -> HybridModel:
    """Build what the recipe of a file describes, if it is of the size of the file."""
    content = file.content
    try:
        recipe = Recipe.from_mapping(content["recipe"], source=str(file.path))
    except RecipeError as error:
        raise WeightsError(f"the recipe inside is not valid: {error}") from error
    if content["format"] < 3:
        recipe = _with_starts_of_their_own(recipe)
    backbone = None if module is None else module_backbone(module, **content[MODULE_KEY])
    _check_own(file.path, recipe, registry)
    plan = _with_preprocessing(make_plan(recipe, registry, backbone), content)
    with _limited(file, base):
        model = assemble(plan, pretrained=False, fill=filling)
    restore_gates(model, [*file.entries, *(base or {})])
    return model


def _with_preprocessing(plan: Plan, content: Mapping[str, Any]) -> Plan:
    """Return a plan whose weights prepare images as the file says: options that only code may set
    can have changed that, and a plugin's knowledge can.
    """
    said = content.get("preprocessing")
    if content["format"] < 4 or not said or plan.weights is None:
        return plan
    try:
        return replace(plan, weights=prepared_as(plan.weights, said))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the preprocessing inside is not valid: {error}") from error


def _compare(
    path: Path,
    own: Mapping[str, Tensor],
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
) -> None:
    """Refuse tensors that are not those of the model, by their types and shapes."""
    if own.keys() != entries.keys():
        lost, extra = [k for k in own if k not in entries], [k for k in entries if k not in own]
        raise WeightsError(
            f"{path}: does not fit its own recipe: lacks {join_names(lost, most=4)}; has also "
            f"{join_names([short_repr(name) for name in extra[:4]])}"
            + (f", ... ({len(extra) - 4} more)" if len(extra) > 4 else "")
        )
    for name, tensor in own.items():
        dtype, shape = entries[name]
        if tuple(tensor.shape) != shape:
            raise WeightsError(
                f"{path}: {name} has the shape {list(shape)}, its recipe gives {list(tensor.shape)}"
            )
        floats = tensor.is_floating_point() and dtype.is_floating_point
        if tensor.dtype != dtype and not floats:
            raise WeightsError(f"{path}: {name} is of {dtype}, its recipe gives {tensor.dtype}")


def _freeze_by_hand(model: HybridModel, names: Mapping[str, list[str]]) -> None:
    parameters = dict(model.named_parameters())
    for kind, each in names.items():
        for name in each:
            if name not in parameters:
                raise WeightsError(f"{short_repr(name)} is {kind}, and no parameter of the model")
            parameters[name].requires_grad_(kind == "trainable")


def _check_own(path: Path, recipe: Recipe, registry: Registry) -> None:
    """Refuse to look for blocks of the user's own unless they were handed over."""
    known = {offer.qualified for offer in registry.all(BlockSpec)}
    names = [str(entry.block) for entry in recipe.patches if entry.block not in known]
    own = [name.partition(":")[2] for name in names if name.startswith(f"{OWN}:")]
    if own:
        raise UnknownNameError(
            f"{path}: the blocks {join_names(dict.fromkeys(own))} are classes or modules of the "
            f"code that built the model. {how_to_load(dict.fromkeys(own), path)}"
        )


def _with_starts_of_their_own(recipe: Recipe) -> Recipe:
    """Return the recipe of an older file for what it was built as: its replacements took nothing
    over, such as the eps of a normalization, which is in no tensor.
    """
    patches = (
        replace(entry, init="tvc-core:paper")
        if entry.op == "tvc-core:replace" and entry.init is None
        else entry
        for entry in recipe.patches
    )
    return replace(recipe, patches=tuple(patches))
