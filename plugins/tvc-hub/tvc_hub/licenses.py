"""Licenses as hubs write them, and whether a model may have one that its weights' does not give."""

from __future__ import annotations

import re

from tvc_core import did_you_mean

from .errors import HubError

__all__ = ["contradiction", "license_of"]

_FREE = (
    "afl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "ecl-2.0", "etalab-2.0", "isc", "mit", "ms-pl",
    "ncsa", "odc-by", "ofl-1.1", "openmdw-1.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
)  # fmt: skip
"""Allow every use, and to pass on what was made from it under another license."""

_SHARED = (
    "agpl-3.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cdla-sharing-1.0", "epl-1.0", "epl-2.0",
    "eupl-1.1", "eupl-1.2", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0",
    "lppl-1.3c", "mpl-2.0", "odbl", "osl-3.0",
)  # fmt: skip
"""Allow every use; what was made from it has the same license."""

_LIMITED = (
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
)  # fmt: skip
"""Allow no commercial use, or no changes."""

_OWN = (
    "apple-amlr", "apple-ascl", "bigcode-openrail-m", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "c-uda", "cc", "creativeml-openrail-m", "deepfloyd-if-license",
    "fair-noncommercial-research-license", "gemma", "h-research", "intel-research", "lgpl-lr",
    "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "openrail", "openrail++",
    "other", "unknown",
)  # fmt: skip
"""Have rules of their own, which only their text says."""

_ALL = (*_FREE, *_SHARED, *_LIMITED, *_OWN)


def license_of(given: str | None) -> str:
    """Return a license as hubs write it.

    Raises:
        HubError: there is none, or hubs know none of this name.
    """
    if given is None or _written(given) in ("", "unknown"):
        raise HubError(
            "a model without a license is one that no one may use: say which it has, such as "
            "--license apache-2.0 (license='apache-2.0')"
        )
    name = _written(given)
    if name not in _ALL:
        raise HubError(
            f"{given!r} is no license that hubs know.{did_you_mean(name, _ALL)} Some are "
            "apache-2.0, mit, bsd-3-clause, cc-by-4.0, cc-by-nc-4.0, gpl-3.0; 'other' is for one "
            "of your own, whose text goes into the repository: --with LICENSE"
        )
    return name


def contradiction(given: str, base: str | None) -> str:
    """Return why a model must not have a license, where the license of the weights that it was made
    from says so; else nothing.

    Args:
        given: as `license_of` returns it.
        base: of the weights, as their publisher writes it; None and an empty text say nothing.
    """
    # as SPDX writes several, of which AND binds closer; those in parentheses are left to a reader
    for word, enough in (("OR", min), ("AND", max)):
        several = (base or "").split(f" {word} ")
        if len(several) > 1 and "(" not in (base or ""):
            return enough((contradiction(given, each) for each in several), key=bool)
    known = _written(base or "")
    if known in ("", "unknown", given, *_FREE):
        return ""
    if known in _SHARED:
        return f"{base} asks that what is made from them has the same license"
    marks = {mark for mark in ("nc", "sa", "nd") if f"-{mark}-" in known}
    if not known.startswith("cc-by-") or not marks:
        return f"{base} has rules of its own, which only its text says"
    if "nd" in marks:
        return f"{base} does not let others pass on what they made from them"
    if "nc" in marks and not ("-nc-" in given or given == "other"):
        return f"{base} allows no commercial use, and {given} does"
    if "sa" in marks and "-sa-" not in given:
        return f"{base} asks that what is made from them has the same license"
    return ""


def _written(name: str) -> str:
    """Return a license's name in the form of hubs: SPDX writes "BSD-3-Clause"."""
    name = re.sub(r"[\s_]+", "-", name.strip().lower())
    return re.sub(r"(?:-only|-or-later|(?<!\+)\+)$", "", name)
