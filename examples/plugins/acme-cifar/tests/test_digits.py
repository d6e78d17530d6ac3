"""The example learns to read."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from acme_cifar import plugin

import tvc_core
from tvc_core import HybridBuilder, Registry

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "digits.py"


def test_it_learns_in_a_few_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    registry = Registry(plugins=[plugin], installed=False)
    monkeypatch.setattr(tvc_core, "HybridBuilder", lambda: HybridBuilder(registry=registry))
    runpy.run_path(str(SCRIPT))["main"](12)
    out = capsys.readouterr().out
    assert "stage3.2.bn2 -> " in out and "identity start, gate now 0" in out
    first, later = map(float, re.findall(r"step \d+: loss ([\d.]+)", out))
    assert later < first / 2
    assert re.search(r"accuracy after 12 steps: [\d.]+% of 540 unseen digits", out)
    low, high = map(
        float, re.search(r"gates of the 6 blocks: 0 -> ([\d.]+) to ([\d.]+)", out).groups()
    )
    assert high >= low > 0
