"""The frozen descriptions that plugins return: what is offered, not the thing itself. No torch
here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar

Factory = str | Callable[..., Any]
"""What a spec's `factory` may be: "package.module:attribute" (imported on first use) or a
callable.
"""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KIND = re.compile(r"[a-z][a-z0-9]*( [a-z0-9]+)*")
_MEMBER = re.compile(r"[a-z][a-z0-9_]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_LAYOUTS = ("NCHW", "NHWC", "NLC", "NC")

FROM_MODULE = "from_module"
"""Owner of networks that users hand over themselves. No distribution has it: their normalized names
have no underscore.
"""

PATCH_KEYS = ("type", "params", "init", "name")
"""The keys of a patch's full form that mean the same for every operation."""


class _Picklable:
    """Pickles a frozen dataclass by its fields: a read-only mapping cannot be pickled, its content
    can.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]
        plain = {
            name: dict(value) if isinstance(value, MappingProxyType) else value
            for name, value in values.items()
        }
        return _remake, (type(self), plain)


@dataclass(frozen=True, kw_only=True)
class Spec(_Picklable):
    """What every offered thing has in common.

    A kind of your own (`Kind`) is a frozen dataclass derived from it, with a class attribute
    `kind`, fields, and rules for them in `__post_init__`.

    Args:
        name: short name, `[a-z][a-z0-9_]*`; the qualified name is "distribution:name".
        factory: "package.module:attribute", imported on first use. In-process plugins may give the
            callable.
        summary: one sentence for listings.
        source: where the thing was published: paper, section, repository.

    Raises:
        ValueError: the name or the factory string is not of that form.
        TypeError: a field has the wrong type.
    """

    kind: ClassVar[str] = "spec"

    name: str
    factory: Factory
    summary: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        what = f"{type(self).__name__} {self.name!r}"
        _check_types(self, str, "name", "summary", "source")
        if not (
            _NAME.fullmatch(self.name)
            or (isinstance(self, BackboneSpec) and _MEMBER.fullmatch(self.name))
        ):
            raise ValueError(
                f"{what}: a name is lower-case letters, digits and '_', and starts with a letter"
            )
        _check_factory(f"{what}: factory", self.factory)


@dataclass(frozen=True, kw_only=True)
class WeightsSpec(_Picklable):
    """One pretrained set of a backbone, with the preprocessing that it was trained for.

    Args:
        name: as the origin names it, such as "IMAGENET1K_V2".
        crop_size: side of the center crop that the network sees [pixels].
        resize_size: short side before the crop [pixels].
        squash: both sides get `resize_size`, whatever the image's were; otherwise the short one
            does.
        interpolation: "bilinear" or "bicubic".
        mean: per input channel, for images scaled to [0, 1].
        std: per input channel, for images scaled to [0, 1].
        num_classes: outputs of the pretrained head; None for a set without a classifier.
        options: options of the backbone that differ from its defaults in a network with these
            weights, such as GoogLeNet's `transform_input`. A saved model is built with them again.
        recipe: where and how it was trained.
    """

    name: str
    crop_size: int = 224
    resize_size: int = 256
    squash: bool = False
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    num_classes: int | None = 1000
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""

    def __post_init__(self) -> None:
        _check_types(self, str, "name", "recipe")
        _check_types(self, int, "crop_size", "resize_size")
        _check_types(self, bool, "squash")
        _freeze_tuples(self, "mean", "std")
        _freeze_options(self, self.options)
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"weights {self.name!r}: interpolation {self.interpolation!r} is not bilinear or "
                "bicubic"
            )


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Spec):
    """A named network, its anatomy and its pretrained weights.

    Stem, stages and head partition the parameters. Paths name modules or, for direct parameters of
    the network (ViT's class token), parameters.

    The factory is `build(spec, *, weights, **options) -> nn.Module`: `weights` is one of
    `spec.weights` or None, `options` are those that the user set. One function can serve a family,
    since it gets the spec.

    The member of a family (`BackboneFamilySpec`) is named "family/member", such as "acme/net-s.v2";
    no other is.

    Args:
        family: what it belongs to, such as "resnet".
        origin: whose network it is, such as "torchvision".
        weights: the pretrained sets, oldest first.
        default_weights: the name that weights="DEFAULT" stands for.
        stem: paths from the input to the first stage, in order of execution.
        stages: for each stage its path, or its paths in order of execution. The map of a stage is
            what its last module returns. The last stage ends where pooling begins.
        head: path of the whole classifier child.
        neck: paths of what comes between pooling and the head, where the classifier does not hold
            it, in order of execution. It counts to the head.
        auxiliary: paths of auxiliary heads, each with the index of the stage that it branches from.
            A network may be built without them.
        options: names and defaults of the keyword arguments that `build` takes beyond the weights.
        code_only: those of `options` that open an address or a path. Only code may set them: in a
            recipe or a file they are an error. Since plugin API 1.1.
        branches: where the residual branches of the network's blocks end, for the position
            "branch": the class of a block, "package.module.Class", and the path in it of the
            module whose output is the end of its branch. What follows that is layer scale,
            stochastic depth and the addition. Since plugin API 1.1.
        num_channels: channels of the input image [channels].
        channels_option: the option that sets `num_channels`, where there is one.
        size_option: the option that sets the side of the image, of a backbone that has it.
        min_size: smallest side of an input image that the network accepts [pixels].
        fixed_size: the network accepts one image size only, the one that it was built for.
    """

    kind: ClassVar[str] = "backbone"

    family: str = ""
    origin: str = ""
    weights: tuple[WeightsSpec, ...] = ()
    default_weights: str | None = None
    stem: tuple[str, ...] = ()
    stages: tuple[str | tuple[str, ...], ...] = ()
    head: str = ""
    neck: tuple[str, ...] = ()
    auxiliary: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    code_only: tuple[str, ...] = ()
    branches: Mapping[str, str] = field(default_factory=dict)
    num_channels: int = 3
    channels_option: str = ""
    size_option: str = "image_size"
    min_size: int = 32
    fixed_size: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        what = f"BackboneSpec {self.name!r}"
        _check_types(self, str, "family", "origin", "head", "channels_option", "size_option")
        _check_types(self, int, "num_channels", "min_size")
        _check_types(self, bool, "fixed_size")
        _freeze_tuples(self, "weights", "stem", "stages", "neck")
        object.__setattr__(
            self,
            "stages",
            tuple(tuple(s) if isinstance(s, (tuple, list)) else (s,) for s in self.stages),
        )
        if not all(
            isinstance(path, str)
            for paths in (self.stem, *self.stages, self.neck)
            for path in paths
        ):
            raise TypeError(f"{what}: stem, stages and neck are tuples of paths, which are strings")
        if not all(isinstance(weights, WeightsSpec) for weights in self.weights):
            raise TypeError(f"{what}: weights is a tuple of WeightsSpec")
        names = [weights.name for weights in self.weights]
        if len(set(names)) != len(names):
            raise ValueError(f"{what}: the same weights name twice in {names}")
        if self.default_weights is not None and self.default_weights not in names:
            raise ValueError(
                f"{what}: default_weights {self.default_weights!r} is not one of {names}"
            )
        _freeze_options(self, self.options)
        _check_code_only(self, self.options)
        _freeze_branches(self)
        if self.channels_option and self.channels_option not in self.options:
            raise ValueError(
                f"{what}: channels_option {self.channels_option!r} is not one of its options "
                f"{list(self.options)}"
            )
        _freeze_auxiliary(self)

    @property
    def stage_paths(self) -> tuple[tuple[str, ...], ...]:
        """The paths of each stage, always as tuples."""
        return tuple((stage,) if isinstance(stage, str) else stage for stage in self.stages)

    def find_weights(self, name: str) -> WeightsSpec | None:
        """Return the pretrained set of this name, or None."""
        return next((weights for weights in self.weights if weights.name == name), None)


@dataclass(frozen=True, kw_only=True)
class BackboneFamilySpec(Spec):
    """Backbones that need not be listed one by one: each is named "family/member", such as
    "timm/resnet50".

    The factory is `describe(member) -> BackboneSpec`, called when such a name is used; the spec
    that it returns has the whole name, "family/member". It raises `UnknownNameError` where there is
    no such member, and `BackboneError` with the reason where there is one that cannot be offered.

    Args:
        members: "package.module:attribute" of `members() -> Iterable[str]`, which gives the
            members' names for listings, in short time and without torch. A member that it leaves
            out can be described all the same. In-process plugins may give the callable.
        origin: whose networks, such as "timm".

    Raises:
        ValueError: the name, the factory or `members` is not of that form.
        TypeError: a field has the wrong type.
    """

    kind: ClassVar[str] = "backbone family"

    members: Factory
    origin: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_types(self, str, "origin")
        _check_factory(f"BackboneFamilySpec {self.name!r}: members", self.members)


@dataclass(frozen=True, kw_only=True)
class BlockSpec(Spec):
    """A module that patches insert.

    The factory is a class or function `(in_channels, **params) -> nn.Module`: `in_channels` is
    positional and comes from the core, which measured it; `params` are the user's.

    Args:
        category: "attention" for attention blocks; others are free words such as "convolution".
        preserves_shape: the output has the shape of the input for every valid `in_channels`.
        layouts: the tensor layouts that the block takes, such as ("NCHW",).
        gated: the block has a method `gate(x)` such that block(x) equals x * gate(x), with a gate
            that broadcasts over x. The identity start then costs no extra map.
        starts_as: what the block by itself is at its start: "identity" (its output is its input in
            eval mode, also where a regularizer acts in training mode), "zero" (its output is 0, as
            that of an adapter beside the target), or "" for neither. It gets no gate where that
            start is enough. Since plugin API 1.1.
        code_only: parameters that open an address or a path. Only code may set them: in a recipe or
            a file they are an error. Since plugin API 1.1.
    """

    kind: ClassVar[str] = "block"

    category: str = ""
    preserves_shape: bool = True
    layouts: tuple[str, ...] = ("NCHW",)
    gated: bool = False
    starts_as: str = ""
    code_only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_types(self, str, "category")
        _check_types(self, bool, "preserves_shape", "gated")
        _freeze_tuples(self, "layouts")
        _check_code_only(self)
        if self.starts_as not in ("", "identity", "zero"):
            raise ValueError(
                f"BlockSpec {self.name!r}: starts_as is '', 'identity' or 'zero', "
                f"not {self.starts_as!r}"
            )
        if not self.layouts or any(layout not in _LAYOUTS for layout in self.layouts):
            raise ValueError(
                f"BlockSpec {self.name!r}: layouts {self.layouts!r} is not a tuple out of "
                f"{_LAYOUTS}"
            )


@dataclass(frozen=True, kw_only=True)
class PatchOpSpec(Spec):
    """A way to combine a target and a block.

    The factory is `apply(target, block, **options) -> nn.Module`, or `apply(target, **options)`
    where `takes_block` is false. It returns what stands at the target afterwards: `target.module`
    itself, or a module that takes its place. `target` is a `tvc_core.Target`, whose methods insert
    modules.

    Args:
        takes_block: the operation inserts a block, which the user names under `type`.
        options: names and defaults of the keyword arguments that `apply` takes beyond target and
            block; the user sets them beside `type`.
        code_only: those of `options` that open an address or a path. Only code may set them: in a
            recipe or a file they are an error. Since plugin API 1.1.
    """

    kind: ClassVar[str] = "patch op"

    takes_block: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    code_only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_types(self, bool, "takes_block")
        _freeze_options(self, self.options)
        _check_code_only(self, self.options)
        taken = sorted(set(self.options) & set(PATCH_KEYS))
        if taken:
            raise ValueError(
                f"PatchOpSpec {self.name!r}: the option names {taken} have a meaning of their own "
                "in patches"
            )


@dataclass(frozen=True, kw_only=True)
class InitializerSpec(Spec):
    """A way to fill new parameters.

    The factory is `initialize(module) -> None`, in place. It gets only modules that tvc made or
    whose parameters a checkpoint did not fill.
    """

    kind: ClassVar[str] = "initializer"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of thing that plugins offer: the class of its specs, and the hook that returns them.

    A plugin defines kinds of its own beside its `TVC_API`: `TVC_KINDS = (Kind(...),)`. Since plugin
    API 1.1.

    Args:
        spec: a frozen dataclass derived from `Spec`. Its class attribute `kind` is the kind's name,
            lower-case words such as "loss". What is offered is of exactly this class.
        hook: a function without arguments, decorated with `hookspec`. Its name starts with the
            distribution's, such as "acme_losses" for acme.
        plural: what `tvc list` calls the kind, one word; by default the last word of its name
            with an "s".

    Raises:
        TypeError: `spec` or `hook` is something else.
        ValueError: the kind's name or `plural` is not of that form.
    """

    kind: ClassVar[str] = "kind"

    spec: type[Spec]
    hook: Callable[[], Any]
    plural: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.spec, type) and issubclass(self.spec, Spec)):
            raise TypeError(f"Kind: spec is {self.spec!r}, not a class derived from Spec")
        if "__dataclass_fields__" not in vars(self.spec) or self.spec is Spec:
            raise TypeError(f"Kind: {self.spec.__name__} is not decorated as a frozen dataclass")
        if not _KIND.fullmatch(self.name) or self.name == Spec.kind:
            raise ValueError(
                f"Kind: {self.spec.__name__}.kind is {self.name!r}, not lower-case words, "
                "such as 'loss'"
            )
        if not (callable(self.hook) and hasattr(self.hook, "tvc_spec")):
            raise TypeError(
                f"Kind {self.name!r}: hook is {self.hook!r}, not a function decorated with hookspec"
            )
        plural = self.plural or f"{self.name.rpartition(' ')[2]}s"
        if not _NAME.fullmatch(plural):
            raise ValueError(f"Kind {self.name!r}: plural is {plural!r}, not a lower-case word")
        object.__setattr__(self, "plural", plural)

    @property
    def name(self) -> str:
        """The kind's name, such as "loss"; the qualified name is "distribution:loss"."""
        return self.spec.kind


def _check_types(spec: Spec | WeightsSpec, wanted: type, *names: str) -> None:
    """Refuse a field of another type: a listing that sorts or compares it later would fail for
    everybody.
    """
    for name in names:
        value = getattr(spec, name)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise TypeError(
                f"{type(spec).__name__} {spec.name!r}: {name} is {value!r}, not of type "
                f"{wanted.__name__}"
            )


def _check_factory(what: str, factory: object) -> None:
    if isinstance(factory, str):
        if not _FACTORY.fullmatch(factory):
            raise ValueError(f"{what} {factory!r} is not of the form 'package.module:attribute'")
    elif not callable(factory):
        raise TypeError(f"{what} is neither a string 'package.module:attribute' nor a callable")


def _freeze_tuples(spec: Spec | WeightsSpec, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if not isinstance(value, (tuple, list)):
            raise TypeError(
                f"{type(spec).__name__} {spec.name!r}: {name} is {value!r}, not a tuple"
            )
        object.__setattr__(spec, name, tuple(value))


def _freeze_options(spec: Spec | WeightsSpec, options: Mapping[str, Any]) -> None:
    if not isinstance(options, Mapping) or not all(
        isinstance(name, str) and name.isidentifier() for name in options
    ):
        raise TypeError(
            f"{type(spec).__name__} {spec.name!r}: options is {options!r}, not a mapping of "
            "argument names to defaults"
        )
    object.__setattr__(spec, "options", MappingProxyType(dict(options)))


def _check_code_only(spec: Any, options: Mapping[str, Any] | None = None) -> None:
    _freeze_tuples(spec, "code_only")
    unknown = [name for name in spec.code_only if options is not None and name not in options]
    if unknown or not all(isinstance(name, str) for name in spec.code_only):
        raise ValueError(
            f"{type(spec).__name__} {spec.name!r}: code_only {spec.code_only!r} is not a tuple of "
            f"names out of its options"
        )


def _freeze_branches(spec: BackboneSpec) -> None:
    if not isinstance(spec.branches, Mapping) or not all(
        isinstance(name, str) and isinstance(end, str) and "." in name
        for name, end in spec.branches.items()
    ):
        raise TypeError(
            f"BackboneSpec {spec.name!r}: branches is {spec.branches!r}, not a mapping of classes, "
            "'package.module.Class', to paths"
        )
    object.__setattr__(spec, "branches", MappingProxyType(dict(spec.branches)))


def _freeze_auxiliary(spec: BackboneSpec) -> None:
    stages = range(len(spec.stages))
    if not isinstance(spec.auxiliary, Mapping) or not all(
        isinstance(path, str) and type(stage) is int and stage in stages
        for path, stage in spec.auxiliary.items()
    ):
        raise TypeError(
            f"BackboneSpec {spec.name!r}: auxiliary is {spec.auxiliary!r}, not a mapping of paths "
            "to stage numbers"
        )
    object.__setattr__(spec, "auxiliary", MappingProxyType(dict(spec.auxiliary)))


def _remake(cls: type[Any], values: dict[str, Any]) -> Any:
    return cls(**values)


def normalize(distribution: str) -> str:
    """Return a distribution's name in the normalized form that owners have (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def is_owner(name: object) -> bool:
    """Return whether a name can stand for a distribution in qualified names."""
    return isinstance(name, str) and bool(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", normalize(name)))
