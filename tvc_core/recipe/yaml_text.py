"""Read YAML text into plain data and the line of every value, within limits that are checked before construction.

PyYAML's safe loader runs no code, but it has no limits: a few hundred bytes of aliases or merge keys can take seconds
or all memory, and of two equal keys the last one wins without a word. Here both are errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import RecipeError

__all__ = ["Lines", "read_yaml"]

Lines = dict[tuple[Any, ...], int]
"""The line [1-based] of each value, by its path from the root; a mapping's key has the path of its value."""

MAX_BYTES, MAX_EVENTS, MAX_DEPTH, MAX_ALIASES, MAX_VALUES, MAX_SCALAR = 1_000_000, 10_000, 50, 100, 10_000, 10_000
_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}
_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """Return the content of a YAML file and the line of each of its values.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or exceeds a limit.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: larger than the {MAX_BYTES:,} bytes that a recipe may have")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: the recipe is not UTF-8 text (byte {error.start})") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> tuple[Any, Lines]:
    """Return the content of YAML text and the line of each of its values; `name` is what errors call it."""
    try:
        _check_limits(text, name)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise RecipeError(f"{name}: the recipe is empty")
        lines: Lines = {}
        return _Walk(name, lines).value(root, (), 0), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(f"{name}{f', line {mark.line + 1}' if mark else ''}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not YAML: {' '.join(str(error).split())}") from error


def _check_limits(text: str, name: str) -> None:
    depth = aliases = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        where = f"{name}, line {event.start_mark.line + 1}" if event.start_mark else name
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if count > MAX_EVENTS:
            raise RecipeError(f"{where}: more than the {MAX_EVENTS:,} entries that a recipe may have")
        if depth > MAX_DEPTH:
            raise RecipeError(f"{where}: nested deeper than the {MAX_DEPTH} levels that a recipe may have")
        if aliases > MAX_ALIASES:
            raise RecipeError(f"{where}: more than the {MAX_ALIASES} aliases that a recipe may have")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR:
            raise RecipeError(f"{where}: a value longer than the {MAX_SCALAR:,} characters that it may have")


class _Walk:
    """Turn composed nodes into plain data."""

    def __init__(self, name: str, lines: Lines) -> None:
        self.name, self.lines, self.values = name, lines, 0
        self.scalars = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node, path: tuple[Any, ...], depth: int) -> Any:
        line = node.start_mark.line + 1
        where = f"{self.name}, line {line}"
        self.lines.setdefault(path, line)
        self.values += 1
        if self.values > MAX_VALUES:
            raise RecipeError(f"{where}: its aliases expand to more than the {MAX_VALUES:,} values that a recipe may have")
        if depth > MAX_DEPTH:
            raise RecipeError(f"{where}: nested deeper than the {MAX_DEPTH} levels that a recipe may have")
        if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
            return [self.value(child, (*path, index), depth + 1) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
            return self.mapping(node, path, depth)
        if node.tag not in _SCALARS or not isinstance(node, yaml.ScalarNode):
            raise RecipeError(f"{where}: {node.tag.rpartition(':')[2]!r} values are not allowed in recipes")
        try:
            return self.scalars.construct_object(node)
        except (ValueError, ArithmeticError) as error:
            raise RecipeError(f"{where}: {node.value!r} is not a number: {error}") from error

    def mapping(self, node: yaml.MappingNode, path: tuple[Any, ...], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = f"{self.name}, line {key_node.start_mark.line + 1}"
            if key_node.tag == _MERGE:
                raise RecipeError(f"{where}: merge keys ('<<') are not allowed in recipes")
            key = self.value(key_node, (*path, None), depth + 1)
            if not isinstance(key, str):
                raise RecipeError(f"{where}: the key {key_node.value!r} reads as {key!r}, not as text; put it in quotes")
            if key in found:
                first = self.lines[(*path, key)]
                raise RecipeError(f"{where}: the key {key!r} stands here for the second time (first on line {first})")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, (*path, key), depth + 1)
        return found
