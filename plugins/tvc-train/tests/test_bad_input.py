"""Recipes with damaged sections through `tvc train`; `python tests/train_mutants.py` is the whole
run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import train_mutants
from train_mutants import Found
from tvc_train import Phase
from tvc_train.data import DataSettings
from tvc_train.data_schema import DATA
from tvc_train.settings import TrainingSettings
from tvc_train.training_schema import PHASE, TRAINING

SCRIPT = Path(train_mutants.__file__)


def run(count: int) -> tuple[str, str]:
    command = [sys.executable, str(SCRIPT), "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    return last, done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_damaged_recipe_is_refused_by_its_line_or_trains(tmp_path: Path) -> None:
    said = tmp_path / "said.json"
    child = os.fork()  # an audit hook stays for good, and a new process imports torch again
    if child == 0:
        try:
            os.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
            said.write_text(json.dumps(train_mutants.run(tmp_path / "all", range(10))))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    codes, wrong = json.loads(said.read_text())
    assert sum(codes.values()) == 10 and len(codes) > 1
    assert not wrong, "\n".join(wrong)


@pytest.mark.sweep
def test_200_damaged_recipes_are_refused_by_their_lines_or_train() -> None:
    last, _ = run(200)
    assert last.startswith("200 mutants ended: ") and last.endswith("; 0 wrong")


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({"code": 1, "said": "error: r.yaml:3:1: data.size: no", "steps": 0}, ""),
        ({"code": 143, "said": "", "steps": 1}, ""),
        ({"code": 0, "said": "", "steps": 0}, "without a step"),
        ({"code": 2, "said": "error: r.yaml: no", "steps": 0}, "ended with 2"),
        ({"code": 1, "said": "error: r.yaml: no", "steps": 4}, "refused after 4 steps"),
        ({"code": 1, "said": "error: it fails", "steps": 0}, "neither a line nor a file"),
        ({"code": 1, "said": "error: photos/a\nTraceback (", "steps": 0}, "not one message"),
        ({"code": 1, "said": "error: photos", "steps": 0, "effects": ["import os"]}, "import os"),
    ],
)
def test_what_is_wrong_would_be_seen(found: dict[str, Any], wrong: str) -> None:
    said = Found(**found).problem(Path("r.yaml"))
    assert wrong in said if wrong else not said


@pytest.mark.parametrize(
    ("schema", "settings"), [(DATA, DataSettings), (TRAINING, TrainingSettings), (PHASE, Phase)]
)
def test_what_may_be_left_open_may_be_null(schema: dict[str, Any], settings: type) -> None:
    nullable = {
        k for k, v in schema["properties"].items() if {"type": "null"} in v.get("anyOf", [])
    }
    optional = {each.name for each in dataclasses.fields(settings) if each.default is None}
    assert nullable == optional


def test_what_a_key_of_others_is_said_to_be_there_is() -> None:
    phase, training, data = (set(each["properties"]) for each in (PHASE, TRAINING, DATA))
    there = {*phase, *training, *data, "std", "the"}
    for schema in (PHASE, TRAINING, DATA):
        for other, meant in schema["x-tvc-other-names"].items():
            assert other not in schema["properties"], other
            section, dot, key = meant.rpartition(".")
            assert not dot or key in (training if section == "training" else data), meant
            assert dot or re.split(r"\W", meant)[0] in there, meant
