"""From the section `data:` to images: finds where they come from, and opens that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tvc_core import join_names

from ..errors import DataError
from .samples import ArraySamples, Samples
from .settings import DataSettings
from .splitting import split_indices

__all__ = ["Data", "open_data"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a model is trained on, and what it is held against.

    Args:
        train: images to train on.
        val: images that are held out.
        classes: names, in the order of the outputs.
        labels: each image has "one", or "many".
    """

    train: Samples
    val: Samples
    classes: tuple[str, ...]
    labels: Literal["one", "many"] = "one"


def open_data(settings: DataSettings, *, folder: Path, seed: int) -> Data:
    """Open what the section says. No image is read.

    Args:
        settings: the section.
        folder: from which paths go on: that of the recipe.
        seed: of the split, where the data do not say what is held out.

    Raises:
        DataError: there is nothing to train on, or it is not what the section says.
    """
    return _digits(settings, seed)


def _digits(settings: DataSettings, seed: int) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn, "
            "or name data of your own: data.path"
        ) from error
    found = load_digits()
    classes = tuple(str(name) for name in found.target_names)
    if settings.classes not in (None, classes):
        raise DataError(f"data.classes: the digits' classes are {join_names(classes)}")
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    targets = found.target.astype(np.int64)
    names = [f"digits/{index:04d}" for index in range(len(targets))]
    whole = ArraySamples(images, targets, names)
    train, val = split_indices(targets, part=settings.split, seed=seed)
    return Data(train=whole.take(train), val=whole.take(val), classes=classes)
