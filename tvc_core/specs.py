"""The frozen descriptions that plugins return: what is offered, not the thing itself. No torch
here.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType, UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

__all__ = [
    "BackboneFamilySpec", "BackboneSpec", "BlockSpec", "InitializerSpec", "Kind", "PatchOpSpec",
    "Spec", "WeightsSpec",
]  # fmt: skip

Factory = str | Callable[..., Any]
"""What a spec's `factory` may be: "package.module:attribute" (imported on first use) or a
callable.
"""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KIND = re.compile(r"[a-z][a-z0-9]*( [a-z0-9]+)*")
_MEMBER = re.compile(r"[a-z][a-z0-9_]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_URL = re.compile(r"(https?|file)://\S*[^\s/]|hf://[^\s/]+/[^\s/]+(/[^\s/]+)+")
_URLS = "a file's address: https://..., http://..., file://... or hf://OWNER/NAME/FILE"
_SIZES = re.compile("(test_)?(crop|resize)_size|min_size|num_channels")
"""Fields of specs that are 1 or more; other numbers are 0 or more."""

LAYOUTS = ("NCHW", "NHWC", "NLC", "NC")
"""All that a block can take; one that takes all of them works on any shape, entry by entry."""

FROM_MODULE = "from_module"
"""Owner of networks that users hand over themselves. No distribution has it: their normalized names
have no underscore.
"""

OWN = "local"
"""Owner of blocks that stand in `patches` themselves: a plugin of this name has them for a load."""

PATCH_KEYS = ("type", "params", "init", "name")
"""The keys of a patch's full form that mean the same for every operation."""


class _Frozen:
    """A dataclass that checks and freezes its fields, and that pickles by them: a read-only mapping
    cannot be pickled, its content can.
    """

    name: str

    def __new__(cls, *values: Any, **given: Any) -> Any:
        """Refuse fields that are not there by a message with near names."""
        # In `__new__`, which Python calls before the `__init__` that dataclasses makes: that one
        # would raise a TypeError without the near name, and would raise it first.
        known = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
        if values:
            by_name = f"{cls.__name__}(name=..., ...)"
            raise TypeError(f"{cls.__name__} takes its fields by name: {by_name}")
        for name in set(given).difference(known):
            near = [f" Did you mean {n!r}?" for n in difflib.get_close_matches(name, known, 1)]
            what = f"{cls.__name__} has no field {name!r}.{''.join(near)}"
            raise TypeError(f"{what} The fields are {', '.join(known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Refuse a field of another type than its annotation, which would fail every listing that
        sorts or compares it; make lists tuples, and mappings read-only.
        """
        # the fields that a plugin's own kind adds have rules of their own
        core = next(base for base in type(self).__mro__ if base.__module__ == __name__)
        for entry in fields(core):  # type: ignore[arg-type]
            value, wanted = getattr(self, entry.name), _types(core)[entry.name]
            if value is not entry.default:
                self._require(_fits(value, wanted), entry.name, f"of type {entry.type}", TypeError)
                least = bool(_SIZES.fullmatch(entry.name))
                counts = not isinstance(value, (int, float)) or value >= least
                self._require(counts, entry.name, f"{least:d} or more")
                object.__setattr__(self, entry.name, _frozen(value))

    def _require(
        self, fits: object, entry: str, wanted: str, error: type[Exception] = ValueError
    ) -> None:
        if not fits:
            value = getattr(self, entry)
            hint = f": write ({value!r},)" if isinstance(value, str) and "tuple" in wanted else ""
            what = f"{type(self).__name__} {self.name!r}: {entry} {value!r}"
            raise error(f"{what} is not {wanted}{hint}")

    def _check_options(self: Any) -> None:
        fits = all(name.isidentifier() for name in self.options)
        self._require(fits, "options", "a mapping of argument names to defaults", TypeError)
        known = set(getattr(self, "code_only", ())) <= set(self.options)
        self._require(known, "code_only", f"a tuple of names out of {list(self.options)}")

    def __reduce__(self) -> tuple[Any, ...]:
        # By its fields, so that a spec which comes out of a pickle has passed the same checks as
        # one that was written, and its mappings are read-only again.
        own = {k: dict(v) if isinstance(v, MappingProxyType) else v for k, v in vars(self).items()}
        return functools.partial(type(self), **own), ()


@dataclass(frozen=True, kw_only=True)
class Spec(_Frozen):
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
        super().__post_init__()
        form = _MEMBER if isinstance(self, BackboneSpec) and "/" in self.name else _NAME
        if not form.fullmatch(self.name):
            rule = "a name is lower-case letters, digits and '_', and starts with a letter"
            raise ValueError(f"{type(self).__name__} {self.name!r}: {rule}")
        self._check_factory("factory")

    def _check_factory(self, entry: str) -> None:
        factory = getattr(self, entry)
        fits = not isinstance(factory, str) or _FACTORY.fullmatch(factory)
        self._require(fits, entry, "of the form 'package.module:attribute'")


@dataclass(frozen=True, kw_only=True)
class WeightsSpec(_Frozen):
    """One pretrained set of a backbone, with the preprocessing that it was trained for.

    Args:
        name: as the origin names it, such as "IMAGENET1K_V2".
        crop_size: side of the center crop that the network sees [pixels].
        resize_size: short side before the crop [pixels].
        squash: both sides get `resize_size`, whatever the image's were (for images of a height and
            a width, the longer one, and the other its share); otherwise the short one does.
        interpolation: "bilinear" or "bicubic".
        mean: per input channel, for images scaled to [0, 1].
        std: per input channel, for images scaled to [0, 1].
        num_classes: outputs of the pretrained head; None for a set without a classifier.
        class_names: of these outputs; () where no one knows them, and None for those of
            ImageNet-1K, where there are 1000 outputs. Since plugin API 1.1.
        options: options of the backbone that differ from its defaults in a network with these
            weights, such as GoogLeNet's `transform_input`. A saved model is built with them again.
        recipe: where and how it was trained.
        test_crop_size: the larger crop at which its publisher evaluates it, where there is one; for
            `transforms(use_test_size=True)` [pixels].
        test_resize_size: short side before that crop; by default `test_crop_size` [pixels].
        num_params: of the network with these weights and its head [parameters].
        gflops: multiply-adds of one image of `crop_size`, which torchvision's tables call GFLOPS
            [10^9].
        acc1: accuracy on ImageNet-1K's validation images that its publisher states [percent].
        license: of the weights, an SPDX identifier where there is one, such as "CC-BY-NC-4.0";
            empty where their publisher states none.
        url: where `read_state_dict` gets the file: an address with "https://", "http://" or
            "file://", or "hf://OWNER/NAME[@REVISION]/FILE" on the Hugging Face hub. Since plugin
            API 1.1.
        sha256: of the file at `url`, 64 hexadecimal digits. Since plugin API 1.1.

    Raises:
        ValueError: a name, a mode or an address that cannot be, or a `url` without `sha256`.
        TypeError: a field has the wrong type.
    """

    name: str
    crop_size: int = 224
    resize_size: int = 256
    squash: bool = False
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    num_classes: int | None = 1000
    class_names: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""
    test_crop_size: int | None = None
    test_resize_size: int | None = None
    num_params: int | None = None
    gflops: float | None = None
    acc1: float | None = None
    license: str = ""
    url: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_options()
        known = self.interpolation in ("bilinear", "bicubic")
        self._require(known, "interpolation", "'bilinear' or 'bicubic'")
        # a sum that is not a number is not below anything
        scaled = 0 < len(self.mean) == len(self.std) and abs(sum(self.mean)) < min(self.std) * 1e6
        self._require(scaled, "std", f"a number above 0 for each of mean {self.mean}")
        counted = not self.class_names or len(self.class_names) == self.num_classes
        self._require(counted, "class_names", f"one name for each of {self.num_classes} outputs")
        self._require(not self.url or _URL.fullmatch(self.url), "url", _URLS)
        fits = re.fullmatch(r"[0-9a-fA-F]{64}" if self.url else "", self.sha256)
        self._require(fits, "sha256", "64 hexadecimal digits beside a url, else empty")


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
            it, in order of execution. It is part of the head.
        auxiliary: paths of auxiliary heads, each with the index of the stage that it branches from.
            A network may be built without them.
        options: names and defaults of the keyword arguments that `build` takes beyond the weights.
        code_only: those of `options` that open an address or a path. Only code may set them: in a
            recipe or a file they are an error. Since plugin API 1.1.
        branches: where the residual branches of the network's blocks end, for the position
            "branch": the class of a block, "package.module.Class", and the path in it of the
            module whose output is the end of its branch. What follows that is layer scale,
            stochastic depth and the addition. Since plugin API 1.1.
        migrate: "package.module:attribute" of `migrate(spec, network, tensors) -> Mapping[str,
            Tensor] | None`, for checkpoints in a layout in which the network was published
            elsewhere: their tensors under the network's own names, in its shapes; None for a
            layout that it does not know. It is asked where names alone do not fill the network,
            counts where it fills more, and leaves the network as it is. In-process plugins may give
            the callable. Since plugin API 1.1.
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
    migrate: Factory = ""
    num_channels: int = 3
    channels_option: str = ""
    size_option: str = "image_size"
    min_size: int = 32
    fixed_size: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [weights.name for weights in self.weights]
        if len(set(names)) != len(names):
            raise ValueError(f"BackboneSpec {self.name!r}: the same weights name twice in {names}")
        self._require(self.default_weights in (None, *names), "default_weights", f"one of {names}")
        self._check_options()
        known = self.channels_option in ("", *self.options)
        self._require(known, "channels_option", f"one of its options {list(self.options)}")
        dotted = all("." in name for name in self.branches)
        self._require(dotted, "branches", "a mapping of 'package.module.Class' to paths", TypeError)
        if self.migrate:
            self._check_factory("migrate")
        there = all(stage in range(len(self.stages)) for stage in self.auxiliary.values())
        self._require(there, "auxiliary", "a mapping of paths to stage numbers", TypeError)
        object.__setattr__(self, "stages", self.stage_paths)

    @property
    def stage_paths(self) -> tuple[tuple[str, ...], ...]:
        """The paths of each stage, always as tuples."""
        return tuple((stage,) if isinstance(stage, str) else stage for stage in self.stages)

    def find_weights(self, name: str | None) -> WeightsSpec | None:
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
        self._check_factory("members")


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
            that broadcasts over x. The identity start then costs no extra map. It may also have
            `mix(x, alpha)`, which computes x * (1 + alpha * (gate(x) - 1)) at once; patches then
            call that.
        starts_as: what the block by itself is at its start: "identity" (its output is its input in
            eval mode, also where a regularizer acts in training mode), "zero" (its output is 0, as
            that of an adapter beside the target), or "" for neither. It gets no gate where that
            start is enough. Since plugin API 1.1.
        in_place_of: "package.module:attribute" of `make(original, in_channels, **params) ->
            nn.Module | None`, which `replace` calls first: a new block for the place of a module,
            with what it can keep of its weights and settings; None where it keeps nothing of such
            a module (or of one of another width), and `factory` is called. It takes the parameters
            of `factory`, and leaves `original` as it is. In-process plugins may give the callable.
            Since plugin API 1.1.
        for_target: "package.module:attribute" of `make(target, in_channels, **params) -> nn.Module
            | None`, called where the block is inserted: a block for this place, which reads the
            module and the shapes off the `tvc_core.Target`; None where it has none for such a
            module, and `factory` is called. It takes the parameters of `factory`, and leaves the
            module as it is. In-process plugins may give the callable. Since plugin API 1.1.
        positions: names of the positions that the block is for, of which the first is where `wrap`
            and `inject` put it by default; () for all. Elsewhere, and in the place of a module, it
            is refused. Since plugin API 1.1.
        code_only: parameters that open an address or a path. Only code may set them: in a recipe or
            a file they are an error. Since plugin API 1.1.
    """

    kind: ClassVar[str] = "block"

    category: str = ""
    preserves_shape: bool = True
    layouts: tuple[str, ...] = ("NCHW",)
    gated: bool = False
    starts_as: str = ""
    in_place_of: Factory = ""
    for_target: Factory = ""
    positions: tuple[str, ...] = ()
    code_only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for entry in filter(vars(self).get, ("in_place_of", "for_target")):
            self._check_factory(entry)
        known = self.starts_as in ("", "identity", "zero")
        self._require(known, "starts_as", "'', 'identity' or 'zero'")
        fits = bool(self.layouts) and set(self.layouts) <= set(LAYOUTS)
        self._require(fits, "layouts", f"a tuple out of {LAYOUTS}")


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
        self._check_options()
        if taken := sorted(set(self.options) & set(PATCH_KEYS)):
            what = f"PatchOpSpec {self.name!r}: the option names {taken}"
            raise ValueError(f"{what} have a meaning of their own in patches")


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
        if not _KIND.fullmatch(f"{self.name}") or self.name in (Spec.kind, Kind.kind):
            raise ValueError(f"{self.spec.__name__}.kind is {self.name!r}, not lower-case words")
        if not (callable(self.hook) and hasattr(self.hook, "tvc_spec")):
            wanted = "not a function decorated with hookspec"
            raise TypeError(f"Kind {self.name!r}: hook is {self.hook!r}, {wanted}")
        plural = self.plural or f"{self.name.rpartition(' ')[2]}s"
        if not _NAME.fullmatch(f"{plural}"):
            raise ValueError(f"Kind {self.name!r}: plural is {plural!r}, not a lower-case word")
        object.__setattr__(self, "plural", plural)

    @property
    def name(self) -> str:
        """The kind's name, such as "loss"; the qualified name is "distribution:loss"."""
        return self.spec.kind


_types = functools.cache(get_type_hints)


def _fits(value: Any, wanted: Any) -> bool:
    """Tell whether a value is of a type; a list can be given for a tuple."""
    if type(value) is wanted:
        return True
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, (tuple, list)) and all(_fits(item, parts[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(all(map(_fits, p, parts)) for p in value.items())
    if isinstance(value, bool):  # which is an int of Python's
        return wanted in (bool, Any)
    return wanted is Any or isinstance(value, (int, float) if wanted is float else origin or wanted)


def _frozen(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(_frozen, value))
    return MappingProxyType(dict(value)) if isinstance(value, Mapping) else value


def normalize(distribution: str) -> str:
    """Return a distribution's name in the normalized form that owners have (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def is_owner(name: object) -> bool:
    """Return whether a name can stand for a distribution in qualified names."""
    return isinstance(name, str) and bool(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", normalize(name)))
