"""Load plugins, each by itself: a faulty one becomes a value in the list, never an exception.

Entry points are loaded here, one by one: pluggy's loader drops the second of two with one name, and
one bad import stops all. First come the plugin's import, its kinds and what it offers of the core's
kinds and its own; once all kinds are known, what it offers of other plugins' kinds. What was loaded
is kept for the process; what failed is tried again by the next registry, unless it hung.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import importlib_metadata

from .. import builtin
from ..errors import PluginError, RegistryWarning, describe_error, did_you_mean
from ..hookspecs import ENTRY_POINT_GROUP, KINDS
from ..quarantine.loading import check_not_loading, import_timeout, run_guarded
from ..specs import Kind, Spec, is_owner, normalize
from ..version import __version__
from .contract import HOOKS, Fault, Hook, Reserved, check_hooks, collect, examine, hooks_of

__all__ = ["HOOKS", "PluginInfo", "load_plugins"]

CORE_OWNER = "tvc-core"
_FAULTY = ("failed", "incompatible")
_HEADER = re.compile(r"^(Name|Version):[ \t]*(.*?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """One plugin as the registry sees it.

    Args:
        owner: normalized name of its distribution, the first half of its qualified names.
        status: "active", "disabled" (by TVC_DISABLE or TVC_ONLY), "failed", or "incompatible"
            (plugin API).
        version: of the distribution; empty for an in-process plugin.
        module: what the entry point names.
        api: the plugin API that it was written for.
        error: one line, why it failed.
        traceback: the original traceback, where there is one.
        side_effects: what loading it changed of what can change the bits of a build, in words
            ("random seed of torch"); tvc restored it.
        seconds: what its import and its hooks took.
        specs: what it offers; empty unless active.
        kinds: the kinds that it defines; empty unless active.
        unknown_hooks: its hooks of kinds that no plugin here defines; it offers nothing there.
    """

    owner: str
    status: str
    version: str = ""
    module: str = ""
    api: tuple[int, int] | None = None
    error: str = ""
    traceback: str = ""
    side_effects: tuple[str, ...] = ()
    seconds: float = 0.0
    specs: tuple[Spec, ...] = field(default=(), repr=False)
    kinds: tuple[Kind, ...] = field(default=(), repr=False)
    unknown_hooks: tuple[str, ...] = ()

    _home: str = field(default="", repr=False)
    """Folder of the distribution."""
    _entry_point: Any = field(default=None, repr=False, compare=False)
    """None where there is nothing to load."""
    _later: tuple[Hook, ...] = field(default=(), repr=False, compare=False)
    """Its hooks that are not the core's nor of its own kinds."""

    @property
    def offers(self) -> tuple[Spec | Kind, ...]:
        """Everything with a name: the kinds that it defines, and its specs."""
        return (*self.kinds, *self.specs)

    def count(self, kind: str) -> int:
        """Return how many specs of this kind it offers."""
        return sum(spec.kind == kind for spec in self.specs)


_LOADED: dict[tuple[str, ...], tuple[tuple[Any, ...], PluginInfo]] = {}
"""The plugins that are active, with what identifies their modules."""

_COMPLETED: dict[tuple[Any, ...], PluginInfo] = {}
"""The same after their later hooks, which depend on the kinds that there are."""

_MENTIONED: set[tuple[str, str]] = set()
"""Owners and folders of the plugins that a warning has named."""


def load_plugins(given: Iterable[Any], *, installed: bool) -> list[PluginInfo]:
    """Return the core's own plugin, the installed ones and those that are given, sorted by owner.

    `TVC_DISABLE=a,b` excludes owners, `TVC_ONLY=a,b` excludes all others, `TVC_STRICT=1` turns a
    faulty plugin into an error, `TVC_IMPORT_TIMEOUT=seconds` says how long one may take to load.
    Excluded plugins are not imported. A plugin that is faulty or has side effects is named by one
    `RegistryWarning` a process.

    Raises:
        PluginError: a given plugin is faulty, or two have one owner; with TVC_STRICT=1, an
            installed one is faulty.
    """
    core = PluginInfo(owner=CORE_OWNER, status="", version=__version__, module=builtin.__name__)
    core = _checked(_quarantined(core, lambda: _first(core, builtin, frozenset())))
    reserved = frozenset((type(spec), spec.name) for spec in core.specs)
    infos = [replace(core, kinds=KINDS)]
    infos += installed_plugins(reserved) if installed else []
    for plugin in given:
        local = local_plugin(plugin, reserved)
        if local.owner in {info.owner for info in infos}:
            raise PluginError(
                f"two plugins have the owner {local.owner!r}; give one another TVC_OWNER"
            )
        infos.append(local)
    known = hooks_of(kind for info in infos for kind in info.kinds)
    infos = _without_doubles([_complete(info, known, reserved) for info in infos])
    faulty = [info for info in infos if info.status in _FAULTY]
    if faulty and os.environ.get("TVC_STRICT", "0") not in ("", "0"):
        lines = "; ".join(f"{info.owner}: {info.error}" for info in faulty)
        raise PluginError(
            f"TVC_STRICT is set and {len(faulty)} of {len(infos) - 1} plugins are faulty: {lines}"
        )
    _mention([info for info in infos if info.status in _FAULTY or info.side_effects])
    return sorted(infos, key=lambda info: (info.owner, info.module))


def installed_plugins(reserved: Reserved) -> list[PluginInfo]:
    """Return every installed plugin, loaded unless the environment excludes it."""
    check_not_loading()
    disabled, only = _owners_in("TVC_DISABLE") or set(), _owners_in("TVC_ONLY")
    found = sorted(_installed(), key=_key)
    owners = {info.owner for info in found}
    _warn_of_unknown("TVC_DISABLE", disabled, owners)
    _warn_of_unknown("TVC_ONLY", (only or set()) - {CORE_OWNER}, owners)
    seconds, loaded = import_timeout(), {}
    for info in found:
        if info.owner in disabled or (only is not None and info.owner not in only):
            info = replace(info, status="disabled", error="", _entry_point=None)
        # an editable install can list itself twice
        if (info.owner, info.module) not in loaded:
            loaded[info.owner, info.module] = _load(info, reserved, seconds)
    return list(loaded.values())


def local_plugin(plugin: Any, reserved: Reserved) -> PluginInfo:
    """Return an in-process plugin: a module, class or object with hook implementations.

    Its owner is its attribute `TVC_OWNER`, else the name of the module's top-level package, the
    class, or the object's class.

    Raises:
        PluginError: the plugin is faulty. The caller handed it over, so it is not quarantined.
    """
    name = getattr(plugin, "__name__", None) or type(plugin).__name__
    owner = getattr(plugin, "TVC_OWNER", None) or name.partition(".")[0].strip("_")
    if not is_owner(owner):
        raise PluginError(
            f"in-process plugin {name!r}: set TVC_OWNER to letters, digits and '-', not {owner!r}"
        )
    info = PluginInfo(owner=normalize(owner), status="", module=repr(plugin))
    first = partial(_first, info, plugin, reserved, api_required=False)
    return _checked(_quarantined(info, first))


def _checked(info: PluginInfo) -> PluginInfo:
    if info.status != "active":
        raise PluginError(f"in-process plugin {info.owner!r}: {info.error}")
    return info


def _key(info: PluginInfo) -> tuple[str, str, str]:
    return (info.owner, info.module, info._home)


def _installed() -> Iterable[PluginInfo]:
    """Yield what metadata says of each plugin, in the state of one that fails."""
    seen: set[str] = set()
    # a path that does not exist would be taken for a zip file, whose reader is slow to import
    path = [entry for entry in sys.path if Path(entry).exists()]
    for distribution in importlib_metadata.distributions(path=path):
        home = str(getattr(distribution, "_path", distribution))
        name, _, version = Path(home).stem.partition("-")
        info = PluginInfo(owner=normalize(name), version=version, status="failed", _home=home)
        try:
            # most distributions have no plugin, and parsing their files takes far longer
            if ENTRY_POINT_GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            entry_points = distribution.entry_points.select(group=ENTRY_POINT_GROUP)
            # read here, since parsing all of it takes longer than everything else
            header = dict(reversed(_HEADER.findall(distribution.read_text("METADATA") or "")))
            info = replace(info, owner=normalize(header["Name"]), version=header.get("Version", ""))
        except Exception as error:
            # broken metadata of one distribution must not hide the plugins of others
            problem = f"its metadata in {home} cannot be read: {describe_error(error)}"
            yield replace(info, error=problem)
            continue
        for entry in () if info.owner in seen else entry_points:
            problem = f"its entry point {entry.name!r} is {entry.value!r}, no module"
            try:
                loadable = bool(entry.module)
            except Exception:  # importlib-metadata takes the value apart here
                loadable = False
            if loadable and not is_owner(info.owner):
                problem = "the name of its distribution is not made of letters, digits and '-'"
                loadable = False
            entry_point = entry if loadable else None
            yield replace(info, module=entry.value, error=problem, _entry_point=entry_point)
        if entry_points:  # the first on sys.path is the one that imports find
            seen.add(info.owner)


def _load(info: PluginInfo, reserved: Reserved, seconds: float) -> PluginInfo:
    """Load an installed plugin, unless that has been done."""
    entry_point = info._entry_point
    if entry_point is None:
        return info

    def known() -> PluginInfo | None:
        contents, loaded = _LOADED.get(_key(info), (None, info))
        return replace(loaded, version=info.version) if contents == _contents(info) else None

    def load() -> PluginInfo:  # another thread may have loaded it by its turn
        return known() or _quarantined(info, lambda: _first(info, entry_point.load(), reserved))

    if (loaded := known()) is None:
        loaded = _guarded(info, load, seconds)
    if loaded.status == "active":
        _LOADED[_key(info)] = (_contents(info), loaded)
    return loaded


def _contents(info: PluginInfo) -> tuple[Any, ...]:
    """Identify this load of the module: the value differs after a reload, or if another module
    takes the name.
    """
    module = sys.modules.get(info._entry_point.module)
    spec = getattr(module, "__spec__", None)  # a reload makes another, which is equal
    return (id(module), id(spec), module, spec)


def _first(
    info: PluginInfo, plugin: Any, reserved: Reserved, *, api_required: bool = True
) -> PluginInfo:
    """Return a plugin with what it offers of the core's kinds and its own."""
    api, kinds, hooks = examine(plugin, info.owner, api_required=api_required)
    known = HOOKS | hooks_of(kinds)
    later = tuple(hook for hook in hooks if hook.name not in known)
    specs = collect([hook for hook in hooks if hook not in later], known, reserved)
    active = replace(info, status="active", error="", api=api, kinds=kinds, specs=specs)
    return replace(active, _later=later)


def _complete(
    info: PluginInfo, known: Mapping[str, tuple[type[Spec], ...]], reserved: Reserved
) -> PluginInfo:
    """Return a plugin with what it offers of other plugins' kinds."""
    if not info._later:
        return info
    unknown = tuple(hook.name for hook in info._later if hook.name and hook.name not in known)
    info = replace(info, unknown_hooks=unknown)

    def complete() -> PluginInfo:
        specs = collect(check_hooks(info._later, known), known, reserved)
        return replace(info, specs=(*info.specs, *specs))

    if info._entry_point is None:
        return _checked(_quarantined(info, complete))
    key = (_key(info), *((hook, known.get(hook.name)) for hook in info._later))
    if key not in _COMPLETED:
        action = partial(_quarantined, info, complete)
        completed = _guarded(info, action, import_timeout())
        if completed.status != "active":
            return completed
        _COMPLETED[key] = completed
    return _COMPLETED[key]


def _guarded(info: PluginInfo, action: Callable[[], PluginInfo], seconds: float) -> PluginInfo:
    """Run a plugin's code in quarantine, and add what that did to what is known of the plugin."""
    run = run_guarded(action, info._entry_point.module, seconds)
    error = (
        f"did not finish importing within {seconds:g} s (module and hooks); TVC_DISABLE leaves it "
        "out, TVC_IMPORT_TIMEOUT=seconds waits longer"
    )
    result = run.result if run.hung is None else _faulty(info, error, run.hung)
    effects = tuple(dict.fromkeys((*result.side_effects, *run.side_effects)))
    return replace(result, side_effects=effects, seconds=result.seconds + run.seconds)


def _quarantined(info: PluginInfo, action: Callable[[], PluginInfo]) -> PluginInfo:
    """Return what an action returns; whatever a plugin raises in it becomes the plugin's status."""
    try:
        return action()
    except Fault as fault:
        return _faulty(info, str(fault), status=fault.status)
    except BaseException as raised:  # a plugin may raise SystemExit or worse
        main = threading.current_thread() is threading.main_thread()
        if isinstance(raised, KeyboardInterrupt) and main:
            raise  # Ctrl-C comes to this thread alone
        return _faulty(info, describe_error(raised), traceback.format_exc())


def _faulty(info: PluginInfo, error: str, where: str = "", status: str = "failed") -> PluginInfo:
    nothing: dict[str, Any] = {"specs": (), "kinds": (), "_later": ()}
    return replace(info, status=status, error=error, traceback=where, **nothing)


def _without_doubles(infos: list[PluginInfo]) -> list[PluginInfo]:
    """Fail the modules of one distribution that offer the same name: no qualified name could tell
    them apart.
    """
    offers = Counter((info.owner, type(each), each.name) for info in infos for each in info.offers)
    for number, info in enumerate(infos):
        for each in info.offers:
            if offers[info.owner, type(each), each.name] > 1:
                what = f"offers the {each.kind} {each.name!r}"
                error = f"{what}, which another module of the distribution offers, too"
                infos[number] = _faulty(info, error)
    return infos


def _mention(infos: Iterable[PluginInfo]) -> None:
    """Name every plugin that deserves a look, once a process, however many of its modules do."""
    problems: dict[str, dict[str, None]] = {}
    for info in infos:
        problem = (
            f"({info.status}) offers nothing: {info.error.rstrip('.')}"
            if info.status in _FAULTY
            else "changed process-wide state while it was imported; tvc restored it: "
            + ", ".join(info.side_effects)
        )
        if (info.owner, info._home) not in _MENTIONED:
            problems.setdefault(f"{info.owner} {info.version}".rstrip(), {})[problem] = None
    _MENTIONED.update((info.owner, info._home) for info in infos)
    for what, said in problems.items():
        message = f"The plugin {what} {'; it '.join(said)}. 'tvc plugins' lists all plugins."
        warnings.warn(message, RegistryWarning, stacklevel=4)


def _owners_in(variable: str) -> set[str] | None:
    """Return the owners that an environment variable lists; None where it is not set."""
    text = os.environ.get(variable, "")
    owners = {normalize(part.strip()) for part in text.split(",") if part.strip()}
    return owners if text.strip() else None


def _warn_of_unknown(variable: str, asked: set[str], installed: set[str]) -> None:
    for owner in sorted(asked - installed):
        message = f"{variable} names {owner!r}, which is not an installed plugin."
        warnings.warn(message + did_you_mean(owner, installed), RegistryWarning, stacklevel=5)
