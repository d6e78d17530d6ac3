"""What can be wrong with data, as values in a list. Light: no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tvc_core import did_you_mean, what_there_is

__all__ = ["Problem", "listed", "similar_classes", "unknown_class", "visible"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something about the data that a user should know.

    Args:
        where: file, folder, or file and line.
        what: what is wrong with it, and what to do.
        kind: "image" where leaving out one image mends it, for which `max_bad` is the budget;
            "data" where nothing but the user can; "note" where training is right as it is.
    """

    where: str
    what: str
    kind: Literal["image", "data", "note"] = "data"

    def __str__(self) -> str:
        return visible(f"{self.where}: {self.what}")


def visible(text: str) -> str:
    """Return a text with what does not print escaped: half a surrogate has no bytes in UTF-8, a new
    line would break a table, and marks of direction would turn the rest of the line around.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def unknown_class(where: str, name: str, classes: Sequence[str], *, lacking: str) -> Problem:
    """Return the problem of a class that is none of those that there may be.

    Args:
        where: it stands.
        name: of the class.
        classes: that there may be.
        lacking: what does not have it, with its verb: "the model does not know".
    """
    near = did_you_mean(name, classes) or what_there_is(name, classes, "There are")
    return Problem(where=where, what=f"a class {name!r} that {lacking}.{near}")


def similar_classes(classes: Sequence[str]) -> list[Problem]:
    """Return the problems of classes that were found in data, and not named by anyone, and may be
    one class that was written in two ways.
    """
    found, lower = [], dict[str, str]()
    for name in classes:
        same = " ".join(unicodedata.normalize("NFC", name).casefold().split())
        other = lower.setdefault(same, name)
        if other != name:
            what = (
                f"differs from the class {other!r} by case, spaces or the way in which its accents "
                "are written alone: give them one name, or name them all in data.classes"
            )
            found.append(Problem(where=f"class {name!r}", what=what))
    return found


def listed(problems: list[Problem], most: int = 20) -> str:
    """Return problems as lines, the first of many."""
    lines = [f"  {problem}" for problem in problems[:most]]
    more = len(problems) - most
    return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])
