"""The section `data:` of a recipe: its keys, and the rules for their values. Light: no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tvc_core import RecipeError, short_repr, what_there_is

from ..data_schema import FORMATS, RULES
from ..rules import misfit, wanted

__all__ = ["NOT_DOWNLOADED", "DataSettings"]

NOT_DOWNLOADED = ("FakeData", "ImageNet", "StanfordCars")
"""Data sets of torchvision's that it does not download."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What a model is trained on, and how its images are prepared.

    Args:
        source: "folder" (`train/` and `val/` with a folder for each class, or one folder for each
            class), "csv", "torchvision", "shards" (tar files, as `write_shards` writes them), or
            "digits", scikit-learn's. By default what `path` is, and digits where there is none.
        path: the folder or file, from the recipe's folder on; of torchvision's data sets, where
            they are kept.
        name: of torchvision's data set, such as "CIFAR10".
        download: torchvision may download what is not there yet.
        columns: the names of a CSV file's columns, where they are not path, label and split.
        separator: between the labels of one image, with `labels: many`.
        classes: their names in the order of the outputs; by default all that there are, sorted.
        labels: "one" for each image, or "many" (none, one or several).
        split: the part of the images to hold out where the data do not say which.
        size: of the image that the network gets, a side or height and width [pixels]; by default
            that of the model.
        fit: how an image gets to that size: "crop" (resized by its short side, and its center cut
            out), "squash" (height and width each on its own) or "pad" (resized by its long side,
            with a border of the mean color); by default as the model's weights were evaluated.
        interpolation: of resizing; by default that of the model's weights.
        mean: by channel, of images scaled to [0, 1]; by default that of the model's weights.
        std: likewise.
        augment: how much training images are varied at random; "none" prepares them as in
            evaluation.
        mirror: half of the training images are mirrored, where they are varied.
        mixup: alpha of mixup (Zhang et al. 2018, arXiv:1710.09412); 0 for none.
        cutmix: alpha of CutMix (Yun et al. 2019, arXiv:1905.04899); 0 for none. With both, each
            batch gets one of them.
        balance: rare classes count as much as frequent ones in the "loss", are drawn as often
            ("sample"), or not ("none").
        max_bad: as many images may be left out because something is wrong with them; all of them
            are named.
        max_pixels: a larger image is refused before it is decoded [pixels].
        formats: of files that may be decoded.
        check: decode every image before the first step ("full"), or read only its header.
        cache: compute what is frozen once, and train the rest on the result.
        views: with `cache`, times that each image is augmented and computed; by default one, which
            `augment: none` allows.
        max_cache: of the result, on the disk [GiB].

    Raises:
        RecipeError: a value that cannot be, or two that contradict each other.
    """

    source: str | None = None
    path: str | None = None
    name: str | None = None
    download: bool = False
    columns: Mapping[str, str] | None = None
    separator: str = ";"
    classes: tuple[str, ...] | None = None
    labels: str = "one"
    split: float = 0.2
    size: tuple[int, int] | None = None
    fit: str | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: str = "light"
    mirror: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0
    balance: str = "none"
    max_bad: int = 0
    max_pixels: int = 100_000_000
    formats: tuple[str, ...] = FORMATS
    check: str = "full"
    cache: bool = False
    views: int | None = None
    max_cache: float = 16.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None and each.default is None:
                continue
            if isinstance(value, (list, tuple)):
                value = tuple(value)
                object.__setattr__(self, each.name, value)
            _check(each.name, value)
        if isinstance(self.size, int):
            object.__setattr__(self, "size", (self.size, self.size))
        for key, problem in self._contradictions():
            raise _wrong(key, problem)

    @staticmethod
    def from_mapping(data: Mapping[str, Any] | None) -> DataSettings:
        """Read what stands in the section.

        Args:
            data: plain data; None stands for an empty section.

        Raises:
            RecipeError: an unknown key, a value that cannot be, or two that contradict each other.
        """
        data = {} if data is None else data
        if not isinstance(data, Mapping):
            hint = f" Write 'path: {data}' in it." if isinstance(data, str) else ""
            raise RecipeError(f"data: a section with keys, not {short_repr(data)}.{hint}")
        for key in data:
            if key not in RULES:
                keys = what_there_is(str(key), list(RULES), "The keys are")
                raise _wrong(str(key), f"unknown key {short_repr(key)}.{keys}", named=False)
            if data[key] is None and key in _NEEDED:
                raise _wrong(key, f"{wanted(RULES[key])}, not null")
        return DataSettings(**data)

    def to_mapping(self) -> dict[str, Any]:
        """Return the section as plain data, without what has its default."""
        found = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default:
                value = dict(value) if isinstance(value, Mapping) else value
                found[each.name] = list(value) if isinstance(value, tuple) else value
        return found

    def place(self, folder: Path) -> Path:
        """Return where `path` leads from a folder; `~ghost`, a home that is not there, stays."""
        return folder / os.path.expanduser(self.path or ".")  # noqa: PTH111

    def _contradictions(self) -> list[tuple[str, str]]:
        """Return the key and what is wrong with it, for each that does not go with another."""
        found = []
        source = self.source
        if source in ("folder", "csv", "shards") and self.path is None:
            found.append(("path", f"source is {source}, so 'path' has to say where it is"))
        if source == "torchvision" and self.name is None:
            found.append(("name", "source is torchvision, so 'name' has to say which data set"))
        for key in ("name", "download"):
            if getattr(self, key) and source != "torchvision":
                found.append((key, "only 'source: torchvision' takes it"))
        if self.download and self.name in NOT_DOWNLOADED:
            found.append(("download", f"torchvision does not download {self.name}"))
        if self.columns is not None and source not in ("csv", None):
            found.append(("columns", "only 'source: csv' takes it"))
        if self.separator != ";" and self.labels == "one":
            found.append(("separator", "without 'labels: many' an image has one label"))
        if self.max_cache != 16 and not self.cache:
            found.append(("max_cache", "without 'cache: true' nothing is kept"))
        if source == "digits" and self.path is not None:
            found.append(("path", "source is digits, which comes with scikit-learn"))
        if self.labels == "many" and source in ("folder", "digits", "torchvision"):
            said = f"source is {source}, where each image has one label"
            found.append(("labels", f"{said}; a CSV file can give it many"))
        if (self.mean is None) != (self.std is None):
            key = "std" if self.std is None else "mean"
            found.append((key, "mean and std come together, and one of them is missing"))
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            problem = f"{len(self.std)} numbers, and mean has {len(self.mean)}"
            found.append(("std", problem))
        if self.labels == "many" and self.balance == "sample":
            problem = "one image of many labels cannot be drawn for one of them; use 'loss'"
            found.append(("balance", problem))
        if self.views is not None and not self.cache:
            found.append(("views", "without 'cache: true' each epoch has views of its own"))
        if self.views is not None and self.augment == "none":
            problem = "with 'augment: none' all views of an image are the same"
            found.append(("views", problem))
        if self.cache and self.views is None and self.augment != "none":
            problem = (
                f"images are augmented at random ({self.augment}), so their features differ in "
                "each epoch: write 'augment: none', or 'views: 4' for four views of each"
            )
            found.append(("cache", problem))
        if self.cache and (self.mixup or self.cutmix):
            problem = "mixup and cutmix mix images, and cached are the features of single images"
            found.append(("cache", problem))
        return found


_NEEDED = {each.name for each in fields(DataSettings) if each.default is not None}


def _wrong(key: str, problem: str, *, named: bool = True) -> RecipeError:
    error = RecipeError(f"data.{key}: {problem}" if named else f"data: {problem}")
    error.below = (key,)
    return error


def _check(key: str, value: Any) -> None:
    rule = RULES[key]
    if problem := misfit(value, rule):
        raise _wrong(key, problem)
