"""Load plugins, each behind its own guard: a faulty one becomes a value in the list, never an
exception.

pluggy validates and calls the hooks. What it must not decide for us: which of two entry points of
one name survives, whether one bad import stops the others, and whether a misspelt hook is an error
(docs/explanation/ architecture.md, "The hook layer"). So entry points are loaded here, one by one,
each plugin into a manager of its own. What was loaded is kept for the process; what failed is tried
again by the next registry, unless it hung.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import importlib_metadata
import pluggy

from .. import hookspecs
from ..errors import PluginError, RegistryWarning, describe_error, did_you_mean, join_names
from ..quarantine.loading import Guard, guarding
from ..specs import (
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    PatchOpSpec,
    Spec,
    normalize,
)

__all__ = ["PluginInfo", "installed_plugins", "local_plugin"]

CORE_OWNER = "tvc-core"
_OWNER = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

HOOKS: dict[str, type[Spec]] = {
    "tvc_backbones": BackboneSpec,
    "tvc_blocks": BlockSpec,
    "tvc_patch_ops": PatchOpSpec,
    "tvc_initializers": InitializerSpec,
}


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
        side_effects: what loading it changed for everybody, in words ("random seed of torch"); it
            was put back.
        seconds: what its import and its hooks took.
        specs: what it offers; empty unless active.
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

    def count(self, kind: str) -> int:
        """Return how many specs of this kind it offers."""
        return sum(spec.kind == kind for spec in self.specs)


@dataclass(frozen=True)
class _Found:
    """An entry point, or metadata that cannot be read.

    Args:
        start: what is known of the plugin before it is loaded.
        entry_point: None if the metadata cannot be read; then `start` says why.
        home: folder of the distribution.
    """

    start: PluginInfo
    entry_point: importlib_metadata.EntryPoint | None
    home: str

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.start.owner, self.start.module, self.home)

    def contents(self) -> tuple[Any, ...]:
        """Return what tells the loaded module from a later one of its name, and from itself after a
        reload.
        """
        assert self.entry_point is not None
        module = sys.modules.get(self.entry_point.module)
        names = (*HOOKS, "TVC_API", (self.entry_point.attr or "").partition(".")[0])
        return (module, *(vars(module).get(name) for name in names)) if module is not None else ()


_LOADED: dict[tuple[str, str, str], tuple[tuple[Any, ...], PluginInfo]] = {}
"""The plugins that are active, with their contents."""

_HUNG: dict[tuple[str, str, str], PluginInfo] = {}
"""The plugins that hung: nobody waits for them twice."""

_MENTIONED: set[tuple[str, str]] = set()
"""Owners and folders of the plugins that a warning has named."""


class _Fault(Exception):  # noqa: N818  what is wrong with a plugin, not an error of ours
    """A plugin breaks a rule; `status` is what it becomes."""

    def __init__(self, message: str, status: str = "failed") -> None:
        super().__init__(message)
        self.status = status


def installed_plugins(reserved: frozenset[tuple[str, str]]) -> list[PluginInfo]:
    """Return every installed plugin, sorted by owner, loaded unless the environment excludes it.

    `TVC_DISABLE=a,b` excludes owners, `TVC_ONLY=a,b` excludes all others, `TVC_STRICT=1` turns a
    faulty plugin into an error, `TVC_IMPORT_TIMEOUT=seconds` says how long one may take to load.
    Excluded plugins are not imported. A plugin that is faulty or has side effects is named by one
    `RegistryWarning` a process.

    Args:
        reserved: (kind, name) pairs of the core, which no plugin may offer.

    Raises:
        PluginError: with TVC_STRICT=1, a plugin is faulty or incompatible.
    """
    disabled, only = _owners_in("TVC_DISABLE"), _owners_in("TVC_ONLY")
    found = sorted(_installed(), key=lambda found: found.key)
    owners = {each.start.owner for each in found}
    _warn_of_unknown("TVC_DISABLE", disabled, owners)
    _warn_of_unknown("TVC_ONLY", (only or frozenset()) - {CORE_OWNER}, owners)
    infos: list[PluginInfo] = []
    seen: set[tuple[str, str]] = set()
    with guarding() as guard:
        for each in found:
            start = each.start
            if start.owner in disabled or (only is not None and start.owner not in only):
                infos.append(replace(start, status="disabled", error=""))
            elif (start.owner, start.module) not in seen:
                # an editable install can list itself twice
                seen.add((start.owner, start.module))
                infos.append(_load(each, reserved, guard))
    infos = _without_doubles(infos)
    faulty = [info for info in infos if info.status in ("failed", "incompatible")]
    if faulty and os.environ.get("TVC_STRICT", "0") not in ("", "0"):
        lines = "; ".join(f"{info.owner}: {info.error}" for info in faulty)
        raise PluginError(
            f"TVC_STRICT is set and {len(faulty)} of {len(infos)} plugins are faulty: {lines}"
        )
    _mention(infos, {each.start.owner: each.home for each in found})
    return infos


def local_plugin(plugin: Any, reserved: frozenset[tuple[str, str]]) -> PluginInfo:
    """Return an in-process plugin: a module, class or object with hook implementations.

    Its owner is its attribute `TVC_OWNER`, else the name of the module's top-level package, the
    class, or the object's class.

    Raises:
        PluginError: the plugin is faulty. The caller handed it over, so nothing is quarantined
            here.
    """
    name = getattr(plugin, "__name__", None) or type(plugin).__name__
    owner = getattr(plugin, "TVC_OWNER", None) or name.partition(".")[0].strip("_")
    if not isinstance(owner, str) or not _OWNER.fullmatch(normalize(owner)):
        raise PluginError(
            f"in-process plugin {name!r}: set TVC_OWNER to letters, digits and '-', not {owner!r}"
        )
    start = PluginInfo(owner=normalize(owner), status="disabled", module=repr(plugin))
    info = _guarded(start, lambda: plugin, reserved, api_required=False)
    if info.status != "active":
        raise PluginError(f"in-process plugin {info.owner!r}: {info.error}")
    return info


def core_plugin(module: types.ModuleType) -> PluginInfo:
    """Return the core's own plugin, which goes through the same hooks as everybody's."""
    from ..version import __version__

    start = PluginInfo(
        owner=CORE_OWNER, status="failed", version=__version__, module=module.__name__
    )
    info = _guarded(start, lambda: module, frozenset())
    assert info.status == "active", info.error
    return info


def _installed() -> Iterable[_Found]:
    seen: set[str] = set()
    for distribution in importlib_metadata.distributions():
        home = str(getattr(distribution, "_path", distribution))
        try:
            entry_points = [
                entry
                for entry in distribution.entry_points
                if entry.group == hookspecs.ENTRY_POINT_GROUP
            ]
            if not entry_points:
                continue
            metadata = distribution.metadata
            owner, version = normalize(metadata["Name"]), metadata["Version"] or ""
        except Exception as error:
            # broken metadata of any distribution whatever must not hide the plugins of others
            name, _, version = Path(home).stem.partition("-")
            problem = f"its metadata in {home} cannot be read: {describe_error(error)}"
            yield _Found(
                PluginInfo(owner=normalize(name), status="failed", version=version, error=problem),
                None,
                home,
            )
            continue
        if owner in seen:  # the first on sys.path is the one that imports find, too
            continue
        seen.add(owner)
        for entry in entry_points:
            start = PluginInfo(owner=owner, status="failed", version=version, module=entry.value)
            try:
                names_module = bool(entry.module)
            except Exception:
                # importlib-metadata takes the value apart here, and raises what it likes
                names_module = False
            if names_module:
                yield _Found(start, entry, home)
            else:
                yield _Found(
                    replace(
                        start, error=f"its entry point {entry.name!r} is {entry.value!r}, no module"
                    ),
                    None,
                    home,
                )


def _load(found: _Found, reserved: frozenset[tuple[str, str]], guard: Guard) -> PluginInfo:
    """Load an installed plugin, unless that has been done or is known to hang."""
    start, entry_point = found.start, found.entry_point
    if entry_point is None:
        return start
    if not _OWNER.fullmatch(start.owner):
        return replace(
            start, error="the name of its distribution is not made of letters, digits and '-'"
        )
    if found.key in _HUNG:
        return _HUNG[found.key]
    contents, info = _LOADED.get(found.key, ((), start))
    if contents and contents == found.contents():
        return replace(info, version=start.version)
    run = guard.run(lambda: _guarded(start, entry_point.load, reserved), entry_point.module)
    if run.hung is not None:
        error = (
            f"did not finish importing within {guard.seconds:g} s (module and hooks); TVC_DISABLE "
            "leaves it out, "
            "TVC_IMPORT_TIMEOUT=seconds waits longer"
        )
        info = replace(
            start,
            error=error,
            traceback=run.hung,
            side_effects=run.side_effects,
            seconds=run.seconds,
        )
        _HUNG[found.key] = info
        return info
    info = replace(run.result, side_effects=run.side_effects, seconds=run.seconds)
    if info.status == "active":
        _LOADED[found.key] = (found.contents(), info)
    return info


def _mention(infos: Iterable[PluginInfo], homes: Mapping[str, str]) -> None:
    """Name every plugin that deserves a look, once a process, however many of its modules do."""
    problems: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    for info in infos:
        if info.status in ("failed", "incompatible"):
            problem = f"({info.status}) offers nothing: {info.error.rstrip('.')}"
        elif info.side_effects:
            problem = (
                "changes on import what is not its own, which was put back: "
                f"{', '.join(info.side_effects)}"
            )
        else:
            continue
        versions[info.owner] = info.version
        if problem not in problems.setdefault(info.owner, []):
            problems[info.owner].append(problem)
    for owner, said_of_it in problems.items():
        key = (owner, homes[owner])
        if key not in _MENTIONED:
            _MENTIONED.add(key)
            what = " ".join(part for part in (owner, versions[owner]) if part)
            message = (
                f"The plugin {what} {'; it '.join(said_of_it)}. 'tvc plugins' lists all plugins."
            )
            warnings.warn(message, RegistryWarning, stacklevel=4)


def _guarded(
    start: PluginInfo, load: Any, reserved: frozenset[tuple[str, str]], *, api_required: bool = True
) -> PluginInfo:
    """Load one plugin; the only place where anything that a plugin raises is caught."""
    try:
        module = load()
        api = _api_of(module, required=api_required)
        return replace(
            start, status="active", api=api, specs=_collect(module, start.owner, reserved)
        )
    except _Fault as fault:
        return replace(start, status=fault.status, error=str(fault))
    except BaseException as error:  # a plugin may raise SystemExit or worse
        if (
            isinstance(error, KeyboardInterrupt)
            and threading.current_thread() is threading.main_thread()
        ):
            raise  # Ctrl-C comes to this thread alone
        return replace(
            start, status="failed", error=describe_error(error), traceback=traceback.format_exc()
        )


def _api_of(module: Any, *, required: bool) -> tuple[int, int] | None:
    api = getattr(module, "TVC_API", None)
    if api is None and not required:
        return None
    if not (isinstance(api, tuple) and len(api) == 2 and all(type(part) is int for part in api)):
        raise _Fault(
            f"TVC_API is {api!r}; a plugin module states the API it was written for, such as "
            "TVC_API = (1, 0)"
        )
    major, minor = hookspecs.API_VERSION
    if api[0] != major or api[1] > minor:
        raise _Fault(
            f"written for plugin API {api[0]}.{api[1]}, this tvc-core has {major}.{minor}; "
            f"{'upgrade tvc-core' if api > (major, minor) else 'upgrade the plugin'}",
            status="incompatible",
        )
    return api


class _Manager(pluggy.PluginManager):
    """Looks at the names of hooks only. pluggy looks at every name of a module, which is most of
    what a plugin costs.
    """

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        return super().parse_hookspec_opts(module_or_class, name) if name in HOOKS else None

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name in HOOKS else None


def _collect(plugin: Any, owner: str, reserved: frozenset[tuple[str, str]]) -> tuple[Spec, ...]:
    _check_hook_names(plugin)
    manager = _Manager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name=owner)
    specs: list[Spec] = []
    offered = [hook for hook in HOOKS if getattr(manager.hook, hook).get_hookimpls()]
    if not offered:
        raise _Fault(
            f"implements none of the hooks {join_names(HOOKS)}; the entry point may name the wrong "
            "module"
        )
    for hook in offered:
        expected = HOOKS[hook]
        # pluggy drops a None, so a hook without a return statement would be a plugin that offers
        # nothing, without a word
        for result in getattr(manager.hook, hook)() or [None]:
            if not isinstance(result, (list, tuple)):
                raise _Fault(
                    f"{hook} returned {type(result).__name__}, not a list of {expected.__name__}"
                )
            for spec in result:
                # no subclass: code of its own could fail later, in somebody's listing
                if type(spec) is not expected and not (
                    expected is BackboneSpec and type(spec) is BackboneFamilySpec
                ):
                    raise _Fault(f"{hook} returned {spec!r} in its list, not a {expected.__name__}")
                if "/" in spec.name:
                    raise _Fault(
                        f"{hook} returned {spec.name!r} in its list; only a BackboneFamilySpec "
                        "offers names with '/'"
                    )
                specs.append(spec)
    seen: set[tuple[str, str]] = set()
    for spec in specs:
        key = (spec.kind, spec.name)
        if key in seen:
            raise _Fault(f"offers the {spec.kind} {spec.name!r} twice")
        if key in reserved:
            raise _Fault(
                f"offers the {spec.kind} {spec.name!r}, a name of tvc-core's own; choose another"
            )
        seen.add(key)
    return tuple(sorted(specs, key=lambda spec: (spec.kind, spec.name)))


def _without_doubles(infos: list[PluginInfo]) -> list[PluginInfo]:
    """Fail the modules of one distribution that offer the same name: no qualified name could tell
    them apart.
    """
    offers = Counter((info.owner, spec.kind, spec.name) for info in infos for spec in info.specs)
    checked: list[PluginInfo] = []
    for info in infos:
        twice = next(
            (spec for spec in info.specs if offers[info.owner, spec.kind, spec.name] > 1), None
        )
        if twice is not None:
            error = (
                f"offers the {twice.kind} {twice.name!r}, which another module of the "
                "distribution offers, too"
            )
            info = replace(info, status="failed", error=error, specs=())
        checked.append(info)
    return checked


def _check_hook_names(plugin: Any) -> None:
    """Refuse what pluggy would pass over: misspelt and undecorated hooks."""
    for name in dir(plugin):
        value = getattr(plugin, name, None)
        decorated = getattr(value, f"{hookspecs.PROJECT}_impl", None) is not None
        if not callable(value) or not (decorated or name.startswith("tvc_")):
            continue
        if name not in HOOKS:
            raise _Fault(
                f"implements an unknown hook {name!r}.{did_you_mean(name, HOOKS)} The hooks are "
                f"{join_names(HOOKS)}"
            )
        if not decorated:
            raise _Fault(f"{name} is not decorated: put @tvc_core.hookimpl above it")


def _owners_in(variable: str) -> frozenset[str] | Any:
    """Return the owners that an environment variable lists; for an unset TVC_ONLY None, which
    excludes nobody.
    """
    text = os.environ.get(variable)
    if text is None or not text.strip():
        return frozenset() if variable == "TVC_DISABLE" else None
    return frozenset(normalize(part.strip()) for part in text.split(",") if part.strip())


def _warn_of_unknown(variable: str, asked: frozenset[str], installed: set[str]) -> None:
    for owner in sorted(asked - installed):
        message = f"{variable} names {owner!r}, which is not an installed plugin."
        warnings.warn(message + did_you_mean(owner, installed), RegistryWarning, stacklevel=3)
