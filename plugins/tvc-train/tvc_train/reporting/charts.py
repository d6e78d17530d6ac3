"""Draw the charts of a report with matplotlib, as SVG pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..scores import Scores

__all__ = ["GATE", "confusion_chart", "curves_chart", "gates_chart", "reliability_chart"]

GATE = "gate/"
"""How the columns of metrics.csv begin that hold a patch's gate."""

_SIZE = (6.4, 3.4)  # of a chart [inches]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # the reader's fonts, which have more letters than matplotlib's
    "svg.hashsalt": "tvc-train",  # the same chart twice is the same file
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "Segoe UI", "Noto Sans", "DejaVu Sans", "sans-serif"],
    "text.parse_math": False,  # "$" in a name is no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}


def curves_chart(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str], *, label: str = ""
) -> bytes | None:
    """Draw columns of metrics.csv by epoch, with a line where a phase begins.

    Args:
        rows: of metrics.csv.
        columns: which to draw; those without a number in any row are left out.
        label: of the vertical axis.

    Returns:
        An SVG picture; None where there is nothing to draw.
    """
    numbers = {column: [_number(row.get(column)) for row in rows] for column in columns}
    drawn = {name: each for name, each in numbers.items() if any(map(math.isfinite, each))}
    if not drawn:
        return None

    def draw(axes: Any) -> None:
        epochs = [_number(row.get("epoch")) for row in rows]
        if not all(map(math.isfinite, epochs)):
            epochs = [float(i) for i in range(1, len(rows) + 1)]
        marker = "o" if len(rows) < 30 else ""
        for name, values in drawn.items():
            axes.plot(epochs, values, marker=marker, markersize=3, label=_plain(name))
        phases = [row.get("phase") for row in rows]
        for i in range(1, len(rows)):
            if phases[i] != phases[i - 1]:
                axes.axvline((epochs[i] + epochs[i - 1]) / 2, color="gray", linestyle=":")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize="small")

    return _drawn(draw)


def gates_chart(rows: Sequence[Mapping[str, str]]) -> bytes | None:
    """Draw the gates of the patches by epoch; None where no patch has one."""
    columns = sorted({key for row in rows for key in row if key.startswith(GATE)})
    return curves_chart(rows, columns, label="alpha (0: as the backbone)")


def reliability_chart(scores: Scores) -> bytes:
    """Draw how often predictions are right, by how sure they are (Guo et al. 2017, figure 1)."""

    def draw(axes: Any) -> None:
        bins = [each for each in scores.reliability if each.count]
        most = max(each.count for each in bins)
        axes.plot([0, 1], [0, 1], color="gray", linestyle="--", label="calibrated")
        for each in bins:
            # a bin with few images is pale: its height says little
            alpha = 0.25 + 0.75 * each.count / most
            left, width = each.low, each.high - each.low
            axes.bar(left, each.accuracy, width, align="edge", color="tab:blue", alpha=alpha)
        points = [(each.confidence, each.accuracy) for each in bins]
        axes.plot(*zip(*points, strict=True), "o", color="black", markersize=3, label="model")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="part that is right")
        axes.legend(frameon=False, fontsize="small")

    return _drawn(draw)


def confusion_chart(scores: Scores) -> bytes:
    """Draw a confusion matrix of many classes, each row as parts of its sum."""

    def draw(axes: Any) -> None:
        table = [[count / max(sum(row), 1) for count in row] for row in scores.confusion]
        axes.imshow(table, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
        axes.set(xlabel="predicted class (number)", ylabel="true class (number)")
        axes.grid(visible=False)

    return _drawn(draw, size=(6.4, 6.4))


def _drawn(draw: Callable[[Any], None], *, size: tuple[float, float] = _SIZE) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and picks a backend

    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size)
        draw(figure.subplots())
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _plain(name: str) -> str:
    # matplotlib leaves out of the legend what begins with an underscore
    name = name.removeprefix(GATE)
    return f" {name}" if name.startswith("_") else name


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
