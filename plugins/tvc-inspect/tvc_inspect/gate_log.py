"""Write down in a training loop what the patches do, and draw it."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from tvc_core import HybridModel, ParameterError, PatchReport, join_names, short_repr

__all__ = ["GateLog", "gate_chart", "read_gate_log"]

_DRAWN = {
    "gate": "alpha, which mixes the block in",
    "mean": "mean of the block's gate",
    "map_change": "change of the map by the patch",
    "logits_change": "change of the logits by the patch",
}
"""What of a report is drawn, and what it is."""


_OWN = ("patches", "num_images")
"""Names of the report in a line."""


class GateLog:
    """Appends what `HybridModel.patch_report` says to a JSON-lines file, one line a call.

    A file that is there is continued, so a run that goes on after a break has one log.

    Args:
        path: of the file; its folder has to be there.

    Raises:
        ParameterError: the folder is not there, or the path is one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise ParameterError(f"GateLog: the folder {str(self.path.parent)!r} does not exist")
        if self.path.is_dir():
            raise ParameterError(f"GateLog: {str(self.path)!r} is a folder; name a file in it")
        self._last: int | None = None

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
            ParameterError: `batch`, `step` or `loss` is of another kind, `facts` have no form in
                JSON or a name of the report's, or the file cannot be written; it is as before.
        """
        if loss is not None and not callable(loss):
            raise ParameterError(
                f"GateLog: loss is a function, as patch_report takes it, not {short_repr(loss)}: a "
                "number of your loop goes under another name, such as train_loss=0.3"
            )
        if taken := [name for name in _OWN if name in facts]:
            raise ParameterError(f"GateLog: {join_names(taken)} is a name of the report's own")
        try:
            json.dumps(facts, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ParameterError(
                f"GateLog: {short_repr(facts)} has no form in JSON: {error}"
            ) from error
        number = self._next() if step is None else _whole(step)
        report = model.patch_report(batch, loss)
        line = {"step": number, **facts, **_plain(asdict(report))}
        try:
            # after a break in the middle of a line, the next one begins on a line of its own
            before = "" if _ends_whole(self.path) else "\n"
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{before}{json.dumps(line, allow_nan=False)}\n")
        except OSError as error:
            raise ParameterError(
                f"GateLog: {self.path} cannot be written: {error.strerror or error}"
            ) from error
        self._last = max(number, number if self._last is None else self._last)
        return report

    def _next(self) -> int:
        if self._last is None and self.path.is_file() and self.path.stat().st_size:
            lines, _ = read_gate_log(self.path)
            self._last = max(line["step"] for line in lines)
        return 0 if self._last is None else self._last + 1


def _whole(step: Any) -> int:
    try:
        return operator.index(step)  # also of numpy and of torch
    except TypeError as error:
        raise ParameterError(f"GateLog: step is a whole number, not {short_repr(step)}") from error


def _ends_whole(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


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
    """Return drawings of a log as HTML: one for each number, with a line for each patch, and its
    last value below.

    Args:
        lines: as `read_gate_log` returns them.
    """
    charts = []
    for key, title in _DRAWN.items():
        if series := _series(lines, key):
            most = max(map(len, series.values()))
            if most > _POINTS:
                title += f"; of {most:,} steps the least and the largest of each few"
            charts.append(_svg(title, {path: _thinned(each) for path, each in series.items()}))
    return "\n".join(charts)


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[tuple[int, float]]]:
    """Return the steps and values of one number, of each patch that has it."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for each in line["patches"]:
            value = each.get(key, (each.get("gate_values") or {}).get(key))
            if isinstance(value, (int, float)):
                found.setdefault(each["path"], []).append((line["step"], float(value)))
    return found


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return so few points that a page stays small: of each run the least and the largest, and the
    last of all.
    """
    if len(points) <= _POINTS:
        return points
    length = -(-2 * len(points) // _POINTS)
    kept = set()
    for start in range(0, len(points), length):
        run = range(start, min(start + length, len(points)))
        kept |= {pick(run, key=lambda n: points[n][1]) for pick in (min, max)}
    return [points[n] for n in sorted({*kept, len(points) - 1})]


_POINTS, _DOTS = 200, 600
"""Of a line at most; and of a drawing, so many that each has a dot with its number."""

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

    dots = len(values) <= _DOTS
    drawn, names = [], []
    for number, (path, points) in enumerate(series.items()):
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        kind = f"line{number % 6}"
        drawn.append(f'<polyline class="{kind}" points="{line}"/>')
        drawn += [
            f'<circle class="{kind}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.5">'
            f"<title>{escape(path)}, step {step}: {value:.6g}</title></circle>"
            for step, value in (points if dots else ())
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
