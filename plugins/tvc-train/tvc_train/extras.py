"""Ask for what an extra installs before any work begins. Light: imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec

from tvc_core import join_names

from .errors import TrainingError

__all__ = ["EXTRAS", "has_extra", "require_extra"]

EXTRAS = {"report": ("jinja2", "matplotlib", "tensorboard"), "tune": ("ray", "optuna")}
"""The packages of each extra."""


def has_extra(name: str) -> bool:
    """Return whether all packages of an extra are installed."""
    return not _missing(name)


def require_extra(name: str, what: str) -> None:
    """Refuse to begin what needs an extra that is not installed.

    Args:
        name: of the extra, one of `EXTRAS`.
        what: needs it, as the subject of the error.

    Raises:
        TrainingError: a package of the extra is missing.
    """
    if missing := _missing(name):
        raise TrainingError(
            f"{what} needs {join_names(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install 'tvc-train[{name}]'"
        )


def _missing(name: str) -> list[str]:
    return [package for package in EXTRAS[name] if find_spec(package) is None]
