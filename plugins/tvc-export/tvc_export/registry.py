"""Which formats there are, and what they need."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tvc_core import (
    Named,
    PluginError,
    Registry,
    UnknownNameError,
    WeightsError,
    did_you_mean,
    join_names,
)

from .kinds import ExporterSpec

__all__ = ["check_installed", "files_beside", "find_format", "format_of"]


def find_format(name: str, registry: Registry | None = None) -> Named[ExporterSpec]:
    """Return a format by its name.

    Raises:
        UnknownNameError: there is none; the message says near names.
    """
    found: Named[ExporterSpec] = (registry or Registry()).resolve(ExporterSpec, name)
    return found


def format_of(path: Path, registry: Registry | None = None) -> Named[ExporterSpec]:
    """Return the format of a file, by its suffix.

    Raises:
        WeightsError: the file is not there; the message says near names.
        UnknownNameError: no format has this suffix.
    """
    offers = (registry or Registry()).all(ExporterSpec)
    suffixes = {offer.spec.suffix: offer for offer in offers}
    if path.suffix not in suffixes:
        raise UnknownNameError(
            f"{path}: no format has the suffix {path.suffix!r}."
            f"{did_you_mean(path.suffix, suffixes)} There are: {join_names(sorted(suffixes))}"
        )
    if not path.exists():
        folder = path.parent
        near = [p.name for p in folder.iterdir() if p.suffix in suffixes] if folder.is_dir() else []
        raise WeightsError(f"{path}: is not there.{did_you_mean(path.name, near)}")
    return suffixes[path.suffix]


def files_beside(path: Path, exporter: Named[ExporterSpec]) -> list[Path]:
    """Return the other files that belong to a file of a format, whether they are there or not."""
    return [path.with_name(path.stem + each) for each in exporter.spec.beside]


def check_installed(exporter: Named[ExporterSpec]) -> None:
    """Refuse a format whose packages are not installed, before any work.

    Raises:
        PluginError: some are not; the message has the line that installs them.
    """
    missing = [each for each in exporter.spec.modules if importlib.util.find_spec(each) is None]
    if missing:
        install = exporter.spec.install or " ".join(missing)
        raise PluginError(
            f"the format {exporter.spec.name!r} needs {join_names(missing)}, which is not "
            f"installed: pip install '{install}'"
        )
