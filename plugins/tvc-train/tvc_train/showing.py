"""Show a run while it trains: bars with rates and a table for each phase on a terminal, plain lines
elsewhere, and curves in TensorBoard.

A loop calls the same methods of each `Display`; `Displays` hands a call on to several. What lies on
disk in the end (metrics.csv, speed.csv) is written by the loop itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from .extras import require_extra

__all__ = ["Display", "Displays", "Lines", "TensorBoard", "Terminal", "display_for"]

_EVERY = 10.0
"""Between two plain lines inside of an epoch [seconds]."""


class Display:
    """What is told of a run; every method does nothing here."""

    def phase(self, name: str, facts: Mapping[str, Any]) -> None:
        """Begin a phase.

        Args:
            name: of the phase.
            facts: what is trained and how, in the order in which it is shown.
        """

    def epoch(self, number: int, *, steps: int, what: str = "train") -> None:
        """Begin an epoch, or another pass over images.

        Args:
            number: of the epoch in the whole run, from 1.
            steps: batches that it has.
            what: "train" or "evaluate".
        """

    def step(self, step: int, *, images: int, figures: Mapping[str, float] | None = None) -> None:
        """Tell of a batch that is done.

        Args:
            step: of the whole run.
            images: in the batch, of all processes [images].
            figures: such as the loss and the rate.
        """

    def row(self, row: Mapping[str, Any], speed: Mapping[str, Any]) -> None:
        """Tell of an epoch that is done.

        Args:
            row: what metrics.csv has of it.
            speed: what speed.csv has of it.
        """

    def note(self, text: str) -> None:
        """Tell of something that happened, such as a checkpoint that was damaged."""

    def end_phase(self) -> None:
        """End a phase, with a table of its epochs."""

    def close(self) -> None:
        """End the run, in whatever way."""


class Displays(Display):
    """Several displays as one."""

    def __init__(self, displays: Sequence[Display]) -> None:
        self._displays = tuple(displays)

    def phase(self, name: str, facts: Mapping[str, Any]) -> None:
        """Begin a phase."""
        for each in self._displays:
            each.phase(name, facts)

    def epoch(self, number: int, *, steps: int, what: str = "train") -> None:
        """Begin a pass over images."""
        for each in self._displays:
            each.epoch(number, steps=steps, what=what)

    def step(self, step: int, *, images: int, figures: Mapping[str, float] | None = None) -> None:
        """Tell of a batch that is done."""
        for each in self._displays:
            each.step(step, images=images, figures=figures)

    def row(self, row: Mapping[str, Any], speed: Mapping[str, Any]) -> None:
        """Tell of an epoch that is done."""
        for each in self._displays:
            each.row(row, speed)

    def note(self, text: str) -> None:
        """Tell of something that happened."""
        for each in self._displays:
            each.note(text)

    def end_phase(self) -> None:
        """End a phase."""
        for each in self._displays:
            each.end_phase()

    def close(self) -> None:
        """End the run."""
        for each in self._displays:
            each.close()


class Lines(Display):
    """Plain lines for logs: one an epoch, and one every 10 seconds inside of it.

    Args:
        stream: where they go; by default stderr.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._rows: list[Mapping[str, Any]] = []
        self._pass = _Pass()

    def phase(self, name: str, facts: Mapping[str, Any]) -> None:
        """Begin a phase."""
        self._rows = []
        said = ", ".join(f"{key} {_shown(value)}" for key, value in facts.items())
        self._say(f"phase {name}: {said}" if said else f"phase {name}")

    def epoch(self, number: int, *, steps: int, what: str = "train") -> None:
        """Begin a pass over images."""
        self._pass = _Pass(number=number, steps=steps, what=what)

    def step(self, step: int, *, images: int, figures: Mapping[str, float] | None = None) -> None:
        """Tell of a batch that is done."""
        self._pass.add(images)
        if self._pass.due(_EVERY):
            said = "".join(f", {key} {_shown(value)}" for key, value in (figures or {}).items())
            self._say(f"  {self._pass}{said}, {self._pass.rate:.0f} images/s")

    def row(self, row: Mapping[str, Any], speed: Mapping[str, Any]) -> None:
        """Tell of an epoch that is done."""
        self._rows.append(row)
        pairs = {**row, **{k: v for k, v in speed.items() if k not in row}}
        self._say(
            ", ".join(f"{key} {_shown(value)}" for key, value in pairs.items() if _worth(key))
        )

    def note(self, text: str) -> None:
        """Tell of something that happened."""
        self._say(text)

    def end_phase(self) -> None:
        """Print the table of a phase."""
        columns, cells = _table(self._rows)
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for line in (columns, *cells) if cells else ():
            said = "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
            self._say(f"  {said}")

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class Terminal(Display):
    """Bars with rates, and a table for each phase.

    Args:
        stream: a terminal; by default stderr.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._console = Console(file=stream or sys.stderr)
        # as plain text: rich would read the "[0]" of a name as markup
        columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24)]
        rates = TextColumn("{task.fields[said]}", markup=False)
        self._bars = Progress(
            *columns, MofNCompleteColumn(), rates, Remaining(), console=self._console,
            transient=True,
        )  # fmt: skip
        self._rows: list[Mapping[str, Any]] = []
        self._bar: Any = None
        self._pass = _Pass()

    def phase(self, name: str, facts: Mapping[str, Any]) -> None:
        """Begin a phase."""
        from rich.text import Text

        self._rows = []
        said = ", ".join(f"{key} {_shown(value)}" for key, value in facts.items())
        self._console.print(Text(f"phase {name}", "bold"), Text(said))
        self._bars.start()

    def epoch(self, number: int, *, steps: int, what: str = "train") -> None:
        """Begin a pass over images."""
        self._drop_bar()
        self._pass = _Pass(number=number, steps=steps, what=what)
        self._bars.start()
        self._bar = self._bars.add_task(f"epoch {number} {what}", total=steps, said="")

    def step(self, step: int, *, images: int, figures: Mapping[str, float] | None = None) -> None:
        """Tell of a batch that is done."""
        self._pass.add(images)
        if self._bar is not None:
            said = [f"{key} {_shown(value)}" for key, value in (figures or {}).items()]
            rate = f"{self._pass.rate:.0f} images/s"
            self._bars.update(self._bar, advance=1, said="  ".join([*said, rate]))

    def row(self, row: Mapping[str, Any], speed: Mapping[str, Any]) -> None:
        """Tell of an epoch that is done."""
        from rich.text import Text

        self._rows.append(row)
        self._drop_bar()
        pairs = {**row, **{k: v for k, v in speed.items() if k not in row}}
        said = (f"{key} {_shown(value)}" for key, value in pairs.items() if _worth(key))
        self._console.print(Text("  ".join(said)))

    def note(self, text: str) -> None:
        """Tell of something that happened."""
        from rich.text import Text

        self._console.print(Text(text))

    def end_phase(self) -> None:
        """Print the table of a phase."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        self._drop_bar()
        self._bars.stop()
        columns, cells = _table(self._rows)
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(Text(column), justify="right")
        for row in cells:
            table.add_row(*map(Text, row))
        if cells:
            self._console.print(table)

    def close(self) -> None:
        """Take the bars away."""
        self._drop_bar()
        self._bars.stop()

    def _drop_bar(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None


class TensorBoard(Display):
    """Curves for TensorBoard: figures by step, rows by epoch.

    Args:
        folder: where its event files go.
        from_step: what an earlier part of the run wrote after this step is hidden.

    Raises:
        TrainingError: the extra `report` is not installed.
    """

    def __init__(self, folder: Path, *, from_step: int = 0) -> None:
        require_extra("report", "TensorBoard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=from_step or None)
        self._step = from_step

    def step(self, step: int, *, images: int, figures: Mapping[str, float] | None = None) -> None:
        """Write the figures of a batch."""
        self._step = max(step, self._step)
        for key, value in (figures or {}).items():
            self._writer.add_scalar(f"step/{key}", value, step)

    def row(self, row: Mapping[str, Any], speed: Mapping[str, Any]) -> None:
        """Write the figures of an epoch."""
        for part, pairs in (("epoch", row), ("speed", speed)):
            for key, value in pairs.items():
                if isinstance(value, (int, float)) and _worth(key):
                    self._writer.add_scalar(f"{part}/{key}", value, self._step)
        self._writer.flush()

    def close(self) -> None:
        """Write everything out."""
        self._writer.close()


def display_for(stream: TextIO | None = None) -> Display:
    """Return what shows a run: bars where the stream is a terminal, plain lines elsewhere.

    Args:
        stream: by default stderr.
    """
    target = stream or sys.stderr
    return Terminal(target) if target.isatty() else Lines(target)


class _Pass:
    """A pass over images, and its rate."""

    def __init__(self, *, number: int = 0, steps: int = 0, what: str = "") -> None:
        self.number, self.steps, self.what = number, steps, what
        self.done, self.images = 0, 0
        self.start = self.last = time.monotonic()

    def add(self, images: int) -> None:
        """Count a batch."""
        self.done += 1
        self.images += images

    def due(self, every: float) -> bool:
        """Return whether so many seconds have passed since this last returned true."""
        now = time.monotonic()
        late = now - self.last >= every
        self.last = now if late else self.last
        return late

    @property
    def rate(self) -> float:
        """Images a second since the pass began."""
        return self.images / max(time.monotonic() - self.start, 1e-9)

    def __str__(self) -> str:
        return f"epoch {self.number} {self.what} {self.done}/{self.steps}"


def _worth(key: str) -> bool:
    """Return whether a column of metrics.csv is worth a place on a line: gates of patches have a
    picture of their own in the report.
    """
    return "/" not in key


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if _worth(key)]
    return columns, [[_shown(row.get(column)) for column in columns] for row in rows]


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
