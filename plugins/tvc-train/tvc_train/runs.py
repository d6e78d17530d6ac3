"""The folder of a run: where everything of it lies.

RUN/
  recipe.yaml                the recipe that was used, with what `--set` changed
  weights/                   the file of weights that it names, where these are the user's own
  run.json                   the key of the run: what has to be equal to go on, and versions
  metrics.csv                a row an epoch; nothing of it depends on the clock
  speed.csv                  a row an epoch: seconds and images a second
  checkpoints/
    step-000000123.safetensors   the last two
    best.safetensors             the one with the best held-out figure
  model.safetensors          at the end: what `HybridModel.save` writes
  predictions.safetensors    at the end: logits, targets and indices of the held-out images
  report.html                at the end, where the extra `report` is installed
  tensorboard/               curves, where --tensorboard asks for them
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvc_core import write_file

from .errors import TrainingError

__all__ = ["WEIGHTS", "Run", "copy_durably", "write_durably", "write_text"]


WEIGHTS = "weights"
"""The folder of a run for a file of the user's own that the training starts from."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The folder of a run.

    Args:
        folder: where it is.
    """

    folder: Path

    @property
    def recipe(self) -> Path:
        """The recipe that was used."""
        return self.folder / "recipe.yaml"

    @property
    def key(self) -> Path:
        """What has to be equal to go on."""
        return self.folder / "run.json"

    @property
    def metrics(self) -> Path:
        """A row an epoch, which does not depend on the clock."""
        return self.folder / "metrics.csv"

    @property
    def speed(self) -> Path:
        """A row an epoch: how long it took."""
        return self.folder / "speed.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """The model at the end."""
        return self.folder / "model.safetensors"

    @property
    def predictions(self) -> Path:
        """Logits [N, classes], targets and indices [N] of the held-out images at the end."""
        return self.folder / "predictions.safetensors"

    @property
    def weights(self) -> Path:
        """The folder of the user's own weights, which the recipe names."""
        return self.folder / WEIGHTS

    @property
    def report(self) -> Path:
        """The report at the end."""
        return self.folder / "report.html"

    @property
    def curves(self) -> Path:
        """The folder of curves for TensorBoard."""
        return self.folder / "tensorboard"

    @property
    def found(self) -> tuple[Path, ...]:
        """Every file and folder in which the run says what it found."""
        return (
            self.metrics, self.speed, self.checkpoints, self.model, self.predictions, self.report,
            self.curves,
        )  # fmt: skip

    @property
    def content(self) -> tuple[Path, ...]:
        """Every file and folder that a run writes."""
        return (self.key, self.recipe, self.weights, *self.found)

    def forget(self) -> None:
        """Remove what another run found there.

        Raises:
            TrainingError: it cannot be removed.
        """
        for path in self.found:
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise TrainingError(
                    f"{path} cannot be removed: {error.strerror or error}"
                ) from error

    @staticmethod
    def new_name(parent: Path, name: str) -> Path:
        """Return a folder that is not there yet: NAME, NAME-2, ..."""
        found, number = parent / name, 2
        while found.exists():
            found, number = parent / f"{name}-{number}", number + 1
        return found

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of metrics.csv."""
        return self.read_rows(self.metrics)

    def read_rows(self, path: Path) -> list[dict[str, str]]:
        """Return the rows of a CSV file; none where there is no file."""
        import csv

        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def write_rows(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as a CSV file with the columns of all of them, whole or not at all."""
        import csv
        import io

        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())

    def read_key(self) -> dict[str, Any] | None:
        """Return what run.json says; None where there is none.

        Raises:
            TrainingError: it is damaged.
        """
        if not self.key.is_file():
            return None
        try:
            found = json.loads(self.key.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise TrainingError(f"{self.key} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise TrainingError(f"{self.key} is damaged: it is no mapping")
        return found


def write_text(path: Path, text: str) -> None:
    """Write a text as `write_durably` does."""
    write_durably(path, [text.encode()])


def copy_durably(file: Path, to: Path) -> None:
    """Copy a file, whole or not at all; nothing where it is that file already.

    Raises:
        TrainingError: it cannot be read or written.
    """
    try:
        if to.exists() and to.samefile(file):
            return
        with file.open("rb") as source:
            write_durably(to, iter(lambda: source.read(1 << 20), b""))
    except OSError as error:
        raise TrainingError(f"{file} cannot be copied: {error.strerror or error}") from error


def write_durably(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file, whole or not at all, so that it is there after a loss of power.

    Raises:
        TrainingError: it cannot be written (a full disk); what was there before is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, pieces)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}") from error
