"""Look for what is wrong with the installation, and say what to do about it."""

from __future__ import annotations

import contextlib
import difflib
import os
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from tvc_core import API_VERSION, PluginInfo, Registry

from .facts import plugin_facts
from .first_party import FIRST_PARTY, normalized
from .guard import environment
from .output import as_text
from .probe import look_at

__all__ = ["Finding", "examine"]

SWITCHES = {
    "TVC_DISABLE": "leaves these plugins out",
    "TVC_ONLY": "leaves all other plugins out",
    "TVC_STRICT": "makes a faulty plugin an error",
    "TVC_IMPORT_TIMEOUT": "is what a plugin may take to load [s]",
    "TVC_VERIFY_WEIGHTS": "does not compare weight files with their hashes",
    "TVC_WEIGHTS_PATH": "names folders that are searched for weight files first",
}
"""The environment variables that tvc reads, and what each does where it is not off."""

OFF = {"TVC_STRICT": ("", "0"), "TVC_VERIFY_WEIGHTS": ("", "1")}
"""The values of those that can be off."""

SLOW = 0.3
"""From here on loading a plugin counts as slow [s]: a user who types `tvc list` feels it."""

_LONGEST = 1e6  # that a process is waited for, also where a plugin may take for ever [s]
_TIMEOUT = 10.0  # what the core takes where TVC_IMPORT_TIMEOUT is not a number [s]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that deserves attention.

    Args:
        level: "problem", or "note" for what may well be meant so.
        about: the distribution, variable or name that it is about.
        text: what was seen.
        advice: what to do.
        traceback: where it went wrong, where that is known.
    """

    level: str
    about: str
    text: str
    advice: str = ""
    traceback: str | None = None


def examine() -> dict[str, Any]:
    """Return versions, plugins and findings, as plain data. Each plugin is loaded in a process of
    its own, none in this one.
    """
    start = time.perf_counter()
    with (
        environment(TVC_ONLY="tvc-core", TVC_DISABLE="", TVC_STRICT="0"),
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        registry = Registry()
        found = {
            (info.owner, info.module): info for info in registry.plugins if info.owner != "tvc-core"
        }
    installed = list(found.values())
    wanted = [info for info in installed if not _excluded(info.owner)]
    seen = look_at(dict.fromkeys(info.owner for info in wanted), _import_timeout())
    plugins = [fact for info in installed for fact in _facts_of(info, registry, seen)]
    findings = [
        *_warnings(str(warning.message) for warning in said),
        *_faults(plugins),
        *_manners(plugins),
        *_clashes(plugins),
        *_requirements({info.owner for info in installed}),
        *_mixed_versions(),
        *_switches({info.owner for info in installed}),
        *_left_out(installed),
    ]
    findings.sort(key=lambda finding: finding.level != "problem")
    return {
        "fine": all(finding.level != "problem" for finding in findings),
        "versions": _versions(),
        "seconds": round(time.perf_counter() - start, 3),
        "findings": [asdict(finding) for finding in findings],
        "plugins": plugins,
    }


def _facts_of(
    info: PluginInfo, registry: Registry, seen: dict[str, list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Yield what is known of a plugin: from its own process, or from the list of what is
    installed.
    """
    start = {**plugin_facts(info, registry), "changes": [], "heavy": [], "offers": {}}
    if info.owner not in seen:
        yield start
        return
    for fact in seen[info.owner]:
        if fact.get("lost"):  # which of an owner's plugins it was cannot be told
            yield {**start, **{key: value for key, value in fact.items() if key != "lost"}}
        elif fact["module"] == info.module:
            yield fact


def _warnings(messages: Iterable[str]) -> Iterator[Finding]:
    for message in messages:
        yield Finding(
            level="problem",
            about="metadata",
            text=message,
            advice="install that distribution again, or delete it",
        )


def _faults(plugins: list[dict[str, Any]]) -> Iterator[Finding]:
    for fact in plugins:
        if fact["status"] in ("failed", "incompatible"):
            owner = fact["plugin"]
            yield Finding(
                level="problem",
                about=owner,
                text=f"{owner} {fact['version']} ({fact['module']}) is {fact['status']}: "
                f"{fact['error']}",
                advice=f"nothing of it can be used; pip install --upgrade {owner}, or pip "
                f"uninstall {owner}, or tell its "
                f"authors; TVC_DISABLE={owner} leaves it out until then",
                traceback=fact["traceback"],
            )


def _manners(plugins: list[dict[str, Any]]) -> Iterator[Finding]:
    """Find what a plugin does to the process when it is loaded."""
    for fact in plugins:
        if fact["status"] != "active":  # `_faults` has named it
            continue
        owner = fact["plugin"]
        changes = [*fact["side_effects"], *fact["changes"]]
        told = (
            [f"imports {as_text(fact['heavy'])} ({fact['seconds']:.2f} s)"] if fact["heavy"] else []
        )
        told += [f"changes for the whole process: {as_text(changes)}"] if changes else []
        if told:
            yield Finding(
                level="problem",
                about=owner,
                text=f"loading {owner} {', and '.join(told)}",
                advice="its authors should do this in the modules of its factories, not where its "
                "names are offered; "
                f"TVC_DISABLE={owner} leaves it out where it is not needed",
            )
        elif fact["seconds"] >= SLOW:
            yield Finding(
                level="note",
                about=owner,
                text=f"loading {owner} takes {fact['seconds']:.2f} s",
                advice=f"python -X importtime -c 'import {fact['module'].partition(':')[0]}' shows "
                "where the time goes",
            )


def _clashes(plugins: list[dict[str, Any]]) -> Iterator[Finding]:
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for fact in plugins:
        for kind, names in fact["offers"].items():
            for name in names:
                owners[kind, name].append(fact["plugin"])
    for (kind, name), found in sorted(owners.items()):
        if len(set(found)) > 1:
            qualified = [f"{owner}:{name}" for owner in sorted(set(found))]
            built = kind in ("backbone", "backbone family", "block", "patch op", "initializer")
            prefer = f"build with HybridBuilder(prefer=({found[0]!r},)), " if built else ""
            yield Finding(
                level="problem",
                about=name,
                text=f"the {kind} {name!r} is offered by {as_text(sorted(set(found)))}, so the "
                "short name is an error",
                advice=f"write {' or '.join(qualified)}, {prefer}or leave one out with "
                f"TVC_DISABLE={found[-1]}",
            )


def _requirements(owners: set[str]) -> Iterator[Finding]:
    """Find required versions that are not there: of tvc's own distributions, of plugins, and of
    torchvision (its torch).
    """
    for name in ("tvc-core", "torchvision", *sorted({*owners, *FIRST_PARTY} - {"tvc-core"})):
        for text in _requires(name):
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            # one of an extra that was not asked for, or for other systems
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            there = _version(requirement.name)
            # a development version of ours, or torch's nightly, is not an error in itself
            if there is None or not requirement.specifier.contains(there, prereleases=True):
                has = f"{there} is installed" if there else "is not installed"
                yield Finding(
                    level="problem",
                    about=name,
                    text=f"{name} {_version(name)} requires {text}, and {requirement.name} {has}",
                    advice=f'pip install "{text}"',
                )


def _mixed_versions() -> Iterator[Finding]:
    versions: dict[str, list[str]] = defaultdict(list)
    for name in FIRST_PARTY:
        version = _version(name)
        if version is not None:
            versions[version].append(name)
    if len(versions) > 1:
        groups = [
            f"{version} of {as_text(names)}"
            for version, names in sorted(versions.items(), key=lambda item: _release(item[0]))
        ]
        yield Finding(
            level="problem",
            about="tvc",
            text=f"distributions of one release belong together, and there are {'; '.join(groups)}",
            advice="pip install --upgrade "
            f"{' '.join(name for names in versions.values() for name in names)}",
        )


def _switches(owners: set[str]) -> Iterator[Finding]:
    for name, value in sorted(os.environ.items()):
        if not name.startswith("TVC_"):
            continue
        if name not in SWITCHES:
            near = difflib.get_close_matches(name, SWITCHES, n=1, cutoff=0.75)
            hint = f"did you mean {near[0]}?" if near else f"there is {as_text(list(SWITCHES))}"
            yield Finding(
                level="problem",
                about=name,
                text=f"{name} is set to {value!r}, and tvc knows no such variable",
                advice=hint,
            )
            continue
        if name == "TVC_VERIFY_WEIGHTS" and value.strip() not in ("", "0", "1"):
            yield Finding(
                level="problem",
                about=name,
                text=f"{name} is {value!r}, neither 0 nor 1: weight files are compared",
                advice="unset it, or set it to 0 to skip the comparison",
            )
        elif value.strip() in OFF.get(name, ()):
            yield Finding(level="note", about=name, text=f"{name}={value} changes nothing")
        else:
            text = f"{name}={value} is in force: it {SWITCHES[name]}"
            yield Finding(level="note", about=name, text=text)
        folders = value.split(os.pathsep) if name == "TVC_WEIGHTS_PATH" else ()
        for folder in folders:
            if folder and not Path(os.path.expanduser(folder)).is_dir():  # noqa: PTH111
                yield Finding(
                    level="problem",
                    about=name,
                    text=f"{name} names {folder!r}, which is no folder",
                    advice=f"create it, or take it out of {name}",
                )
        for owner in sorted(
            _owners_in(name) - owners - {"tvc-core"} if name in ("TVC_DISABLE", "TVC_ONLY") else ()
        ):
            near = difflib.get_close_matches(owner, owners, n=1)
            yield Finding(
                level="problem",
                about=name,
                text=f"{name} names {owner!r}, which is not an installed plugin",
                advice=f"did you mean {near[0]}?"
                if near
                else f"pip install {owner}, or take it out of {name}",
            )
    if (
        os.environ.get("TVC_IMPORT_TIMEOUT", "").strip()
        and _seconds(os.environ["TVC_IMPORT_TIMEOUT"]) is None
    ):
        text = (
            f"TVC_IMPORT_TIMEOUT is {os.environ['TVC_IMPORT_TIMEOUT']!r}, not a number of "
            "seconds above 0"
        )
        yield Finding(
            level="problem",
            about="TVC_IMPORT_TIMEOUT",
            text=text,
            advice=f"unset it for {_TIMEOUT:g} s",
        )


def _left_out(installed: list[PluginInfo]) -> Iterator[Finding]:
    out = sorted({info.owner for info in installed if _excluded(info.owner)})
    if out:
        yield Finding(
            level="note",
            about="TVC_ONLY" if os.environ.get("TVC_ONLY", "").strip() else "TVC_DISABLE",
            text=f"left out, so that their names are unknown: {as_text(out)}",
            advice="unset TVC_DISABLE and TVC_ONLY, and leave --no-plugins away, to have them",
        )


def _versions() -> dict[str, str | None]:
    names = ("tvc-core", "tvc-cli", "torch", "torchvision")
    return {
        **{name: _version(name) for name in names},
        "plugin API": ".".join(map(str, API_VERSION)),
        "Python": platform.python_version(),
    }


def _version(name: str) -> str | None:
    with contextlib.suppress(Exception):  # broken metadata is reported by the registry
        return metadata.version(name)
    return None


def _requires(name: str) -> list[str]:
    with contextlib.suppress(Exception):
        return metadata.requires(name) or []
    return []


def _release(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion:
        return Version("0")


def _excluded(owner: str) -> bool:
    only = os.environ.get("TVC_ONLY", "").strip()
    return owner in _owners_in("TVC_DISABLE") or (
        bool(only) and owner not in _owners_in("TVC_ONLY")
    )


def _owners_in(variable: str) -> set[str]:
    return {
        normalized(part.strip()) for part in os.environ.get(variable, "").split(",") if part.strip()
    }


def _import_timeout() -> float:
    return _seconds(os.environ.get("TVC_IMPORT_TIMEOUT", "")) or _TIMEOUT


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(seconds, _LONGEST) if seconds > 0 else None
