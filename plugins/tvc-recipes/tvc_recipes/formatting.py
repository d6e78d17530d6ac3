"""Write a recipe in its canonical form: keys in the order of the reference, two spaces of
indentation, comments where they were.

The order is made on the text: a key moves with all its lines and with the comment lines directly
above it. ruamel.yaml then lays the text out again. It reads YAML 1.2, and the core YAML 1.1, so it
is shown every plain scalar as text and never converts one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.scalarstring import PlainScalarString

from tvc_core import RecipeDocument, RecipeError

from .keys import recipe_keys

__all__ = ["format_recipe"]

_WIDTH = 100_000
"""Longer than any line of a recipe: lines are broken where their author did."""


def format_recipe(text: str, name: str = "recipe") -> str:
    """Return the text of a recipe in its canonical form, which reads as the same recipe.

    Args:
        text: of a YAML file.
        name: what errors call it.

    Raises:
        RecipeError: it is no YAML that recipes may have, is no mapping, or cannot be laid out
            without changing what it says.
    """
    wanted = RecipeDocument.parse(text, name).data
    if not isinstance(wanted, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of keys to values, not {wanted!r:.60}")
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    # an alias may not come before its anchor, so that a text with them may have to keep its order
    for candidate in (_ordered(lines, name), lines):
        if (laid_out := _laid_out(candidate)) is not None and _reads(laid_out, name) == wanted:
            return laid_out
    raise RecipeError(
        f"{name}: cannot be formatted without changing what it says; it stays as it is"
    )


def _reads(text: str, name: str) -> Any:
    try:
        return RecipeDocument.parse(text, name).data
    except RecipeError:
        return None


# -- order -----------------------------------------------------------------------------------------


def _ordered(text: str, name: str) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return text
    lines = text.splitlines()
    for key, value in reversed(root.value):  # from the end, so that the lines before stay in place
        order = recipe_keys().get(key.value)
        if order and isinstance(value, yaml.MappingNode) and not value.flow_style:
            lines = _sorted(lines, value, order)
    return "\n".join(_sorted(lines, root, recipe_keys()[""])) + "\n"


def _sorted(lines: Sequence[str], mapping: yaml.MappingNode, order: Sequence[str]) -> list[str]:
    """Return the lines of a text with the entries of one block mapping in another order."""
    starts = [_first_line(lines, key.start_mark) for key, _ in mapping.value]
    # the comment that opens a file is about all of it
    starts[0] = mapping.value[0][0].start_mark.line if starts[0] == 0 else starts[0]
    end = _end(lines, mapping)
    entries = [
        (order.index(key.value) if key.value in order else len(order), [*lines[start:stop]])
        for (key, _), start, stop in zip(mapping.value, starts, [*starts[1:], end], strict=True)
    ]
    entries.sort(key=lambda entry: entry[0])  # stable: unknown keys stay in their order
    return [*lines[: starts[0]], *(line for _, each in entries for line in each), *lines[end:]]


def _first_line(lines: Sequence[str], key: yaml.Mark) -> int:
    """Return the first line of an entry: its key's, or that of the comment above it."""
    first = line = key.line
    while line > 0 and _is_comment(lines[line - 1], key.column):
        line -= 1
        first = line
    return first


def _is_comment(line: str, column: int) -> bool:
    """Tell whether a line is a comment at the indentation of a key, or further out."""
    stripped = line.lstrip()
    return stripped.startswith("#") and len(line) - len(stripped) <= column


def _end(lines: Sequence[str], mapping: yaml.MappingNode) -> int:
    """Return the line after the last one of a block mapping."""
    last, column = mapping.value[-1], mapping.value[-1][0].start_mark.column
    mark = last[1].end_mark  # of a block it is where the next one begins, else on its last line
    end = max(mark.line + (mark.column > 0), last[0].start_mark.line + 1)
    end = min(end, len(lines))
    while end > last[0].start_mark.line + 1 and not _belongs(lines[end - 1], column):
        end -= 1
    return end


def _belongs(line: str, column: int) -> bool:
    stripped = line.lstrip()
    return bool(stripped) and len(line) - len(stripped) >= column


# -- layout ----------------------------------------------------------------------------------------


class _AllText(VersionedResolver):
    """Takes every plain scalar for text, so that none is converted and none needs quotes."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Return the tag of a node without one."""
        return (
            self.DEFAULT_SCALAR_TAG
            if kind is ScalarNode
            else super().resolve(kind, value, implicit)
        )


class _AsWritten(RoundTripConstructor):
    """Keeps plain scalars apart from quoted ones; an empty one is null, and written so."""

    def construct_scalar(self, node: Any) -> Any:
        """Return what stands there."""
        if isinstance(node, ScalarNode) and not node.style:
            return PlainScalarString(node.value or "null", anchor=node.anchor)
        return super().construct_scalar(node)


def _laid_out(text: str) -> str | None:
    """Return a text laid out by ruamel.yaml; None where it cannot be."""
    layout = YAML()
    layout.Resolver, layout.Constructor = _AllText, _AsWritten
    layout.preserve_quotes, layout.width = True, _WIDTH
    layout.indent(mapping=2, sequence=4, offset=2)
    written = io.StringIO()
    try:
        layout.dump(layout.load(text), written)
    except (YAMLError, ValueError, AttributeError, TypeError):
        return None
    return _comments_aligned(written.getvalue().strip("\n") + "\n", text)


def _comments_aligned(text: str, before: str) -> str:
    """Return a text with each comment at the indentation of what follows it; one that was further
    in than that, as at the end of a block, at the indentation of the key or item that it was below.

    Args:
        text: with the comments where they were before.
        before: the text that was laid out.
    """
    inside = _inside(text)
    lines = [
        line if number in inside else line.rstrip() for number, line in enumerate(text.split("\n"))
    ]
    comments, were = [*_comments(text)], [*_comments(before)]
    entries, entries_were = _entries(text), _entries(before)
    # where the two cannot be told to be the same, what follows decides
    same = len(comments) == len(were) and len(entries) == len(entries_were)
    for (line, _, following), was in zip(comments, were if same else comments, strict=True):
        if same and was[1] > was[2]:
            above = [i for i, (at, c) in enumerate(entries_were) if at < was[0] and c <= was[1]]
            column = entries[above[-1]][1] if above else following
        else:
            column = following
        lines[line] = " " * column + lines[line].lstrip()
    return "\n".join(lines)


def _comments(text: str) -> Iterator[tuple[int, int, int]]:
    """Yield, the last one first, the line and the column of each comment that has a line of its
    own, and the column of what follows it.
    """
    lines, inside, following = text.split("\n"), _inside(text), 0
    for number in reversed(range(len(lines))):
        stripped = lines[number].lstrip()
        column = len(lines[number]) - len(stripped)
        if number in inside or not stripped:
            continue
        if stripped.startswith("#"):
            yield number, column, following
        else:
            following = column


def _inside(text: str) -> set[int]:
    """Return the lines of text over several lines, in which # begins no comment."""
    inside: set[int] = set()
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and event.start_mark and event.end_mark:
            start, end = event.start_mark, event.end_mark
            inside.update(range(start.line + 1, end.line + (event.style not in ("|", ">"))))
    return inside


def _entries(text: str) -> list[tuple[int, int]]:
    """Return the line and the column of each key, and of the dash of each item."""
    tokens = yaml.scan(text, Loader=yaml.SafeLoader)
    kinds = (yaml.KeyToken, yaml.BlockEntryToken)
    return [(t.start_mark.line, t.start_mark.column) for t in tokens if isinstance(t, kinds)]
