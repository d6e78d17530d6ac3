"""Run the conformance kit from the command line."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

from tvc_core import Registry, UnknownNameError

from .first_party import normalized
from .guard import environment

__all__ = ["check_facts", "importable", "plugin_module", "skipped_in_short"]

# [project.entry-points."tvc.plugins"], and what Poetry calls the same
_SECTION = re.compile(
    r"""^\[[\w.-]*(?:entry-points|plugins)\.(["'])tvc\.plugins\1\][^\n]*\n([^\[]*)""", re.MULTILINE
)
_ENTRY = re.compile(r"""^\s*["']?[\w.-]+["']?\s*=\s*["']([\w.]+)""", re.MULTILINE)


def plugin_module(plugin: str) -> str:
    """Return the module of a plugin that is given by its distribution, its folder or its module.

    Raises:
        UnknownNameError: no such plugin is installed, the folder has none, or no such module can
            be imported.
    """
    # a list of what is installed, and nothing is loaded
    with environment(TVC_ONLY="tvc-core", TVC_DISABLE="", TVC_STRICT="0"):
        installed = {info.owner: info.module for info in Registry().plugins}
    folder = Path(plugin)
    if folder.is_dir() and (folder / "pyproject.toml").is_file():
        return _module_in(folder)
    if normalized(plugin) in installed:
        return installed[normalized(plugin)]
    try:
        found = importlib.util.find_spec(plugin)
    except (ImportError, ValueError):
        found = None
    if found is None or (found.origin is None and folder.is_dir()):
        near = difflib.get_close_matches(plugin, [*installed, *installed.values()])
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        if folder.is_dir():
            hint = " The folder has no pyproject.toml."
        raise UnknownNameError(
            f"{plugin!r} is neither an installed plugin, nor the folder of one, nor a module that "
            f"can be imported.{hint} Give the folder that has its pyproject.toml, or the module "
            "that the entry point names, such as acme_blocks.plugin."
        )
    return plugin


def _module_in(folder: Path) -> str:
    """Return the module that a project's metadata names.

    Read by patterns, since Python 3.10 has no reader for TOML.
    """
    file = folder / "pyproject.toml"
    try:
        section = _SECTION.search(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UnknownNameError(f"{file} is not in UTF-8, as TOML is: {error}") from error
    entries = _ENTRY.findall(section[2]) if section else []
    if len(entries) != 1:
        number = f"{len(entries)} plugins: {', '.join(entries)}" if entries else "no plugin"
        raise UnknownNameError(
            f'{file}: [project.entry-points."tvc.plugins"] names {number}. Install it, and give '
            "the module of one, such as acme_blocks.plugin."
        )
    return str(entries[0])


@contextlib.contextmanager
def importable(plugin: str, module: str) -> Iterator[None]:
    """Let a module be imported from the folder of its plugin, as if that was installed; where
    `plugin` is no folder, do nothing.
    """
    folder, before = Path(plugin).resolve(), sys.path[:]
    if (folder / "pyproject.toml").is_file():
        sys.path[:0] = [str(place) for place in (folder / "src", folder) if place.is_dir()]
        package = module.partition(".")[0]
        # an installed copy may have been imported already, to ask it for commands of tvc
        for name, loaded in list(sys.modules.items()):
            elsewhere = not Path(getattr(loaded, "__file__", None) or "").is_relative_to(folder)
            if name.partition(".")[0] == package and elsewhere:
                del sys.modules[name]
    try:
        yield
    finally:
        sys.path[:] = before


def check_facts(module: str) -> list[dict[str, Any]]:
    """Run the conformance kit on a plugin's module, and return one dictionary a check."""
    # by name, since the kit is for tests and for this command, not for plugins
    testing = importlib.import_module("tvc_core.testing")
    found: list[dict[str, Any]] = []
    for check in testing.checks_of(module):
        result, said = "passed", None
        try:
            check()
        except SkipTest as reason:
            result, said = "skipped", str(reason)
        except testing.ConformanceError as failure:
            result, said = "failed", str(failure)
        found.append({"check": check.name, "thing": check.thing, "result": result, "said": said})
    return found


def skipped_in_short(found: list[dict[str, Any]]) -> str:
    """Return in one line how many checks were skipped for which reason."""
    reasons: Counter[str] = Counter()
    for check in found:
        if check["result"] == "skipped":
            failed = re.search(r" needs (\w+), which fails", check["said"])
            reasons[f"need {failed[1]}, which fails" if failed else "do not apply"] += 1
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"skipped: {parts} (--json has each)" if parts else ""
