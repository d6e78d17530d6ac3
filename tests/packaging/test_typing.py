"""`mypy --strict` knows all types of a user's program from the installed wheels, and notices when
annotations go missing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import Environment

PROGRAM = Path(__file__).with_name("typed_user.py")
TORCH = {
    "__init__": """
from typing import Any
from . import nn as nn, optim as optim
class Tensor: ...
def rand(*size: int) -> Tensor: ...
def __getattr__(name: str) -> Any: ...
""",
    "nn/__init__": """
from typing import Any, Iterator
from .. import Tensor
from . import init as init
class Parameter(Tensor): ...
class Module:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def parameters(self, recurse: bool = True) -> Iterator[Parameter]: ...
    def __getattr__(self, name: str) -> Any: ...
class Identity(Module): ...
def __getattr__(name: str) -> Any: ...
""",
    "nn/init": "from .. import Tensor\ndef ones_(tensor: Tensor) -> Tensor: ...",
    "optim": "class AdamW:\n    def __init__(self, params: object) -> None: ...",
}
"""Types of torch, as far as the program and the annotations of tvc ask for them."""

SETTINGS = """
[mypy]
[mypy-torch.*]
follow_imports = skip
[mypy-torchvision.*,numpy.*,safetensors.*,PIL.*,yaml.*,huggingface_hub.*]
follow_imports = skip
follow_imports_for_stubs = True
"""
"""Of torch the stubs above are read, of the others nothing: with their own types a run takes 20 s,
and none of them stands in a signature of ours.
"""

pytestmark = pytest.mark.packaging


def test_a_users_typed_program(environment: Environment, wheels: dict[str, Path]) -> None:
    pytest.importorskip("mypy")
    environment.install(wheels["tvc-core"])
    program = Path(shutil.copy(PROGRAM, environment.folder / "program.py"))
    (environment.folder / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    stubs = environment.folder / "stubs"
    for name, text in TORCH.items():
        path = stubs / "torch" / f"{name}.pyi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def mypy() -> str:
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--python-executable",
            str(environment.python),
            program.name,
        ]
        done = subprocess.run(
            command,
            cwd=environment.folder,
            env={**environment.clean(), "MYPYPATH": str(stubs)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout

    assert mypy() == "Success: no issues found in 1 source file\n"

    builder = environment.site / "tvc_core" / "builder.py"
    text = builder.read_text(encoding="utf-8")
    start = text.index("    def build(\n")
    builder.write_text(
        text[:start] + text[start:].replace(") -> HybridModel:", "):", 1), encoding="utf-8"
    )
    assert 'Expression is of type "Any", not "HybridModel"  [assert-type]' in mypy()
    builder.write_text(text, encoding="utf-8")

    (environment.site / "tvc_core" / "py.typed").unlink()
    assert "missing library stubs or py.typed marker  [import-untyped]" in mypy()
