"""Read docstrings with sections such as `Args:`: what their authors say of each parameter."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

__all__ = ["described_parameters", "items_of", "sections_of"]

SECTIONS = ("Args", "Returns", "Yields", "Raises", "Source", "Example")


def described_parameters(factory: Callable[..., Any]) -> dict[str, str]:
    """Return what the `Args:` of a class or function say of each parameter, by name.

    Args:
        factory: the docstring of a class goes before that of its `__init__`.
    """
    while isinstance(factory, functools.partial):
        factory = factory.func
    docs = [factory.__doc__]
    if inspect.isclass(factory):
        docs.insert(0, factory.__init__.__doc__)
    found: dict[str, str] = {}
    for doc in docs:
        for title, lines in sections_of(doc):
            for names, text in items_of(lines) if title == "Args" else ():
                # some write the type between: "width (int, optional): of the inner layer."
                plain = re.sub(r"\(.*\)", "", names)
                found |= {name.strip().lstrip("*"): text for name in plain.split(",")}
    return found


def sections_of(doc: str | None) -> list[tuple[str, list[str]]]:
    """Return a docstring's sections in order as (title, lines); the text before the first has an
    empty title.
    """
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in inspect.cleandoc(doc or "").splitlines():
        found = re.fullmatch(rf"({'|'.join(SECTIONS)}):(.*)", line)
        if found:
            sections.append((found[1], [found[2].strip()] if found[2].strip() else []))
        else:
            sections[-1][1].append(line)
    return sections


def items_of(lines: list[str]) -> list[tuple[str, str]]:
    """Return the entries of a section such as Args as (names, text)."""
    items: list[tuple[str, str]] = []
    for line in inspect.cleandoc("\n".join(["", *lines])).splitlines():
        if line and not line.startswith(" ") and ":" in line:
            names, _, text = line.partition(":")
            items.append((names.strip(), text.strip()))
        elif line.strip() and items:
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}".strip())
    return items
