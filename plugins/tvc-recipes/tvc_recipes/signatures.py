"""What a factory takes, read from its source: nothing is imported, torch least of all."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvc_core import BlockSpec

__all__ = ["MISSING", "Parameter", "block_parameters", "parameters_of"]

MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of a factory.

    Args:
        annotation: its type, as the source has it.
        default: its default value; MISSING where it has none or it is no literal.
        required: it has no default.
    """

    annotation: str = ""
    default: Any = MISSING
    required: bool = False

    @property
    def choices(self) -> list[str]:
        """The texts that it may be, where its type names them all."""
        found = _LITERAL.fullmatch(self.annotation)
        return re.findall(r"'([^']*)'", found[1]) if found else []

    def fits(self, value: Any) -> bool:
        """Tell whether a value of a recipe may be of its type; what its type says nothing of may.
        In a recipe a whole number is a float as well, a list a tuple, and true is no number.
        """
        if value is None and self.default is None:
            return True
        if self.choices and isinstance(value, str):
            return value in self.choices
        return _fits(value, self.annotation) if self.annotation else True


_LITERAL = re.compile(r"(?:\w+\.)?Literal\[([^\[\]]*)\](?: \| None)?")


def _fits(value: Any, annotation: str) -> bool:
    types = re.sub(r"\[.*?\]", "", annotation).split("|")
    kinds = [each.strip().rpartition(".")[2] for each in types]
    if not all(each in _KINDS for each in kinds):
        return True
    return any(
        isinstance(value, _KINDS[each]) and (each == "bool" or not isinstance(value, bool))
        for each in kinds
    )


_KINDS: dict[str, Any] = {
    "int": int, "float": (int, float), "str": str, "bool": bool, "None": type(None),
    "list": list, "tuple": list, "Sequence": list, "Iterable": list, "dict": dict, "Mapping": dict,
    "Literal": str,
}  # fmt: skip


def parameters_of(factory: Any, *, skip: int = 0) -> dict[str, Parameter] | None:
    """Return the parameters of a factory that takes only named ones.

    Args:
        factory: "package.module:name" of a function or class.
        skip: how many of the first ones are the core's.

    Returns:
        None where the source does not say: it is no text, not found, or takes any keyword.
    """
    if not isinstance(factory, str) or ":" not in factory:
        return None
    module, _, name = factory.partition(":")
    tree = _tree(module)
    found = None if tree is None or "." in name else _definition(tree, name)
    if isinstance(found, ast.ClassDef):
        found = next((each for each in found.body if getattr(each, "name", "") == "__init__"), None)
        skip += 1
    if not isinstance(found, ast.FunctionDef) or found.args.kwarg or found.decorator_list:
        return None
    arguments = found.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True)][skip:]
    pairs += [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return {each.arg: _parameter(each, default) for each, default in pairs}


def block_parameters(spec: BlockSpec) -> dict[str, Parameter] | None:
    """Return the parameters of a block; one that takes over weights of what it replaces may take
    others then, and needs none.
    """
    takes = parameters_of(spec.factory, skip=1)
    if takes is None or not spec.in_place_of:
        return takes
    also = parameters_of(spec.in_place_of, skip=2)
    if also is None:
        return None
    return {name: replace(each, required=False) for name, each in {**also, **takes}.items()}


def _parameter(argument: ast.arg, default: ast.expr | None) -> Parameter:
    annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
    if default is None:
        return Parameter(annotation=annotation, required=True)
    try:
        return Parameter(annotation=annotation, default=ast.literal_eval(default))
    except ValueError:
        return Parameter(annotation=annotation)


def _definition(tree: ast.Module, name: str) -> ast.AST | None:
    return next((each for each in tree.body if getattr(each, "name", None) == name), None)


@functools.lru_cache(maxsize=256)
def _tree(module: str) -> ast.Module | None:
    top, *rest = module.split(".")
    try:
        # of a package at the top this imports nothing
        spec = importlib.util.find_spec(top)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        paths = [Path(folder, *rest) for folder in folders]
        if not rest:
            paths = [Path(spec.origin).with_suffix("")] if spec and spec.origin else []
        for path in paths:
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if file.is_file():
                    return ast.parse(file.read_text(encoding="utf-8"))
    except (ImportError, OSError, SyntaxError, ValueError):
        return None
    return None
