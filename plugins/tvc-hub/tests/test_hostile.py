"""Repositories that want something: refused with a reason, and nothing else happens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_hub import TOKEN, running
from hostile_hub import make
from hub_files import forged

from tvc_core import HybridBuilder

HERE = Path(__file__).resolve().parents[3] / "tests"


@pytest.fixture(scope="module")
def watched(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Pull all of them in a process that is watched."""
    folder = tmp_path_factory.mktemp("watched")
    big = folder / "resnet18.safetensors"
    HybridBuilder().from_backbone("resnet18", weights=None).save(big)
    with running() as hub, running() as other:
        expected = make(hub, model, other.url)
        hub.put("user/good", {"model.safetensors": model})
        large = forged(big.read_bytes(), backbone__name="tvc-convnets:regnet_y_128gf")
        hub.put("evil/regnet", {"model.safetensors": large})
        expected["evil/regnet"] = "does not fit its own recipe"
        asked = json.dumps([hub.url, "user/good", *expected])
        done = subprocess.run(
            [sys.executable, str(HERE / "watched_pull.py")],
            input=asked,
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HF_TOKEN": TOKEN},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        left = [file for file in folder.rglob("*") if file.is_file() and file != big]
        return {
            "expected": expected,
            "found": json.loads(done.stdout),
            "hub": hub,
            "other": other,
            "left": [file for file in left if "user--good" not in str(file)],
            "header": 8 + int.from_bytes(large[:8], "little"),
        }


def test_each_is_refused_with_its_reason(watched: dict[str, Any]) -> None:
    assert len(watched["expected"]) >= 40
    wrong = {
        name: watched["found"][name]["said"]
        for name, says in watched["expected"].items()
        if says not in watched["found"][name]["said"]
    }
    assert not wrong


def test_no_error_names_a_draft(watched: dict[str, Any]) -> None:
    found = [each["said"] for each in watched["found"].values()]
    assert not [said for said in found if re.search(r"\.part\b", said)]


def test_nothing_is_imported_or_run_and_no_other_address_is_opened(watched: dict[str, Any]) -> None:
    host, port = watched["hub"].url.removeprefix("http://").split(":")
    own = [str((host, int(port))), str((host, int(port))), str((host, port))]
    seen = {
        (name, kind, what)
        for name, each in watched["found"].items()
        for kind, what in each["seen"]
        if not (kind == "open" and what in own)
    }
    assert not seen
    assert watched["other"].asked == []


def test_nothing_is_kept(watched: dict[str, Any]) -> None:
    assert not [each for each in watched["found"].values() if each["files"]]
    assert not watched["left"]


def test_the_token_goes_to_the_hub(watched: dict[str, Any]) -> None:
    assert {token for _, _, token in watched["hub"].asked} == {f"Bearer {TOKEN}"}


def test_a_network_of_another_size_costs_its_header(watched: dict[str, Any]) -> None:
    found = watched["found"]["evil/regnet"]
    assert found["seconds"] < 2
    assert found["memory"] < 300_000  # [KiB]
    path = next(path for path in watched["hub"].sent if path.startswith("/evil/regnet"))
    assert watched["hub"].sent[path] == watched["header"]


@pytest.mark.parametrize("name", ["network", "plugin", "shape", "option", "lies", "twice"])
def test_what_a_header_shows_is_seen_before_the_rest_is_fetched(
    watched: dict[str, Any], model: bytes, name: str
) -> None:
    sent = watched["hub"].sent
    found = [size for path, size in sent.items() if path.startswith(f"/evil/{name}/")]
    assert found
    assert found[0] < len(model) / 10
