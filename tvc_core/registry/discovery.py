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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import importlib_metadata

from .. import builtin, hookspecs
from ..errors import PluginError, RegistryWarning, describe_error, did_you_mean
from ..quarantine.loading import check_not_loading, import_timeout, run_guarded
from ..specs import Kind, Spec, is_owner, normalize
from ..version import __version__
from . import contract
from .contract import HOOKS, Fault, Hook, Reserved

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

    @property
    def offers(self) -> tuple[Spec | Kind, ...]:
        """Everything with a name: the kinds that it defines, and its specs."""
        return (*self.kinds, *self.specs)

    def count(self, kind: str) -> int:
        """Return how many specs of this kind it offers."""
        return sum(spec.kind == kind for spec in self.specs)


@dataclass(frozen=True)
class _Found:
    """A plugin on its way into the list.

    Args:
        info: what is known of it.
        entry_point: None if there is nothing to load.
        home: folder of the distribution; empty for an in-process plugin.
        later: its hooks that are not the core's nor of its own kinds.
    """

    info: PluginInfo
    entry_point: importlib_metadata.EntryPoint | None = None
    home: str = ""
    later: tuple[Hook, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.info.owner, self.info.module, self.home)

    def known_as(self, **info: Any) -> _Found:
        """Return this plugin with other fields of what is known of it."""
        return replace(self, info=replace(self.info, **info))

    def contents(self) -> tuple[Any, ...]:
        """Identify this load of the module: the value differs after a reload, or if another module
        takes the name.
        """
        assert self.entry_point is not None
        module = sys.modules.get(self.entry_point.module)
        spec = getattr(module, "__spec__", None)  # a reload makes another, which is equal
        return (id(module), id(spec), module, spec) if module is not None else ()


_LOADED: dict[tuple[str, str, str], tuple[tuple[Any, ...], _Found]] = {}
"""The plugins that are active, with their contents."""

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
    info = replace(_failed(CORE_OWNER, __version__), module=builtin.__name__)
    core = _checked(_examine(_Found(info), lambda: builtin, frozenset()))
    reserved = frozenset((type(spec), spec.name) for spec in core.info.specs)
    found = [core.known_as(kinds=hookspecs.KINDS)]
    found += installed_plugins(reserved) if installed else []
    for plugin in given:
        local = local_plugin(plugin, reserved)
        owner = local.info.owner
        if any(owner == other.info.owner for other in found):
            raise PluginError(f"two plugins have the owner {owner!r}; give one another TVC_OWNER")
        found.append(local)
    kinds = [kind for each in found for kind in each.info.kinds]
    infos = _without_doubles([_complete(each, kinds, reserved) for each in found])
    faulty = [info for info in infos if info.status in _FAULTY]
    if faulty and os.environ.get("TVC_STRICT", "0") not in ("", "0"):
        faults = "; ".join(f"{info.owner}: {info.error}" for info in faulty)
        counts = f"{len(faulty)} of {len(infos) - 1}"
        raise PluginError(f"TVC_STRICT is set and {counts} plugins are faulty: {faults}")
    _mention(infos, {each.info.owner: each.home for each in found})
    return sorted(infos, key=lambda info: (info.owner, info.module))


def installed_plugins(reserved: Reserved) -> list[_Found]:
    """Return every installed plugin, loaded unless the environment excludes it."""
    check_not_loading()
    disabled, only = _owners_in("TVC_DISABLE") or set(), _owners_in("TVC_ONLY")
    found = sorted(_installed(), key=lambda found: found.key)
    owners = {each.info.owner for each in found}
    _warn_of_unknown("TVC_DISABLE", disabled, owners)
    _warn_of_unknown("TVC_ONLY", (only or set()) - {CORE_OWNER}, owners)
    seconds, loaded = import_timeout(), {}
    for each in found:
        owner = each.info.owner
        if owner in disabled or (only is not None and owner not in only):
            each = _Found(each.known_as(status="disabled", error="").info)
        # an editable install can list itself twice
        if (owner, each.info.module) not in loaded:
            loaded[owner, each.info.module] = _load(each, reserved, seconds)
    return list(loaded.values())


def local_plugin(plugin: Any, reserved: Reserved) -> _Found:
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
    info = PluginInfo(owner=normalize(owner), status="disabled", module=repr(plugin))
    return _checked(_examine(_Found(info), lambda: plugin, reserved, api_required=False))


def _checked(found: _Found) -> _Found:
    if found.info.status != "active":
        raise PluginError(f"in-process plugin {found.info.owner!r}: {found.info.error}")
    return found


def _installed() -> Iterable[_Found]:
    seen, group = set(), hookspecs.ENTRY_POINT_GROUP
    # a path that does not exist would be taken for a zip file, whose reader is slow to import
    path = [entry for entry in sys.path if Path(entry).exists()]
    for distribution in importlib_metadata.distributions(path=path):
        home = str(getattr(distribution, "_path", distribution))
        try:
            # most distributions have no plugin, and parsing their files takes far longer
            if group not in (distribution.read_text("entry_points.txt") or ""):
                continue
            entry_points = distribution.entry_points.select(group=group)
            # read here, since parsing all of it takes longer than everything else
            header = dict(reversed(_HEADER.findall(distribution.read_text("METADATA") or "")))
            owner, version = normalize(header["Name"]), header.get("Version", "")
        except Exception as error:
            # broken metadata of one distribution must not hide the plugins of others
            name, _, version = Path(home).stem.partition("-")
            problem = f"its metadata in {home} cannot be read: {describe_error(error)}"
            yield _Found(_failed(normalize(name), version, problem), home=home)
            continue
        if owner in seen:  # the first on sys.path is the one that imports find
            continue
        seen.add(owner)
        for entry in entry_points:
            problem = f"its entry point {entry.name!r} is {entry.value!r}, no module"
            if not is_owner(owner):
                problem = "the name of its distribution is not made of letters, digits and '-'"
            try:
                usable = bool(entry.module) and is_owner(owner)
            except Exception:  # importlib-metadata takes the value apart here
                usable = False
            info = replace(_failed(owner, version, problem), module=entry.value)
            yield _Found(info, entry if usable else None, home)


def _failed(owner: str, version: str, error: str = "") -> PluginInfo:
    return PluginInfo(owner=owner, status="failed", version=version, error=error)


def _load(found: _Found, reserved: Reserved, seconds: float) -> _Found:
    """Load an installed plugin, unless that has been done."""
    entry_point, known = found.entry_point, _known(found)
    if entry_point is None or known is not None:
        return known or found
    # asked again in its turn: another thread may have loaded it by then
    load = entry_point.load
    loaded = _guarded(found, lambda: _known(found) or _examine(found, load, reserved), seconds)
    if loaded.info.status == "active":
        _LOADED[found.key] = (found.contents(), loaded)
    return loaded


def _known(found: _Found) -> _Found | None:
    contents, known = _LOADED.get(found.key, ((), found))
    if not contents or contents != found.contents():
        return None
    return known.known_as(version=found.info.version)


def _complete(found: _Found, kinds: list[Kind], reserved: Reserved) -> PluginInfo:
    """Return a plugin with what it offers of other plugins' kinds."""
    if not found.later:
        return found.info
    known = contract.hooks_of(kinds)
    key = (found.key, tuple((hook, known.get(hook.name)) for hook in found.later))
    unknown = tuple(hook.name for hook in found.later if hook.name and hook.name not in known)
    found = found.known_as(unknown_hooks=unknown)

    def complete() -> _Found:
        specs = contract.collect(contract.check_hooks(found.later, known), known, reserved)
        return found.known_as(specs=(*found.info.specs, *specs))

    if found.entry_point is None:
        return _checked(_quarantined(found, complete)).info
    if key in _COMPLETED:
        return _COMPLETED[key]
    info = _guarded(found, lambda: _quarantined(found, complete), import_timeout()).info
    if info.status == "active":
        _COMPLETED[key] = info
    return info


def _guarded(found: _Found, action: Callable[[], _Found], seconds: float) -> _Found:
    """Run a plugin's code in quarantine, and add what that did to what is known of the plugin."""
    assert found.entry_point is not None
    run = run_guarded(action, found.entry_point.module, seconds)
    result = run.result
    if run.hung is not None:
        advice = "TVC_DISABLE leaves it out, TVC_IMPORT_TIMEOUT=seconds waits longer"
        error = f"did not finish importing within {seconds:g} s (module and hooks); {advice}"
        result = _without_offers(found, "failed", error, run.hung)
    effects = tuple(dict.fromkeys((*result.info.side_effects, *run.side_effects)))
    return result.known_as(side_effects=effects, seconds=result.info.seconds + run.seconds)


def _examine(
    found: _Found, load: Callable[[], Any], reserved: Reserved, *, api_required: bool = True
) -> _Found:
    """Return a plugin with what it offers of the core's kinds and its own."""

    def examine() -> _Found:
        api, kinds, hooks = contract.examine(load(), found.info.owner, api_required=api_required)
        known = HOOKS | contract.hooks_of(kinds)
        later = tuple(hook for hook in hooks if hook.name not in known)
        specs = contract.collect([h for h in hooks if h.name in known], known, reserved)
        active = found.known_as(status="active", error="", api=api, kinds=kinds, specs=specs)
        return replace(active, later=later)

    return _quarantined(found, examine)


def _quarantined(found: _Found, action: Callable[[], _Found]) -> _Found:
    """Return what an action returns; whatever a plugin raises in it becomes the plugin's status."""
    status, text = "failed", ""
    try:
        return action()
    except Fault as fault:
        error, status = str(fault), fault.status
    except BaseException as raised:  # a plugin may raise SystemExit or worse
        main = threading.current_thread() is threading.main_thread()
        if isinstance(raised, KeyboardInterrupt) and main:
            raise  # Ctrl-C comes to this thread alone
        error, text = describe_error(raised), traceback.format_exc()
    return _without_offers(found, status, error, text)


def _without_offers(found: _Found, status: str, error: str, text: str = "") -> _Found:
    found = found.known_as(status=status, error=error, traceback=text, specs=(), kinds=())
    return replace(found, later=())


def _without_doubles(infos: list[PluginInfo]) -> list[PluginInfo]:
    """Fail the modules of one distribution that offer the same name: no qualified name could tell
    them apart.
    """
    offers = Counter((info.owner, type(each), each.name) for info in infos for each in info.offers)
    checked: list[PluginInfo] = []
    for info in infos:
        double = [one for one in info.offers if offers[info.owner, type(one), one.name] > 1]
        if double:
            what = f"the {double[0].kind} {double[0].name!r}"
            error = f"offers {what}, which another module of the distribution also offers"
            info = replace(info, status="failed", error=error, specs=(), kinds=())
        checked.append(info)
    return checked


def _mention(infos: Iterable[PluginInfo], homes: dict[str, str]) -> None:
    """Name every plugin that deserves a look, once a process, however many of its modules do."""
    problems: dict[tuple[str, str], dict[str, None]] = {}
    for info in infos:
        restored = "changed process-wide state while it was imported; tvc restored it"
        problem = f"{restored}: {', '.join(info.side_effects)}" if info.side_effects else ""
        if info.status in _FAULTY:
            problem = f"({info.status}) offers nothing: {info.error.rstrip('.')}"
        if problem:
            problems.setdefault((info.owner, info.version), {})[problem] = None
    for (owner, version), said in problems.items():
        if (owner, homes[owner]) not in _MENTIONED:
            _MENTIONED.add((owner, homes[owner]))
            what = f"{owner} {version}".rstrip()
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
