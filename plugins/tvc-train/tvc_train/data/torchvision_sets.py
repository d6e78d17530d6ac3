"""torchvision's data sets of images with one label each, by name."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvc_core import as_rgb, foreign, what_there_is

from ..errors import DataError
from .files import FileSamples
from .names import Names
from .problems import Problem, unknown_class
from .samples import Samples
from .settings import NOT_DOWNLOADED, DataSettings

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

_NEEDS = {"SVHN": "scipy", "Flowers102": "scipy", "StanfordCars": "scipy", "PCAM": "h5py"}
"""A package that torchvision reads a data set with, and does not install."""


class TorchvisionSamples(Samples):
    """Images of a torchvision data set that keeps them in arrays.

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
    settings: DataSettings, root: Path, classes: Sequence[str] | None = None, *, lacking: str
) -> tuple[Samples, Samples | None, tuple[str, ...], list[Problem]]:
    """Open one of torchvision's data sets. Images that it keeps in files are read as any others.

    Args:
        settings: of the data.
        root: the folder in which torchvision keeps it.
        classes: those that there may be, in the order of the outputs; by default those of what is
            trained on.
        lacking: what does not have a class that is none of them, as `unknown_class` says it.

    Returns:
        What to train on, what to hold out (None where torchvision does not say), the classes, and
        what is wrong.

    Raises:
        DataError: there is no such data set, or it cannot be opened.
    """
    name = settings.name
    assert name is not None
    if name not in _SETS:
        raise DataError(
            f"data.name: {name!r} is none of the data sets of torchvision that can be trained on."
            + what_there_is(name, list(_SETS), "There are")
        )
    found = {
        part: _made(settings, root, part, given)
        for part, given in zip(("train", "val"), _SETS[name], strict=True)
        if given is not None
    }
    targets = {part: _targets_of(each, f"{name} ({part})") for part, each in found.items()}
    most = 1 + max(int(each.max(initial=0)) for each in targets.values())
    named = {part: _classes_of(each, most) for part, each in found.items()}
    names = named["train"] if classes is None else tuple(classes)
    kept, problems = [], list[Problem]()
    for part, dataset in found.items():
        # each part numbers the classes that it has, so only their names are the same in both
        there = named[part]
        target, where = targets[part], f"{name} ({part})"
        if len(target) and not 0 <= int(target.min()) <= int(target.max()) < len(there):
            raise DataError(
                f"{where} in {root}: its labels are {target.min()} to {target.max()}, and it has "
                f"names of {len(there)} classes: it is damaged, or a part of it is missing"
            )
        places = {each: place for place, each in enumerate(names)}
        target = np.array([places.get(each, -1) for each in there], np.int64)[target]
        for at in np.unique(targets[part][target < 0]).tolist():
            problems.append(unknown_class(where, there[at], names, lacking=lacking))
        kept.append(_samples_of(dataset, target, settings, root, part))
    return kept[0], kept[1] if len(kept) == 2 else None, names, problems


def _made(settings: DataSettings, root: Path, part: str, given: dict[str, Any]) -> Any:
    """Return the data set of one part."""
    from torchvision import datasets

    name = str(settings.name)
    package = _NEEDS.get(name)
    if package is not None and find_spec(package) is None:
        raise DataError(
            f"data.name: torchvision reads {name} with {package}, which is not installed: "
            f"pip install {package}"
        )
    options = {**given, "root": str(root)}
    if name not in NOT_DOWNLOADED:
        options["download"] = settings.download
    if name == "FakeData":  # which keeps nothing anywhere
        options.pop("root")
    advice = "Is it there? 'download: true' lets torchvision download it."
    if name in NOT_DOWNLOADED:
        advice = "Is it there? torchvision does not download it."
    what = f"torchvision's {name} ({part}) in {root} cannot be opened"
    own = root / name.lower()
    if name.startswith("Caltech") and not settings.download and not own.is_dir():
        raise DataError(f"{what}: there is no folder {own}. {advice}")  # torchvision would make it
    with foreign(DataError, what, advice="" if settings.download else advice):
        return getattr(datasets, name)(**options)


def _samples_of(
    dataset: Any, targets: np.ndarray, settings: DataSettings, root: Path, part: str
) -> Samples:
    """Return the images of a data set whose targets are not negative."""
    good = targets >= 0
    files = _files_of(dataset)
    if files is None:
        names = Names(f"{settings.name}/{part}/{index}" for index in range(len(targets)))
        whole = TorchvisionSamples(dataset, targets, names, np.arange(len(targets)))
        return whole if good.all() else whole.take(np.flatnonzero(good))
    # by their names, since SUN397 lists them in the order of the file system
    order = [index for index in sorted(range(len(files)), key=files.__getitem__) if good[index]]
    paths = [os.path.relpath(files[index], root) for index in order]
    return FileSamples(root, targets[order], paths, settings)


def _files_of(dataset: Any) -> list[str] | None:
    """Return the file of each image; None where there is none."""
    kind = type(dataset).__name__
    if kind.startswith("Caltech"):  # which names the files only where it opens one
        top = Path(dataset.root, f"{kind[-3:]}_ObjectCategories")
        return [
            str(
                top / dataset.categories[y]
                / (f"image_{n:04d}.jpg" if kind == "Caltech101" else f"{y + 1:03d}_{n:04d}.jpg")
            )
            for y, n in zip(dataset.y, dataset.index, strict=True)
        ]  # fmt: skip
    for name in ("_image_files", "_images", "_samples", "samples"):
        found = getattr(dataset, name, None)
        if found is not None:
            return [str(each[0] if isinstance(each, tuple) else each) for each in found]
    return None


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


def _targets_of(dataset: Any, where: str) -> np.ndarray:
    """Return the class of each image, int64 [N]."""
    with foreign(DataError, f"the labels of {where} cannot be read"):
        found = _targets_kept(dataset)
        if found is None:
            found = np.array([int(dataset[index][1]) for index in range(len(dataset))], np.int64)
        count = len(dataset)
    if len(found) != count:
        raise DataError(f"{where}: has {count} images and {len(found)} labels")
    return found.astype(np.int64)


def _targets_kept(dataset: Any) -> np.ndarray | None:
    """Return the class of each image where a data set keeps them apart from the images."""
    for name in ("targets", "labels", "_labels", "y"):
        found = np.asarray(getattr(dataset, name, ()))
        if found.ndim == 1 and found.size:  # QMNIST's are rows of numbers, the class one of them
            return found
    pairs = getattr(dataset, "_samples", None)
    if pairs is not None:
        return np.array([int(target) for _, target in pairs], np.int64)
    if type(dataset).__name__ == "PCAM":  # image by image it opens two files each: 5 minutes
        file = dataset._base_folder / dataset._FILES[dataset._split]["targets"][0]
        with dataset.h5py.File(file) as opened:
            return np.asarray(opened["y"]).reshape(-1)
    return None
