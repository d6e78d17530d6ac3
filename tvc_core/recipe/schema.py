"""What a user wrote, as one frozen Recipe: from keyword arguments, a mapping or a YAML file. Names
are not resolved here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any

from ..advice import words
from ..errors import TargetError
from ..specs import PATCH_KEYS
from . import rules
from .place import Place
from .rules import Rule

__all__ = ["PatchEntry", "Patches", "Recipe", "Weights", "load_recipe"]

Block = str | Callable[..., Any]
"""A block's name, or in code a class or function that makes it, or the module itself."""

PatchStep = Mapping[str, Block | Mapping[str, Any] | None]
"""Operations with their blocks: {"wrap": "se"}, {"wrap": {"type": "se", "params": {...}}}."""

Patches = Mapping[str, PatchStep | Sequence[PatchStep]]
"""What to change where: targets with their patches, {"layer3": {"wrap": "se"}}."""

Weights = str | Path | enum.Enum | None
"""A pretrained set: its name, "DEFAULT", torchvision's enum member, the path of a file of one's
own, or None for random weights.
"""


@dataclass(frozen=True, kw_only=True)
class PatchEntry:
    """One patch as written: at `target`, `op` with the block `block`.

    Args:
        target: dotted path of a module of the backbone, or a pattern of such paths.
        op: name of the patch operation.
        block: name of the block, or in code a class, function or module of one's own; None for an
            operation without one.
        params: keyword arguments of the block.
        init: name of an initializer; None for the operation's own start.
        name: last part of the inserted module's path, instead of the block's short name.
        options: keyword arguments of the operation.
        where: what errors about it begin with.

    Raises:
        RecipeError: a value of the wrong kind.
    """

    target: str
    op: str
    block: Block | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    where: Place = field(default=Place("a patch"), compare=False, repr=False)

    def __post_init__(self) -> None:
        rules.TARGET.check("a patch target", self.target, self.where.error)
        rules.OPERATION.check("a patch operation", self.op, self.where.error)
        for key, value, rule in (
            ("type", self.block, rules.BLOCK),
            ("init", self.init, rules.NAME),
            ("name", self.name, rules.PATH_PART),
            ("params", self.params, rules.PARAMS),
            ("options", self.options, rules.OPTIONS),
        ):
            if value is not None:
                rule.check(key, value, (self.where / key).error)
        for key in ("params", "options"):
            object.__setattr__(self, key, dict(getattr(self, key) or {}))

    @contextmanager
    def before_errors(self) -> Iterator[None]:
        """Put the place of what is wrong with this patch before an error that is raised inside."""
        try:
            with self.where.before_errors():
                yield
        except TargetError as error:
            if self.where.marks is None:
                raise
            # what is wrong is the key above: the target
            depth = self.where.path.index("patches") + 2
            target = replace(self.where, path=self.where.path[:depth], of_key=True)
            said = str(error).removeprefix(f"{self.where}: ")
            raise TargetError(f"{target}: {said}") from error.__cause__


def _key(section: str, rule: Rule | None = None, default: Any = None) -> Any:
    """Return a field of a recipe: the section of the YAML form that has it, and what it may be."""
    return field(default=default, metadata={"section": section, "rule": rule})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A hybrid model written down: the keyword arguments of `HybridBuilder.from_backbone`, and a
    name.

    Args:
        name: free text, what the model is called.
        backbone: short or qualified name.
        weights: name of a pretrained set, "DEFAULT", a torchvision enum member, the path of a file
            of one's own, or None for random weights. A path has a separator or the suffix of a file
            of weights; in a YAML file it stays under that file's folder.
        patches: what to change where, such as {"layer3": {"wrap": "se"}}; a target may be a
            pattern, such as "stage:*.-1". Applied in this order.
        options: keyword arguments of the backbone's own builder.
        num_classes: outputs of the head. None, or the pretrained count, keeps the pretrained head;
            otherwise the last layer is new and the pretrained layers before it stay. 0: no last
            layer, the model returns what it got.
        dropout: probability of the head's dropout; a head without one gets it before its last
            layer. None leaves it.
        class_names: one name for each output, all different; without `num_classes` they say how
            many outputs there are. An output whose name the pretrained head has, as another of its
            outputs or among another number of them, starts with that one's weights.
        hidden: widths of new layers before the last one, such as [512], or one width: each a linear
            layer (a 1x1 convolution where the last layer is a convolution), an activation and a
            dropout. They and the last layer stand where the backbone's last layer stood.
        activation: of the hidden layers: "relu" (which None stands for), "gelu", "silu",
            "hardswish", "mish", "leaky_relu", "elu" or "tanh".
        heads: several heads in place of one, by name: the number of classes, their names, or a
            mapping of `num_classes`, `class_names`, `hidden`, `activation` and `dropout`. The model
            then returns a dict of logits by name. `hidden` and `dropout` above are before all.
        freeze_backbone: freeze stem and stages; the head and new blocks stay trainable. Or a
            mapping of `head`, `freeze_patches` and `normalization`, as
            `HybridModel.freeze_backbone` takes them, such as {"head": "last"}.
        unfreeze_stages: stages that stay trainable all the same, one or a list, by number (negative
            ones count from the end) or path, such as [2, "layer4"].
        stages: how many stages the network keeps, or the path of the last one ("layer3"), or a list
            of the first ones; the later ones are left out with their parameters. The pretrained
            head goes with them: the model returns pooled features of the last stage, or, with
            `num_classes`, the logits of a new layer on them. None, or all stages, keeps everything.
        in_channels: channels of the images; None keeps what the backbone takes [channels].
        in_channels_policy: how the first convolution's weights follow from the pretrained ones:
            "mean" (which None stands for), "repeat", "zero", or one rule a channel, such as ["r",
            "g", "b", "mean"].
        image_size: side of the images, or [height, width], for a backbone that is built for one
            size, such as ViT, whose position embeddings are then resampled [pixels].
        where: what errors about it begin with.

    Raises:
        RecipeError: a value of the wrong kind or out of range, or values that exclude each other.
    """

    name: str | None = _key("", rules.TEXT)
    backbone: str = field(metadata={"section": "backbone", "rule": rules.BACKBONE})
    weights: Weights = _key("backbone", rules.WEIGHTS, "DEFAULT")  # noqa: RUF009  makes a field
    patches: tuple[PatchEntry, ...] = _key("backbone")
    options: Mapping[str, Any] = _key("backbone", rules.OPTIONS)
    num_classes: int | None = _key("head", rules.NUM_CLASSES)
    dropout: float | None = _key("head", rules.DROPOUT)
    class_names: tuple[str, ...] | None = _key("head", rules.CLASS_NAMES)
    hidden: tuple[int, ...] | None = _key("head", rules.HIDDEN)
    activation: str | None = _key("head", rules.ACTIVATION)
    heads: Mapping[str, Any] | None = _key("head", rules.HEADS)
    freeze_backbone: bool | Mapping[str, Any] = _key("", rules.FREEZE_BACKBONE, False)
    unfreeze_stages: tuple[int | str, ...] | None = _key("", rules.STAGES)
    stages: int | str | tuple[int | str, ...] | None = _key("backbone", rules.STAGES_KEPT)
    in_channels: int | None = _key("backbone", rules.SIZE)
    in_channels_policy: str | tuple[str | int, ...] | None = _key("backbone", rules.CHANNEL_POLICY)
    image_size: int | tuple[int, ...] | None = _key("backbone", rules.IMAGE_SIZE)
    where: Place = field(default=Place("arguments"), compare=False, repr=False)

    def __post_init__(self) -> None:
        kept: dict[str, Any] = {}
        for entry in fields(self):
            value, rule = getattr(self, entry.name), entry.metadata.get("rule")
            if rule is not None and value is not entry.default:
                kept[entry.name] = rule.check(entry.name, value, self.place(entry.name).error)
        kept.setdefault("options", {})
        kept["patches"] = _entries(self.patches, self.place("patches"))
        for key, value in kept.items():
            object.__setattr__(self, key, value)
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Refuse values that are right alone and wrong together, or wrong inside."""
        if isinstance(self.freeze_backbone, dict):
            place = self.place("freeze_backbone")
            place.section(self.freeze_backbone, "'freeze_backbone'", rules.FREEZE)
            for key, value in self.freeze_backbone.items():
                at = place if place.marks is None else place / key
                rules.FREEZE[key].check(key, value, at.error)
        policy, channels = self.in_channels_policy, self.in_channels
        error = self.place("in_channels_policy").error
        if policy is not None and channels is None:
            raise error("in_channels_policy is given without in_channels: how many are there?")
        if isinstance(policy, tuple) and len(policy) != channels:
            raise error(f"in_channels_policy has {len(policy)} rules for in_channels {channels}")
        if self.class_names is not None:
            if self.class_names and self.num_classes is None:
                object.__setattr__(self, "num_classes", len(self.class_names))
            error = self.place("class_names").error
            rules.check_class_names(self.class_names, self.num_classes, error)
        rules.check_activation(self.activation, self.hidden, self.place("activation").error)
        if self.heads is not None:
            if self.num_classes is not None:
                raise self.place("heads").error(
                    "each of the heads has its own classes: leave num_classes and class_names out"
                )
            object.__setattr__(self, "heads", rules.check_heads(self.heads, self.place("heads")))
        if self.unfreeze_stages is not None and not self.freeze_backbone:
            raise self.place("unfreeze_stages").error(
                "unfreeze_stages says what stays trainable in a frozen backbone: set "
                "freeze_backbone=True, or leave unfreeze_stages out"
            )

    @property
    def has_new_classes(self) -> bool:
        """Whether the recipe gives the head its classes."""
        return self.num_classes is not None or bool(self.class_names or self.heads)

    def place(self, key: str) -> Place:
        """Return where one of the values stands: its line in a file. Elsewhere its name, which is
        in the message, says it.
        """
        if self.where.marks is None:
            return self.where
        section = _SECTION_OF[key]
        return (self.where / section if section else self.where) / _WRITTEN.get(key, key)

    @staticmethod
    def from_mapping(data: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """Return the recipe that a mapping with the keys of the YAML form describes.

        Raises:
            RecipeError: unknown keys, missing keys, or values of the wrong kind.
        """
        return _parse(data, Place(source))

    def to_mapping(self) -> dict[str, Any]:
        """Return plain data that `from_mapping` reads back as an equal recipe."""
        data: dict[str, Any] = {}
        for key, section in _SECTION_OF.items():
            value = getattr(self, key)
            if key == "weights" or value != _LEFT_OUT.get(key):
                place = data.setdefault(section, {}) if section else data
                place[_WRITTEN.get(key, key)] = _plain(value)
        return data

    def to_yaml(self) -> str:
        """Return the recipe as YAML text.

        Raises:
            RecipeError: a parameter or option is not plain data.
        """
        from .yaml_text import write_yaml  # PyYAML is a fifth of what listing names takes

        return write_yaml(self.to_mapping())


_LEFT_OUT = {"patches": (), "options": {}, "freeze_backbone": False}
"""Values that a mapping need not say; of the other keys that is None."""


_WRITTEN = {"backbone": "name"}
"""The key of the YAML form, where it is not the field's name."""

_SECTION_OF: dict[str, str] = {
    entry.name: entry.metadata["section"] for entry in fields(Recipe) if entry.metadata
}
SECTIONS = {
    section: [_WRITTEN.get(key, key) for key, where in _SECTION_OF.items() if where == section]
    for section in ("", "backbone", "head")
}
"""The keys of the YAML form: at the top, under `backbone` and under `head`."""

SECTIONS[""][1:1] = ["backbone", "head"]


def load_recipe(path: str | Path | IO[bytes]) -> Recipe:
    """Read a recipe from a YAML file, or from one that is open.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or is not a recipe; the message names
            file and line.
    """
    from .yaml_text import read_yaml  # see Recipe.to_yaml

    if isinstance(path, (str, Path)):
        name, file = str(path), None
    else:
        name, file = str(getattr(path, "name", "<recipe>")), path
    data, marks = read_yaml(Path(name), file)
    return _parse(data, Place(name, marks=marks))


def _parse(data: Any, where: Place) -> Recipe:
    top = dict(where.section(data, "a recipe", SECTIONS[""], _elsewhere("")))
    if "backbone" not in top:
        needed = "a recipe needs at least 'backbone: resnet50'"
        raise where.error(f"the key 'backbone' is missing; {needed}")
    backbone, head, at = top.pop("backbone"), top.pop("head", None), where / "backbone"
    if isinstance(backbone, str):
        backbone = {"name": backbone}
    backbone = at.section(backbone, "'backbone'", SECTIONS["backbone"], _elsewhere("backbone"))
    backbone = dict(backbone)
    if "name" not in backbone:
        raise at.error("the key 'name' is missing in 'backbone'; it names the network")
    if head is not None:
        at = where / "head"
        head = at.section(head, "'head'", SECTIONS["head"], _elsewhere("head"))
    return Recipe(backbone=backbone.pop("name"), **backbone, **(head or {}), **top, where=where)


def _elsewhere(here: str) -> dict[str, str]:
    """Return what to do with a key that stands in one section and belongs into another."""
    moved = {
        key: f"It belongs {f'under {section!r}' if section else 'at the top'}."
        for section, keys in SECTIONS.items()
        for key in keys
        if key not in SECTIONS[here]
    }
    return words.ARGUMENTS | moved


def _entries(given: Any, where: Place) -> tuple[PatchEntry, ...]:
    """Return patches in the written form as entries; a tuple of entries is what it is."""
    if given is None:
        return ()
    if isinstance(given, tuple) and all(isinstance(entry, PatchEntry) for entry in given):
        return given
    rules.PATCHES.check("patches", given, where.error)
    entries: list[PatchEntry] = []
    for target, written in given.items():
        at, many = where / target, isinstance(written, (list, tuple)) and bool(written)
        for index, step in enumerate(written if many else [written]):
            place = at / index if many else at
            rules.PATCH.check("a patch", step, place.error)
            entries += [_entry(target, op, value, place / op) for op, value in step.items()]
    return tuple(entries)


def _entry(target: Any, op: Any, value: Any, where: Place) -> PatchEntry:
    if value is None or rules.is_name(value) or callable(value):
        value = {"type": value}
    rules.PATCH_VALUE.check(str(op), value, where.error)
    known = {"block" if key == "type" else key: value.get(key) for key in PATCH_KEYS}
    options = {key: option for key, option in value.items() if key not in PATCH_KEYS}
    return PatchEntry(target=target, op=op, **known, options=options, where=where)


def _patches_as_data(patches: Iterable[PatchEntry]) -> dict[str, Any]:
    steps: dict[str, list[dict[str, Any]]] = {}
    for entry in patches:
        full = {"type": entry.block, "params": entry.params, "init": entry.init, "name": entry.name}
        written = {key: _plain(value) for key, value in full.items() if value not in (None, {})}
        steps.setdefault(entry.target, []).append({entry.op: {**written, **entry.options}})
    return {target: found[0] if len(found) == 1 else found for target, found in steps.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, tuple):
        patches = value and isinstance(value[0], PatchEntry)
        return _patches_as_data(value) if patches else list(value)
    return dict(value) if isinstance(value, Mapping) else value
