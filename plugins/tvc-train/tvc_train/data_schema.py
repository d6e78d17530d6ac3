"""The section `data` as a JSON Schema. Light: imports nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["AUGMENTATIONS", "DATA", "FORMATS", "RULES", "SOURCES", "or_null"]

SOURCES = ("digits", "folder", "csv", "torchvision", "shards")
AUGMENTATIONS = ("none", "light", "standard", "strong")
FORMATS = ("jpeg", "png", "webp", "bmp", "gif", "tiff", "ppm")
"""What may be allowed: formats that Pillow reads without another program."""

_SIDE = {"type": "integer", "minimum": 1, "maximum": 8192}
_SHARE = {"type": "number", "minimum": 0}
_TEXTS = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}
_NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3}
_CHANNELS = {**_NUMBERS, "items": {"type": "number", "exclusiveMinimum": 0}}

RULES: dict[str, dict[str, Any]] = {
    "source": {"enum": list(SOURCES)},
    "path": {"type": "string", "minLength": 1},
    "name": {"type": "string", "minLength": 1},
    "download": {"type": "boolean"},
    "columns": {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("path", "label", "split")},
        "additionalProperties": False,
    },
    "separator": {"type": "string", "minLength": 1},
    "classes": {**_TEXTS, "uniqueItems": True},
    "labels": {"enum": ["one", "many"]},
    "split": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "size": {"anyOf": [_SIDE, {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}]},
    "fit": {"enum": ["crop", "squash", "pad"]},
    "interpolation": {"enum": ["bilinear", "bicubic", "nearest"]},
    "mean": _NUMBERS,
    "std": _CHANNELS,
    "augment": {"enum": list(AUGMENTATIONS)},
    "mirror": {"type": "boolean"},
    "mixup": _SHARE,
    "cutmix": _SHARE,
    "balance": {"enum": ["none", "loss", "sample"]},
    "max_bad": {"type": "integer", "minimum": 0},
    "max_pixels": {"type": "integer", "minimum": 1},
    "formats": {"type": "array", "items": {"enum": list(FORMATS)}, "minItems": 1},
    "check": {"enum": ["full", "headers"]},
    "cache": {"type": "boolean"},
    "views": {"type": "integer", "minimum": 1},
    "max_cache": {"type": "number", "exclusiveMinimum": 0},
}


def or_null(rules: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return rules for the keys of a section, of which some may also be null, as if they were not
    there.
    """
    null = {"type": "null"}
    return {key: {"anyOf": [rule, null]} if key in keys else rule for key, rule in rules.items()}


DATA: dict[str, Any] = {
    "type": "object",
    "properties": or_null(
        RULES, "source", "path", "name", "columns", "classes", "size", "fit", "interpolation",
        "mean", "std", "views",
    ),
    "additionalProperties": False,
    "x-tvc-other-names": {
        **dict.fromkeys(("root", "dir", "directory", "folder", "file"), "path"),
        **dict.fromkeys(("train", "val"), "split, or path to a folder with train/ and val/"),
        **dict.fromkeys(("val_split", "validation_split", "test_size"), "split"),
        **dict.fromkeys(("image_size", "img_size", "crop_size", "resize"), "size"),
        **dict.fromkeys(("augmentation", "transform", "transforms"), "augment"),
        **dict.fromkeys(("hflip", "horizontal_flip"), "mirror"),
        "normalize": "mean and std",
        "class_weights": "balance",
        "batch_size": "training.batch_size",
        **dict.fromkeys(("workers", "num_workers"), "training.workers"),
    },
}  # fmt: skip
