"""Nothing in a file is run: the whole tree is read for what could do it, pages included."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tvc_core", "plugins", "examples", "docs", "tests", ".github")

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
    "plugins/tvc-recipes/tvc_recipes/__init__.py": "its own parts, by names from a table",
    "plugins/tvc-train/tvc_train/__init__.py": "its own parts, by names from a table",
    "plugins/tvc-train/tvc_train/data/__init__.py": "its own parts, by names from a table",
    "plugins/tvc-inspect/tvc_inspect/__init__.py": "its own parts, by names from a table",
    "plugins/tvc-export/tvc_export/__init__.py": "its own parts, by names from a table",
    "plugins/tvc-hub/tvc_hub/__init__.py": "its own parts, by names from a table",
    "tvc_core/testing/subjects.py": "what a plugin author asks to be checked",
    "tvc_core/testing/backbone_checks.py": "the modules of a plugin that is checked",
    "tvc_core/testing/conformance.py": "its own parts, by names from a table",
    "plugins/tvc-cli/tvc_cli/checking.py": "the kit, by a constant name",
    "plugins/tvc-cli/tvc_cli/probe.py": "the kit, by a constant name",
}
"""Who imports by a name, and why the name is from no file that tvc opens."""


TESTS = {
    "examples/plugins/acme-cifar/tests/test_digits.py": "a script of the project's",
    "plugins/tvc-attention/tests/test_references.py": "blocks of the project's, with one fault",
    "tests/cases/test_messages.py": "what an error advises to write, which is its own text",
    "tests/core/test_conformance_plugins.py": "modules of the kit's own tests",
    "tests/core/test_hybrid.py": "a model that it has pickled itself, as users do",
    "tests/core/test_loading.py": "lines of its own that do harm, to see them undone",
    "tests/docs/test_author_docs.py": "a signature of its own",
    "tests/docs/test_docs.py": "the code of the project's own pages",
    "tests/guide/test_examples.py": "scripts of the project's",
    "tests/guide/test_guide.py": "the code of the guide",
    "tests/guide/test_plugin_readmes.py": "the code of the project's own pages",
    "tests/interop/test_trainers.py": "a checkpoint that a trainer has pickled for it",
}
"""Tests that run text or open a pickle, and of whom it is."""


def files() -> Iterator[tuple[str, str]]:
    """Yield the code of the tree by the name of its file: of scripts, and of pages' blocks."""
    here = [ROOT / folder for folder in FOLDERS]
    found = [each for folder in here for each in folder.rglob("*") if each.is_file()]
    for file in sorted([*found, *ROOT.glob("*.py"), *ROOT.glob("*.md")]):
        inside = file.relative_to(ROOT)
        if {".venv", "build", "__pycache__", "node_modules"} & set(inside.parts):
            continue
        if file.suffix == ".py":
            yield inside.as_posix(), file.read_text("utf-8")
        elif file.suffix == ".md":
            for block in re.findall(r"^```python\n(.*?)^```", file.read_text("utf-8"), re.S | re.M):
                yield inside.as_posix(), block


def is_test(name: str) -> bool:
    return "tests" in name.split("/")


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def used(source: str) -> Iterator[tuple[str, ast.Call | None]]:
    """Yield each name that is used, imports under other names resolved, and the call of it."""
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
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            first, _, rest = dotted(node).partition(".")
            yield ".".join(filter(None, (names.get(first, first), rest))), called.get(id(node))


def unsafe(source: str) -> set[str]:
    """Return what a source uses that runs what it reads, also where it is handed on uncalled."""
    found = set()
    for name, call in used(source):
        name = name.removeprefix("builtins.")
        keywords = call.keywords if call is not None else ()
        if name in ("torch.load", "torch.serialization.load"):
            safe = [each.value for each in keywords if each.arg == "weights_only"]
            if not (safe and isinstance(safe[0], ast.Constant) and safe[0].value is True):
                found.add("torch.load")
        elif name in ("numpy.load", "np.load"):
            if any(each.arg == "allow_pickle" for each in keywords):
                found.add(name)
        elif name in UNSAFE and not _is_copy(call):
            found.add(name)
    return found


def _is_copy(call: ast.Call | None) -> bool:
    """`pickle.loads(pickle.dumps(x))` reads what it has just written."""
    inner = call.args[0] if call is not None and call.args else None
    return isinstance(inner, ast.Call) and dotted(inner.func) == "pickle.dumps"


def test_the_product_runs_nothing_that_it_reads() -> None:
    wrong, read = {}, set()
    for name, source in files():
        read.add(name.partition("/")[0])
        found = set() if is_test(name) else unsafe(source)
        found -= {"importlib.import_module"} if name in IMPORTS else set()
        if found:
            wrong[name] = found
    assert wrong == {}
    assert read >= {*FOLDERS, "README.md"} - {".github"}


def test_every_exception_is_needed() -> None:
    for name in IMPORTS:
        assert "importlib.import_module" in unsafe((ROOT / name).read_text("utf-8")), name


def test_tests_run_only_what_is_theirs() -> None:
    imports = {each for each in UNSAFE if "import" in each}
    found = {name for name, source in files() if is_test(name) and unsafe(source) - imports}
    assert found == TESTS.keys()


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
        "import torch\nread = torch.load\nread(f)",
        "import torch, functools\nfunctools.partial(torch.load, weights_only=True)(f)",
        "list(map(eval, texts))",
        "import builtins\nbuiltins.exec(text)",
        "def f(read=__import__):\n    read(name)",
    ],
)
def test_the_reading_sees_each(source: str) -> None:
    assert unsafe(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f, weights_only=True)",
        "model.eval()",
        "model.eval",
        "import safetensors.torch\nsafetensors.torch.load(data)",
        "import json\njson.loads(text)",
    ],
)
def test_the_reading_lets_the_safe_ones_pass(source: str) -> None:
    assert unsafe(source) == set()
