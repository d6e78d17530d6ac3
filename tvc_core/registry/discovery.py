"""Load plugins, each by itself: a faulty one becomes a value in the list, never an exception.

Entry points are loaded here, one by one: pluggy's loader drops the second of two with one name, and
one bad import stops all. First come the plugin's import, its kinds and what it offers of the core's
kinds and its own; once all kinds are known, what it offers of other plugins' kinds. What was loaded
is kept for the process; what failed is tried again by the next registry, unless it hung.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import importlib_metadata

from .. import builtin, hookspecs
from ..advice.words import on_plugins
from ..errors import PluginError, RegistryWarning, describe_error, did_you_mean, short_repr
from ..quarantine.loading import check_not_loading, run_caught, run_guarded
from ..specs import Kind, Spec, is_owner, normalize
from ..version import __version__
from . import contract
from .contract import CORE_OWNER, HOOKS, Fault, Hook

__all__ = ["HOOKS", "PluginInfo", "load_plugins"]

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
        home: folder of its distribution; empty for an in-process plugin.
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
    home: str = field(default="", repr=False)
    _entry_point: importlib_metadata.EntryPoint | None = field(default=None, repr=False)
    _later: tuple[Hook, ...] = field(default=(), repr=False)
    """Its hooks that are not the core's nor of its own kinds, until they have been called."""

    @property
    def offers(self) -> tuple[Spec | Kind, ...]:
        """Everything with a name: the kinds that it defines, and its specs."""
        return (*self.kinds, *self.specs)


_LOADED: dict[tuple[str, str, str], tuple[tuple[Any, ...], PluginInfo]] = {}
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
    core = replace(_failed(CORE_OWNER, __version__), module=builtin.__name__)
    core = replace(_examine(core, lambda: builtin), kinds=hookspecs.KINDS)
    found = [core, *(installed_plugins() if installed else ())]
    for plugin in _listed(given):
        local = local_plugin(plugin)
        if any(local.owner == other.owner for other in found):
            what = f"two plugins have the owner {local.owner!r}"
            raise PluginError(f"{what}; give one another TVC_OWNER")
        found.append(local)
    kinds = [kind for info in found for kind in info.kinds]
    infos = _without_doubles([_complete(info, kinds) for info in found])
    faulty = [info for info in infos if info.status in _FAULTY]
    if faulty and os.environ.get("TVC_STRICT", "0") not in ("", "0"):
        faults = "; ".join(f"{info.owner}: {info.error}" for info in faulty)
        counts = f"{len(faulty)} of {len(infos) - 1}"
        raise PluginError(f"TVC_STRICT is set and {counts} plugins are faulty: {faults}")
    _mention(infos)
    return sorted(infos, key=lambda info: (info.owner, info.module))


def _listed(given: Any) -> Iterable[Any]:
    if isinstance(given, str):  # of which the letters would be taken for plugins
        return [given]
    if not isinstance(given, Iterable):
        hint = on_plugins(given) or f"write plugins=[{short_repr(given)}]"
        raise PluginError(f"plugins is a list of plugins, not {short_repr(given)}: {hint}.")
    return given


def installed_plugins() -> list[PluginInfo]:
    """Return every installed plugin, loaded unless the environment excludes it."""
    check_not_loading()
    found = sorted(_installed(), key=_key)
    owners = {info.owner for info in found}
    disabled, only = _owners_in("TVC_DISABLE", owners), _owners_in("TVC_ONLY", owners)
    loaded: dict[tuple[str, str], PluginInfo] = {}
    for info in found:
        if info.owner in (disabled or ()) or (only is not None and info.owner not in only):
            info = replace(info, status="disabled", error="", _entry_point=None)
        # an editable install can list itself twice
        if (info.owner, info.module) not in loaded:
            loaded[info.owner, info.module] = _load(info)
    return list(loaded.values())


def local_plugin(plugin: Any) -> PluginInfo:
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
    info = replace(_failed(normalize(owner), ""), module=repr(plugin))
    try:
        return _examine(info, lambda: plugin)
    except PluginError as error:
        if hint := on_plugins(plugin):
            raise PluginError(f"{short_repr(plugin)} is no plugin: {hint}.") from error
        raise


def _installed() -> Iterable[PluginInfo]:
    # One distribution with broken files is a failed plugin, not the end of the listing.
    seen, group = set(), hookspecs.ENTRY_POINT_GROUP
    for distribution in _distributions(sys.path, group):
        home = str(getattr(distribution, "_path", distribution))
        try:
            if not (entry_points := distribution.entry_points.select(group=group)):
                continue
            # read here, since parsing all of it takes longer than everything else
            text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
            header = dict(reversed(_HEADER.findall(text)))
            owner, version = normalize(header["Name"]), header.get("Version", "")
        except Exception as error:
            # broken metadata of one distribution must not hide the plugins of others
            name, _, version = Path(home).stem.partition("-")
            problem = f"its metadata in {home} cannot be read: {describe_error(error)}"
            yield replace(_failed(normalize(name), version, problem), home=home)
            continue
        if owner in seen:  # the first on sys.path is the one that imports find
            continue
        seen.add(owner)
        for entry in entry_points:
            usable, problem = False, f"its entry point {entry.name!r} is {entry.value!r}, no module"
            with suppress(Exception):  # importlib-metadata takes the value apart here
                usable = bool(entry.module)
            if not is_owner(owner):
                usable = False
                problem = "the name of its distribution is not made of letters, digits and '-'"
            info = replace(_failed(owner, version, problem), module=entry.value, home=home)
            yield replace(info, _entry_point=entry if usable else None)


def _distributions(path: list[str], group: str) -> Iterator[Any]:
    """Yield the distributions of a path like sys.path that may have entry points of a group, in
    its order.
    """
    # Every command and every builder comes by here, in environments of several hundred
    # distributions, of which importlib-metadata makes objects and reads files one by one. A folder
    # is quickly searched for those whose entry points have the group's name in their text. Zip
    # files, eggs, and import hooks that know distributions of their own are left to the library.
    for entry in [str(entry or ".") for entry in path]:
        for file in glob.iglob(f"{glob.escape(entry)}/*.*-info/entry_points.txt"):  # noqa: PTH207
            with suppress(OSError):
                text = Path(file).read_bytes()
                if group.encode() in text or not text.isascii():  # which may be broken
                    yield importlib_metadata.Distribution.at(Path(file).parent)
        if Path(entry).is_file() or entry.endswith(".egg"):
            yield from importlib_metadata.distributions(path=[entry])
    yield from importlib_metadata.distributions(path=[])


def _failed(owner: str, version: str, error: str = "") -> PluginInfo:
    return PluginInfo(owner=owner, status="failed", version=version, error=error)


def _key(info: PluginInfo) -> tuple[str, str, str]:
    return (info.owner, info.module, info.home)


def _load(info: PluginInfo) -> PluginInfo:
    """Load an installed plugin, unless that has been done."""
    if info._entry_point is None:
        return info
    loaded = _known(info) or _examine(info, info._entry_point.load)
    if loaded.status == "active":
        _LOADED[_key(info)] = (_contents(loaded), loaded)
    return loaded


def _known(info: PluginInfo) -> PluginInfo | None:
    contents, known = _LOADED.get(_key(info), ((), info))
    same = bool(contents) and contents == _contents(info)
    return replace(known, version=info.version) if same else None


def _contents(info: PluginInfo) -> tuple[Any, ...]:
    """Identify this load of a plugin's module: the value differs after a reload, or if another
    module takes the name.
    """
    module = sys.modules.get(info._entry_point.module) if info._entry_point else None
    spec = getattr(module, "__spec__", None)  # a reload makes another, which is equal
    return (id(module), id(spec), module, spec) if module is not None else ()


def _complete(info: PluginInfo, kinds: list[Kind]) -> PluginInfo:
    """Return a plugin with what it offers of other plugins' kinds."""
    # The second half of loading. A plugin may implement hooks of kinds that other plugins define,
    # and those are known only when all have been imported, in whatever order. What comes out
    # depends on the set of kinds, so it is remembered with the hooks that were found, not with the
    # plugin alone. A hook whose kind nothing defines is not called: the distribution that would ask
    # is not installed.
    later, known = info._later, contract.hooks_of(kinds)
    if not later:
        return info
    key = (_key(info), tuple((hook, known.get(hook.name)) for hook in later))
    unknown = tuple(hook.name for hook in later if hook.name and hook.name not in known)
    info = replace(info, unknown_hooks=unknown, _later=())

    def complete() -> PluginInfo:
        specs = contract.collect(contract.check_hooks(later, known), known, info.owner)
        return replace(info, specs=(*info.specs, *specs))

    done = None if info._entry_point is None else _COMPLETED.get(key)
    if done is None:
        done = _run(info, complete)
        if done.status == "active":
            _COMPLETED[key] = done
    return done


def _examine(info: PluginInfo, load: Callable[[], Any]) -> PluginInfo:
    """Return a plugin with what it offers of the core's kinds and its own."""

    def examine() -> PluginInfo:
        if known := _known(info):  # by now, since another thread has loaded it
            return known
        api_required = info._entry_point is not None
        api, kinds, hooks = contract.examine(load(), info.owner, api_required=api_required)
        now = HOOKS | contract.hooks_of(kinds)
        specs = contract.collect([hook for hook in hooks if hook.name in now], now, info.owner)
        later = tuple(hook for hook in hooks if hook.name not in now)
        active = replace(info, status="active", error="", api=api, kinds=kinds)
        return replace(active, specs=specs, _later=later)

    return _run(info, examine)


def _run(info: PluginInfo, action: Callable[[], PluginInfo]) -> PluginInfo:
    """Run a plugin's code. What is wrong with an installed one, which runs in quarantine, becomes
    its status; the caller has handed over any other, and gets an error.
    """
    entry_point = info._entry_point
    run = run_guarded(action, entry_point.module) if entry_point else run_caught(action)
    if run.fault is not None and entry_point is None:
        raise PluginError(f"in-process plugin {info.owner!r}: {run.fault}") from run.fault
    result = run.result if run.fault is None else _without_offers(info, run.fault)
    effects = tuple(dict.fromkeys((*result.side_effects, *run.side_effects)))
    return replace(result, side_effects=effects, seconds=result.seconds + run.seconds)


def _without_offers(info: PluginInfo, fault: Fault) -> PluginInfo:
    info = replace(info, status=fault.status, error=str(fault), traceback=fault.traceback)
    return replace(info, specs=(), kinds=(), _later=())


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
            problem = f"offers {what}, which another module of the distribution also offers"
            info = _without_offers(info, Fault(problem))
        checked.append(info)
    return checked


def _mention(infos: Iterable[PluginInfo]) -> None:
    """Name every plugin that deserves a look, once per process, however many of its modules do."""
    problems: dict[tuple[str, str, str], dict[str, None]] = {}
    for info in infos:
        restored = "changed process-wide state while it was imported; tvc restored it"
        problem = f"{restored}: {', '.join(info.side_effects)}" if info.side_effects else ""
        if info.status in _FAULTY:
            problem = f"({info.status}) offers nothing: {info.error.rstrip('.')}"
        if problem:
            problems.setdefault((info.owner, info.version, info.home), {})[problem] = None
    for (owner, version, home), said in problems.items():
        if (owner, home) not in _MENTIONED:
            _MENTIONED.add((owner, home))
            what = f"{owner} {version}".rstrip()
            message = f"The plugin {what} {'; it '.join(said)}. 'tvc plugins' lists all plugins."
            warnings.warn(message, RegistryWarning, stacklevel=4)


def _owners_in(variable: str, installed: set[str]) -> set[str] | None:
    """Return the owners that an environment variable lists; None where it is not set."""
    text = os.environ.get(variable, "")
    owners = {normalize(part.strip()) for part in text.split(",") if part.strip()}
    known = installed | ({CORE_OWNER} if variable == "TVC_ONLY" else set())
    for owner in sorted(owners - known):
        message = f"{variable} names {owner!r}, which is not an installed plugin."
        warnings.warn(message + did_you_mean(owner, installed), RegistryWarning, stacklevel=5)
    return owners if text.strip() else None
