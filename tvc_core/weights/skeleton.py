"""Build a network from its file of weights again, without its constructors.

For a small network the constructors take most of a build, even where they initialize nothing. So of
a network that was built from a file, what they made is kept as plain data: the classes of its
modules, their settings, and where in the file the bytes of each tensor are. The next build makes
the modules from that and reads the tensors into them. No tensor is kept, and no code: of a class
only the name, and a name is looked for among the modules that are loaded, never imported.

This is for builders that are known to do nothing else than to build: torchvision's.
"""

from __future__ import annotations

import base64
import functools
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..remembered import code_states, is_plain, key_of, recall, remember
from .deferred import DeferredInit, is_whole, settle
from .limits import limit_tensors
from .seeded import seeded
from .tables import bytes_of, read_at, table_of
from .verified import compare_hash, is_steady, state_of, unchanged

__all__ = ["build_again", "made_from"]

_MOST_BYTES = 1 << 16
"""Of the tensors that are not in the file."""

_OWN = ("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_BLANK = {name: value for name, value in vars(nn.Module()).items() if name not in _OWN}
"""What is the same in every module that no hook hangs on."""

_Tensors = list[tuple[weakref.ref[Tensor], int]]
_MADE: weakref.WeakKeyDictionary[nn.Module, tuple[str, _Tensors]] = weakref.WeakKeyDictionary()
"""The networks that were made from data or to data, with their tensors and the versions of these.
"""


M = TypeVar("M")


class _NotPlainError(Exception):
    """Something of a network is no plain data, so it is built by its constructors."""


_MALFORMED = (_NotPlainError, LookupError, TypeError, ValueError, AttributeError)
"""What an entry on disk leads to that is cut off, or from a version that wrote another form."""


def made_from(network: nn.Module) -> str:
    """Return a key for all that a network was when it was made here, if its tensors are the same
    ones with the same values since; else nothing.
    """
    key, made = _MADE.get(network, ("", []))
    now = _tensors_of(network) if key else []
    same = len(now) == len(made) and all(
        ref() is tensor and tensor._version == version
        for tensor, (ref, version) in zip(now, made, strict=True)
    )
    return key if same else ""


def _tensors_of(network: nn.Module) -> list[Tensor]:
    both = ((module._parameters, module._buffers) for module in network.modules())
    return [t for each in both for kind in each for t in kind.values() if t is not None]


def _note(network: nn.Module, key: str, data: Mapping[str, Any]) -> None:
    tensors = [(weakref.ref(tensor), tensor._version) for tensor in _tensors_of(network)]
    _MADE[network] = key_of(key, data["states"]), tensors


def build_again(
    build: Callable[[], nn.Module], path: Path, sha256: str | None, what: Mapping[str, Any]
) -> nn.Module:
    """Return what a builder makes of a file, from what it has made of it before where that is
    known.

    Args:
        build: it reads the file, and does nothing else that can be seen.
        path: the file.
        sha256: start of its SHA-256, in hexadecimal; None to compare nothing.
        what: all that says what is built, besides the file.

    Raises:
        WeightsError: the file has another hash, or changes while it is read.
    """
    if not is_plain(what) or not _is_ordinary():
        return build()
    try:
        with path.open("rb") as file, unchanged(file, path):
            state = state_of(file)
            versions = (sys.version, torch.__version__, torch.get_default_dtype())
            key = key_of(versions, dict(what), state)
            if (data := _recalled(key)) is not None:
                if sha256 is not None:
                    compare_hash(file, path, sha256)
                for limit in _modes_of(limit_tensors):  # as while a constructor runs
                    for _, shape, *_ in data["tensors"]:
                        limit.take(shape)
                if not (data["draws"] and _modes_of(seeded)):
                    with suppress(*_MALFORMED):
                        return _make(key, data, file)
    except OSError:  # the builder says what is wrong with the file
        return build()
    if data is not None and data["draws"] and _modes_of(seeded):
        # what a seed gives to the layers that are new depends on all draws before them
        network = build()
        settle()
        _note(network, key, data)
        return network
    random = _random_state()
    network = build()
    settle()
    # What was drawn at random has to be drawn each time, unless the file has replaced it. All else
    # that is not in the file is the same in every build.
    draws = not torch.equal(random, _random_state())
    most = 0 if draws else _MOST_BYTES
    if is_steady(state):
        with suppress(_NotPlainError, OSError, LookupError), path.open("rb") as file:
            with torch._C.DisableTorchFunction():
                data = _data_of(network, file, str(what["builder"]), most)
            data["draws"] = draws
            if state_of(file) == state:
                remember("networks", key, data)
                _note(network, key, data)
    return network


def _recalled(key: str) -> Any:
    """Return the data of a network where the code is unchanged; else None."""
    data = recall("networks", key)
    with suppress(*_MALFORMED):
        is_whole = type(data["draws"]) is bool and all(
            type(size) is int for _, shape, *_ in data["tensors"] for size in shape
        )
        if is_whole and code_states(data["code"]) == data["states"]:
            return data
    return None


def _is_ordinary() -> bool:
    """Return whether nothing is active that changes what a constructor makes: a mode, such as a
    default device, or a hook on whatever is registered in a module.
    """
    modes = torch.overrides._get_current_function_mode_stack()
    ours = (DeferredInit, seeded, limit_tensors)
    hooks = [v for k, v in vars(nn.modules.module).items() if k.endswith("_registration_hooks")]
    return (
        all(type(mode) in ours for mode in modes)
        and not any(hooks)
        and not torch._C._len_torch_dispatch_stack()
        and not torch.is_inference_mode_enabled()
    )


def _modes_of(kind: type[M]) -> list[M]:
    modes = torch.overrides._get_current_function_mode_stack()
    return [mode for mode in modes if type(mode) is kind]


def _random_state() -> Tensor:
    """Return the state of the generators that a constructor can draw from."""
    with torch._C.DisableTorchFunction():
        states = [torch.get_rng_state(), *(m.generator.get_state() for m in _modes_of(seeded))]
        return torch.cat(states)


# -- from a network to data ------------------------------------------------------------------------


def _data_of(network: nn.Module, file: BinaryIO, builder: str, most: int) -> dict[str, Any]:
    modules = list(network.modules())
    number = {id(module): index for index, module in enumerate(modules)}
    tensors: dict[int, tuple[int, Tensor]] = {}
    classes: list[Any] = []
    settings: list[Any] = []
    rows = []
    for module in modules:
        others = {name: value for name, value in vars(module).items() if name not in _OWN}
        if any(others.pop(name, None) != empty for name, empty in _BLANK.items()):
            raise _NotPlainError(type(module))
        rows.append(
            [
                _index(classes, _encoded(type(module))),
                _index(settings, {name: _encoded(value) for name, value in others.items()}),
                module.training,
                {k: _number(tensors, t, nn.Parameter) for k, t in module._parameters.items()},
                {k: _number(tensors, t, Tensor) for k, t in module._buffers.items()},
                sorted(module._non_persistent_buffers_set),
                {k: None if m is None else number[id(m)] for k, m in module._modules.items()},
            ]
        )
    homes = {type(module).__module__ for module in modules} | {builder, __name__}
    if (states := code_states(homes)) is None:
        raise _NotPlainError("code")
    return {
        "code": sorted(homes),
        "states": states,
        "classes": classes,
        "settings": settings,
        "modules": rows,
        "tensors": _places(network, [tensor for _, tensor in tensors.values()], file, most),
    }


def _index(rows: list[Any], row: Any) -> int:
    if row not in rows:
        rows.append(row)
    return rows.index(row)


def _number(
    tensors: dict[int, tuple[int, Tensor]], tensor: Tensor | None, kind: type
) -> int | None:
    """Return the number of a tensor, which may be in several places."""
    if tensor is None:
        return None
    if type(tensor) is not kind or vars(tensor) or not (is_whole(tensor) and tensor.is_cpu):
        raise _NotPlainError(type(tensor))
    if kind is Tensor and tensor.requires_grad:
        raise _NotPlainError("a buffer that learns")
    return tensors.setdefault(id(tensor), (len(tensors), tensor))[0]


def _places(network: nn.Module, tensors: list[Tensor], file: BinaryIO, most: int) -> list[Any]:
    """Return of each tensor its type, its shape, where in the file its bytes are, or these bytes,
    whether it learns, and whether it is a parameter. There may be `most` bytes in no file.
    """
    # Where a tensor is in the file is found by its bits: the data are of this one state of this one
    # file, so it does not matter how the builder came by them. Mostly its name says where to look;
    # where the builder renames, what has its shape is in the order of the file, so what was found
    # goes to the end.
    table = table_of(file)
    if table is None or len({t.untyped_storage().data_ptr() for t in tensors}) != len(tensors):
        raise _NotPlainError("shared memory")
    rows = {key: (kind, tuple(shape), offset) for key, kind, shape, offset in table}
    by_kind: dict[Any, list[str]] = {}
    for key, (kind, shape, _) in rows.items():
        by_kind.setdefault((kind, shape), []).append(key)
    names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    found, size = [], 0
    for tensor in tensors:
        kind, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        keys = by_kind.get((kind, shape), [])
        name, bits = names.get(id(tensor), ""), bytes_of(tensor.detach())
        if name in keys:
            keys.insert(0, keys.pop(keys.index(name)))
        alike = (key for key in keys if bytes_of(*read_at(file, [rows[key]])).equal(bits))
        place: Any = None
        if (key := next(alike, None)) is not None:
            keys.append(keys.pop(keys.index(key)))
            place = rows[key][2]
        else:
            size += tensor.nbytes
            if size > most:
                raise _NotPlainError(name)
            place = base64.b64encode(bits.numpy().tobytes()).decode()
        found.append([kind, shape, place, tensor.requires_grad, type(tensor) is nn.Parameter])
    return found


def _encoded(value: Any) -> Any:
    """Return a setting in the form that JSON has; what has no such form there is a list that begins
    with its kind.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (tuple, list):
        return [type(value).__name__, *map(_encoded, value)]
    if type(value) is functools.partial and not value.args:
        named = {name: _encoded(each) for name, each in value.keywords.items()}
        return ["partial", _encoded(value.func), named]
    if isinstance(value, type):
        given = ["class", value.__module__, value.__qualname__]
        if _decoded(given) is value:
            return given
    raise _NotPlainError(type(value))


# -- from data to a network ------------------------------------------------------------------------


def _decoded(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind in ("tuple", "list"):
        items = map(_decoded, rest)
        return tuple(items) if kind == "tuple" else list(items)
    if kind == "partial":
        named = {name: _decoded(each) for name, each in rest[1].items()}
        return functools.partial(_decoded(rest[0]), **named)
    home, name = rest
    found: Any = sys.modules.get(home)
    for part in name.split("."):
        found = getattr(found, part, None)
    # only what a network can be made of, whatever stands in an entry
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise _NotPlainError(name)
    if found.__new__ is not object.__new__:
        raise _NotPlainError(name)
    return found


class _Module(NamedTuple):
    """A module that is to be made; tensors and children by their numbers."""

    cls: type[nn.Module]
    settings: dict[str, Any]
    mutable: dict[str, Any]
    training: bool
    parameters: dict[str, int | None]
    buffers: dict[str, int | None]
    unsaved: list[str]
    children: dict[str, int | None]


_PREPARED: dict[str, list[_Module]] = {}
_MOST_PREPARED = 32


def _prepared(key: str, data: Mapping[str, Any]) -> list[_Module]:
    """Return the modules of some data, decoded once in this process."""
    if (known := _PREPARED.get(key)) is not None:
        return known
    classes = [_decoded(each) for each in data["classes"]]
    settings = [
        (
            {name: _decoded(v) for name, v in each.items() if not _is_mutable(v)},
            {name: v for name, v in each.items() if _is_mutable(v)},
        )
        for each in data["settings"]
    ]
    found = [_Module(classes[c], *settings[s], *rest) for c, s, *rest in data["modules"]]
    with suppress(RuntimeError, StopIteration, KeyError):  # another thread does the same
        while len(_PREPARED) >= _MOST_PREPARED:
            del _PREPARED[next(iter(_PREPARED))]
    _PREPARED[key] = found
    return found


def _is_mutable(value: Any) -> bool:
    """Return whether a setting has to be made for each network."""
    return isinstance(value, list) and (
        value[0] in ("list", "partial") or any(map(_is_mutable, value))
    )


def _tensors(rows: list[Any], file: BinaryIO) -> list[Tensor]:
    inside = [(kind, tuple(shape), at) for kind, shape, at, *_ in rows if isinstance(at, int)]
    read = iter(read_at(file, inside))
    found = []
    for kind, shape, place, learns, is_parameter in rows:
        if isinstance(place, int):
            tensor = next(read)
        else:
            tensor = torch.empty(shape, dtype=getattr(torch, kind), device="cpu")
            bytes_of(tensor).copy_(
                torch.tensor(list(base64.b64decode(place)), dtype=torch.uint8, device="cpu")
            )
        found.append(nn.Parameter(tensor, learns) if is_parameter else tensor)
    return found


def _make(key: str, data: Mapping[str, Any], file: BinaryIO) -> nn.Module:
    with torch._C.DisableTorchFunction():
        tensors = _tensors(data["tensors"], file)
    empty = [(name, type(value)) for name, value in _BLANK.items() if isinstance(value, dict)]
    rows = _prepared(key, data)
    made: list[nn.Module] = [object.__new__(row.cls) for row in rows]
    for module, row in zip(made, rows, strict=True):
        # What a constructor would do by `nn.Module.__setattr__`, which looks for a parameter or a
        # child in each value, is written at once.
        own = module.__dict__
        own["training"] = row.training
        own["_parameters"] = {
            k: None if n is None else tensors[n] for k, n in row.parameters.items()
        }
        own["_buffers"] = {k: None if n is None else tensors[n] for k, n in row.buffers.items()}
        own["_non_persistent_buffers_set"] = set(row.unsaved)
        own.update(_BLANK)
        for name, kind in empty:
            own[name] = kind()
        own["_modules"] = {k: n if n is None else made[n] for k, n in row.children.items()}
        own.update(row.settings)
        for name, value in row.mutable.items():
            own[name] = _decoded(value)
    _note(made[0], key, data)
    return made[0]
