"""Defective plugins, each a healthy one with one thing wrong, and the check that must catch it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tvc_core.specs import Spec


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One thing that is wrong.

    Args:
        what: is wrong, in words; the id of the test.
        thing: the spec of the defective thing.
        caught_by: the check that must fail, alone.
        says: a piece of its message.
        params: the author's parameters.
    """

    what: str
    thing: Spec
    caught_by: str
    says: str = ""
    params: dict[str, Any] = field(default_factory=dict)
