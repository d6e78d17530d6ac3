"""Checks of a plugin's registration module: it is light, states its API, and its hooks return what
they must.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from unittest import SkipTest

from ..errors import PluginError, join_names
from ..hookspecs import API_VERSION
from ..registry import Named, Registry, contract
from ..specs import Spec
from .process_watch import HEAVY
from .subjects import Fault, PluginSubject

__all__ = ["BASIC", "CHECKS"]

MOST_SECONDS = 1.0
"""How long a registration module and its hooks may take, beyond tvc_core's own import."""

_IMPORT = """
import importlib, json, locale, logging, os, random, signal, socket, sys, time, warnings
import tvc_core
from tvc_core.registry import contract
from tvc_core.testing.process_watch import ProcessWatch
watch, before, start = ProcessWatch(), set(sys.modules), time.perf_counter()
module = importlib.import_module(sys.argv[1])
try:
    _, _, hooks = contract.examine(module, sys.argv[2], api_required=False)
except contract.Fault:
    hooks = ()
for hook in hooks:
    if not hook.optional:
        hook.function()
seconds = time.perf_counter() - start
found = [seconds, sorted(set(sys.modules) - before), watch.changes()]
os.write(1, b"\\n" + json.dumps(found).encode())
"""


def plugin_imports(plugin: PluginSubject) -> None:
    """The module raises when it is imported, or even ends the process."""
    if plugin.plugin is None:
        raise Fault(
            f"that {plugin.module!r} can be imported",
            f"{type(plugin.error).__name__}: {plugin.error}",
            "install what it needs, and import optional things in the functions that use them",
        ) from plugin.error


def plugin_light_import(plugin: PluginSubject) -> None:
    """The registration module or its package imports torch or the like, so that every listing takes
    seconds.
    """
    name = plugin.module_name()
    best = float("inf")
    for attempt in range(3):  # a busy machine is slow now and then
        seconds, modules, _ = _fresh_import(plugin, again=attempt > 0)
        if heavy := _heavy(modules):
            raise Fault(
                f"that importing {name!r} and calling its hooks imports nothing heavy",
                f"imports of {join_names(heavy)}",
                "give factories as strings 'package.module:attribute', and keep the package's "
                "__init__ empty",
            )
        best = min(best, seconds)
        if best <= MOST_SECONDS:
            return
    raise Fault(
        f"that importing {name!r} and calling its hooks takes at most {MOST_SECONDS:g} s",
        f"{best:.1f} s",
        "move work and imports into the factories",
    )


def plugin_side_effects(plugin: PluginSubject) -> None:
    """Importing the module or calling its hooks changes the process: random seeds, warnings
    filters, output, and so on.
    """
    name = plugin.module_name()
    _, modules, effects = _fresh_import(plugin)
    if _heavy(modules):
        raise SkipTest("it imports heavy packages, which change the process themselves")
    if effects:
        do = "do such things in the factories' users, never at import"
        raise Fault(
            f"that importing {name!r} and calling its hooks changes nothing else",
            join_names(effects),
            do,
        )


def _heavy(modules: list[str]) -> list[str]:
    return sorted({module.partition(".")[0] for module in modules} & set(HEAVY))


def _fresh_import(
    plugin: PluginSubject, *, again: bool = False
) -> tuple[float, list[str], list[str]]:
    """Return what `_imported_by` does; one process answers for all checks."""
    if again or "import" not in plugin.memo:
        plugin.memo["import"] = _imported_by(plugin.module_name(), plugin.owner)
    found: tuple[float, list[str], list[str]] = plugin.memo["import"]
    return found


def _imported_by(module: str, owner: str) -> tuple[float, list[str], list[str]]:
    """Return what a fresh process takes for a module and its hooks [s], the modules that come with
    it, and side effects.
    """
    paths = [str(Path.cwd()) if path == "" else path for path in sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT, module, owner],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Fault(
            f"that {module!r} is imported in seconds",
            "no end after 60 s",
            "let nothing wait at import",
        ) from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Fault(
            f"that {module!r} can be imported in a fresh process",
            lines[-1],
            "import what it needs itself, whatever ran before",
        )
    seconds, modules, effects = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds, modules, effects


def plugin_api_version(plugin: PluginSubject) -> None:
    """TVC_API is missing, computed, or a version that this core does not serve, so that upgrades
    break the plugin.
    """
    name = plugin.module_name()
    source = Path(str(plugin.plugin.__file__)).read_text(encoding="utf-8")
    values = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        and [
            ast.unparse(target)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        ]
        == ["TVC_API"]
    ]
    do = f"write TVC_API = {API_VERSION} into it, the plugin API that it was written and tested for"
    if len(values) != 1 or values[0] is None:
        raise Fault(f"one line TVC_API = {API_VERSION} in {name!r}", f"{len(values)} of them", do)
    text = ast.unparse(values[0])
    try:
        found = ast.literal_eval(values[0])
    except ValueError:
        found = None
    if not (
        isinstance(found, tuple) and len(found) == 2 and all(type(part) is int for part in found)
    ):
        raise Fault(f"a literal pair of numbers for TVC_API in {name!r}", f"TVC_API = {text}", do)
    if found[0] != API_VERSION[0] or found[1] > API_VERSION[1]:
        raise Fault(
            f"a plugin API that this core serves, up to {API_VERSION}", f"TVC_API = {text}", do
        )


def plugin_hooks(plugin: PluginSubject) -> None:
    """A hook is misspelt, not decorated or takes arguments; there is none; a kind is wrong."""
    try:
        _, kinds, hooks = contract.examine(plugin.plugin, plugin.owner, api_required=False)
        known = contract.HOOKS | contract.hooks_of((*kinds, *plugin.foreign_kinds()))
        contract.check_hooks(hooks, known)
    except contract.Fault as fault:
        raise Fault(
            f"hooks named {join_names(contract.HOOKS)}, or of a kind that a plugin defines",
            str(fault),
            "rename it, decorate it with @tvc_core.hookimpl, or correct TVC_KINDS",
        ) from fault


def plugin_specs(plugin: PluginSubject) -> None:
    """A hook raises, returns something other than a list of its specs, the same name twice or one
    of the core's names.
    """
    do = "return a new list of frozen specs, the same at every call"
    if plugin.registry is None:
        error = plugin.error
        raise Fault(
            "that the hooks' specs can be registered",
            str(error).partition(": ")[2] or str(error),
            do,
        ) from error
    first, second = _own(plugin.registry, plugin.owner), _own(plugin.register(), plugin.owner)
    if first != second:
        names = [[spec.name for spec in specs] for specs in (first, second)]
        raise Fault(
            "the same specs from every call",
            f"{join_names(names[0])}, then {join_names(names[1])}",
            do,
        )


def plugin_factories(plugin: PluginSubject) -> None:
    """A factory's module cannot be imported, or it has no such attribute: the first user of the
    name would find out.
    """
    assert plugin.registry is not None
    faults = []
    for spec in _own(plugin.registry, plugin.owner):
        # also further entries, such as an exporter's `run`: whatever field has text of that form
        others = [each.name for each in fields(spec) if each.name not in _NO_ENTRIES]
        entries = [name for name in others if _ENTRY.fullmatch(str(getattr(spec, name)))]
        for entry in ("factory", *entries):
            try:
                if not callable(given := Named(plugin.owner, spec).load(entry)):
                    faults.append(f"{given!r} of the {spec.kind} {spec.name!r} cannot be called")
            except PluginError as error:
                faults.append(str(error).partition(". This is a fault")[0])
    if faults:
        raise Fault(
            "that every factory loads",
            "; ".join(faults),
            "correct the factory strings 'package.module:attribute'",
        )


_NO_ENTRIES = ("factory", "name", "summary", "source")
_ENTRY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def _own(registry: Registry, owner: str) -> tuple[Spec, ...]:
    return next(info.specs for info in registry.plugins if info.owner == owner)


BASIC = (plugin_imports, plugin_api_version, plugin_hooks, plugin_specs)
"""The checks that the others need: without them the others say nothing."""

CHECKS = (
    plugin_imports,
    plugin_light_import,
    plugin_side_effects,
    plugin_api_version,
    plugin_hooks,
    plugin_specs,
    plugin_factories,
)
