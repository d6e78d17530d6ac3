"""Write docs/reference/sweep.md from what pytest reported: `python tests/sweep_page.py FILE.xml
...`.

A test of the sweeps hands over its row by `record_property`, and `pytest --junit-xml=FILE.xml`
keeps it. A sweep in several pieces has several files. A table is written when all its rows are
there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "sweep.md"

CHECKS = {
    "logits": "the hybrid's logits equal those of torchvision's network with the same made-up "
    "official file, bit for bit",
    "keys": "every key of torchvision's is there with the same tensor; what is new lives under "
    "`patches.`",
    "head": "`num_classes=7`: all tensors but the last layer's as in the file, logits [N, 7], a "
    "training step moves the head",
    "stages": "every parameter and buffer belongs to one part; thawing one more stage makes more "
    "trainable",
    "features": "at three sizes, one of them not square (where only one is accepted: at that): "
    "each stage's map equals what "
    "torchvision's network computes there, and its channels and stride are those of `stage_info`",
    "se": "a block at every stage: it runs, the start is exact, opening its gate changes the "
    "logits, and so do its parameters",
    "eca": "the same",
    "cbam_block": "the same",
    "compile": '`torch.compile(fullgraph=True, backend="eager")` with open gates: same logits. The '
    "graph is captured whole; "
    "what another backend makes of it is not compared here",
    "export": "`torch.export` with a dynamic batch axis: same logits at another batch size",
    "pickle": "a pickled and a deep copy have the same tensors, logits, records, frozen parts and "
    "modes in training",
    "freeze": "all frozen but head and patches: two steps of SGD with momentum and weight decay "
    "move the gates, nothing frozen",
}
"""Columns of the first table and what each says."""

REASONS = {
    "never called": r"it is never called in a forward pass",
    "no single tensor": r"not a single tensor",
    "calls of different widths": r"times with different (input|output) shapes \[",
    "no map": r"has the shape \[|and se takes NCHW|are no grid",
    "breaks what follows": r"the network fails with the patches",
}
"""Why a path is refused, and how the error says it."""

_SECTIONS = ("classifiers", "paths")


def main(reports: list[str]) -> int:
    """Write each table whose rows are all in these reports; return 1 where there is none."""
    written = []
    for section, rows in rows_of(reports).items():
        orders = {tuple(row["all"]) for row in rows.values()}
        if len(orders) != 1 or set(rows) != set(order := orders.pop()):
            print(f"{section}: not written, since the reports do not have all rows of one table")
            continue
        table = _classifiers if section == "classifiers" else _paths
        _put(section, table([rows[name] for name in order]))
        written.append(section)
        print(f"{section}: {len(rows)} rows")
    return 0 if written else 1


def rows_of(reports: Iterable[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the rows among the tests' properties, by table and name; of a later report where two
    have one.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {section: {} for section in _SECTIONS}
    for report in reports:
        for each in ElementTree.parse(report).iter("property"):
            section, _, name = each.get("name", "").partition(":")
            if section in found and name:
                found[section][name] = json.loads(each.get("value", ""))
    return found


def as_row(section: str, name: str, names: Iterable[str], **cells: Any) -> tuple[str, str]:
    """Return (key, value) for `record_property`: one row of a table that needs a row for each of
    `names`.
    """
    import torch
    import torchvision

    versions = (
        f"torch {_release(torch.__version__)}, torchvision {_release(torchvision.__version__)}"
    )
    return f"{section}:{name}", json.dumps(
        {"name": name, "all": list(names), "versions": versions, **cells}
    )


def _release(version: str) -> str:
    return version.partition("+")[0]


def _put(section: str, lines: list[str]) -> None:
    """Put a section into the page, whose other sections stay."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    parts = {
        name: found[1] if (found := _between(name).search(text)) else "\n" for name in _SECTIONS
    }
    parts[section] = "\n" + "\n".join(lines) + "\n"
    made = [
        "<!-- Written by `make sweep` from what the tests saw; no row is there that did not run. "
        "-->",
        "# Sweep",
        "",
        "What `make sweep` saw, which `make test-all` also runs: every classifier of torchvision "
        "with made-up official files,",
        "and squeeze-excite at every module path of backbones of every family.",
        "",
    ]
    for name in _SECTIONS:
        made += [f"<!-- {name} -->{parts[name]}<!-- end of {name} -->", ""]
    PAGE.write_text("\n".join(made).rstrip() + "\n", encoding="utf-8")


def _between(section: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- {section} -->(.*?)<!-- end of {section} -->", re.DOTALL)


def _classifiers(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Every classifier",
        "",
        f"{len(rows)} networks, {_versions(rows)}. The column `patches` counts the blocks of the "
        "patched hybrid:",
        "`se`, `eca` and `cbam_block` at each stage.",
        "",
    ]
    lines += [f"- {check}: {what}" for check, what in CHECKS.items()]
    head = ("backbone", "image", "patches", *CHECKS)
    lines += [
        "",
        *_table(
            head,
            (
                (f"`{row['name']}`", row["image"], str(row["patches"]), *row["cells"])
                for row in rows
            ),
        ),
    ]
    if failed := [f"- `{row['name']}`, {text}" for row in rows for text in row["failures"]]:
        lines += ["", "Failed:", "", *failed]
    return lines


def _paths(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Every path",
        "",
        f"`se` at every module path of {len(rows)} backbones, {_versions(rows)}, each in a build "
        "of its own: it works (exact",
        "start; with an open gate the logits of squeeze-excite written out by hand, at another "
        "batch size and, where the",
        "backbone takes one, another image size; a forward and a backward pass in training), or "
        "the build refuses and names",
        "path and reason. The column `shared` counts the paths that work and run several times in "
        "one forward pass.",
        "",
    ]
    head = ("backbone", "image", "paths", "work", "shared", *REASONS, "wrong")
    counts = (
        (
            f"`{row['name']}`",
            row["image"],
            *(str(row[key]) for key in ("paths", "worked", "shared")),
            *(str(row["refused"].get(reason, 0)) for reason in REASONS),
            str(len(row["wrong"])),
        )
        for row in rows
    )
    lines += _table(head, counts)
    if notes := [f"- `{row['name']}`: {row['note']}" for row in rows if row.get("note")]:
        lines += ["", *notes]
    if wrong := [f"- `{row['name']}`, {text}" for row in rows for text in row["wrong"]]:
        lines += ["", "Wrong:", "", *wrong]
    return lines


def _versions(rows: list[dict[str, Any]]) -> str:
    return "; ".join(sorted({row["versions"] for row in rows}))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
