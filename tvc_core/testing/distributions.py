"""Distributions that exist only for a test."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_distribution"]


def write_distribution(folder: Path, name: str, source: str, *, version: str = "1.0", group: str = "tvc.plugins") -> Path:
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
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n", encoding="utf-8")
    return info
