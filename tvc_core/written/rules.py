"""What a value may be: one rule for the recipe that has it and for the method of a model that takes
it.

A rule raises what its caller says, such as `HeadError` or the error of a place in a file.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..advice import words
from ..errors import TvcError, did_you_mean, join_names, short_repr, what_there_is
from ..specs import PATCH_KEYS
from .place import Place

__all__ = [
    "Rule", "check_class_names", "check_freeze", "check_head", "check_heads", "check_keys",
    "is_file", "is_keywords", "is_name", "requirement",
]  # fmt: skip

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""Of files of weights."""

MAX_SIZE, MAX_CLASSES = 100_000, 10_000_000

CHANNEL_POLICIES = ("mean", "repeat", "zero")
CHANNEL_RULES = ("r", "g", "b", "mean", "zero")

ACTIVATIONS = {
    "relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "hardswish": "Hardswish", "mish": "Mish",
    "leaky_relu": "LeakyReLU", "elu": "ELU", "tanh": "Tanh",
}  # fmt: skip
"""Between the layers of a head: the names for recipes, and torch.nn's classes."""

MakeError = Callable[[str], TvcError]
"""What makes an error out of its message: its class, or a method that adds a place."""


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    Args:
        says: what it is, as errors say it after the value's name.
        fits: tells whether a value is that.
        keep: makes of a value that fits what is kept of it.
        choices: the values that there are, for "did you mean".
        advise: says of a value what is meant by it, or nothing.
    """

    says: str
    fits: Callable[[Any], bool]
    keep: Callable[[Any], Any] = lambda value: value
    choices: tuple[Any, ...] = ()
    advise: Callable[[Any], str] = lambda value: ""

    def check(self, name: str, value: Any, error: MakeError) -> Any:
        """Return what is kept of a value.

        Args:
            name: what the error calls it.
            value: as it was given.
            error: makes the error.

        Raises:
            TvcError: what `error` makes: the value does not fit.
        """
        if self.fits(value):
            return self.keep(value)
        names = [choice for choice in self.choices if isinstance(choice, str)]
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
        hint = hint or self.advise(value) or words.on_value(value, self.fits)
        raise error(f"{name} {self.says}, not {short_repr(value)}{hint and f'.{hint}'}")


_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*((?:(?:>=|<=|==|!=|>|<)\s*[0-9.]+\s*,?\s*)*)")
_CONDITION = re.compile(r"(>=|<=|==|!=|>|<)\s*([0-9.]+)")


def requirement(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Return name and conditions of a requirement: of "a>=1,<2" [(">=", "1"), ("<", "2")]."""
    name, conditions = _REQUIREMENT.fullmatch(text).groups()  # type: ignore[union-attr]
    return name, _CONDITION.findall(conditions)


def is_file(value: Any) -> bool:
    """Return whether text stands for a file of weights: it has a path separator, or the suffix of
    one.
    """
    if isinstance(value, PurePath):
        return True
    if not isinstance(value, str) or "://" in value:
        return False
    path, _ = split_entry(value)
    return "/" in path or os.sep in path or PurePath(path).suffix in WEIGHT_SUFFIXES


def split_entry(value: str) -> tuple[str, str | None]:
    """Return the path and the entry of a file of weights: of "training.pth#model_ema" both, else
    the path and None.
    """
    path, mark, entry = value.partition("#")
    return (path, entry) if mark else (value, None)


def file_name(path: PurePath) -> str:
    """Return a path as text that `is_file` knows."""
    return str(path) if is_file(str(path)) else f"./{path}"


def is_name(value: Any) -> bool:
    """Return whether a value is text with something in it."""
    return isinstance(value, str) and bool(value.strip())


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(SIZE.fits, value))


def _is_identifier(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def is_keywords(value: Any) -> bool:
    """Return whether a value is a mapping whose keys can be keyword arguments."""
    return isinstance(value, Mapping) and all(map(_is_identifier, value))


def _has_entries(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _is_int(value: Any, least: float = float("-inf"), most: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_probability(value: Any) -> bool:
    return (isinstance(value, float) or _is_int(value)) and 0 <= value < 1


def _are_different_texts(value: Any) -> bool:
    texts = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    return texts and 0 < len(set(value)) == len(value)


def _is_channel_policy(value: Any) -> bool:
    if isinstance(value, str):
        return value in CHANNEL_POLICIES
    rules = list(value) if isinstance(value, (list, tuple)) else []
    names = [rule for rule in rules if not _is_int(rule, 0)]
    return bool(rules) and all(isinstance(n, str) and n in CHANNEL_RULES for n in names)


def _near_channel_rule(value: Any) -> str:
    known = [*CHANNEL_POLICIES, *CHANNEL_RULES]
    wrong = (each for each in _listed(value) if isinstance(each, str) and each not in known)
    return next(filter(None, (did_you_mean(each, known) for each in wrong)), "")


def _listed(value: Any) -> tuple[Any, ...]:
    many = isinstance(value, (list, tuple, set, frozenset, range))
    return tuple(value) if many else (value,)


def _choice(says: str, *choices: Any) -> Rule:
    def fits(value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in choices)

    return Rule(f"{says} {join_names(map(str, choices))}", fits, choices=choices)


def _whole(least: int, most: int, note: str = "") -> Rule:
    says = f"is a whole number from {least}{note} to {most:,}"
    return Rule(says, lambda value: _is_int(value, least, most))


TEXT = Rule("is text", lambda value: isinstance(value, str))
VERSION = Rule("is 1, the only one that there is", lambda value: _is_int(value, 1, 1))
SEED = Rule("is a whole number from 0 to 2**63 - 1", lambda value: _is_int(value, 0, 2**63 - 1))
MAX_PARAMS = Rule("is a whole number of at least 1", lambda value: _is_int(value, 1))
REQUIRES = Rule(
    "is a list of distributions with versions, such as ['acme-blocks>=0.2,<1']",
    lambda value: all(is_name(each) and _REQUIREMENT.fullmatch(each) for each in _listed(value)),
    _listed,
)
NAME = Rule("is a name", is_name)
BACKBONE = Rule("is the name of a backbone", is_name, advise=words.on_backbone)
BLOCK = Rule(
    "is a name, or in code a class or a module", lambda value: is_name(value) or callable(value)
)
WEIGHTS = Rule(
    "is a name such as 'IMAGENET1K_V1', 'DEFAULT', a torchvision weights member, a file, or null",
    lambda value: value is None or isinstance(value, (enum.Enum, PurePath)) or is_name(value),
    lambda value: file_name(value) if isinstance(value, PurePath) else value,
    advise=words.on_weights,
)
OPTIONS = Rule("is a mapping of option names to values", is_keywords, dict)
PARAMS = Rule("is a mapping of parameter names to values", is_keywords, dict)
TARGET = Rule("is the path of a module, such as 'layer3'", is_name)
OPERATION = Rule("is a name such as 'wrap'", is_name)
PATH_PART = Rule("is one part of a path, letters, digits and '_'", _is_identifier)
SIZE = _whole(1, MAX_SIZE)
IMAGE_SIZE = Rule(
    f"{SIZE.says}, or [height, width]",
    lambda value: SIZE.fits(value) or _is_pair(value),
    lambda value: value if _is_int(value) else tuple(value) if value[0] != value[1] else value[0],
)
NUM_CLASSES = _whole(0, MAX_CLASSES, " (no classifier)")
DROPOUT = Rule("is a probability from 0 to below 1", _is_probability, float)
CLASS_NAMES = Rule(
    "is a list of different names", _are_different_texts, tuple, advise=words.on_names
)
HIDDEN = Rule(
    "is a list of layer widths, such as [512], or one width",
    lambda value: all(map(SIZE.fits, _listed(value))),
    _listed,
)
ACTIVATION = _choice("is one of", *ACTIVATIONS)
HEADS = Rule(
    "is a mapping of names to classes, such as {'breed': ['pug', 'beagle'], 'age': 1}, or to "
    "mappings",
    _has_entries,
)
HEAD = {
    "num_classes": _whole(1, MAX_CLASSES),
    "class_names": CLASS_NAMES,
    "hidden": HIDDEN,
    "activation": ACTIVATION,
    "dropout": DROPOUT,
}
"""What one of several heads takes."""

CHANNEL_POLICY = Rule(
    "is 'mean', 'repeat', 'zero', or a list with one rule a channel out of 'r', 'g', 'b', 'mean', "
    "'zero' and channel numbers",
    _is_channel_policy,
    lambda value: tuple(value) if isinstance(value, list) else value,
    advise=_near_channel_rule,
)
STAGES = Rule(
    "is a list of stages, by number or path, such as [2, 'layer4'], or one",
    lambda value: all(_is_int(stage) or is_name(stage) for stage in _listed(value)),
    _listed,
)
CHECKPOINTING = Rule(
    "is true or false, or a list of stages, by number or path",
    lambda v: isinstance(v, bool) or (not isinstance(v, (str, int)) and STAGES.fits(v)),
    lambda value: value if isinstance(value, bool) else _listed(value),
)
STAGES_KEPT = Rule(
    "is how many stages there are to be, the path of the last one, or a list of the first ones",
    lambda value: STAGES.fits(value) and value not in ([], ()),
    lambda value: value if isinstance(value, (int, str)) else tuple(value),
)
FREEZE = {
    "head": _choice("says what of the head is trainable:", "all", "last", "none"),
    "freeze_patches": _choice("says whether blocks in frozen parts are frozen:", True, False),
    "normalization": _choice(
        "says what the normalization layers of frozen parts do:", "frozen", "eval", "train"
    ),
}
"""What `freeze_backbone` takes in place of true: the keyword arguments of the model's method."""

FREEZE_BACKBONE = Rule(
    f"is true or false, or a mapping with the keys {join_names(FREEZE)}",
    lambda value: isinstance(value, bool) or _has_entries(value),
)
PATCHES = Rule(
    "is a mapping of targets to operations, such as {'layer3': {'wrap': 'se'}}",
    lambda value: isinstance(value, Mapping),
)
PATCH = Rule(
    "is an operation and its block, such as {'wrap': 'se'}, or a list of them", _has_entries
)
PATCH_VALUE = Rule(
    f"takes the name of a block, or a mapping with the keys {join_names(PATCH_KEYS)}; in code also "
    "a class or a module",
    is_keywords,
)


def check_keys(
    data: Any,
    name: str,
    keys: Iterable[str] | Mapping[str, Rule],
    where: Place,
    elsewhere: Mapping[str, str] = {},
) -> dict[str, Any]:
    """Return a mapping that has no other key than `keys`.

    Args:
        data: what was written.
        name: what errors call it.
        keys: what it may have, with the rules of the values where they are to be checked here.
        where: what errors begin with.
        elsewhere: says of other keys what to do.

    Raises:
        RecipeError: it is not a mapping, has another key, or a value that does not fit.
    """
    if not isinstance(data, Mapping):
        wanted = f"a mapping with the keys {join_names(keys)}"
        hint = words.on_backbone(data) or words.on_mapping(data, keys)
        hint = hint or words.on_value(data, is_keywords)
        raise where.error(f"{name} is {wanted}, not {short_repr(data)}{hint and f'.{hint}'}")
    for key in data:
        if key not in keys:
            known = what_there_is(str(key), keys, "The keys are")
            hint = f" {elsewhere[key]}" if key in elsewhere else words.on_mapping(key, keys)
            hint = hint or known
            raise (where / key).key.error(f"unknown key {short_repr(key)} in {name}.{hint}")
    if not isinstance(keys, Mapping):
        return dict(data)
    return {
        key: keys[key].check(key, value, where.in_file(key).error) for key, value in data.items()
    }


def check_freeze(given: Any, where: Place) -> bool | dict[str, Any]:
    """Return what `freeze_backbone` says.

    Raises:
        RecipeError: it is not true or false and no mapping of what to freeze.
    """
    FREEZE_BACKBONE.check("freeze_backbone", given, where.error)
    if isinstance(given, bool):
        return given
    return check_keys(given, "'freeze_backbone'", FREEZE, where)


def check_class_names(names: Any, num_classes: int | None, error: MakeError) -> tuple[str, ...]:
    """Return class names as a tuple: one for each output, text, and all different.

    Args:
        names: a list or tuple.
        num_classes: outputs of the head; None where they are not known yet.
        error: makes the error.

    Raises:
        TvcError: what `error` makes: they are not that.
    """
    kept: tuple[str, ...] = CLASS_NAMES.check("class_names", names, error)
    if num_classes not in (None, len(kept)):
        what = f"class_names has {len(kept)} entries; the head has {num_classes} outputs, each "
        fits = f"num_classes={len(kept)} gives it a new last layer with {len(kept)}"
        raise error(f"{what}needs a name. {fits}.")
    return kept


def check_head(head: dict[str, Any], place: Callable[[str], Place]) -> None:
    """Check what one of the values of a head says of another; names alone say how many classes.

    Args:
        head: the values, each checked by itself.
        place: says where one of them stands.

    Raises:
        RecipeError: the names are not as many as the classes, or there is an activation and no
            hidden layer.
    """
    if (names := head.get("class_names")) is not None:
        if names and head.get("num_classes") is None:
            head["num_classes"] = len(names)
        check_class_names(names, head.get("num_classes"), place("class_names").error)
    if head.get("activation") is not None and not head.get("hidden"):
        raise place("activation").error(
            "activation is that of hidden layers: give hidden=[512] as well, or leave it out"
        )


def check_heads(heads: Any, where: Place) -> dict[str, dict[str, Any]]:
    """Return several heads in their full form, plain data: {"age": 1} as {"age": {"num_classes":
    1}}.

    Args:
        heads: as they were written.
        where: what errors begin with.

    Raises:
        RecipeError: a head without classes, with a key that it does not take, or a wrong value.
    """
    kept: dict[str, dict[str, Any]] = {}
    for name, given in HEADS.check("heads", heads, where.error).items():
        PATH_PART.check("the name of a head", name, where.error)
        if not isinstance(given, Mapping):
            given = {"class_names" if isinstance(given, (list, tuple)) else "num_classes": given}
        head = check_keys(given, f"the head {name!r}", HEAD, where / name)
        check_head(head, (where / name).in_file)
        if "num_classes" not in head:
            problem = f"the head {name!r} has no classes: give num_classes or class_names"
            raise (where / name).error(problem)
        kept[name] = {key: list(v) if isinstance(v, tuple) else v for key, v in head.items()}
    return kept
