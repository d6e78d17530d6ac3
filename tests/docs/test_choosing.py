"""The page on choosing a block is what `make bench-blocks` writes, and what it measures is so."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tvc_core import BlockSpec, HybridBuilder, Registry

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def choosing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("choosing")


def test_the_tables_are_those_of_the_rows(choosing: Any) -> None:
    text = choosing.PAGE.read_text(encoding="utf-8")
    assert choosing.page(text, choosing.read()) == text, "python tests/bench/choosing.py --write"


def test_every_row_is_about_a_block_that_there_is(choosing: Any) -> None:
    offered = {offer.qualified for offer in Registry().all(BlockSpec)}
    measured = {key.split(" | ")[1] for key in choosing.read()["rows"]}
    assert measured <= offered | {choosing.NONE, choosing.HEAD_ONLY}


def test_a_block_costs_what_can_be_counted_by_hand(choosing: Any) -> None:
    row = choosing.cost("tvc-blocks:conv_bn_act", "convolution", "mobilenet_v3_small")
    plain = HybridBuilder().from_backbone("mobilenet_v3_small", None)
    widths = [(stage.channels, 224 // stage.stride) for stage in plain.stage_info]
    assert row["params"] == sum(9 * width * width + 2 * width + 1 for width, _ in widths)
    assert row["adds"] == sum(9 * width * width * side * side for width, side in widths)
    assert row["forward"] > 0 and row["kept"] > 1


def test_the_task_is_the_same_for_every_block_but_for_the_block(
    choosing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that does nothing gives the row of the network without one."""
    for name, value in {"TRAIN": 20, "TEST": 20, "EPOCHS": 1, "BATCH": 10}.items():
        monkeypatch.setattr(choosing, name, value)
    maps = torch.randn(60, 112, 6, 6), torch.arange(60) % 10
    maps[0][:, :10] += 4 * torch.nn.functional.one_hot(maps[1], 10)[..., None, None]
    rows = [
        choosing.task(name, "identity", "digits", 1, maps)
        for name in (choosing.NONE, "tvc-blocks:identity", choosing.HEAD_ONLY)
    ]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    assert rows[0]["trained"] == rows[1]["trained"] > rows[2]["trained"]


def test_what_has_a_row_is_not_measured_again(
    choosing: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choosing, "RESULTS", tmp_path / "rows.json")
    rows = {choosing.key_of(job): {"cpu": 1.0} for job in choosing.jobs(["se"])}
    choosing.write({"made with": {}, "rows": rows})
    monkeypatch.setattr(choosing, "features", lambda data: pytest.fail("it measures"))
    choosing.run(["se"], workers=1)
    assert json.loads(choosing.RESULTS.read_text())["rows"] == dict(sorted(rows.items()))
    assert len(rows) == 3 * len(choosing.SEEDS) * len(choosing.DATA) + len(choosing.BACKBONES)
