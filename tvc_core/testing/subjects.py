"""What a check looks at: the plugin that was handed over, or one thing that it offers. Imports no
torch.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import SkipTest

import importlib_metadata

from .. import builtin
from ..errors import PluginError, RegistryWarning
from ..hookspecs import ENTRY_POINT_GROUP
from ..registry import Named, PluginInfo, Registry, contract
from ..specs import Kind, normalize
from . import toy_plugin

__all__ = ["Fault", "PluginSubject", "Subject", "open_plugin"]


class Fault(Exception):  # noqa: N818  what is wrong with a plugin, not an error of ours
    """A check failed: what was expected, what was seen, and what to do."""

    def __init__(self, expected: str, seen: str, do: str) -> None:
        super().__init__(f"expected {expected}, saw {seen.rstrip('.')}; {do}.")


@dataclass(kw_only=True, eq=False)
class Subject:
    """One offered thing, and what checks need to try it.

    Args:
        named: the spec with its owner.
        registry: knows the plugin, the core and the kit's toys, nothing that is installed.
        params: the author's parameters for a block, options for a backbone or an operation.
        skips: reasons of the author, by the name of the check.
    """

    named: Named[Any]
    registry: Registry
    params: Mapping[str, Any] = field(default_factory=dict)
    skips: Mapping[str, str] = field(default_factory=dict)
    passed: dict[str, bool] = field(default_factory=dict)
    """Results of the checks that others build on."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What checks found out and others also need."""

    @property
    def kind(self) -> str:
        """Kind of the thing, such as "block"."""
        kind: str = self.named.spec.kind
        return kind

    def __str__(self) -> str:
        return f"{self.kind} {self.named.qualified!r}"


@dataclass(kw_only=True, eq=False)
class PluginSubject:
    """A plugin that was handed over.

    Args:
        name: what messages call it: the module's name, or the owner of an object.
        module: name under which it can be imported; None for an object.
        plugin: the module or object; None where it cannot be imported.
        owner: first half of the qualified names.
        error: why it cannot be imported, or cannot be registered.
        registry: what it offers; None where it cannot be registered.
    """

    name: str
    module: str | None
    plugin: Any
    owner: str
    error: BaseException | None = None
    registry: Registry | None = None
    skips: Mapping[str, str] = field(default_factory=dict)
    passed: dict[str, bool] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)

    kind = "plugin"

    def __str__(self) -> str:
        return f"plugin {self.name!r}"

    def module_name(self) -> str:
        """Return the name under which the plugin can be imported; what needs it does not apply to
        objects.
        """
        if self.module is None:
            raise SkipTest("an in-process plugin has no module file")
        return self.module

    def register(self) -> Registry:
        """Return a registry with this plugin, the core, the kit's own networks and blocks, and the
        installed plugins that define the kinds of its other hooks.
        """
        if self.plugin in (builtin, toy_plugin):
            return Registry([toy_plugin], installed=False)
        plugins = [_with_owner(self.plugin, self.owner), toy_plugin]
        for info in self._definers():
            entry = importlib_metadata.EntryPoint(info.owner, info.module, ENTRY_POINT_GROUP)
            plugins.append(_with_owner(entry.load(), info.owner))
        return Registry(plugins, installed=False)

    def foreign_kinds(self) -> tuple[Kind, ...]:
        """Return the kinds of installed plugins that it offers something of."""
        return tuple(kind for info in self._definers() for kind in info.kinds)

    def _definers(self) -> list[PluginInfo]:
        try:
            _, kinds, hooks = contract.examine(self.plugin, self.owner, api_required=False)
        except contract.Fault:
            return []
        known = contract.HOOKS | contract.hooks_of(kinds)
        names = {hook.name for hook in hooks if hook.name and hook.name not in known}
        specs = [spec for hook in hooks if not hook.name for spec in hook.function()]
        classes = {type(spec) for spec in specs} - {c for each in known.values() for c in each}
        if not names and not classes:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RegistryWarning)  # of other plugins, or of this one
            installed = Registry().plugins
        return [
            info
            for info in installed
            if info.owner not in ("tvc-core", self.owner)
            if any(kind.hook.__name__ in names or kind.spec in classes for kind in info.kinds)
        ]


def _with_owner(plugin: Any, owner: str) -> Any:
    """Return a module under the owner that it has where it is installed; in-process objects say it
    themselves.
    """
    if not isinstance(plugin, types.ModuleType):
        return plugin
    copy = types.ModuleType(plugin.__name__)
    copy.__dict__.update(plugin.__dict__, TVC_OWNER=owner)
    return copy


def open_plugin(given: Any) -> PluginSubject:
    """Return what is to be checked; a plugin that cannot be imported or registered is a result, not
    an exception.

    Args:
        given: the name of a module, a module, or an object with hooks.
    """
    if isinstance(given, str):
        try:
            subject = _of_module(given, importlib.import_module(given))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise SystemExit or worse
            return PluginSubject(
                name=given, module=given, plugin=None, owner=_owner_of(given), error=error
            )
    elif isinstance(given, types.ModuleType):
        subject = _of_module(given.__name__, given)
    else:
        name = getattr(given, "__name__", None) or type(given).__name__
        owner = str(getattr(given, "TVC_OWNER", None) or name.rpartition(".")[2].strip("_"))
        subject = PluginSubject(name=owner, module=None, plugin=given, owner=normalize(owner))
    try:
        subject.registry = subject.register()
    except PluginError as error:
        subject.error = error
    return subject


def _of_module(name: str, plugin: types.ModuleType) -> PluginSubject:
    importable = (
        sys.modules.get(name) is plugin and getattr(plugin, "__file__", None) and name != "__main__"
    )
    owner = normalize(getattr(plugin, "TVC_OWNER", None) or _owner_of(name))
    return PluginSubject(name=name, module=name if importable else None, plugin=plugin, owner=owner)


def _owner_of(module: str) -> str:
    """Return the distribution that announces a module, or else the name of its package as a
    distribution's.
    """
    for entry in importlib_metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.value == module and entry.dist is not None:
            return normalize(entry.dist.name)
    return "tvc-core" if module == builtin.__name__ else normalize(module.partition(".")[0])
