"""Read YAML text into plain data and the place of every value, within limits that are checked
before construction.

PyYAML's safe loader runs no code, but it has no limits: a few hundred bytes of aliases or merge
keys can take seconds or all memory, and of two equal keys the last one silently wins. Here
both are errors.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import yaml

from ..advice import words
from ..errors import RecipeError, describe_error, short_repr
from .place import Mark, Place

__all__ = ["parse_yaml", "read_yaml", "write_yaml"]

MAX_BYTES, MAX_EVENTS, MAX_DEPTH = 1_000_000, 10_000, 50
MAX_ALIASES, MAX_VALUES, MAX_SCALAR = 100, 10_000, 10_000
MAX_INTEGER = 2**63 - 1
_TOO_DEEP = f"nested deeper than the {MAX_DEPTH} levels that a recipe may have"
_SURROGATE = re.compile("[\ud800-\udfff]")
_DECIMAL = {"int": re.compile(r"[-+]?(0|[1-9][0-9_]*)"), "float": re.compile("[^:]*")}
"""How numbers may be written: 010 would be 8, and 1:30 would be 90."""

_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """The safe loader, which also reads 1e-5 and 1.5e3 as numbers, as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: text that looks like such a number gets quotes; nothing is
    written as an alias.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True


# PyYAML follows YAML 1.1, in which 1e-5 without a dot is text: `lr: 1e-5` would be the string
# "1e-5". The same rule is given to the dumper, so that a text which looks like such a number is
# written with quotes and comes back as text.
_FLOAT = ("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"))
_Loader.add_implicit_resolver(*_FLOAT, list("-+0123456789"))
_Dumper.add_implicit_resolver(*_FLOAT, list("-+0123456789"))


def write_yaml(data: Any) -> str:
    """Return plain data as YAML text that `parse_yaml` reads back.

    Raises:
        RecipeError: a value is not plain data.
    """
    try:
        return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, RecursionError) as error:
        problem = f"a value that cannot be written as YAML: {describe_error(error)[:200]}"
        raise RecipeError(f"the recipe has {problem}") from error


def read_yaml(file: str | Path | IO[bytes]) -> tuple[Any, Place]:
    """Return the content of a YAML file and where it stands, with the line of each of its values.

    Args:
        file: its path, or the file itself, open for reading bytes.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or exceeds a limit.
    """
    if not isinstance(file, (str, Path)) and not hasattr(file, "read"):
        raise RecipeError(f"a recipe is read from the path of a YAML file, not {file!r:.60}")
    path = Path(file if isinstance(file, (str, Path)) else str(getattr(file, "name", "<recipe>")))
    try:
        with path.open("rb") if isinstance(file, (str, Path)) else nullcontext(file) as opened:
            content = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        hint = words.on_missing(path, (".yaml", ".yml")) if isinstance(error, OSError) else ""
        message = f"{path}: the recipe cannot be read: {reason}{hint and f'.{hint}'}"
        raise RecipeError(message) from error
    if other := words.on_file(path, content, "recipe"):
        raise RecipeError(f"{path}: not a recipe.{other}")
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than the {MAX_BYTES:,} bytes that a recipe may have")
    try:
        return parse_yaml(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        problem = f"the recipe is not UTF-8 text (byte {error.start})"
        raise _error(_at(str(path), content[: error.start].decode()), problem) from error


def parse_yaml(text: str, name: str) -> tuple[Any, Place]:
    """Return the content of YAML text and where it stands, with the line of each of its values;
    `name` is what errors call it.
    """
    try:
        root = yaml.compose(text, Loader=_Loader) if _check_limits(text, name) else None
        if root is None:
            raise RecipeError(f"{name}: the recipe is empty")
        walk = _Walk(name)
        return walk.value(root, (), 0), Place(name, marks=walk.marks)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = "; ".join(part for part in (error.context, error.problem) if part)
        begin, start = error.context_mark, re.search(r"'([@%`])' that cannot start", problem)
        if "alias" in problem or start:  # such as of a pattern of targets, **.bn3, and of a macro
            problem += f"; text that begins with {start[1] if start else '*'!r} needs quotes"
        elif "'\\t'" in problem:
            problem += "; indent by spaces, not by tabs"
        if begin is not None and mark is not None and begin.line < mark.line:
            problem += f"; what is not ended begins on line {begin.line + 1}"
        raise _error(_mark(name, mark), f"not YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        problem = f"not YAML: the character {error.character:#06x} is not allowed"
        raise _error(_at(name, text[: error.position]), problem) from error
    except RecipeError:
        raise
    except Exception as error:
        # PyYAML lets through what Python's own conversions raise, on a code point too large, say
        raise RecipeError(f"{name}: not YAML: {describe_error(error)}") from error


def _error(mark: Mark, message: str) -> RecipeError:
    return RecipeError(f"{mark}: {message}")


def _mark(name: str, mark: Any) -> Mark:
    """Return a mark of PyYAML's, which counts from 0, as ours."""
    return Mark(name) if mark is None else Mark(name, mark.line + 1, mark.column + 1)


def _at(name: str, before: str) -> Mark:
    """Return the mark after some text."""
    return Mark(name, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _check_limits(text: str, name: str) -> bool:
    """Return whether there is anything in a text, which exceeds no limit."""
    # Events come before anything is built, so a limit is exceeded here before memory is used for
    # it. Aliases need two limits: ten of them can expand to ten to the tenth values ("billion
    # laughs"), which `_Walk` counts as it expands them. Tags are refused here as well, before a
    # constructor could see them.
    depth = aliases = count = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        tag, value = getattr(event, "tag", None), getattr(event, "value", "")
        for exceeded, problem in (
            (count > MAX_EVENTS, f"more than the {MAX_EVENTS:,} entries that a recipe may have"),
            (depth > MAX_DEPTH, _TOO_DEEP),
            (aliases > MAX_ALIASES, f"more than the {MAX_ALIASES} aliases that a recipe may have"),
            (tag is not None, f"tags ({tag!r:.100}) are not allowed in recipes"),
            (len(value) > MAX_SCALAR, f"a value longer than the {MAX_SCALAR:,} characters allowed"),
        ):
            if exceeded:
                raise _error(_mark(name, event.start_mark), problem)
    return count > 1  # than the start and the end of the stream


def _is_small(number: str) -> bool:
    digits = number.replace("_", "")  # of which Python refuses to convert 4,300 and more
    return len(digits) <= 40 and abs(int(digits)) <= MAX_INTEGER


class _Walk:
    """Turn composed nodes into plain data."""

    def __init__(self, name: str) -> None:
        self.name, self.values = name, 0
        self.marks: dict[tuple[Any, ...], tuple[Mark, Mark]] = {}
        self.scalars = yaml.constructor.SafeConstructor()

    def error(self, node: yaml.Node, message: str) -> RecipeError:
        return _error(_mark(self.name, node.start_mark), message)

    def value(self, node: yaml.Node, path: tuple[Any, ...], depth: int) -> Any:
        here = _mark(self.name, node.start_mark)
        self.marks.setdefault(path, (here, here))
        self.values += 1
        if self.values > MAX_VALUES:
            problem = f"its aliases expand to more than the {MAX_VALUES:,} values of a recipe"
            raise self.error(node, problem)
        if depth > MAX_DEPTH:
            raise self.error(node, _TOO_DEEP)
        if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
            return self.mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
            items = enumerate(node.value)
            return [self.value(item, (*path, index), depth + 1) for index, item in items]
        return self.scalar(node)

    def scalar(self, node: yaml.Node) -> Any:
        written, kind = short_repr(node.value), node.tag.rpartition(":")[2]
        if node.tag not in _SCALARS or not isinstance(node, yaml.ScalarNode):
            problem = f"{written} is a {kind} in YAML, which recipes do not have; put it in quotes"
        elif kind in _DECIMAL and not _DECIMAL[kind].fullmatch(node.value):
            problem = f"YAML reads {written} as another number; write it in decimal digits"
        elif kind == "int" and not _is_small(node.value):
            problem = f"the number {written} is too large"
        elif _SURROGATE.search(node.value):
            problem = f"{written} has half of a surrogate pair, which is no character"
        else:
            return self.scalars.construct_object(node)
        raise self.error(node, problem)

    def mapping(self, node: yaml.MappingNode, path: tuple[Any, ...], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                raise self.error(key_node, "merge keys ('<<') are not allowed in recipes")
            key = self.value(key_node, (*path, None), depth + 1)
            if not isinstance(key, str):
                written = short_repr(key_node.value) if key_node.id == "scalar" else "[...]"
                problem = f"reads as {short_repr(key)}, not as text; put it in quotes"
                raise self.error(key_node, f"the key {written} {problem}")
            at = (*path, key)
            if key in found:
                problem = (
                    f"stands here for the second time (first on line {self.marks[at][0].line})"
                )
                raise self.error(key_node, f"the key {short_repr(key)} {problem}")
            key_mark, mark = (_mark(self.name, n.start_mark) for n in (key_node, value_node))
            # what begins on a later line is better found by its key
            self.marks[at] = (key_mark, mark if mark.line == key_mark.line else key_mark)
            found[key] = self.value(value_node, at, depth + 1)
        return found
