"""Open a saved model: read the file, check it, build what its recipe describes, and fill it.

In this order, each step cheaper than what follows and none trusting a field for the hash beside it:
the header is counted; what the file says is checked; the header is compared with the backbone, made
under a limit to the size of its tensors and before its weights are drawn; the model is built and
compared whole; and only then the tensors are read and hashed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .assemble import assemble
from .backbone import build_backbone
from .errors import (
    FreezeError,
    HeadError,
    ParameterError,
    RecipeError,
    StageError,
    TvcError,
    UnknownNameError,
    WeightsError,
    foreign,
    join_names,
    short_repr,
)
from .from_module import module_backbone
from .inspecting import FileInfo, info_of
from .model.fingerprint import fingerprint
from .model.hybrid import HybridModel
from .model.saving import how_to_load
from .own_weights import FileFilling
from .quarantine.process_state import run_preserved
from .recipe import Plan, Recipe, make_plan
from .registry import Registry
from .specs import OWN, BlockSpec
from .surgery.gates import restore_gates
from .surgery.home import at_home, on_the_cpu
from .surgery.patches import rollback_on_error
from .weights.comparing import compare, compare_backbone, compare_inserted, entries_of
from .weights.content import BASE_KEY, MODULE_KEY, prepared_as, was_set
from .weights.digest import digest_of
from .weights.limits import limit_tensors
from .weights.looking import path_of
from .weights.ownfile import OwnFile, open_own

__all__ = ["check_header", "load", "open_model"]

_SOON_READ = 1 << 28
"""Size of a file that is read although it is refused already [bytes]."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Last parts of the names of what a normalization counts, which is no parameter."""

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


class _FitsError(TvcError):
    """The backbone was made and fits; raised so that its weights are not drawn."""


def check_header(
    path: str | Path, *, max_params: int | None = None, registry: Registry | None = None
) -> FileInfo:
    """Return what a model's file says, after its header has been compared with the backbone that
    its recipe names: by names, types and shapes, before memory is taken for a tensor. No tensor is
    read, so only the header's bytes have to be there yet, in a file of the full length.

    What the recipe changes in the backbone (patches, head) is left for `load` to compare.

    Args:
        path: the file, of a model that was saved whole.
        max_params: parameters that it may have, buffers not counted [parameters].
        registry: where names are looked up; by default what is installed.

    Raises:
        WeightsError: the header says what cannot be or does not fit, the model is larger than
            `max_params`, or it cannot be built from a file alone.
        RecipeError: the recipe inside is not valid.
        UnknownNameError: it needs a plugin that is not installed.
    """
    with on_the_cpu():
        file = path_of(path, "check_header")
        return run_preserved(_check, file, max_params, registry or Registry())


def _check(path: Path, most: int | None, registry: Registry) -> FileInfo:
    with open_own(path) as file:
        _check_module(path, file.content, None)
        if BASE_KEY in file.content:
            raise WeightsError(f"{path}: holds only what differs from its base, and no whole model")
        plan = _plan_of(file, registry)
        buffers: set[str] = set()

        def fill(network: nn.Module) -> None:
            compare_backbone(path, network, plan, entries_of(file, {}))
            buffers.update(name for name, _ in network.named_buffers())
            raise _FitsError

        with suppress(_FitsError), _limited(file, None):
            build_backbone(plan, pretrained=False, fill=fill)
        buffers.update(k for k in file.entries if k.rpartition(".")[2] in _STATISTICS)
        count = sum(math.prod(e.shape) for k, e in file.entries.items() if k not in buffers)
        if most is not None and count > most:
            raise WeightsError(f"{path}: {count:,} parameters, more than max_params={most:,}")
        return info_of(file, registry)


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
    with on_the_cpu():
        model: HybridModel = run_preserved(_open, Path(path), registry, module, base)
    return at_home(model) if module is None else model


def _open(
    path: Path, registry: Registry, module: nn.Module | None, base: str | Path | None
) -> HybridModel:
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
    # place the file's tensors take, and compared with the file key by key and shape by shape. What
    # else it says (classes, freezing) is tried before one tensor is copied, since a module that was
    # handed over must not change if that fails.
    path, content = file.path, file.content
    filling = FileFilling(file) if module is None and base is None else None
    model = _build(file, base, registry, module, filling)
    own = model.state_dict()
    lent = {k: t for k, t in (base or {}).items() if k in own}
    compare(path, own, entries_of(file, lent))
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
    model.class_names = content["class_names"] or None
    try:
        model.preprocessing = was_set(content)
    except ParameterError as error:
        raise WeightsError(f"{path}: the preprocessing inside is not valid: {error}") from error
    model.load_freeze_state(content["freeze"])
    trainable = _by_hand(model, content.get("by_hand", {}))
    back = nullcontext() if module is None else _values_back_on_error(module)
    with foreign(WeightsError, f"{path}: the model cannot take the weights"), back:
        model.load_state_dict(some, strict=False, assign=assign)
    for name, flag in trainable.items():
        model.get_parameter(name).requires_grad_(flag)
    state = model._hybrid
    state.originals = {}  # their weights are not in the file
    state.step0_difference = float(content["step0_difference"])
    state.verified = content["verified"]
    state.metadata = dict(content.get("metadata") or {})
    state.modules = fingerprint(model)
    model.eval()
    return model


@contextmanager
def _values_back_on_error(module: nn.Module) -> Iterator[None]:
    """Put the values of a user's module back, which may have loading code of its own that fails."""
    kept = [
        (tensor, tensor.detach().clone()) for tensor in (*module.parameters(), *module.buffers())
    ]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
        raise


def _build(
    file: OwnFile,
    base: dict[str, Tensor] | None,
    registry: Registry,
    module: nn.Module | None,
    filling: FileFilling | None,
) -> HybridModel:
    """Build what the recipe of a file describes, if it is of the size of the file."""
    plan = _plan_of(file, registry, module)

    def fill(network: nn.Module) -> None:
        compare_backbone(file.path, network, plan, entries_of(file, base or {}))
        if filling is not None:
            filling(network)

    names = {*file.entries, *(base or {})}

    def check(path: str, module: nn.Module) -> None:
        compare_inserted(path, module, names)

    with _limited(file, base):
        model = assemble(plan, pretrained=False, fill=fill, check=check)
    restore_gates(model, [*file.entries, *(base or {})])
    return model


def _plan_of(file: OwnFile, registry: Registry, module: nn.Module | None = None) -> Plan:
    """Return the plan of a file, by the names of a registry."""
    content = file.content
    try:
        recipe = Recipe.from_mapping(content["recipe"], source=str(file.path))
    except RecipeError as error:
        raise WeightsError(f"the recipe inside is not valid: {error}") from error
    if content["format"] < 3:
        recipe = _with_starts_of_their_own(recipe)
    backbone = None if module is None else module_backbone(module, **content[MODULE_KEY])
    _check_own(file.path, recipe, registry)
    return _with_preprocessing(make_plan(recipe, registry, backbone), content)


def _with_preprocessing(plan: Plan, content: Mapping[str, Any]) -> Plan:
    """Return a plan whose weights prepare images as the file says: options that only code may set
    can have changed that, and a plugin's knowledge can.
    """
    said = content.get("preprocessing")
    if content["format"] < 4 or not said or "fit" in said or plan.weights is None:
        return plan
    try:
        return replace(plan, weights=prepared_as(plan.weights, said))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the preprocessing inside is not valid: {error}") from error


def _by_hand(model: HybridModel, names: Mapping[str, list[str]]) -> dict[str, bool]:
    """Return which parameters were frozen or thawed by hand, and whether they are trainable."""
    parameters = dict(model.named_parameters())
    for kind, each in names.items():
        for name in each:
            if name not in parameters:
                raise WeightsError(f"{short_repr(name)} is {kind}, and no parameter of the model")
    return {name: kind == "trainable" for kind, each in names.items() for name in each}


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
