"""The conformance kit: run checks on what a plugin offers, and say in sentences what is wrong with
it.

Each check is a function in one of the modules `*_checks`, which says in its docstring which defect
it catches.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import SkipTest

from ..errors import ParameterError, TvcError, did_you_mean, join_names
from ..registry import Named
from ..specs import BackboneFamilySpec, BackboneSpec, BlockSpec, InitializerSpec, Kind, PatchOpSpec
from .subjects import Fault, PluginSubject, Subject, open_plugin

__all__ = [
    "Check",
    "ConformanceError",
    "Report",
    "all_checks",
    "check_plugin",
    "checks_of",
    "parametrize_with_checks",
]

Function = Callable[[Any], None]
Test = TypeVar("Test", bound=Callable[..., Any])
Skip = Mapping[str, str | Mapping[str, str]]

_MODULES = {
    "plugin": "plugin_checks",
    BlockSpec.kind: "block_checks",
    BackboneSpec.kind: "backbone_checks",
    PatchOpSpec.kind: "operation_checks",
    InitializerSpec.kind: "initializer_checks",
    Kind.kind: "kind_checks",
}
_FIRST = (BlockSpec, BackboneSpec, PatchOpSpec, InitializerSpec)
"""The kinds that are checked first, in this order."""


class ConformanceError(TvcError, AssertionError):
    """A plugin does not keep the rules; the message has one sentence for each failure."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """One check of one thing: call it, and it returns, raises ConformanceError, or raises
    unittest.SkipTest.

    Args:
        name: of the check, such as "block_gradients".
        subject: what it looks at.
        catches: the defect that it catches, in words.
    """

    name: str
    subject: PluginSubject | Subject
    catches: str
    _function: Function
    _basis: tuple[tuple[str, Function], ...]

    @property
    def thing(self) -> str:
        """What is checked, such as "block 'acme-blocks:gate'"."""
        return str(self.subject)

    @property
    def id(self) -> str:
        """Name of the test, such as "gate-block_gradients"."""
        owner = self.subject.named.spec.name if isinstance(self.subject, Subject) else "plugin"
        return f"{owner}-{self.name}"

    def __repr__(self) -> str:
        return f"<{self.name} of {self.thing}>"

    def __call__(self) -> None:
        """Run it.

        Raises:
            ConformanceError: the thing fails; the message says what was expected, what was seen and
                what to do.
            unittest.SkipTest: the check does not apply, the author skips it, or a check that it
            needs fails.
        """
        __tracebackhide__ = True  # pytest: the message says it all
        subject = self.subject
        if self.name in subject.skips:
            raise SkipTest(
                f"{self.name} of {self.thing} is skipped by the author: {subject.skips[self.name]}"
            )
        for name, function in self._basis:
            if name not in subject.skips and not _passes(subject, name, function):
                raise SkipTest(f"{self.name} of {self.thing} needs {name}, which fails")
        subject.passed[self.name] = False  # until it ends, whatever ends it
        try:
            self._function(subject)
            subject.passed[self.name] = True
        except Fault as fault:
            sentence = " ".join(str(fault).split())
            raise ConformanceError(f"{self.name}: {self.thing}: {sentence}") from fault.__cause__
        except SkipTest as why:
            subject.passed[self.name] = True
            raise SkipTest(f"{self.name} does not apply to {self.thing}: {why}") from why
        except (Exception, SystemExit) as error:  # foreign code may raise any exception
            said = " ".join(str(error).split())[:400]
            raise ConformanceError(
                f"{self.name}: {self.thing}: expected no error, saw {type(error).__name__}: "
                f"{said}; "
                "the traceback shows where it comes from."
            ) from error


def _passes(subject: PluginSubject | Subject, name: str, function: Function) -> bool:
    if name not in subject.passed:
        try:
            function(subject)
            subject.passed[name] = True
        except SkipTest:
            subject.passed[name] = True
        except (Exception, SystemExit):  # the check itself reports it
            subject.passed[name] = False
    return subject.passed[name]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `check_plugin` saw; it prints as a table.

    Args:
        passed: the checks that passed.
        skipped: the checks that did not run, each with the reason.
    """

    passed: tuple[Check, ...]
    skipped: tuple[tuple[Check, str], ...]

    def __str__(self) -> str:
        lines = [f"{len(self.passed)} checks passed, {len(self.skipped)} skipped"]
        lines += [f"skipped  {reason}" for _, reason in self.skipped]
        return "\n".join(lines)


def all_checks() -> list[tuple[str, str, str]]:
    """Return (kind, name, what it catches) of every check that there is."""
    return [
        (kind, check.__name__, _catches(check)) for kind in _MODULES for check in _functions(kind)
    ]


def checks_of(
    plugin: Any,
    *,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    skip: Skip | None = None,
    names: Iterable[str] = (),
) -> list[Check]:
    """Return every check that applies to a plugin and to what it offers, in a fixed order.

    Of a plugin that cannot be imported or registered these are the checks of the plugin alone, one
    of which fails.

    Args:
        plugin: the name of its module, the module, or an in-process plugin.
        params: for what cannot be made without: by name, a block's parameters, or the options of a
            backbone or operation. Where two kinds have one name, write the kind first: "block
            gate".
        skip: reasons for checks that are not to run: {"block_export": "why"}, or for one thing
            {"gate": {"block_export": "why"}}. They are reported as skipped.
        names: backbones that the plugin offers without listing them.

    Raises:
        ParameterError: `params` or `skip` names what is not there, or gives no reason.
    """
    subject = open_plugin(plugin)
    things = _things(subject, names)
    general, special = _skips(skip or {}, things)
    subject.skips = general
    for name, given in (params or {}).items():
        _find(things, name, "params").params = dict(given)
    for thing in things:
        thing.skips = {**general, **special.get(id(thing), {})}
    subjects: list[PluginSubject | Subject] = [subject, *things]
    return [check for each in subjects for check in _checks(each)]


def check_plugin(
    plugin: Any,
    *,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    skip: Skip | None = None,
    names: Iterable[str] = (),
) -> Report:
    """Run every check, and return what passed and what was skipped.

    Args:
        plugin: as for `checks_of`. The other arguments are also the same.
        params: by name.
        skip: by check, or by name and check.
        names: backbones that are not listed.

    Raises:
        ConformanceError: checks fail; one sentence for each.
        ParameterError: as for `checks_of`.
    """
    passed: list[Check] = []
    skipped: list[tuple[Check, str]] = []
    failures: list[str] = []
    checks = checks_of(plugin, params=params, skip=skip, names=names)
    for check in checks:
        try:
            check()
            passed.append(check)
        except SkipTest as reason:
            skipped.append((check, str(reason)))
        except ConformanceError as failure:
            failures.append(str(failure))
    if failures:
        raise ConformanceError(
            f"{len(failures)} of {len(checks)} checks fail:\n" + "\n".join(failures)
        )
    return Report(passed=tuple(passed), skipped=tuple(skipped))


def parametrize_with_checks(
    plugin: Any,
    *,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    skip: Skip | None = None,
    names: Iterable[str] = (),
) -> Callable[[Test], Test]:
    """Return a pytest decorator that makes one test out of each check; the test takes `check` and
    calls it.

    Args:
        plugin: as for `checks_of`. The other arguments are also the same.
        params: by name.
        skip: by check, or by name and check.
        names: backbones that are not listed.

    Raises:
        ParameterError: as for `checks_of`.
    """
    import pytest

    checks = checks_of(plugin, params=params, skip=skip, names=names)
    decorator: Callable[[Test], Test] = pytest.mark.parametrize(
        "check", checks, ids=[check.id for check in checks]
    )
    return decorator


def _functions(kind: str) -> tuple[Function, ...]:
    """Return the checks of a kind; most import torch."""
    checks: tuple[Function, ...] = _module(kind).CHECKS
    return checks


def _module(kind: str) -> Any:
    return importlib.import_module(f".{_MODULES.get(kind, 'kind_checks')}", __package__)


def _checks(subject: PluginSubject | Subject) -> list[Check]:
    basic: tuple[Function, ...] = _module(subject.kind).BASIC
    checks = []
    for function in _functions(subject.kind):
        before = basic[: basic.index(function)] if function in basic else basic
        basis = tuple((each.__name__, each) for each in before)
        checks.append(
            Check(
                name=function.__name__,
                subject=subject,
                catches=_catches(function),
                _function=function,
                _basis=basis,
            )
        )
    return checks


def _catches(function: Function) -> str:
    return " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())


def _things(subject: PluginSubject, names: Iterable[str]) -> list[Subject]:
    registry = subject.registry
    if registry is None:
        return []
    others = [offer.spec.spec for offer in registry.all(Kind)]
    others = [kind for kind in others if kind not in (*_FIRST, BackboneFamilySpec)]
    kinds: tuple[Any, ...] = (*_FIRST, *others, Kind)
    offers: list[Named[Any]] = [
        offer for kind in kinds for offer in registry.all(kind) if offer.owner == subject.owner
    ]
    offers += [registry.resolve(BackboneSpec, name) for name in names]
    return [Subject(named=offer, registry=registry) for offer in offers]


def _find(things: list[Subject], name: str, argument: str) -> Subject:
    found = [
        thing
        for thing in things
        if name in (thing.named.spec.name, f"{thing.kind} {thing.named.spec.name}")
    ]
    if len(found) == 1:
        return found[0]
    names = [thing.named.spec.name for thing in things]
    if found:
        choices = " or ".join(repr(f"{thing.kind} {name}") for thing in found)
        raise ParameterError(
            f"{argument}: {name!r} is the name of {len(found)} things: write {choices}."
        )
    raise ParameterError(
        f"{argument}: the plugin offers no {name!r}.{did_you_mean(name, names)} It offers "
        f"{join_names(names, most=30)}."
    )


def _skips(skip: Skip, things: list[Subject]) -> tuple[dict[str, str], dict[int, dict[str, str]]]:
    """Return the reasons for all things, and those for one thing by its identity."""
    known = [name for _, name, _ in all_checks()]
    general: dict[str, str] = {}
    special: dict[int, dict[str, str]] = {}
    for name, value in skip.items():
        reasons = value if isinstance(value, Mapping) else {name: value}
        for check, reason in reasons.items():
            if check not in known:
                raise ParameterError(
                    f"skip: there is no check {check!r}.{did_you_mean(check, known)}"
                )
            if not isinstance(reason, str) or not reason.strip():
                raise ParameterError(
                    f"skip: {check!r} needs a reason, a sentence for whoever reads the report, not "
                    f"{reason!r}"
                )
        if isinstance(value, Mapping):
            special[id(_find(things, name, "skip"))] = dict(reasons)
        else:
            general.update(reasons)
    return general, special
