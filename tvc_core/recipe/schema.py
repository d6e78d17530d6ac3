"""What a user wrote, as one frozen Recipe: from keyword arguments, a mapping or a YAML file. Names
are not resolved here.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any

from ..advice import words
from ..errors import RecipeError, TargetError, did_you_mean, short_repr
from ..registry import Registry
from ..specs import PATCH_KEYS
from ..written import rules
from ..written.place import Place, keys_of
from ..written.rules import Rule
from .document import RecipeDocument, claimed

__all__ = ["KEY_PATHS", "PatchEntry", "Patches", "Recipe", "Weights", "load_recipe"]

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


def _key(
    path: str,
    rule: Rule | Callable[[Any, Place], Any],
    default: Any = None,
    empty: Any = None,
    called: str | None = None,
    keys: Mapping[str, Rule] | None = None,
) -> Any:
    """Return a field that is checked. A new key of recipes is one of these, and its documentation.

    Args:
        path: where it stands in the YAML form: "head.dropout", or "name" at the top.
        rule: what a value may be, or a function that returns what is kept of it and raises an error
            about the place where it stands.
        default: what it is where nothing is said.
        empty: what None is kept as.
        called: what errors call it, where that is not the field's name.
        keys: of a value that is a mapping, or of each of several: what it may have.
    """
    where = tuple(filter(None, path.split(".")))
    about = {"path": where, "rule": rule, "empty": empty, "called": called, "keys": keys}
    return field(default=default, metadata=about)


def _keep(written: Any, at: Callable[..., Place]) -> None:
    """Check every field that `_key` made, and put what is kept of the value in its place.

    Args:
        written: a dataclass that is being made.
        at: returns the place of a path.
    """
    for entry in _keys(type(written)):
        about, value = entry.metadata, getattr(written, entry.name)
        value = about["empty"] if value is None else value
        if value is not entry.default:
            rule, place = about["rule"], at(*about["path"])
            if isinstance(rule, Rule):
                value = rule.check(about["called"] or entry.name, value, place.error)
            else:
                value = rule(value, place)
        object.__setattr__(written, entry.name, value)


def _keys(of: type[Any]) -> list[Field[Any]]:
    return [entry for entry in fields(of) if entry.metadata]


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

    target: str = _key("", rules.TARGET, MISSING, called="a patch target")
    op: str = _key("", rules.OPERATION, MISSING, called="a patch operation")
    block: Block | None = _key("type", rules.BLOCK, called="type")  # noqa: RUF009  a field
    params: Mapping[str, Any] = _key("params", rules.PARAMS, empty={})
    init: str | None = _key("init", rules.NAME)
    name: str | None = _key("name", rules.PATH_PART)
    options: Mapping[str, Any] = _key("options", rules.OPTIONS, empty={})
    where: Place = field(default=Place("a patch"), compare=False, repr=False)

    def __post_init__(self) -> None:
        _keep(self, self.where.down)

    @contextmanager
    def before_errors(self) -> Iterator[None]:
        """Put the place of what is wrong with this patch before an error that is raised inside."""
        with self.where.before_errors():
            try:
                yield
            except TargetError:
                if self.where.marks is None:
                    raise
                # what is wrong is the key above: the target
                path = self.where.path[: self.where.path.index("patches") + 2]
                with replace(self.where, path=path, of_key=True).before_errors():
                    raise


def _entries(given: Any, where: Place) -> tuple[PatchEntry, ...]:
    """Return patches in the written form as entries; a tuple of entries is what it is."""
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
    rule = replace(rules.PATCH_VALUE, advise=functools.partial(words.on_patch, str(op)))
    rule.check(str(op), value, where.error)
    known = {"block" if key == "type" else key: value.get(key) for key in PATCH_KEYS}
    options = {key: option for key, option in value.items() if key not in PATCH_KEYS}
    return PatchEntry(target=target, op=op, **known, options=options, where=where)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A hybrid model written down: the keyword arguments of `HybridBuilder.from_backbone`, and a
    name.

    Args:
        version: of the form of recipes: 1, which None stands for.
        name: free text, what the model is called.
        description: free text.
        requires: distributions that are needed, each with the versions that will do, such as
            ["acme-blocks>=0.2,<1"].
        seed: new parameters start from it: they are the same in every process, and torch's own
            generator stays where it is. None draws them from torch's generator.
        max_params: how many parameters the model may have; a larger one is refused before memory
            is taken for it.
        backbone: short or qualified name.
        weights: name of a pretrained set, "DEFAULT", a torchvision enum member, the path of a file
            of one's own, or None for random weights. A path has a separator or the suffix of a file
            of weights; in a YAML file it stays under that file's folder. "FILE#ENTRY" is an entry
            of a training checkpoint.
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
        grad_checkpointing: compute the activations of all stages again in the backward pass instead
            of keeping them, or of some, by number or path, such as [0, "layer2"].
        sections: what belongs to plugins, by the name of its section; see tvc-recipes.
        in_channels: channels of the images; None keeps what the backbone takes [channels].
        in_channels_policy: how the first convolution's weights follow from the pretrained ones:
            "mean" (which None stands for), "repeat", "zero", or one rule a channel, such as ["r",
            "g", "b", "mean"].
        image_size: side of the images, or [height, width], for a backbone that is built for one
            size, such as ViT, whose position embeddings are then resampled [pixels].
        where: what errors about it begin with.
        by_code: arguments that a program has put in place of the recipe's.

    Raises:
        RecipeError: a value of the wrong kind or out of range, or values that exclude each other.
    """

    version: int | None = _key("version", rules.VERSION)
    name: str | None = _key("name", rules.TEXT)
    description: str | None = _key("description", rules.TEXT)
    requires: tuple[str, ...] | None = _key("requires", rules.REQUIRES)
    seed: int | None = _key("seed", rules.SEED)
    max_params: int | None = _key("max_params", rules.MAX_PARAMS)
    backbone: str = _key("backbone.name", rules.BACKBONE, MISSING)
    weights: Weights = _key("backbone.weights", rules.WEIGHTS, "DEFAULT")  # noqa: RUF009  a field
    patches: tuple[PatchEntry, ...] = _key("backbone.patches", _entries, empty=())
    options: Mapping[str, Any] = _key("backbone.options", rules.OPTIONS, empty={})
    num_classes: int | None = _key("head.num_classes", rules.NUM_CLASSES)
    dropout: float | None = _key("head.dropout", rules.DROPOUT)
    class_names: tuple[str, ...] | None = _key("head.class_names", rules.CLASS_NAMES)
    hidden: tuple[int, ...] | None = _key("head.hidden", rules.HIDDEN)
    activation: str | None = _key("head.activation", rules.ACTIVATION)
    heads: Mapping[str, Any] | None = _key("head.heads", rules.check_heads, keys=rules.HEAD)
    freeze_backbone: bool | Mapping[str, Any] = _key(
        "freeze_backbone", rules.check_freeze, False, keys=rules.FREEZE
    )
    unfreeze_stages: tuple[int | str, ...] | None = _key("unfreeze_stages", rules.STAGES)
    grad_checkpointing: bool | tuple[int | str, ...] = _key(
        "grad_checkpointing", rules.CHECKPOINTING, False
    )
    stages: int | str | tuple[int | str, ...] | None = _key("backbone.stages", rules.STAGES_KEPT)
    in_channels: int | None = _key("backbone.in_channels", rules.SIZE)
    in_channels_policy: str | tuple[str | int, ...] | None = _key(
        "backbone.in_channels_policy", rules.CHANNEL_POLICY
    )
    image_size: int | tuple[int, ...] | None = _key("backbone.image_size", rules.IMAGE_SIZE)
    sections: Mapping[str, Any] = field(default_factory=dict)
    where: Place = field(default=Place("arguments"), compare=False, repr=False)
    by_code: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        _keep(self, self.where.in_file)
        head = vars(self).copy()
        rules.check_head(head, self.place)
        object.__setattr__(self, "num_classes", head["num_classes"])
        for key, problem in self._contradictions():
            raise self.place(key).error(problem)

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """Yield the keys whose values are right alone and wrong with others, and what is wrong."""
        key, policy, channels = "in_channels_policy", self.in_channels_policy, self.in_channels
        if policy is not None and channels is None:
            yield key, f"{key} is given without in_channels: how many are there?"
        if isinstance(policy, tuple) and len(policy) != channels:
            yield key, f"{key} has {len(policy)} rules for in_channels {channels}"
        if self.heads is not None and self.num_classes is not None:
            leave = "leave num_classes and class_names out"
            yield "heads", f"each of the heads has its own classes: {leave}"
        if self.unfreeze_stages is not None and not self.freeze_backbone:
            what = "unfreeze_stages says what stays trainable in a frozen backbone"
            either = "set freeze_backbone=True, or leave unfreeze_stages out"
            yield "unfreeze_stages", f"{what}: {either}"

    @property
    def has_new_classes(self) -> bool:
        """Whether the recipe gives the head its classes."""
        return self.num_classes is not None or bool(self.class_names or self.heads)

    @property
    def own_weights(self) -> tuple[Path, str | None] | None:
        """Path and entry ("FILE#ENTRY") of the user's own file of weights; None where they have a
        name. What a recipe names is in its folder; a file outside of it, which no program has set,
        is a RecipeError.
        """
        if not rules.is_file(self.weights):
            return None
        place, given = self.place("weights"), str(self.weights)
        with suppress(OSError):  # such as of a name that is too long
            if (place.folder / given).is_file():
                return self._inside(place, given), None
        path, entry = rules.split_entry(given)
        return self._inside(place, path), entry

    def _inside(self, place: Place, path: str) -> Path:
        advice = "name it in Python: HybridBuilder().build(recipe, weights=path)"
        return Path(path) if "weights" in self.by_code else place.inside(path, "weights", advice)

    def place(self, key: str) -> Place:
        """Return where one of the values stands: its line in a file. Elsewhere, and of what a
        program has set, its name says it, which is in the message.
        """
        return (Place("arguments") if key in self.by_code else self.where).in_file(*KEY_PATHS[key])

    @staticmethod
    def from_document(document: RecipeDocument, *, registry: Registry | None = None) -> Recipe:
        """Return the recipe that a document describes; see `load_recipe`.

        Raises:
            RecipeError: unknown keys, missing keys, or values of the wrong kind.
        """
        others = _others(document.data)
        if others:
            registry = registry or Registry()
            document = document.expanded(registry)
            others = _others(document.data)
        data, where = document.data, document.place
        sections, hints, known = claimed(others, where, registry)
        if sections:
            data = {key: value for key, value in data.items() if key not in sections}
        top = _section(data, "", where, known, hints)
        if "backbone" not in top:
            needed = "a recipe needs at least 'backbone: resnet50'"
            raise where.error(f"the key 'backbone' is missing; {needed}")
        backbone, head = top.pop("backbone"), top.pop("head", None)
        if isinstance(backbone, str):
            backbone = {"name": backbone}
        backbone = _section(backbone, "backbone", where / "backbone")
        if "name" not in backbone:
            problem = "the key 'name' is missing in 'backbone'; it names the network"
            raise (where / "backbone").error(problem)
        head = {} if head is None else _section(head, "head", where / "head")
        also: dict[str, Any] = {"sections": sections, "where": where, "by_code": document.by_code}
        return Recipe(backbone=backbone.pop("name"), **backbone, **head, **top, **also)

    @staticmethod
    def changed_document(
        document: RecipeDocument, changes: Mapping[str, Any], registry: Registry | None = None
    ) -> RecipeDocument:
        """Return a document with values in the place of its own; see `load_recipe`. Those of items
        of lists come last, after sections that stand for other text have put that in.

        Raises:
            RecipeError: there is no such path or argument.
        """
        known = {each.name: each for each in _keys(Recipe) if each.name not in SECTIONS[""]}
        known |= {".".join(each.metadata["path"]): each for each in _keys(Recipe)}
        by_code = {*document.by_code}
        for in_list, path in sorted((int in map(type, keys_of(key)), key) for key in changes):
            value, entry = changes[path], known.get(path)
            if entry is not None:
                by_code.add(entry.name)
                short, path = path, ".".join(entry.metadata["path"])
                if path != short and path in changes:
                    raise RecipeError(f"{short} is {path}, and both are given")
            elif path.isidentifier() and (near := did_you_mean(path, known)):
                raise RecipeError(f"unknown key {short_repr(path)} among the changes.{near}")
            if in_list:
                document = document.expanded(registry)  # the list may stand in what it extends
            document = document.with_value(path, _value(value, entry and entry.metadata["rule"]))
        return replace(document, by_code=frozenset(by_code))

    @staticmethod
    def from_mapping(data: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """Return the recipe that a mapping with the keys of the YAML form describes.

        Raises:
            RecipeError: unknown keys, missing keys, or values of the wrong kind.
        """
        return Recipe.from_document(RecipeDocument(data=data, place=Place(source)))

    def to_mapping(self) -> dict[str, Any]:
        """Return plain data that `from_mapping` reads back as an equal recipe."""
        data: dict[str, Any] = {}
        for entry in _keys(Recipe):
            value, (*section, key) = getattr(self, entry.name), entry.metadata["path"]
            if entry.name == "weights" or value not in (entry.default, entry.metadata["empty"]):
                place = data.setdefault(section[0], {}) if section else data
                place[key] = _plain(value)
        return {**data, **self.sections}

    def to_yaml(self) -> str:
        """Return the recipe as YAML text.

        Raises:
            RecipeError: a parameter or option is not plain data.
        """
        from ..written.yaml_text import write_yaml  # PyYAML is a fifth of what listing names takes

        return write_yaml(self.to_mapping())


KEY_PATHS: dict[str, tuple[str, ...]] = {e.name: e.metadata["path"] for e in _keys(Recipe)}
"""The keys of the YAML form that lead to each field."""

SECTIONS: dict[str, list[str]] = {"": list(dict.fromkeys(path[0] for path in KEY_PATHS.values()))}
"""The keys of the YAML form: at the top, under `backbone` and under `head`."""

for _top, *_below in KEY_PATHS.values():
    if _below:
        SECTIONS.setdefault(_top, []).extend(_below)


def load_recipe(
    path: str | Path | IO[bytes],
    *,
    changes: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> Recipe:
    """Read a recipe from a YAML file, or from one that is open.

    Args:
        path: the file.
        changes: values in the place of the file's, by their paths, such as {"head.num_classes": 5};
            an argument of `from_backbone` may go by its own name. Text stands for what it would
            stand for in the file.
        registry: where the sections of plugins are looked up; by default what is installed.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or is not a recipe; the message names
            file, line and column.
    """
    document = Recipe.changed_document(RecipeDocument.read(path), changes or {}, registry)
    return Recipe.from_document(document, registry=registry)


_NOTHING = ("null", "Null", "NULL", "~", "''", '""')
"""How null and empty text are written."""


def _value(value: Any, rule: Any) -> Any:
    """Return what the text of a change stands for: what it would in a file, or else the text."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        found = RecipeDocument.parse(value, "a change").data
    except RecipeError:
        return value
    # `|` and `#` begin what a file has in more lines, and here there is one
    lost = found in (None, "") and value.strip() not in _NOTHING
    # `name: 50` in a file needs quotes; where only text will do, none are needed here
    only_text = isinstance(rule, Rule) and rule.fits(value) and not rule.fits(found)
    return value if lost or only_text else found


def _others(data: Any) -> dict[Any, Any]:
    """Return what of a recipe is not the core's."""
    data = data if isinstance(data, Mapping) else {}
    return {key: value for key, value in data.items() if key not in SECTIONS[""]}


def _section(
    data: Any,
    here: str,
    where: Place,
    of_plugins: Iterable[str] = (),
    hints: Mapping[str, str] = {},
) -> dict[str, Any]:
    """Return a section of the written form, with any of its keys and no other."""
    moved = {
        key: f"It belongs {f'under {section!r}' if section else 'at the top'}."
        for section, keys in SECTIONS.items()
        for key in keys
        if key not in SECTIONS[here]
    }
    name = repr(here) if here else "a recipe"
    return rules.check_keys(
        data, name, [*SECTIONS[here], *of_plugins], where, {**words.ARGUMENTS, **moved, **hints}
    )


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
