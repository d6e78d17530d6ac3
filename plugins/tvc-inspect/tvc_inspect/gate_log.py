"""Write down in a training loop what the patches do, and draw it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from tvc_core import HybridModel, ParameterError, PatchReport, short_repr

__all__ = ["GateLog", "gate_chart", "read_gate_log"]

_DRAWN = {
    "gate": "alpha, which mixes the block in",
    "mean": "mean of the block's gate",
    "map_change": "change of the map by the patch",
    "logits_change": "change of the logits by the patch",
}
"""What of a report is drawn, and what it is."""


class GateLog:
    """Appends what `HybridModel.patch_report` says to a JSON-lines file, one line a call.

    A file that is there is continued, so a run that goes on after a break has one log.

    Args:
        path: of the file; its folder has to be there.

    Raises:
        ParameterError: the folder is not there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise ParameterError(f"GateLog: the folder {str(self.path.parent)!r} does not exist")

    def __call__(
        self,
        model: HybridModel,
        batch: Any,
        *,
        step: int | None = None,
        loss: Callable[..., Any] | None = None,
        **facts: Any,
    ) -> PatchReport:
        """Look at the patches on some data, and append a line.

        Args:
            model: the hybrid; it is as before afterwards.
            batch: as `patch_report` takes it.
            step: number of the step; None for one more than the last in the file.
            loss: as `patch_report` takes it.
            facts: what else is to stand in the line, such as epoch=3: plain data.

        Returns:
            The report.

        Raises:
            ParameterError: `batch` is of another kind, or `facts` have no form in JSON; the file is
                as before.
        """
        report = model.patch_report(batch, loss)
        if step is None:
            step = self._next()
        line = {"step": step, **facts, **_plain(asdict(report))}
        try:
            text = json.dumps(line, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ParameterError(
                f"GateLog: {short_repr(facts)} has no form in JSON: {error}"
            ) from error
        cut = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        # after a break in the middle of a line, the next one begins on a line of its own
        before = "\n" if cut and self.path.stat().st_size else ""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{before}{text}\n")
        return report

    def _next(self) -> int:
        if not self.path.is_file():
            return 0
        lines, _ = read_gate_log(self.path)
        return 1 + max((line["step"] for line in lines), default=-1)


def read_gate_log(path: str | Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the lines that a `GateLog` wrote, and one sentence for each that is not whole.

    Args:
        path: of the file.

    Raises:
        ParameterError: it cannot be read, or holds no line of a `GateLog`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: the log cannot be read: {error}") from error
    found, broken = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            steps_and_patches = isinstance(data["step"], int) and _is_report(data["patches"])
        except (ValueError, KeyError, TypeError):
            steps_and_patches = False
        if steps_and_patches:
            found.append(data)
        else:
            broken.append(f"line {number} of {path} is no line of a GateLog, and is left out")
    if not found:
        raise ParameterError(f"{path}: holds no line that a GateLog wrote")
    return found, tuple(broken)


def _is_report(patches: Any) -> bool:
    return isinstance(patches, list) and all(isinstance(each["path"], str) for each in patches)


def gate_chart(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return drawings of a log as HTML: one for each number, with a line for each patch, and the
    numbers as a table below.

    Args:
        lines: as `read_gate_log` returns them.
    """
    paths = list(dict.fromkeys(each["path"] for line in lines for each in line["patches"]))
    charts = []
    for key, title in _DRAWN.items():
        series = {path: _series(lines, path, key) for path in paths}
        if any(series.values()):
            charts.append(_svg(title, {path: each for path, each in series.items() if each}))
    return "\n".join(charts)


def _series(lines: Sequence[Mapping[str, Any]], path: str, key: str) -> list[tuple[int, float]]:
    """Return the steps and values of one number of one patch."""
    found = []
    for line in lines:
        for each in line["patches"]:
            value = each.get(key, (each.get("gate_values") or {}).get(key))
            if each["path"] == path and isinstance(value, (int, float)):
                found.append((line["step"], float(value)))
    return found


WIDTH, HEIGHT, LEFT, BOTTOM = 720, 220, 70, 30
"""Of a drawing, and of its margins [pixels]."""


def _svg(title: str, series: Mapping[str, list[tuple[int, float]]]) -> str:
    steps = [step for each in series.values() for step, _ in each]
    values = [value for each in series.values() for _, value in each]
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)

    def x(step: int) -> float:
        return LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - 20)

    def y(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - 15)

    drawn, names = [], []
    for number, (path, points) in enumerate(series.items()):
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        kind = f"line{number % 6}"
        drawn.append(f'<polyline class="{kind}" points="{line}"/>')
        drawn += [
            f'<circle class="{kind}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.5">'
            f"<title>{escape(path)}, step {step}: {value:.6g}</title></circle>"
            for step, value in points
        ]
        step, value = points[-1]
        names.append(
            f'<li><span class="key {kind}"></span>{escape(path)}: {value:.6g} at step {step}</li>'
        )
    bottom = "" if high == low else f"{low:.4g}"
    axes = (
        f'<text x="{LEFT - 6}" y="{y(high) + 4:.1f}" text-anchor="end">{high:.4g}</text>'
        f'<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM + 4}" text-anchor="end">{bottom}</text>'
        f'<text x="{x(first):.1f}" y="{HEIGHT - 8}">{first}</text>'
        f'<text x="{x(last):.1f}" y="{HEIGHT - 8}" text-anchor="end">step {last}</text>'
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{axes}{''.join(drawn)}</svg><ul>{''.join(names)}</ul></figure>"
    )


def _plain(value: Any) -> Any:
    """Return plain data: what JSON has no number for is None."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
