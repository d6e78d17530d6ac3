"""The commands: one message where something is wrong, results on stdout."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_hub import FakeHub
from tvc_hub import commands


def run(name: str, *arguments: str) -> Result:
    return CliRunner().invoke(getattr(commands, f"{name}_command"), arguments)


def test_push_and_pull(hub: FakeHub, path: Path) -> None:
    options = ["--endpoint", hub.url, "--json"]
    given = ["--license", "mit", "--metric", "f1=0.25", "--metric", "on=a | b", "--message", "Hi"]
    pushed = json.loads(run("push", str(path), "user/pets", *given, *options).stdout)
    card = hub.commits["user/pets"][-1][1]["README.md"].decode()
    assert "| f1 | 0.25 |" in card
    assert r"| on | a \| b |" in card
    pulled = json.loads(run("pull", "user/pets", *options).stdout)
    assert pulled["commit"] == pushed["commit"]
    assert Path(pulled["path"]).read_bytes() == path.read_bytes()
    found = run("pull", f"user/pets@{pushed['commit']}", "--endpoint", hub.url, "--offline")
    assert found.stdout == f"{pulled['path']}\n"
    assert found.stderr == f"was here already: user/pets@{pushed['commit']}\n"


def test_a_certificate_that_is_left_out_is_told(hub: FakeHub, path: Path) -> None:
    path.with_name("x.certificate.json").write_text('{"sha256": "0"}')
    given = ["push", str(path), "user/pets", "--license", "mit", "--endpoint", hub.url]
    told = "x.certificate.json"
    found = run(*given)
    assert f"left out: {told}: is of another model" in found.stderr
    assert told not in found.stdout
    assert told in json.loads(run(*given, "--json").stdout)["left_out"]


@pytest.mark.parametrize("metric", ["f1", "=3", ""])
def test_a_metric_is_a_name_and_a_value(hub: FakeHub, path: Path, metric: str) -> None:
    found = run("push", str(path), "user/pets", "--license", "mit", "--metric", metric)
    assert found.exit_code == 2
    assert "NAME=VALUE" in found.stderr


def test_a_metric_that_is_given_twice_is_refused(hub: FakeHub, path: Path) -> None:
    given = ["--metric", "f1=0.25", "--metric", "f1 = 0.75"]
    found = run("push", str(path), "user/pets", "--license", "mit", *given)
    assert found.exit_code == 2
    assert "--metric f1= is given twice" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pull", "user/none"], "404"),
        (["push", "pets.safetensors", "user/pets"], "without a license"),
        (["pull", "pets"], "no name of a repository"),
        (["push", "gone", "user/pets", "--license", "mit"], "gone"),
    ],
)
def test_an_error_is_one_line(
    hub: FakeHub,
    path: Path,
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("sys.argv", ["tvc", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tvc_cli", run_name="__main__")  # in this process, which has torch
    shown = capfd.readouterr()
    assert ended.value.code == 1
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert says in shown.err
