"""The log of gates: what a loop writes, what is read back, and what is drawn."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tvc_inspect import GateLog, read_gate_log
from tvc_inspect.gate_log import gate_chart

from tvc_core import HybridBuilder, HybridModel, ParameterError


@pytest.fixture
def model() -> HybridModel:
    torch.manual_seed(0)
    return HybridBuilder().from_backbone(
        "mobilenet_v3_small",
        weights=None,
        num_classes=3,
        patches={"features.3": {"wrap": "se"}, "features.8": {"wrap": "eca"}},
    )


def _step(model: HybridModel, alpha: float) -> None:
    with torch.no_grad():
        model.get_submodule("patches.features.3.se").alpha.fill_(alpha)


def test_a_loop_writes_what_the_report_says(model: HybridModel, tmp_path: Path) -> None:
    log = GateLog(tmp_path / "gates.jsonl")
    batch = torch.randn(2, 3, 64, 64), torch.tensor([0, 2])
    reports = []
    for step, alpha in enumerate([0.0, 0.5, -0.25]):
        _step(model, alpha)
        reports.append(log(model, batch, step=10 * step, epoch=step, rate=0.1))
    lines, broken = read_gate_log(tmp_path / "gates.jsonl")
    assert broken == () and [line["step"] for line in lines] == [0, 10, 20]
    assert [line["epoch"] for line in lines] == [0, 1, 2] and lines[0]["rate"] == 0.1
    for line, report, alpha in zip(lines, reports, [0.0, 0.5, -0.25], strict=True):
        assert line["num_images"] == 2
        first, second = line["patches"]
        assert (first["path"], second["path"]) == (
            "patches.features.3.se", "patches.features.8.eca",
        )  # fmt: skip
        assert first["gate"] == alpha and second["gate"] == 0
        assert first["map_change"] == report.patches[0].map_change
        assert first["gate_values"]["mean"] == report.patches[0].gate_values.mean
        assert first["loss"] == report.patches[0].loss


def test_steps_count_on_where_none_is_given(model: HybridModel, tmp_path: Path) -> None:
    batch = torch.randn(1, 3, 64, 64)
    GateLog(tmp_path / "gates.jsonl")(model, batch, step=7)
    GateLog(tmp_path / "gates.jsonl")(model, batch)  # a run that goes on
    again = GateLog(tmp_path / "gates.jsonl")
    again(model, batch, step=torch.tensor(20))
    again(model, batch)
    lines, _ = read_gate_log(tmp_path / "gates.jsonl")
    assert [line["step"] for line in lines] == [7, 8, 20, 21]
    assert lines[0]["patches"][0]["gate_values"]["response"] is None


def test_a_line_that_broke_off_is_named_and_ends(model: HybridModel, tmp_path: Path) -> None:
    path = tmp_path / "gates.jsonl"
    log = GateLog(path)
    log(model, torch.randn(1, 3, 64, 64))
    with path.open("a") as file:
        file.write('{"step": 1, "patc')
    log(model, torch.randn(1, 3, 64, 64))
    lines, broken = read_gate_log(path)
    assert [line["step"] for line in lines] == [0, 1]
    assert broken == (f"line 2 of {path} is no line of a GateLog, and is left out",)


def test_what_cannot_be_written_or_read(model: HybridModel, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="does not exist"):
        GateLog(tmp_path / "nowhere" / "gates.jsonl")
    log = GateLog(tmp_path / "gates.jsonl")
    with pytest.raises(ParameterError, match="is a folder"):
        GateLog(tmp_path)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"note": object()}, "no form in JSON"),
        ({"step": 1.5}, "step is a whole number"),
        ({"loss": 0.3}, "train_loss=0.3"),
        ({"patches": 3}, "patches is a name of the report's own"),
    ]
    for given, says in wrong:
        with pytest.raises(ParameterError, match=says):
            log(model, torch.randn(1, 3, 64, 64), **given)
    assert not (tmp_path / "gates.jsonl").exists()
    with pytest.raises(ParameterError, match="cannot be read"):
        read_gate_log(tmp_path / "gates.jsonl")
    (tmp_path / "other.jsonl").write_text('{"loss": 1}\n[]\n{"step": 1, "patches": [3]}\n')
    with pytest.raises(ParameterError, match="holds no line"):
        read_gate_log(tmp_path / "other.jsonl")


def test_the_drawing_has_every_value() -> None:
    lines = [
        {"step": step, "patches": [{"path": "patches.<a>", "gate": value, "gate_values": None}]}
        for step, value in [(0, 0.0), (5, 1.0), (10, -1.0)]
    ]
    drawn = gate_chart(lines)
    assert "<a>" not in drawn and "patches.&lt;a&gt;" in drawn
    points = re.search(r'points="([^"]*)"', drawn)
    assert points is not None
    places = [tuple(map(float, each.split(","))) for each in points[1].split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    heights = [y for _, y in places]
    # 1 is at the top, -1 at the bottom and 0 in the middle; y grows downward
    assert heights[1] < heights[0] < heights[2]
    assert heights[0] == pytest.approx((heights[1] + heights[2]) / 2, abs=0.1)
    assert drawn.count("<svg") == 1 and json.dumps(drawn)


def test_a_long_log_is_drawn_small_with_its_extremes() -> None:
    values = [math.sin(step) for step in range(5000)]
    values[1234] = 40.0
    lines = [
        {
            "step": step,
            "patches": [
                {"path": f"p{n}", "gate": value - n, "gate_values": None} for n in range(16)
            ],
        }
        for step, value in enumerate(values)
    ]
    drawn = gate_chart(lines)
    assert len(drawn) < 100_000 and "of 5,000 steps" in drawn
    numbers = [re.search(r'points="([^"]*)"', each) for each in drawn.split("<polyline")[1:]]
    points = [each[1].split() for each in numbers if each is not None]
    assert len(points) == 16 and all(100 < len(each) <= 202 for each in points)
    # the one step that stands out is there, at the top of the drawing
    assert min(float(each.split(",")[1]) for each in points[0]) == 15.0
    assert f"p0: {values[-1]:.6g} at step 4999" in drawn
