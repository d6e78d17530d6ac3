"""The page on the speed of builds is what `make bench-builds` writes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("builds")


def test_the_tables_are_those_of_the_rows(builds: Any) -> None:
    text = builds.PAGE.read_text(encoding="utf-8")
    found = builds.tables(builds.rows.read(builds.RESULTS))
    again = builds.rows.filled(text, found, "make bench-builds")
    assert again == text, "python tests/bench/builds.py --write"


def test_a_summary_is_of_all_networks(builds: Any) -> None:
    keys = [*builds._COLUMNS.values(), "bytes"]
    measured = {name: dict.fromkeys(keys, ratio) for name, ratio in (("a", 2.0), ("b", 8.0))}
    found = builds.tables({"made with": {"torch": "9"}, "rows": measured})
    assert "| ratio | 4 | 2 |" in found["summary"]
    assert "2 networks; torch 9." in found["made"] and "at most 8 times" in found["made"]
    assert found["networks"].count("\n") == 3


def test_a_run_that_was_stopped_goes_on(
    builds: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(builds, "RESULTS", tmp_path / "builds.json")
    measured: list[str] = []

    def row_of(name: str, runs: int) -> dict[str, Any]:
        measured.append(name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {"ours": 1.0}

    monkeypatch.setattr(builds, "row_of", row_of)
    with pytest.raises(KeyboardInterrupt):
        builds.run(["a", "b", "c"], 9)
    builds.run(["a", "b", "c"], 9)
    assert measured == ["a", "b", "b", "c"]
    assert list(builds.rows.read(builds.RESULTS)["rows"]) == ["a", "b", "c"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's counts")
def test_memory_that_a_build_takes_is_seen(builds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    size = 40_000_000
    twice = {"ours": lambda: (torch.ones(size // 4), torch.ones(size // 4))[0]}
    monkeypatch.setattr(builds, "builds_of", lambda name: twice)
    assert 1.9 < builds.peak("any", "ours")["bytes"] / size < 2.3
