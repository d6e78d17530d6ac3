"""Nothing in a file is run: the whole tree is read for what could do it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("tvc_core", "plugins", "examples", "docs")

UNSAFE = {
    "eval", "exec", "__import__", "execfile",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "marshal.loads",
    "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "yaml.unsafe_load",
    "yaml.full_load", "runpy.run_path", "importlib.import_module", "importlib.__import__",
}  # fmt: skip
"""Calls that run what they read, or import what a name says."""

IMPORTS = {
    "tvc_core/__init__.py": "its own part that needs torch, by a constant name",
    "plugins/tvc-dense/tvc_dense/__init__.py": "its own part that needs torch, by a constant name",
    "tvc_core/testing/subjects.py": "what a plugin author asks to be checked",
    "tvc_core/testing/backbone_checks.py": "the modules of a plugin that is checked",
    "tvc_core/testing/conformance.py": "its own parts, by names from a table",
    "plugins/tvc-cli/tvc_cli/checking.py": "the kit, by a constant name",
    "plugins/tvc-cli/tvc_cli/probe.py": "the kit, by a constant name",
}
"""Who imports by a name, and why the name is from no file that tvc opens."""


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            inner = set(file.relative_to(ROOT / folder).parts)
            if not {".venv", "build", "tests"} & inner:
                yield file


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call with the name that it calls, imports under other names resolved."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = dotted(node.func).partition(".")
            yield ".".join(filter(None, (names.get(first, first), rest))), node


def unsafe(source: str) -> list[str]:
    found = []
    for name, call in calls(source):
        if name in ("torch.load", "torch.serialization.load"):
            safe = [k.value for k in call.keywords if k.arg == "weights_only"]
            if not (safe and isinstance(safe[0], ast.Constant) and safe[0].value is True):
                found.append(name)
        elif name in ("numpy.load", "np.load"):
            if any(keyword.arg == "allow_pickle" for keyword in call.keywords):
                found.append(name)
        elif name in UNSAFE and not _is_copy(call):
            found.append(name)
    return found


def _is_copy(call: ast.Call) -> bool:
    """`pickle.loads(pickle.dumps(x))` reads what it has just written."""
    inner = call.args[0] if call.args else None
    return isinstance(inner, ast.Call) and dotted(inner.func) == "pickle.dumps"


def test_the_product_runs_nothing_that_it_reads() -> None:
    wrong = {}
    for file in files(*PRODUCT):
        name = file.relative_to(ROOT).as_posix()
        found = unsafe(file.read_text("utf-8"))
        if name in IMPORTS:
            found = [each for each in found if each != "importlib.import_module"]
        if found:
            wrong[name] = found
    assert wrong == {}


def test_every_exception_is_needed() -> None:
    for name in IMPORTS:
        assert "importlib.import_module" in unsafe((ROOT / name).read_text("utf-8")), name


PICKLED_MODELS = {"tests/core/test_hybrid.py", "tests/interop/test_trainers.py"}
"""Tests of what users and trainers pickle whole, from files that they have written themselves."""


def test_no_other_test_opens_a_file_unsafely() -> None:
    found = {
        f.relative_to(ROOT).as_posix()
        for f in files("tests")
        if "torch.load" in unsafe(f.read_text("utf-8"))
    }
    assert found == PICKLED_MODELS


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import torch as t\nt.load(f, weights_only=flag)",
        "from torch import load\nload(f)",
        "from torch import load as read\nread(f, map_location='cpu')",
        "eval(text)",
        "def f():\n    exec(text)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module\nimport_module(name)",
        "__import__(name)",
        "import pickle\npickle.load(f)",
        "import pickle\npickle.loads(data)",
        "from pickle import loads as read\nread(data)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import yaml\nyaml.unsafe_load(f)",
    ],
)
def test_the_reading_sees_each(source: str) -> None:
    assert unsafe(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f, weights_only=True)",
        "model.eval()",
        "import safetensors.torch\nsafetensors.torch.load(data)",
        "import json\njson.loads(text)",
    ],
)
def test_the_reading_lets_the_safe_ones_pass(source: str) -> None:
    assert unsafe(source) == []
