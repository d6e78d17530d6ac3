"""Who may import whom, by syntax trees; each rule is also shown to catch an offender."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import tvc_core

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "tvc_core"
PLUGINS = sorted(
    folder for folder in (ROOT / "plugins").iterdir() if (folder / "pyproject.toml").is_file()
)
FIRST_PARTY = sorted(
    {
        package.name
        for plugin in PLUGINS
        for package in plugin.iterdir()
        if (package / "__init__.py").is_file()
    }
    - {"tests"}
)
HEAVY = {"torch", "torchvision", "numpy", "PIL", "safetensors", "timm"}
LIGHT_CORE = [
    *(
        CORE / name
        for name in (
            "__init__.py",
            "specs.py",
            "errors.py",
            "hookspecs.py",
            "builtin.py",
            "local.py",
            "builder.py",
        )
    ),
    *(
        file
        for room in ("advice", "quarantine", "recipe", "registry", "written")
        for file in sorted((CORE / room).rglob("*.py"))
    ),
]
LIGHT_PLUGINS = sorted(
    file
    for name in ("plugin.py", "__init__.py")
    for file in (ROOT / "plugins").glob(f"*/*/{name}")
    if file.parent.name != "tests"
)
OFFERING = [file for file in LIGHT_PLUGINS if file.name == "plugin.py"]


def modules(tree: ast.AST, package: str = "") -> Iterator[tuple[str, str, int]]:
    """Yield (module, name, line) of every import in a tree; relative ones are resolved in
    `package`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module, alias.name, node.lineno) for alias in node.names)


def at_import(tree: ast.Module) -> ast.Module:
    """Return what of a module runs when it is imported: no function bodies, nothing under
    TYPE_CHECKING.
    """

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST | None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    return Strip().visit(ast.parse(ast.unparse(tree)))


@functools.cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def heavy_imports(tree: ast.Module) -> list[str]:
    return [
        module for module, _, _ in modules(at_import(tree)) if module.partition(".")[0] in HEAVY
    ]


def foreign_names(tree: ast.Module, allowed: Iterable[str]) -> list[str]:
    """Return what a plugin's module takes from tvc that it may not take.

    From another plugin's distribution it may take the spec class of a kind, from the top of its
    package, inside the hook that offers something of that kind: an optional one, of that
    distribution's name.
    """
    wrong = []
    offered = [entry for node in ast.walk(tree) for entry in spec_imports(node)]
    for module, name, line in modules(tree):
        if module == "tvc_core" and (name in allowed or not name):
            continue
        if module.partition(".")[0] in ("tvc_core", *FIRST_PARTY):
            wrong += [f"{module}:{name}"] * ((module, name, line) not in offered)
    for node in ast.walk(tree):  # import tvc_core; tvc_core.registry
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "tvc_core"
        ):
            wrong += [f"tvc_core.{node.attr}"] * (node.attr not in allowed)
    return wrong


def spec_imports(node: ast.AST) -> list[tuple[str, str, int]]:
    """Return what a function imports of the distribution that defines its hook, if it is one."""
    marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", ())]
    if not isinstance(node, ast.FunctionDef) or "hookimpl(optionalhook=True)" not in marks:
        return []
    return [
        (module, name, line)
        for module, name, line in modules(node)
        if name.endswith("Spec") and node.name.startswith(f"{module}_")
    ]


def module_changes(tree: ast.AST) -> list[str]:
    """Return the places where code puts a module into a network: `_modules`, add_module, setattr,
    register_module.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if name in (
                "add_module",
                "register_module",
                "setattr",
                "set_submodule",
                "append_module",
            ):
                found.append(f"{name} in line {node.lineno}")
        targets = (
            getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete))
            else []
        )
        for target in targets:
            if (
                isinstance(target, ast.Subscript)
                and isinstance(target.value, ast.Attribute)
                and target.value.attr == "_modules"
            ):
                found.append(f"_modules in line {target.lineno}")
    return found


# -- the core knows no plugin ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", sorted(CORE.rglob("*.py")), ids=lambda file: str(file.relative_to(CORE))
)
def test_the_core_imports_no_plugin(file: Path) -> None:
    assert not [
        module for module, _, _ in modules(parse(file)) if module.partition(".")[0] in FIRST_PARTY
    ]


@pytest.mark.parametrize(
    "file", sorted(CORE.rglob("*.py")), ids=lambda file: str(file.relative_to(CORE))
)
def test_the_core_names_no_plugin_in_code(file: Path) -> None:
    tree = parse(file)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    # a hook has that name, too
    names = {*(plugin.name for plugin in PLUGINS), *FIRST_PARTY} - {"tvc_blocks"}
    found = [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
        if any(name in node.value for name in names)
    ]
    assert not found


# -- a plugin knows the public core and nobody else ------------------------------------------------

ALL = {*tvc_core.__all__, "__all__", "*"}  # the star stands for __all__


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_a_plugin_imports_only_the_cores_public_names_and_no_other_plugin(plugin: Path) -> None:
    files = [file for file in plugin.rglob("*.py") if "tests" not in file.relative_to(plugin).parts]
    own = {package.name for package in plugin.iterdir() if (package / "__init__.py").is_file()}
    assert files
    for file in files:
        wrong = [
            what
            for what in foreign_names(parse(file), ALL)
            if what.partition(":")[0].partition(".")[0] not in own
        ]
        assert not wrong, f"{file.relative_to(ROOT)} takes {wrong}"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_a_plugins_tests_import_the_public_core_and_its_testing_tools(plugin: Path) -> None:
    own = {package.name for package in plugin.iterdir() if (package / "__init__.py").is_file()}
    for file in plugin.glob("tests/**/*.py"):
        wrong = [
            what
            for what in foreign_names(parse(file), ALL)
            if what.partition(":")[0].partition(".")[0] not in own
        ]
        assert not [what for what in wrong if not what.startswith("tvc_core.testing:")], file


@pytest.mark.parametrize(
    "code",
    [
        "import tvc_resnet",
        "from tvc_core.registry import Registry",
        "from tvc_core import registry",
        "import tvc_core\ntvc_core.registry",
        "from tvc_core import testing",
        "import tvc_core.specs",
        "from tvc_cli import CommandSpec",
        "@hookimpl\ndef tvc_cli_commands():\n    from tvc_cli import CommandSpec",
        "@hookimpl(optionalhook=True)\ndef tvc_timm_x():\n    from tvc_cli import CommandSpec",
        "@hookimpl(optionalhook=True)\ndef tvc_cli_commands():\n    from tvc_cli import main",
        "@hookimpl(optionalhook=True)\ndef tvc_cli_commands():\n"
        "    from tvc_cli.kinds import CommandSpec",
        "def tvc_cli_commands():\n    from tvc_cli import CommandSpec",
    ],
)
def test_the_rule_for_plugins_catches(code: str) -> None:
    assert foreign_names(ast.parse(code), ALL)


def test_a_hook_may_import_the_spec_class_of_its_kind() -> None:
    hook = "@hookimpl(optionalhook=True)\ndef tvc_cli_commands():\n    "
    assert not foreign_names(ast.parse(f"{hook}from tvc_cli import CommandSpec"), ALL)


# -- what must be light, is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", [*LIGHT_CORE, *LIGHT_PLUGINS], ids=lambda file: str(file.relative_to(ROOT))
)
def test_a_light_module_imports_nothing_heavy(file: Path) -> None:
    assert not heavy_imports(parse(file))


@pytest.mark.parametrize("file", OFFERING, ids=lambda file: file.parent.name)
def test_a_registration_module_states_its_api_as_a_literal(file: Path) -> None:
    values = [
        node.value
        for node in parse(file).body
        if isinstance(node, ast.Assign)
        and [ast.unparse(target) for target in node.targets] == ["TVC_API"]
    ]
    assert len(values) == 1 and ast.literal_eval(values[0]) == tvc_core.API_VERSION


def test_there_are_light_modules_to_look_at() -> None:
    assert len(LIGHT_CORE) > 12 and len(OFFERING) >= 6
    assert all(file.is_file() for file in LIGHT_CORE)


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import torch", True),
        ("from torch import nn", True),
        ("import torchvision.models as models", True),
        ("try:\n    import numpy\nexcept ImportError:\n    pass", True),
        ("if True:\n    import torch", True),
        ("class A:\n    import torch", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", False),
        ("def f():\n    import torch", False),
        ("import torchless", False),
    ],
)
def test_the_rule_for_light_modules_tells_one_from_the_other(code: str, heavy: bool) -> None:
    assert bool(heavy_imports(ast.parse(code))) is heavy


def test_specs_and_errors_stand_on_the_standard_library_alone() -> None:
    for name in ("specs", "errors"):
        for module, _, _ in modules(parse(CORE / f"{name}.py"), "tvc_core"):
            assert module.partition(".")[0] in sys.stdlib_module_names, f"{name} imports {module}"


# -- one file changes networks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        file
        for folder in ("surgery", "model", "weights")
        for file in sorted((CORE / folder).rglob("*.py"))
    ]
    + [CORE / "assemble.py"],
    ids=lambda file: str(file.relative_to(CORE)),
)
def test_only_patches_puts_modules_into_a_network(file: Path) -> None:
    changes = module_changes(parse(file))
    assert bool(changes) is (file == CORE / "surgery" / "patches.py"), changes


@pytest.mark.parametrize(
    "code",
    [
        "m._modules['a'] = x",
        "del m._modules['a']",
        "m.add_module('a', x)",
        "setattr(m, 'a', x)",
        "m.set_submodule('a', x)",
    ],
)
def test_the_rule_for_changes_catches(code: str) -> None:
    assert module_changes(ast.parse(code))


def test_the_hook_layer_fits_on_120_lines() -> None:
    assert len((CORE / "hookspecs.py").read_text().splitlines()) <= 120
