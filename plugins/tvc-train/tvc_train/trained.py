"""What the file of a trained model says besides its tensors and recipe, so that it alone predicts:
how images are prepared, what the outputs mean, how probabilities are calibrated.

How images are prepared is the model's own `preprocessing`; the rest stands under "tvc-train" in the
file's metadata (`HybridModel.metadata`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvc_core import HybridModel, Preprocessing, WeightsError, load, short_repr

from .data import DataSettings, preprocessing_for
from .errors import DataError

__all__ = ["KEY", "Trained"]

KEY = "tvc-train"
_KEYS = ("labels", "temperature", "thresholds", "figures")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a trained model's file says besides tensors and recipe.

    Args:
        preprocessing: how its images are prepared.
        labels: "one" class an image, or "many".
        temperature: logits are divided by it before they become probabilities.
        thresholds: of several labels an image, the probability from which on each class is said to
            be there; None stands for 0.5 each.
        figures: on the held-out images, by name.
    """

    preprocessing: Preprocessing
    labels: str = "one"
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def save(self, model: HybridModel, path: str | Path, **metadata: Any) -> None:
        """Save a model together with it, and with more metadata. The model knows it from then on,
        so that it can be folded, say, and saved again.

        Raises:
            WeightsError: the file cannot be written.
        """
        model.preprocessing = self.preprocessing
        model.metadata.update({**self._to_metadata(), **metadata})
        model.save(path)

    def _to_metadata(self) -> dict[str, Any]:
        return {
            KEY: {
                "labels": self.labels,
                "temperature": self.temperature,
                "thresholds": None if self.thresholds is None else list(self.thresholds),
                # NaN, of a class that no image is of, is no JSON
                "figures": {k: v if math.isfinite(v) else None for k, v in self.figures.items()},
            }
        }

    @staticmethod
    def of(model: HybridModel) -> Trained:
        """Return what the metadata of a model say; of one that was saved without training, what
        its weights say of images, and one label an image.

        Raises:
            DataError: nothing says how its images are prepared.
            WeightsError: the metadata are not what `save` wrote.
        """
        preprocessing = preprocessing_for(model, DataSettings())
        said = model.metadata.get(KEY)
        if said is None:
            return Trained(preprocessing=preprocessing)
        if not isinstance(said, Mapping) or set(said) != set(_KEYS):
            raise _damaged(said)
        temperature, thresholds, figures = (said[key] for key in _KEYS[1:])
        count = model.num_classes
        fits = said["labels"] in ("one", "many") and _is_number(temperature) and temperature > 0
        if thresholds is not None:
            fits = fits and isinstance(thresholds, list) and len(thresholds) == count
            fits = fits and all(_is_number(each) for each in thresholds)
        fits = fits and isinstance(figures, Mapping)
        fits = fits and all(v is None or _is_number(v) for v in figures.values())
        if not fits:
            raise _damaged(said)
        return Trained(
            preprocessing=preprocessing,
            labels=said["labels"],
            temperature=float(temperature),
            thresholds=None if thresholds is None else tuple(map(float, thresholds)),
            figures={k: math.nan if v is None else float(v) for k, v in figures.items()},
        )

    @staticmethod
    def open(path: str | Path) -> tuple[HybridModel, Trained]:
        """Read a model that was saved, and what its file says of its training.

        Raises:
            WeightsError: the file is damaged, or has several heads, whose outputs are no classes of
                one question.
            DataError: nothing says how its images are prepared.
        """
        model = load(path)
        try:
            if len(model.head_info) > 1:
                names = ", ".join(each.name for each in model.head_info)
                raise WeightsError(f"it has several heads ({names}), and this is for one")
            return model, Trained.of(model)
        except (WeightsError, DataError) as error:
            raise type(error)(f"{path}: {error}") from error

    @staticmethod
    def class_names(model: HybridModel) -> tuple[str, ...]:
        """Return the names of a model's outputs: numbers where none were given."""
        return model.class_names or tuple(str(i) for i in range(model.num_classes))

    def limits(self, classes: Sequence[str]) -> list[float]:
        """Return the threshold of each class."""
        return list(self.thresholds or [0.5] * len(classes))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _damaged(said: Any) -> WeightsError:
    return WeightsError(
        f"what its metadata say under {KEY!r} is not what tvc-train writes: {short_repr(said)}"
    )
