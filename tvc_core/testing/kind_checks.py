"""Checks of the kinds that a plugin defines, and of what it offers of kinds beyond the core's."""

from __future__ import annotations

import inspect
import pickle

from ..specs import Kind, Spec
from .subjects import Fault, Subject

__all__ = ["BASIC", "CHECKS"]


def kind_summary(thing: Subject) -> None:
    """The summary is missing, so that listings show a bare name."""
    if isinstance(thing.named.spec, Spec) and not thing.named.spec.summary.strip():
        raise Fault("a summary in its spec", "none", "say in one sentence what it is")


def kind_pickles(thing: Subject) -> None:
    """The spec cannot be pickled, or differs afterwards, so that it cannot be passed to another
    process.
    """
    spec = thing.named.spec
    if not isinstance(spec, Spec) or not isinstance(spec.factory, str):
        return
    try:
        same = pickle.loads(pickle.dumps(spec)) == spec
    except Exception as error:
        raise Fault(
            "that its spec can be pickled",
            f"{type(error).__name__}: {error}",
            "give its fields plain values: strings, numbers, tuples, mappings",
        ) from error
    if not same:
        raise Fault("an equal spec after pickling", "another one", "compare its fields by value")


def kind_documented(thing: Subject) -> None:
    """A kind's spec class or hook says nothing of what a plugin offers with it."""
    kind = thing.named.spec
    if not isinstance(kind, Kind):
        return
    # a dataclass without a docstring gets its signature as one
    own = (kind.spec.__doc__ or "").strip()
    for what, text in (
        (kind.spec.__name__, "" if own.startswith(f"{kind.spec.__name__}(") else own),
        (kind.hook.__name__, (inspect.getdoc(kind.hook) or "").strip()),
    ):
        if not text:
            raise Fault(
                f"a docstring of {what}",
                "none",
                "say what is offered, how its factory is called, and since which version",
            )


BASIC = ()
CHECKS = (kind_summary, kind_pickles, kind_documented)
