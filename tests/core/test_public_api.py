"""What users and plugins may rely on, held by a list: a change of it is a change of public_api.txt,
for everybody to see.

`python tests/core/test_public_api.py` writes the list.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tvc_core
import tvc_core.testing
from tvc_core import hookspecs
from tvc_core.builder import _OnClassToo
from tvc_core.registry.discovery import HOOKS

FILE = Path(__file__).with_name("public_api.txt")


def join_names() -> str:
    """Return one line for every public name, parameter list, field, method and property."""
    lines = [f"plugin API {'.'.join(map(str, tvc_core.API_VERSION))}", ""]
    for module in ("tvc_core", "tvc_core.testing"):
        names = importlib.import_module(module)
        for name in sorted(names.__all__):
            lines += described(f"{module}.{name}", getattr(names, name))
        lines.append("")
    lines += [f"hook {hook}{signature(getattr(hookspecs, hook))}" for hook in HOOKS]
    return "\n".join(lines) + "\n"


def is_class(value: Any) -> bool:
    """Tell a class from an alias such as list[int], which Python 3.10 takes for one."""
    return inspect.isclass(value) and typing.get_origin(value) is None


def described(name: str, value: Any) -> Iterator[str]:
    """Yield the lines of one public thing."""
    if not is_class(value):
        yield (
            f"{name}{signature(value)}"
            if inspect.isroutine(value)
            else f"{name}: {type(value).__name__}"
        )
        return
    bases = [
        base.__name__
        for base in value.__bases__
        if base is not object and not base.__name__.startswith("_")
    ]
    yield f"class {name}({', '.join(bases)})"
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    yield from (
        f"    {field.name}: {field.type}{default(field)}"
        for field in fields
        if not field.name.startswith("_")
    )
    if not fields and any(
        "__init__" in vars(base) for base in value.__mro__ if base.__module__.startswith("tvc_core")
    ):
        yield f"    __init__{signature(value.__init__)}"
    for member in sorted(members(value)):
        found = inspect.getattr_static(value, member)
        if isinstance(found, property):
            assert found.fget
            yield f"    {member}: {text_of(found.fget.__annotations__.get('return'))}  (property)"
        elif isinstance(found, (staticmethod, classmethod)):
            yield f"    {member}{signature(found.__func__)}  ({type(found).__name__})"
        elif callable(getattr(value, member)) and member not in {field.name for field in fields}:
            on_class = isinstance(found, _OnClassToo)
            yield (
                f"    {member}{signature(found.method, skip=1) if on_class else signature(found)}"
            )


def members(value: type) -> set[str]:
    """Return the public names that a class and its bases in tvc define."""
    return {
        member
        for base in value.__mro__
        if base.__module__.startswith("tvc_core")
        for member in vars(base)
        if member[0] != "_"
    }


def signature(value: Any, skip: int = 0) -> str:
    """Return parameters, without the first `skip`, and result, annotations as they are written."""
    found = inspect.signature(value)
    parameters = [
        p if p.annotation is p.empty else p.replace(annotation=_Text(p.annotation))
        for p in [*found.parameters.values()][skip:]
    ]
    result = found.return_annotation
    plain = found.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return f"{plain}" + (f" -> {text_of(result)}" if result is not inspect.Signature.empty else "")


def default(field: dataclasses.Field[Any]) -> str:
    """Return " = value" for a field that need not be given."""
    if field.default_factory is not dataclasses.MISSING:
        return f" = {field.default_factory()!r}"
    return f" = {field.default!r}" if field.default is not dataclasses.MISSING else ""


def text_of(annotation: Any) -> str:
    """Return an annotation as it is written in the code."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


class _Text:
    """Prints an annotation without the quotes that signatures put around strings."""

    def __init__(self, annotation: Any) -> None:
        self.text = text_of(annotation)

    def __repr__(self) -> str:
        return self.text


def unannotated(name: str, value: Any) -> list[str]:
    """Return the public functions and methods that lack an annotation."""
    functions = {name: value} if inspect.isroutine(value) else {}
    if is_class(value):
        for member in {"__init__", *members(value)} & set(dir(value)):
            found = inspect.getattr_static(value, member)
            functions[f"{name}.{member}"] = getattr(
                found, "__func__", getattr(found, "fget", found)
            )
    lacking = []
    for where, function in functions.items():
        if inspect.isfunction(function) and function.__module__.startswith("tvc_core"):
            parameters = [
                p for p in inspect.signature(function).parameters if p not in ("self", "cls")
            ]
            hints: Mapping[str, Any] = function.__annotations__
            lacking += [f"{where}: {p}" for p in [*parameters, "return"] if p not in hints]
    return lacking


def test_the_public_api_is_the_listed_one() -> None:
    there, listed = join_names(), FILE.read_text(encoding="utf-8")
    diff = "\n".join(
        difflib.unified_diff(
            listed.splitlines(), there.splitlines(), "listed", "in the code", lineterm="", n=1
        )
    )
    assert there == listed, (
        f"The public API changed. Where that is wanted, say it in tvc_core/CHANGELOG.md and run "
        f"`python tests/core/test_public_api.py`:\n{diff}"
    )


def test_everything_public_is_annotated() -> None:
    lacking = []
    for module in (tvc_core, tvc_core.testing):
        for name in module.__all__:
            lacking += unannotated(name, getattr(module, name))
    assert lacking == []


def test_a_change_would_be_seen() -> None:
    class Before:
        def method(self, a: int, *, b: str = "x") -> None: ...

    class After:
        def method(self, a: int, *, c: str = "x") -> None: ...

    Before.__module__ = After.__module__ = "tvc_core"
    assert list(described("tvc_core.Before", Before)) == [
        "class tvc_core.Before()",
        "    method(self, a: int, *, b: str = 'x') -> None",
    ]
    assert list(described("tvc_core.Before", After)) != list(described("tvc_core.Before", Before))
    assert re.search(r"^hook tvc_blocks\(\) -> list\[BlockSpec\]$", join_names(), re.MULTILINE)


if __name__ == "__main__":
    FILE.write_text(join_names(), encoding="utf-8")
    print(f"wrote {FILE}")
