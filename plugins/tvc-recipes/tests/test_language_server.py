"""The schema in a real editor's server: yaml-language-server, over stdio.

It is found as `yaml-language-server` on the path, or where YAML_LANGUAGE_SERVER says; else npm
installs it into a temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recipe_typos import COMMON, FIRST, SECOND, typos
from tvc_recipes import recipe_schema

from tvc_core import BlockSpec, HybridBuilder, Registry

pytestmark = pytest.mark.sweep


class Server:
    """One server, and what it has said of each file."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.said: dict[str, list[Any]] = {}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        root = folder.as_uri()
        self.ask("initialize", processId=None, rootUri=root, capabilities={})
        self.tell("initialized")

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
        self.process.stdin.flush()

    def tell(self, method: str, **params: Any) -> None:
        self.send({"method": method, "params": params})

    def ask(self, method: str, **params: Any) -> Any:
        self.count += 1
        self.send({"id": self.count, "method": method, "params": params})
        while (answer := self.read()).get("id") != self.count or "method" in answer:
            pass
        return answer["result"]

    def read(self) -> dict[str, Any]:
        output = self.process.stdout
        assert output is not None
        length = 0
        while line := output.readline().strip():
            name, _, value = line.decode().partition(":")
            length = int(value) if name == "Content-Length" else length
        message: dict[str, Any] = json.loads(output.read(length))
        if message.get("method") == "textDocument/publishDiagnostics":
            self.said[message["params"]["uri"]] = message["params"]["diagnostics"]
        elif "id" in message and "method" in message:  # of its settings, which are the defaults
            items = message["params"].get("items", []) if "params" in message else []
            self.send({"id": message["id"], "result": [None] * len(items)})
        return message

    def open(self, text: str) -> str:
        self.count += 1
        uri = (self.folder / f"recipe{self.count}.yaml").as_uri()
        first = "# yaml-language-server: $schema=tvc-recipe.schema.json\n"
        item = {"uri": uri, "languageId": "yaml", "version": 1, "text": first + text}
        self.tell("textDocument/didOpen", textDocument=item)
        return uri

    def diagnostics(self, text: str) -> list[Any]:
        """Return what is wrong with a recipe; lines are counted from 0, and one is before it."""
        uri, end = self.open(text), time.monotonic() + 60
        while uri not in self.said and time.monotonic() < end:
            self.read()
        return self.said[uri]

    def completions(self, text: str) -> set[str]:
        """Return what may stand at the end of a text."""
        uri, lines = self.open(text), text.split("\n")
        found = self.ask(
            "textDocument/completion",
            textDocument={"uri": uri},
            position={"line": len(lines), "character": len(lines[-1])},
        )
        return {item["label"] for item in found["items"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    name = "yaml-language-server"
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    command = os.environ.get("YAML_LANGUAGE_SERVER") or shutil.which(name)
    if command is None:
        folder = tmp_path_factory.mktemp("npm")
        install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), name]
        if shutil.which("npm") is None or subprocess.run(install).returncode:
            pytest.skip(f"npm cannot install {name}")
        command = str(folder / "node_modules" / ".bin" / name)
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "tvc-recipe.schema.json").write_text(json.dumps(recipe_schema()))
    server = Server([command, "--stdio"], folder)
    yield server
    server.process.kill()
    server.process.wait()


@pytest.mark.parametrize("text", [FIRST, SECOND, COMMON])
def test_valid_recipes_have_no_diagnostics(server: Server, text: str) -> None:
    assert server.diagnostics(text) == []


def test_typos_are_marked(server: Server) -> None:
    missed = []
    for text, line, _, word, wrong in typos():
        in_macro = "attention: {" in text.splitlines()[line - 1]
        own = in_macro or word in ("@attention", "common.yaml", "macros")
        if not own and not server.diagnostics(text):
            missed.append((line, wrong))
    assert missed == []


def test_names_are_completed(server: Server) -> None:
    assert {"backbone", "head", "extends", "seed"} <= server.completions("ba")
    assert {*HybridBuilder.list_backbones()} <= server.completions("backbone:\n  name: ")
    blocks = {*Registry().names(BlockSpec)}
    wrap = "backbone:\n  name: resnet18\n  patches:\n    layer1:\n      wrap:\n        "
    assert blocks <= server.completions(f"{wrap}type: ")
    assert "reduction" in server.completions(f"{wrap}type: se\n        params:\n          ")
