"""Write the page: one HTML file, which loads nothing and runs only the scripts in it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib import resources
from typing import Any

from tvc_core import TvcError

from .comparing import Comparison
from .facts import ModelFacts

__all__ = ["Picture", "PageError", "render_page"]


VENDOR = "vendor"
"""Folder of the table library, which `hatch_build.py` gets."""


class PageError(TvcError):
    """A page cannot be written."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture on the page.

    Args:
        title: what it shows.
        address: a data: address.
    """

    title: str
    address: str


def render_page(
    facts: ModelFacts,
    *,
    source: str = "",
    comparison: Comparison | None = None,
    other: ModelFacts | None = None,
    pictures: Sequence[Picture] = (),
    charts: str = "",
    notes: Sequence[str] = (),
) -> str:
    """Return a page on a model as HTML.

    Args:
        facts: of the model.
        source: where it came from, such as a file's name.
        comparison: with another model.
        other: the other model's facts.
        pictures: maps on a photo.
        charts: drawings of a log, as `gate_chart` returns them.
        notes: what the reader is to know.

    Raises:
        PageError: the table library is not there, which is fetched when tvc-inspect is installed.
    """
    library = "\n".join([f"/*\n{_vendor('LICENSE.tabulator')}*/", _vendor("tabulator.min.js")])
    styles = [_vendor("tabulator.min.css"), _asset("page.css")]
    scripts = [library, _asset("page.js")]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {' '.join(map(_hash, styles))}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    body = [
        _head(facts, source, notes),
        _differences(comparison) if comparison else "",
        _patches(facts),
        _photo(pictures),
        f"<section><h2>Gates over training</h2>{charts}</section>" if charts else "",
        _parts(facts),
        _modules(),
        _uncounted(facts),
        f"<section><h2>Recipe</h2><pre tabindex='0'>{escape(facts.recipe)}</pre></section>",
        f"<section><h2>In words</h2><pre tabindex='0'>{escape(facts.explanation)}</pre></section>",
    ]
    rows = _rows(facts, other, comparison)
    return "".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(facts.name)}</title>",
            *(f"<style>{style}</style>" for style in styles),
            "</head><body><main>",
            *body,
            "</main>",
            f'<script type="application/json" id="facts">{_json(rows)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>\n",
        ]
    )


def _vendor(name: str) -> str:
    file = resources.files(__package__) / VENDOR / name
    if not file.is_file():
        raise PageError(
            f"the table library of pages, {name}, is not there: this checkout was installed "
            "without npm. Install npm, then run 'python hatch_build.py' in plugins/tvc-inspect"
        )
    return _script_safe(file.read_text(encoding="utf-8"))


def _asset(name: str) -> str:
    return _script_safe(
        (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")
    )


def _script_safe(text: str) -> str:
    """Return the text of a library without the address of its source map, which a browser would
    ask for.
    """
    lines = [line for line in text.splitlines() if "sourceMappingURL=" not in line]
    return "\n".join(lines) + "\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data: Any) -> str:
    """Return JSON that ends no script: no `<` is in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _rows(
    facts: ModelFacts, other: ModelFacts | None, comparison: Comparison | None
) -> list[dict[str, Any]]:
    """Return the rows of the table, with what differs in the other model."""
    differing: dict[str, list[str]] = {}
    for each in comparison.differences if comparison else ():
        path = each.path.rpartition(".")[0] if each.kind == "tensor" else each.path
        differing.setdefault(path, []).append(f"other {each.kind}")
    theirs = {row.path for row in other.paths} if other else set()
    ours = {row.path for row in facts.paths}
    found = []
    for row in facts.paths:
        said = differing.get(row.path, [])
        if other and row.path not in theirs:
            said = ["not there"]
        found.append(_row(row, ", ".join(dict.fromkeys(said))))
    for row in other.paths if other else ():
        if row.path not in ours:
            found.append({**_row(row, "only there"), "target": False})
    return found


def _row(row: Any, other: str) -> dict[str, Any]:
    shape = None if row.shape is None else " x ".join(map(str, row.shape))
    target = bool(row.path) and not row.path.startswith(("patches.", "tvc_patches."))
    return {**asdict(row), "shape": shape, "other": other, "target": target}


def _head(facts: ModelFacts, source: str, notes: Sequence[str]) -> str:
    total = facts.total
    proof = facts.step0_difference
    pairs = {
        "from": source,
        "backbone": facts.backbone,
        "weights": facts.weights or "none (random)",
        "classes": f"{facts.num_classes:,}",
        "image": " x ".join(map(str, facts.image)),
        "parameters": f"{total.parameters:,}",
        "trainable parameters": f"{total.trainable:,}",
        "FLOPs of a forward pass": f"{total.flops:,}",
        f"bytes kept for backward, {facts.kept_images} image{'s' * (facts.kept_images != 1)}": (
            "no pass in training mode succeeds" if total.kept is None else f"{total.kept:,}"
        ),
        "milliseconds of a forward pass, here": f"{total.milliseconds:.1f}",
        "largest difference of a logit from the unpatched backbone's, at the start": (
            "not finite" if proof is None else f"{proof:g}"
        ),
    }
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in pairs.items()
        if value
    )
    said = "".join(f"<p role='note'>{escape(note)}</p>" for note in notes)
    return f"<h1>{escape(facts.name)}</h1>{said}<dl class='totals'>{items}</dl>"


def _table(headers: Sequence[str], rows: Iterable[Sequence[Any]], label: str) -> str:
    """Return a table; numbers are aligned to the right."""
    head = "".join(f"<th scope='col'>{escape(each)}</th>" for each in headers)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(label)}'>"
        f"<table class='plain'><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, (int, float)):
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
        return f"<td class='number'>{text}</td>"
    return f"<td>{escape('-' if value is None else str(value))}</td>"


def _patches(facts: ModelFacts) -> str:
    if not facts.patches:
        return "<section><h2>Patches</h2><p>none</p></section>"
    headers = (
        "target", "operation", "block", "parameters of it", "start", "at", "position",
        "parameters", "gate now", "starts as identity", "took the place of",
    )  # fmt: skip
    rows = [
        (
            each.target, each.op, each.block,
            ", ".join(f"{name}={value!r}" for name, value in each.params.items()) or None,
            each.init, each.path, each.position, each.parameters, each.gate,
            each.starts_as_identity, each.replaced,
        )
        for each in facts.patches
    ]  # fmt: skip
    return f"<section><h2>Patches</h2>{_table(headers, rows, 'Patches')}</section>"


def _parts(facts: ModelFacts) -> str:
    rows = [(each.name, each.parameters, each.trainable) for each in facts.parts]
    table = _table(("part", "parameters", "trainable"), rows, "Parts")
    return f"<section><h2>Parts</h2>{table}</section>"


def _differences(comparison: Comparison) -> str:
    rows = [
        (each.kind, each.path, each.a or None, each.b or None) for each in comparison.differences
    ]
    headers = ("what", "where", "in this model", f"in {comparison.name}")
    table = _table(headers, rows, "Differences") if rows else "<p>none: the same model</p>"
    costs = [(each.name, each.a, each.b) for each in comparison.costs]
    totals = _table(("total", "of this model", f"of {comparison.name}"), costs, "Totals")
    title = f"Compared with {comparison.name}"
    return f"<section><h2>{escape(title)}</h2>{table}<h3>Totals</h3>{totals}</section>"


def _photo(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    figures = "".join(
        f"<figure><img src='{escape(each.address)}' alt='{escape(each.title)}'>"
        f"<figcaption>{escape(each.title)}</figcaption></figure>"
        for each in pictures
    )
    return f"<section><h2>On a photo</h2>{figures}</section>"


def _modules() -> str:
    return (
        "<section><h2 id='title'>Modules</h2><p>Numbers are those of all that is below a path. A "
        "patch is a row below <code>patches</code>, and not counted at the module that runs it. "
        "The button copies a path for a recipe.</p><div class='tools'>"
        "<label for='search'>Search</label><input id='search' type='search' autocomplete='off'>"
        "<button type='button' id='all' aria-pressed='false'>expand all</button>"
        "<span id='status' role='status'></span></div>"
        "<div id='modules' aria-labelledby='title'></div></section>"
    )


def _uncounted(facts: ModelFacts) -> str:
    rows = [(each.name, each.calls, len(each.where), each.where[0]) for each in facts.uncounted]
    if not rows:
        return ""
    table = _table(("operation", "calls", "modules", "the first"), rows, "Operations")
    return (
        "<section><h2>Not counted</h2><p>torch's FLOP counter knows no FLOPs of these operations, "
        f"so they count as 0.</p>{table}</section>"
    )
