"""Print results: tables for people, plain columns for pipes, JSON for programs. rich is imported
for terminals only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from .streams import results

__all__ = ["as_text", "print_json", "print_pairs", "print_table", "say"]


def say(text: str = "") -> None:
    """Print a line of a result."""
    click.echo(text, file=results())


def print_json(data: Any) -> None:
    """Print data as JSON; what JSON has no form for is printed as Python writes it."""
    encoding = (getattr(results(), "encoding", None) or "utf-8").lower()
    ascii_only = not encoding.startswith(("utf-8", "utf8"))
    say(json.dumps(data, indent=2, ensure_ascii=ascii_only, default=_plain))


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """Print names and values, one pair a line; empty values are left out."""
    shown = {name: as_text(value) for name, value in pairs.items()}
    width = max((len(name) for name, text in shown.items() if text), default=0)
    for name, text in shown.items():
        if text:
            say(f"{name:<{width}}  {text}")


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()
) -> None:
    """Print rows below their headers.

    Args:
        headers: one for each column.
        rows: values; None is printed as "-".
        right: headers of the columns that are aligned to the right.
    """
    texts = [["-" if value is None else as_text(value) for value in row] for row in rows]
    if results().isatty():
        _print_rich(headers, texts, right)
    else:
        # a table for a terminal would be cut to 80 columns here, and importing rich takes longer
        # than the listing
        _print_plain(headers, texts, right)


def as_text(value: Any) -> str:
    """Return a value for people: lists as "a, b", mappings as "a=1, b=2", None as the empty
    string.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item!r}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(as_text(item) for item in value)
    return str(value)


def _print_plain(headers: Sequence[str], texts: list[list[str]], right: Sequence[str]) -> None:
    widths = [
        max(len(row[column]) for row in [list(headers), *texts]) for column in range(len(headers))
    ]
    for row in [list(headers), *texts]:
        cells = [
            text.rjust(width) if header in right else text.ljust(width)
            for header, text, width in zip(headers, row, widths, strict=True)
        ]
        say("  ".join(cells).rstrip())


def _print_rich(headers: Sequence[str], texts: list[list[str]], right: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    for row in texts:
        # as Text, since rich reads a plain "[N, C]" as markup
        table.add_row(*(Text(text) for text in row))
    Console(file=results()).print(table)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return repr(value)
