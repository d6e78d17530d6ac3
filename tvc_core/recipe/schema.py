"""What a user wrote, as one frozen Recipe: from keyword arguments, a mapping or a YAML file. Names
are not resolved here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, did_you_mean, join_names, short_repr
from ..specs import PATCH_KEYS

if TYPE_CHECKING:
    from .yaml_text import Lines

__all__ = ["PatchEntry", "Recipe", "check_recipe", "load_recipe", "make_recipe"]

_TOP = ("name", "backbone", "head", "freeze_backbone", "unfreeze_stages")
_BACKBONE = (
    "name",
    "weights",
    "patches",
    "options",
    "in_channels",
    "in_channels_policy",
    "image_size",
)
_HEAD = ("num_classes", "dropout", "class_names")

_NAMED_LATER = ("backbone", "weights", "options", "image_size")
"""Values of which only a registry can tell whether they are right."""

_A_PATCH = "a patch is an operation and its block, such as {'wrap': 'se'}"

CHANNEL_POLICIES = ("mean", "repeat", "zero")
CHANNEL_RULES = ("r", "g", "b", "mean", "zero")
_POLICY = (
    "'mean', 'repeat', 'zero', or a list with one rule a channel out of 'r', 'g', 'b', "
    "'mean', 'zero' and channel numbers"
)

HEAD_CHOICES = ("all", "last", "none")
NORMALIZATION_CHOICES = ("frozen", "eval", "train")
_FREEZE: dict[str, tuple[Any, ...]] = {
    "head": HEAD_CHOICES,
    "freeze_patches": (True, False),
    "normalization": NORMALIZATION_CHOICES,
}
"""What `freeze_backbone` takes in place of true: the keyword arguments of the model's method, and
their values.
"""

MAX_SIZE = 100_000
MAX_CLASSES = 10_000_000
_CLASSES = f"a whole number from 0 (no classifier) to {MAX_CLASSES:,}"


@dataclass(frozen=True, kw_only=True)
class PatchEntry:
    """One patch as written: at `target`, `op` with the block `block`.

    Args:
        target: dotted path of a module of the backbone, or a pattern of such paths.
        op: name of the patch operation.
        block: name of the block; None for an operation without one.
        params: keyword arguments of the block.
        init: name of an initializer; None for the operation's own start.
        name: last part of the inserted module's path, instead of the block's short name.
        options: keyword arguments of the operation.
        where: what errors put in front: file and line, or the path in the mapping.
    """

    target: str
    op: str
    block: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A hybrid model written down: the keyword arguments of `HybridBuilder.from_backbone`, and a
    name.

    Args:
        backbone: short or qualified name.
        name: free text, what the model is called.
        weights: name of a pretrained set, "DEFAULT", a torchvision enum member, or None for random
            weights.
        patches: in the order in which they are applied.
        options: keyword arguments of the backbone's factory.
        num_classes: outputs of the head; None keeps the pretrained head, 0 leaves the last layer
            out.
        dropout: probability of the head's dropout; None leaves it.
        class_names: one name for each output.
        freeze_backbone: freeze stem and stages, new blocks and head stay trainable; or a mapping of
            `head`, `freeze_patches` and `normalization`, as `HybridModel.freeze_backbone` takes
            them.
        unfreeze_stages: stages that stay trainable all the same; negative numbers count from the
            end.
        in_channels: channels of the images; None keeps what the backbone takes [channels].
        in_channels_policy: how the first convolution's weights follow from the pretrained ones:
            "mean" (which None stands for), "repeat", "zero", or one rule a channel.
        image_size: side of the images, for a backbone that is built for one size [pixels].
        lines: file and line of backbone, weights, options and image size, for errors; empty where
            there is no file.
    """

    backbone: str
    name: str | None = None
    weights: Any = "DEFAULT"
    patches: tuple[PatchEntry, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    dropout: float | None = None
    class_names: tuple[str, ...] | None = None
    freeze_backbone: bool | Mapping[str, Any] = False
    unfreeze_stages: tuple[int, ...] | None = None
    in_channels: int | None = None
    in_channels_policy: str | tuple[str | int, ...] | None = None
    image_size: int | None = None
    lines: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def from_mapping(data: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """Return the recipe that a mapping with the keys of the YAML form describes.

        Raises:
            RecipeError: unknown keys, missing keys, or values of the wrong kind.
        """
        return _parse(data, _Where(source))

    def to_mapping(self) -> dict[str, Any]:
        """Return plain data that `from_mapping` reads back as an equal recipe."""
        weights = self.weights.name if isinstance(self.weights, enum.Enum) else self.weights
        backbone: dict[str, Any] = {"name": self.backbone, "weights": weights}
        if self.options:
            backbone["options"] = dict(self.options)
        policy = self.in_channels_policy
        inputs = {
            "in_channels": self.in_channels,
            "in_channels_policy": list(policy) if isinstance(policy, tuple) else policy,
            "image_size": self.image_size,
        }
        backbone |= {key: value for key, value in inputs.items() if value is not None}
        if self.patches:
            backbone["patches"] = _patches_as_data(self.patches)
        names = list(self.class_names) if self.class_names is not None else None
        head = {"num_classes": self.num_classes, "dropout": self.dropout, "class_names": names}
        head = {key: value for key, value in head.items() if value is not None}
        data: dict[str, Any] = {"name": self.name} if self.name is not None else {}
        data["backbone"] = backbone
        if head:
            data["head"] = head
        if self.freeze_backbone:
            data["freeze_backbone"] = (
                self.freeze_backbone if self.freeze_backbone is True else dict(self.freeze_backbone)
            )
        if self.unfreeze_stages is not None:
            data["unfreeze_stages"] = list(self.unfreeze_stages)
        return data

    def to_yaml(self) -> str:
        """Return the recipe as YAML text.

        Raises:
            RecipeError: a parameter or option is no plain data.
        """
        from .yaml_text import write_yaml  # PyYAML is a fifth of what listing names takes

        return write_yaml(self.to_mapping())


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or is not a recipe; the message names
            file and line.
    """
    from .yaml_text import read_yaml  # see Recipe.to_yaml

    data, lines = read_yaml(Path(path))
    return _parse(data, _Where(str(path), lines))


def make_recipe(**arguments: Any) -> Recipe:
    """Return the recipe for the keyword arguments of `HybridBuilder.from_backbone`."""
    where = _Where("arguments")
    return _checked(where, dict.fromkeys(arguments, where), **arguments)


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that was made as `Recipe(...)` with values that no mapping or file
    may have.
    """
    values = {entry.name: getattr(recipe, entry.name) for entry in fields(recipe)}
    patches, _ = values.pop("patches"), values.pop("lines")
    make_recipe(**values)
    if not isinstance(patches, tuple) or not all(
        isinstance(patch, PatchEntry) for patch in patches
    ):
        raise RecipeError(
            f"patches is a tuple of PatchEntry, not {short_repr(patches)}; Recipe.from_mapping "
            "takes "
            "the written form"
        )


@dataclass(frozen=True)
class _Where:
    """A place in what the user wrote, for errors."""

    source: str
    lines: Lines | None = None
    path: tuple[Any, ...] = ()

    def __truediv__(self, key: Any) -> _Where:
        return _Where(self.source, self.lines, (*self.path, key))

    def __str__(self) -> str:
        if self.lines is not None:
            known = next(
                (
                    self.path[:n]
                    for n in range(len(self.path), -1, -1)
                    if self.path[:n] in self.lines
                ),
                (),
            )
            return f"{self.source}, line {self.lines.get(known, 1)}"
        return f"{self.source}, {self.dotted}" if self.path else self.source

    @property
    def dotted(self) -> str:
        return ".".join(str(part) for part in self.path)

    def error(self, message: str) -> RecipeError:
        return RecipeError(f"{self}: {message}")

    def section(self, data: Any, keys: Sequence[str]) -> Mapping[str, Any]:
        """Return `data` as a mapping that has no other keys than `keys`."""
        name = f"'{self.dotted}'" if self.path else "a recipe"
        if not isinstance(data, Mapping):
            raise self.error(
                f"{name} is a mapping with the keys {join_names(keys)}, not {short_repr(data)}"
            )
        for key in data:
            if key not in keys:
                hint = did_you_mean(str(key), keys)
                raise (self / key).error(
                    f"unknown key {short_repr(key)} in {name}.{hint} The keys are "
                    f"{join_names(keys)}"
                )
        return data


def _parse(data: Any, where: _Where) -> Recipe:
    top = where.section(data, _TOP)
    if "backbone" not in top:
        raise where.error(
            "the key 'backbone' is missing; a recipe needs at least 'backbone: resnet50'"
        )
    at = where / "backbone"
    backbone = (
        {"name": top["backbone"]}
        if isinstance(top["backbone"], str)
        else at.section(top["backbone"], _BACKBONE)
    )
    if "name" not in backbone:
        raise at.error(
            "the key 'name' is missing in 'backbone'; it names the network, such as resnet50"
        )
    at_head = where / "head"
    head = at_head.section(top["head"], _HEAD) if top.get("head") is not None else {}
    flat = {
        "backbone": backbone["name"],
        **{key: backbone[key] for key in _BACKBONE[1:] if key in backbone},
        **head,
    }
    places = {
        "backbone": at / "name",
        **{key: at / key for key in _BACKBONE[1:]},
        **{key: at_head / key for key in _HEAD},
    }
    for key in ("name", "freeze_backbone", "unfreeze_stages"):
        places[key] = where / key
        if key in top:
            flat[key] = top[key]
    return _checked(where, places, **flat)


def _checked(where: _Where, places: Mapping[str, _Where], **flat: Any) -> Recipe:
    """Check every value's kind and range and return the recipe."""

    def take(key: str, default: Any, check: Callable[[Any], bool], wanted: str) -> Any:
        value = flat.get(key, default)
        if value is default or check(value):
            return value
        raise places[key].error(f"{key} is {wanted}, not {short_repr(value)}")

    backbone = take("backbone", None, _is_name, "the name of a backbone")
    if backbone is None:
        raise places["backbone"].error("backbone is the name of a backbone, not None")
    weights = take(
        "weights", "DEFAULT", lambda v: v is None or isinstance(v, enum.Enum) or _is_name(v),
        "a name such as 'IMAGENET1K_V1', 'DEFAULT', a torchvision weights member, or null for "
        "random weights",
    )  # fmt: skip
    options = take("options", None, _is_keywords, "a mapping of option names to values")
    sizes = f"a whole number from 1 to {MAX_SIZE:,}"
    in_channels = take("in_channels", None, lambda v: _is_count(v) and 1 <= v <= MAX_SIZE, sizes)
    policy = take("in_channels_policy", None, _is_channel_policy, _POLICY)
    if policy is not None and in_channels is None:
        raise places["in_channels_policy"].error(
            "in_channels_policy is given without in_channels; say how many channels there are"
        )
    if isinstance(policy, (list, tuple)) and len(policy) != in_channels:
        raise places["in_channels_policy"].error(
            f"in_channels_policy has {len(policy)} rules for in_channels {in_channels}"
        )
    image_size = take("image_size", None, lambda v: _is_count(v) and 1 <= v <= MAX_SIZE, sizes)
    names = take("class_names", None, _is_name_list, "a list of different names")
    num_classes = take(
        "num_classes", None, lambda v: _is_count(v) and 0 <= v <= MAX_CLASSES, _CLASSES
    )
    if names is not None and num_classes is not None and len(names) != num_classes:
        raise places["class_names"].error(
            f"class_names has {len(names)} names for num_classes {num_classes}"
        )
    dropout = take(
        "dropout", None, lambda v: _is_number(v) and 0 <= v < 1, "a probability from 0 to below 1"
    )
    freeze = _parse_freeze(flat.get("freeze_backbone", False), places.get("freeze_backbone", where))
    stages = take(
        "unfreeze_stages", None, _is_stage_list, "a list of stage numbers, such as [2, 3]"
    )
    if stages is not None and not freeze:
        raise places["unfreeze_stages"].error(
            "unfreeze_stages says what stays trainable in a frozen backbone, but freeze_backbone "
            "is not true; "
            "set freeze_backbone=True, or leave unfreeze_stages out"
        )
    return Recipe(
        backbone=backbone,
        name=take("name", None, lambda v: isinstance(v, str), "text"),
        weights=weights,
        patches=_parse_patches(flat.get("patches"), places.get("patches", where)),
        options=dict(options or {}),
        num_classes=num_classes,
        dropout=None if dropout is None else float(dropout),
        class_names=None if names is None else tuple(names),
        freeze_backbone=freeze,
        unfreeze_stages=None if stages is None else tuple(stages),
        in_channels=in_channels,
        in_channels_policy=tuple(policy) if isinstance(policy, list) else policy,
        image_size=image_size,
        lines={
            key: str(place)
            for key, place in places.items()
            if place.lines is not None and key in _NAMED_LATER
        },
    )


def _parse_freeze(data: Any, where: _Where) -> bool | dict[str, Any]:
    if isinstance(data, bool):
        return data
    if not isinstance(data, Mapping) or not data:
        raise where.error(
            f"freeze_backbone is true or false, or a mapping with the keys {join_names(_FREEZE)}, "
            "not "
            f"{short_repr(data)}"
        )
    for key, value in where.section(data, list(_FREEZE)).items():
        if not any(
            value is choice or (isinstance(value, str) and value == choice)
            for choice in _FREEZE[key]
        ):
            hint = (
                did_you_mean(value, _FREEZE[key])
                if isinstance(value, str) and key != "freeze_patches"
                else ""
            )
            raise (where / key).error(
                f"{key} is {' or '.join(map(repr, _FREEZE[key]))}, not {short_repr(value)}.{hint}"
            )
    return dict(data)


def _parse_patches(data: Any, where: _Where) -> tuple[PatchEntry, ...]:
    if data is None:
        return ()
    if not isinstance(data, Mapping):
        raise where.error(
            "patches is a mapping of targets to operations, such as {'layer3': {'wrap': "
            f"'se'}}}}, not {short_repr(data)}"
        )
    entries: list[PatchEntry] = []
    for target, written in data.items():
        at = where / target
        if not _is_name(target):
            raise at.error(f"a patch target is the path of a module, not {short_repr(target)}")
        steps = [(at, written)] if isinstance(written, Mapping) else written
        if isinstance(steps, (list, tuple)) and not isinstance(written, Mapping):
            steps = [(at / index, step) for index, step in enumerate(written)]
        if not isinstance(steps, list) or not steps:
            raise at.error(f"{_A_PATCH}, or a list of them, not {short_repr(written)}")
        for at_step, step in steps:
            if not isinstance(step, Mapping) or not step:
                raise at_step.error(f"{_A_PATCH}, not {short_repr(step)}")
            entries += [_parse_patch(target, op, value, at_step / op) for op, value in step.items()]
    return tuple(entries)


def _parse_patch(target: str, op: Any, value: Any, where: _Where) -> PatchEntry:
    if not _is_name(op):
        raise where.error(f"a patch operation is a name such as 'wrap', not {short_repr(op)}")
    if _is_name(value):
        return PatchEntry(target=target, op=op, block=value, where=str(where))
    if value is None:
        value = {}
    if not isinstance(value, Mapping) or not _is_keywords(value):
        raise where.error(
            f"{op} takes the name of a block, or a mapping with the keys {join_names(PATCH_KEYS)}, "
            f"not {short_repr(value)}"
        )
    for key in ("type", "init", "name"):
        if value.get(key) is not None and not _is_name(value[key]):
            raise (where / key).error(f"{key} is a name, not {short_repr(value[key])}")
    if value.get("name") is not None and not value["name"].isidentifier():
        raise (where / "name").error(
            f"name is one part of a path, letters, digits and '_', not {short_repr(value['name'])}"
        )
    params = value.get("params")
    if params is not None and not _is_keywords(params):
        raise (where / "params").error(
            f"params is a mapping of parameter names to values, not {short_repr(params)}"
        )
    return PatchEntry(
        target=target,
        op=op,
        block=value.get("type"),
        params=dict(params or {}),
        init=value.get("init"),
        name=value.get("name"),
        options={key: option for key, option in value.items() if key not in PATCH_KEYS},
        where=str(where),
    )


def _patches_as_data(patches: Iterable[PatchEntry]) -> dict[str, Any]:
    steps: dict[str, list[dict[str, Any]]] = {}
    for entry in patches:
        full: dict[str, Any] = {
            "type": entry.block,
            "params": dict(entry.params),
            "init": entry.init,
            "name": entry.name,
        }
        full = {key: value for key, value in full.items() if value is not None and value != {}}
        steps.setdefault(entry.target, []).append({entry.op: {**full, **entry.options}})
    return {target: found[0] if len(found) == 1 else found for target, found in steps.items()}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_count(value) or isinstance(value, float)


def _is_keywords(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and key.isidentifier() for key in value
    )


def _is_stage_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(_is_count(item) for item in value)


def _is_name_list(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and all(isinstance(item, str) for item in value)
        and len(set(value)) == len(value)
    )


def _is_channel_policy(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(
            rule in CHANNEL_RULES if isinstance(rule, str) else _is_index(rule) for rule in value
        )
    return isinstance(value, str) and value in CHANNEL_POLICIES


def _is_index(value: Any) -> bool:
    return _is_count(value) and value >= 0
