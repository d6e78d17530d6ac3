"""torchvision's data sets of images with one label each, by name."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvc_core import as_rgb, foreign, what_there_is

from ..errors import DataError
from .names import Names
from .samples import Samples
from .settings import DataSettings

__all__ = ["TorchvisionSamples", "open_torchvision"]

_TRAIN = ({"train": True}, {"train": False})
_TEST = ({"split": "train"}, {"split": "test"})
_VAL = ({"split": "train"}, {"split": "val"})
_SETS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "CIFAR10": _TRAIN, "CIFAR100": _TRAIN, "MNIST": _TRAIN, "FashionMNIST": _TRAIN,
    "KMNIST": _TRAIN, "QMNIST": _TRAIN, "USPS": _TRAIN,
    "EMNIST": ({"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    "SVHN": _TEST, "STL10": _TEST, "GTSRB": _TEST, "Food101": _TEST, "StanfordCars": _TEST,
    "Flowers102": _VAL, "DTD": _VAL, "FGVCAircraft": _VAL, "PCAM": _VAL, "RenderedSST2": _VAL,
    "Imagenette": _VAL, "ImageNet": _VAL, "Country211": ({"split": "train"}, {"split": "valid"}),
    "OxfordIIITPet": ({"split": "trainval"}, {"split": "test"}),
    "EuroSAT": ({}, None), "Caltech101": ({}, None), "Caltech256": ({}, None),
    "SEMEION": ({}, None), "SUN397": ({}, None), "FakeData": ({}, None),
}  # fmt: skip
"""What is asked for to train on, and to hold out; None where torchvision does not say."""


class TorchvisionSamples(Samples):
    """Images of a torchvision data set.

    Args:
        dataset: the data set, of Pillow's images.
        targets: as of `Samples`.
        names: as of `Samples`.
        indices: which of the data set's images these are.
    """

    def __init__(
        self, dataset: Any, targets: np.ndarray, names: Names, indices: np.ndarray
    ) -> None:
        super().__init__(targets, names)
        self.dataset, self.indices = dataset, indices

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W].

        Raises:
            DataError: it cannot be read.
        """
        with foreign(DataError, f"{self.names[index]}: the image cannot be read"):
            picture = as_rgb(self.dataset[int(self.indices[index])][0])
            return torch.from_numpy(np.array(picture)).movedim(-1, 0)

    def content(self, index: int) -> bytes:
        """Return a hash of an image's pixels.

        Raises:
            DataError: it cannot be read.
        """
        pixels = self.read(index).contiguous().numpy()
        return hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes()).digest()[:16]

    def take(self, indices: np.ndarray) -> TorchvisionSamples:
        """Return the images at these indices, in their order."""
        return TorchvisionSamples(
            self.dataset, self.targets[indices], self.names.take(indices), self.indices[indices]
        )


def open_torchvision(
    settings: DataSettings, folder: Path
) -> tuple[Samples, Samples | None, tuple[str, ...]]:
    """Return what to train on, what to hold out (None where torchvision does not say), and classes.

    Raises:
        DataError: there is no such data set, or it cannot be opened.
    """
    from torchvision import datasets

    assert settings.name is not None
    if settings.name not in _SETS:
        there = what_there_is(settings.name, list(_SETS), "There are")
        raise DataError(
            f"data.name: {settings.name!r} is none of torchvision's data sets of images with one "
            f"label each.{there}"
        )
    train, val = _SETS[settings.name]
    made, root = getattr(datasets, settings.name), str(folder / (settings.path or "."))
    found: list[Any] = []
    for part, given in (("train", train), ("val", val)):
        if given is None:
            found.append(None)
            continue
        options = {**given, "root": root}
        if settings.name not in ("FakeData", "ImageNet", "StanfordCars"):
            options["download"] = settings.download
        if settings.name == "FakeData":  # which keeps nothing anywhere
            options.pop("root")
        advice = "Is it there? 'download: true' lets torchvision download it."
        what = f"torchvision's {settings.name} ({part}) in {root} cannot be opened"
        with foreign(DataError, what, advice="" if settings.download else advice):
            found.append(made(**options))
    first = found[0]
    targets = [_targets_of(each) for each in found if each is not None]
    classes = _classes_of(first, 1 + max(int(each.max(initial=0)) for each in targets))
    if settings.classes not in (None, classes):
        raise DataError(f"data.classes: those of {settings.name} are {', '.join(classes[:20])}")
    parts = [
        TorchvisionSamples(
            dataset,
            target,
            Names(f"{settings.name}/{part}/{index}" for index in range(len(target))),
            np.arange(len(target)),
        )
        for part, dataset, target in zip(("train", "val"), filter(None, found), targets)  # noqa: B905
    ]
    return parts[0], parts[1] if len(parts) == 2 else None, classes


def _classes_of(dataset: Any, num: int) -> tuple[str, ...]:
    """Return a name for each class, all different: numbers where the data set has none."""
    given = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or range(num)
    # ImageNet's have several words each, and two are "crane"
    names = [", ".join(each) if isinstance(each, tuple) else str(each) for each in given]
    keys = getattr(dataset, "wnids", range(len(names)))
    count = Counter(names)
    return tuple(
        name if count[name] == 1 else f"{name} ({key})"
        for name, key in zip(names, keys, strict=True)
    )


def _targets_of(dataset: Any) -> np.ndarray:
    """Return the class of each image, int64 [N]."""
    for name in ("targets", "labels", "_labels", "y"):
        found = np.asarray(getattr(dataset, name, ()))
        if found.shape == (len(dataset),):  # QMNIST's are rows of numbers, the class one of them
            return found.astype(np.int64)
    with foreign(DataError, f"the labels of {type(dataset).__name__} cannot be read"):
        return np.array([int(dataset[index][1]) for index in range(len(dataset))], np.int64)
