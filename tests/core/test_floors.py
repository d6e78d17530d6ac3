"""The house stands on floors: every import of the core looks down, those in functions and under
TYPE_CHECKING included, and in no distribution is there a circle.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import io
import tokenize
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "tvc_core"
PACKAGES = [
    CORE,
    *sorted(
        file.parent
        for file in ROOT.glob("plugins/*/*/__init__.py")
        if file.parent.name != "tests"
    ),
]  # fmt: skip

FLOORS = (
    "version", "errors", "specs", "advice", "written", "hookspecs", "builtin", "local",
    "quarantine", "remembered", "registry", "recipe", "surgery", "from_module", "weights", "model",
    "training", "own_weights", "backbone", "inspecting", "assemble", "opening", "heavy", "builder",
    "tvc_core",
)  # fmt: skip
"""From the ground up: a file or folder imports from those before it. The last is the face."""

MODEL = (
    "pyramid", "strides", "features", "bridge", "state", "measuring", "checkpointing",
    "fingerprint", "survey", "freezing", "freeze_report", "fused", "settling", "heads",
    "remeasuring", "explain", "current", "content", "writing", "saving", "plain", "unpatching",
    "folding", "gate_statistics", "patch_report", "reading", "running", "hybrid", "classes",
    "describing",
)  # fmt: skip
"""The same inside `model`: what a hybrid knows, the verbs, the class that names them."""


def files() -> list[Path]:
    found = [file for file in sorted(CORE.rglob("*.py")) if "testing" not in file.parts]
    assert len(found) > 50
    return found


def dotted(file: Path, package: Path = CORE) -> str:
    parts = [package.name, *file.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(file) for file in files()}


def imported(
    tree: ast.AST, name: str, is_package: bool, names: Collection[str] = NAMES
) -> Iterator[str]:
    """Yield the modules, of those with `names`, that a module imports, wherever it does."""
    package = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                if inner in names:
                    yield inner
                elif module in names:
                    yield module


def graph_of(package: Path, files: Collection[Path]) -> dict[str, set[str]]:
    """Return what each file of a package imports of the others."""
    names = {file: dotted(file, package) for file in files}
    return {
        name: set(
            imported(
                ast.parse(file.read_text("utf-8")),
                name,
                file.stem == "__init__",
                set(names.values()),
            )
        )
        for file, name in names.items()
    }


@functools.cache
def graph() -> dict[str, set[str]]:
    return graph_of(CORE, files())


def circle(found: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(found).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def floor_of(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def upward(found: dict[str, set[str]]) -> list[str]:
    """Return the imports that look up, between the floors and inside `model`."""
    wrong = []
    for name, others in found.items():
        for other in others:
            here, there = FLOORS.index(floor_of(name)), FLOORS.index(floor_of(other))
            if there > here:
                wrong.append(f"{name} -> {other}")
            elif floor_of(name) == floor_of(other) == "model" and name.count(".") > 1:
                below, above = (MODEL.index(each.split(".")[2]) for each in (other, name))
                if below > above:
                    wrong.append(f"{name} -> {other}")
    return wrong


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_import_closes_a_circle(package: Path) -> None:
    assert circle(graph_of(package, sorted(package.rglob("*.py")))) == []


def test_every_distribution_is_looked_at_for_circles() -> None:
    assert len(PACKAGES) == 1 + len(list(ROOT.glob("plugins/*/pyproject.toml"))) > 10
    plugin = ROOT / "plugins" / "tvc-train" / "tvc_train"
    found = graph_of(plugin, sorted(plugin.rglob("*.py")))
    assert {"tvc_train.state", "tvc_train.holding"} <= found["tvc_train.loop"]
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .loop import Loop"
    above = set(imported(ast.parse(code), "tvc_train.state", False, found.keys()))
    found["tvc_train.state"] = found["tvc_train.state"] | above
    assert {"tvc_train.state", "tvc_train.loop"} <= set(circle(found))


def test_every_import_looks_down() -> None:
    assert upward(graph()) == []


def test_nobody_inside_imports_the_face() -> None:
    assert [name for name, others in graph().items() if "tvc_core" in others] == []


def test_every_file_stands_on_a_floor() -> None:
    assert {floor_of(name) for name in NAMES} == set(FLOORS)
    assert {name.split(".")[2] for name in NAMES if name.startswith("tvc_core.model.")} == set(
        MODEL
    )


@pytest.mark.parametrize(
    "code",
    [
        "from ..builder import HybridBuilder",
        "def f():\n    from ..builder import HybridBuilder",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .. import builder",
        "import tvc_core.builder",
    ],
)
def test_the_rule_sees_an_import_wherever_it_stands(code: str) -> None:
    found = {
        **graph(),
        "tvc_core.surgery.head": set(imported(ast.parse(code), "tvc_core.surgery.head", False)),
    }
    assert upward(found) == ["tvc_core.surgery.head -> tvc_core.builder"]


def test_the_rule_sees_a_circle_in_one_room() -> None:
    found = dict(graph())
    found["tvc_core.errors"] = {"tvc_core.builder"}
    assert "tvc_core.errors" in circle(found)
    found = dict(graph())
    found["tvc_core.model.state"] = found["tvc_core.model.state"] | {"tvc_core.model.hybrid"}
    assert upward(found) == ["tvc_core.model.state -> tvc_core.model.hybrid"]


# -- how large it is -------------------------------------------------------------------------------

TOP = {
    "LICENSE", "Makefile", "README.md", "docs", "examples", "plugins", "pyproject.toml", "tests",
    "tvc_core",
}  # fmt: skip


def test_the_top_level_holds_nothing_else() -> None:
    made = {"build", "dist", "runs"}
    assert {each.name for each in ROOT.iterdir() if not each.name.startswith(".")} - made == TOP


LIGHT = ("errors", "specs", "hookspecs", "builtin", "local", "registry", "recipe", "builder")


def lines_of_code(file: Path) -> int:
    """Count the lines of a file without docstrings, comments and blank lines."""
    text = file.read_text(encoding="utf-8")
    layout = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {
        line
        for token in tokens
        if token.type not in (tokenize.COMMENT, *layout)
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_a_file_and_the_half_without_torch_stay_small() -> None:
    counts = {dotted(file): lines_of_code(file) for file in files()}
    assert {name: count for name, count in counts.items() if count > 300} == {}
    light = {name: n for name, n in counts.items() if floor_of(name) in (*LIGHT, "tvc_core")}
    assert 1_500 < sum(light.values()) < 1_900, light


def test_lines_of_code_are_told_from_the_others(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('"""One.\n\nTwo.\n"""\n\n# why\nx = (\n    1,  # one\n)\ny = """a\nb"""\n')
    assert lines_of_code(file) == 5
