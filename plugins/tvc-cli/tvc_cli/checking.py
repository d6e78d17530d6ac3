"""Run the conformance kit from the command line."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from typing import Any
from unittest import SkipTest

from tvc_core import Registry, UnknownNameError

from .first_party import normalized
from .guard import environment

__all__ = ["check_facts", "plugin_module"]


def plugin_module(plugin: str) -> str:
    """Return the module of a plugin that is given by its module or its distribution.

    Raises:
        UnknownNameError: no such module can be imported, and no such plugin is installed.
    """
    # a list of what is installed, and nothing is loaded
    with environment(TVC_ONLY="tvc-core", TVC_DISABLE="", TVC_STRICT="0"):
        installed = {info.owner: info.module for info in Registry().plugins}
    if normalized(plugin) in installed:
        return installed[normalized(plugin)]
    try:
        found = importlib.util.find_spec(plugin)
    except (ImportError, ValueError):
        found = None
    if found is None:
        near = difflib.get_close_matches(plugin, [*installed, *installed.values()])
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UnknownNameError(
            f"{plugin!r} is neither a module that can be imported nor an installed plugin.{hint} "
            "Give the module that the "
            "entry point names, such as acme_blocks.plugin; for a folder, pip install -e it first."
        )
    return plugin


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
