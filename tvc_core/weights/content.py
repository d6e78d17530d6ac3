"""What tvc's own files say beside their tensors, and the rules by which every reader checks it.

The file's metadata has one entry "tvc": a JSON object with the format version, the recipe with
qualified names, the freeze state and what differs from it, the class names, the step-0 difference,
whether the hash of the pretrained weights had been compared, their license, the versions of what
wrote it, the preprocessing of its images, the user's own metadata, and the SHA-256 of all of these
and of every tensor's name, type, shape and bytes. A reader MUST refuse a file whose hash differs,
and MUST NOT import anything that it names. A fitting hash says that the file is what was written,
not that it is good: no field is trusted for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import WeightsError
from ..specs import WeightsSpec
from ..version import __version__
from ..written.rules import check_class_names
from ..written.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_VALUES
from .preparing import Preprocessing

__all__ = [
    "BASE_KEY", "FORMAT", "MODULE_KEY", "PREPARED", "check_content", "prepared_as", "was_set",
]  # fmt: skip

FORMAT = 5
_KEYS = ("format", "recipe", "freeze", "class_names", "step0_difference", "verified", "sha256")
_LATER = (*_KEYS, "versions", "saved", "preprocessing", "metadata")
_NOW = (*_KEYS, "by_hand", "license", "versions", "preprocessing", "metadata")
_KEYS_OF = {1: _KEYS, 2: _LATER, 3: _LATER, 4: _NOW, 5: _NOW}
"""The keys of each format that a reader knows. Since format 3, replacements keep settings of what
they replace; since format 4, what was frozen or thawed by hand stands there, and no date; since
format 5, the preprocessing may be one that was set for the model.
"""

MODULE_KEY = "module"
"""Only in files of models that were made from a user's module: what `from_module` was told."""

BASE_KEY = "base"
"""Only in files that hold what differs from a base: the name of its file, or the recipe by which it
is built; and the hash of its tensors.
"""

PREPARED = (
    "name", "crop_size", "resize_size", "squash", "interpolation", "mean", "std", "test_crop_size",
    "test_resize_size",
)  # fmt: skip
"""Fields of a `WeightsSpec` that say how images are prepared."""

_KINDS: dict[str, Any] = {
    "recipe": dict, "freeze": dict, "class_names": (list, dict, type(None)),
    "step0_difference": str, "verified": bool, "sha256": str, "by_hand": dict,
    "license": (str, type(None)), "versions": dict, "saved": str,
    "preprocessing": (dict, type(None)), "metadata": dict, MODULE_KEY: dict, BASE_KEY: dict,
}  # fmt: skip
_MODULE_KINDS: dict[str, Any] = {
    "type": str, "name": str, "stem": list, "stages": list, "head": str, "num_channels": int,
    "min_size": int, "fixed_size": bool, "auxiliary": dict,
}  # fmt: skip


def was_set(content: Mapping[str, Any]) -> Preprocessing | None:
    """Return the preprocessing that was set for the model of a file; None where none was.

    Raises:
        ParameterError: it cannot be.
    """
    said = content.get("preprocessing") or {}
    return Preprocessing.from_mapping(said) if "fit" in said else None


def prepared_as(weights: WeightsSpec, said: Mapping[str, Any]) -> WeightsSpec:
    """Return weights with the preprocessing of other weights that a file says.

    Raises:
        TypeError: a value of another kind.
        ValueError: a value that cannot be.
    """
    known = {name: each for name, each in said.items() if name in PREPARED}
    known |= {name: tuple(known[name]) for name in ("mean", "std") if name in known}
    numbers = [*known.get("mean", ()), *known.get("std", ())]
    sizes = [each for name, each in known.items() if name.endswith("_size") and each is not None]
    if not all(isinstance(each, (int, float)) and abs(each) < 1e6 for each in (*numbers, *sizes)):
        raise TypeError("a size, a mean or a deviation is no number")
    if any(each < 1 for each in sizes):
        raise ValueError("a size is not 1 pixel or more")
    return replace(weights, **known)


def check_content(content: Any) -> None:
    """Refuse what `load` could not use, whoever wrote it.

    Raises:
        ValueError: it is not what a file of its format says.
        TypeError: a value is not of its kind.
        RecursionError: it is nested too deep.
    """
    version = content.get("format") if isinstance(content, dict) else None
    if type(version) is int and version > FORMAT:
        versions = content.get("versions")
        by = versions.get("tvc-core") if isinstance(versions, dict) else None
        raise ValueError(
            f"of format {version}, which tvc {str(by)[:20] if by else 'of a later version'} "
            f"writes, and tvc {__version__} reads formats up to {FORMAT}: install a newer tvc-core"
        )
    keys = _KEYS_OF.get(version) if type(version) is int else None
    if keys is None or set(content) - {MODULE_KEY, BASE_KEY} != set(keys):
        raise ValueError(f"damaged, or of another format than 1 to {FORMAT}: {str(version)[:20]!r}")
    for key, kind in _KINDS.items():
        if key in content and not isinstance(content[key], kind):
            raise TypeError(f"{key!r} is of type {type(content[key]).__name__}")
    _check_names(content["class_names"], content["recipe"].get("head"))
    float(content["step0_difference"])
    for key, each in content.get("by_hand", {}).items():
        known = key in ("frozen", "trainable") and isinstance(each, list)
        if not known or not all(isinstance(name, str) for name in each):
            raise TypeError("'by_hand' does not say which parameters are frozen or trainable")
    module = content.get(MODULE_KEY)
    if module is not None:
        for key, kind in _MODULE_KINDS.items():
            if not isinstance(module.get(key, {} if key == "auxiliary" else None), kind):
                raise TypeError(f"{key!r} of the module is not right")
        if extra := module.keys() - _MODULE_KINDS.keys():
            raise TypeError(f"{min(extra, key=str)[:40]!r} of the module is not right")
    base = content.get(BASE_KEY, {"name": "", "sha256": ""})
    kinds = {key: type(each) for key, each in base.items()}
    if kinds not in ({"name": str, "sha256": str}, {"recipe": dict, "sha256": str}):
        raise TypeError("the base is not named as it should be")
    _check_recipe(base.get("recipe", {}))
    _check_recipe(content["recipe"])
    _check_plain(content, 2 * MAX_DEPTH)


def _check_names(names: Any, head: Any) -> None:
    """Refuse class names that are none, or not one for each output of the head."""
    head = head if isinstance(head, dict) else {}
    if isinstance(names, dict):
        heads = head.get("heads")
        for name, each in names.items():
            _check_names(each, heads.get(name) if isinstance(heads, dict) else None)
    elif names not in (None, []):  # once there were empty names, of a head without outputs
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("the class names are no list of texts")
        count = head.get("num_classes")
        try:
            check_class_names(names, count if type(count) is int else None, WeightsError)
        except WeightsError as error:
            raise ValueError(str(error)) from None


def _check_recipe(recipe: Mapping[str, Any]) -> None:
    if len(json.dumps(recipe)) > MAX_BYTES:
        raise ValueError(f"the recipe is larger than {MAX_BYTES:,} bytes")
    if _check_plain(recipe, MAX_DEPTH) > MAX_VALUES:
        raise ValueError(f"the recipe has more than {MAX_VALUES:,} values")


def _check_plain(value: Any, depth: int) -> int:
    """Return how many values there are in plain data."""
    if depth < 0:
        raise ValueError("it is nested too deep")
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:  # JSON would write a text for it, which reads back as a text
            raise TypeError(f"the key {str(wrong[0])[:40]!r} of a mapping is no text")
        return 1 + sum(_check_plain(each, depth - 1) for each in value.values())
    if isinstance(value, (list, tuple)):
        return 1 + sum(_check_plain(each, depth - 1) for each in value)
    return 1
