"""Distributions that exist only for a test, and tests that look at no installed one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from ..errors import PluginError
from ..registry import Registry, discovery

__all__ = ["fake_distributions", "forget_modules", "no_discovery", "write_distribution"]


def write_distribution(
    folder: Path, name: str, source: str, *, version: str = "1.0", group: str = "tvc.plugins"
) -> Path:
    """Write a distribution with one plugin module into a folder, which the caller puts on sys.path.

    Args:
        folder: where the module and the metadata go.
        name: of the distribution, such as "acme-blocks"; its module is `acme_blocks_plugin`.
        source: Python source of the plugin module.
        version: of the distribution.
        group: entry-point group.

    Returns:
        The folder of the metadata.
    """
    module = f"{name.replace('-', '_')}_plugin"
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n", encoding="utf-8")
    return info


@contextmanager
def fake_distributions(folder: Path) -> Iterator[Callable[..., Path]]:
    """Let distributions of a folder count as installed inside the `with`.

    Args:
        folder: empty or new; it is on sys.path inside. Afterwards the modules that were imported
            from it are forgotten.

    Yields:
        `write_distribution` for this folder: a function of a name, a source, and `version` or
        `group`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()

    def install(name: str, source: str, **more: str) -> Path:
        info = write_distribution(folder, name, source, **more)
        importlib.invalidate_caches()
        return info

    try:
        yield install
    finally:
        sys.path.remove(str(folder))
        forget_modules(folder)
        importlib.invalidate_caches()


def forget_modules(folder: Path) -> None:
    """Let the next import of what was imported from a folder read its files again."""
    inside = str(folder / "x")[:-1]  # text: there are thousands of modules
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(inside):
            del sys.modules[name]


@contextmanager
def no_discovery() -> Iterator[Callable[..., Registry]]:
    """Refuse to look for installed plugins inside the `with`, so that a test depends on nothing
    that happens to be installed.

    Yields:
        A function that makes a registry of in-process plugins and the core: `make(plugin,
        prefer=...)`.

    Raises:
        PluginError: inside, something asks what is installed, as `Registry()` and `HybridBuilder()`
            do.
    """

    def refuse(*_: Any, **__: Any) -> Any:
        raise PluginError(
            "installed plugins are looked for, and no_discovery refuses that: hand the registry "
            "that it yields on, as in "
            "HybridBuilder(registry=make(plugin))"
        )

    with mock.patch.object(discovery, "installed_plugins", refuse):
        yield lambda *plugins, **more: Registry(plugins, installed=False, **more)
