"""The front door: list what is installed, and build hybrids. torch is imported when the first thing
is built.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .errors import UnknownNameError, did_you_mean, join_names
from .recipe import Recipe, load_recipe, make_plan, make_recipe
from .registry import Registry
from .specs import (
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    PatchOpSpec,
    normalize,
)

if TYPE_CHECKING:
    from torch import nn

    from .model.hybrid import HybridModel

__all__ = ["HybridBuilder"]

R = TypeVar("R")


class _Listing(Generic[R]):
    """A method that on the class asks a registry of what is installed, and on an instance the
    instance's own.
    """

    def __init__(self, function: Callable[..., R]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(
        self, instance: HybridBuilder | None, owner: type[HybridBuilder]
    ) -> Callable[..., R]:
        def asked(*args: Any, **kwargs: Any) -> R:
            return self.function(
                Registry() if instance is None else instance.registry, *args, **kwargs
            )

        asked.__name__ = self.function.__name__
        asked.__doc__ = self.__doc__
        signature = inspect.signature(self.function)
        without_registry = [*signature.parameters.values()][1:]
        asked.__signature__ = signature.replace(parameters=without_registry)  # type: ignore[attr-defined]
        return asked


class HybridBuilder:
    """Builds hybrid models out of what plugins offer.

    The `list_` methods work on the class (what is installed) and on an instance (its own registry).

    Args:
        plugins: in-process plugins besides the installed ones: modules, classes or objects with
            hook implementations.
        registry: use this registry instead.
        prefer: distributions that win a short name which several offer, first one first.

    Raises:
        PluginError: an in-process plugin is faulty, or TVC_STRICT=1 and an installed one is.
    """

    def __init__(
        self,
        plugins: Iterable[Any] = (),
        *,
        registry: Registry | None = None,
        prefer: Iterable[str] = (),
    ) -> None:
        self.registry = registry if registry is not None else Registry(plugins, prefer=prefer)

    # -- what there is -----------------------------------------------------------------------------

    @_Listing
    def list_backbones(
        registry: Registry,  # noqa: N805  the descriptor hands it over in place of self
        pattern: str | None = None,
        origin: str | None = None,
        plugin: str | None = None,
    ) -> list[str]:
        """Return the names of backbones, naturally sorted.

        The members of families ("timm/resnet50") are listed where the pattern has a slash, or
        `plugin` or `origin` is theirs.

        Args:
            pattern: shell-style pattern, such as "resnet*" or "timm/resnet*".
            origin: whose networks, such as "torchvision".
            plugin: the distribution that offers them, such as "tvc-resnet".

        Raises:
            UnknownNameError: no installed backbone has this origin, or no such plugin is installed.
        """
        offers, families = registry.all(BackboneSpec), registry.all(BackboneFamilySpec)
        _check_known(
            "origin",
            origin,
            {offer.spec.origin for offer in offers} | {family.spec.origin for family in families},
        )
        owner = plugin and normalize(plugin)
        _check_known("plugin", owner, {info.owner for info in registry.plugins})
        asked = plugin is not None or origin is not None or "/" in (pattern or "")
        listed = [
            registry.label(offer)
            for offer in offers
            if (origin is None or offer.spec.origin == origin)
            and (owner is None or offer.owner == owner)
            and (
                pattern is None
                or any(
                    fnmatch.fnmatchcase(name, pattern)
                    for name in (offer.spec.name, offer.qualified)
                )
            )
        ]
        for family in families if asked else ():
            if (origin is None or family.spec.origin == origin) and (
                owner is None or family.owner == owner
            ):
                listed += registry.members(family, pattern)
        return listed

    @_Listing
    def list_families(registry: Registry) -> list[str]:  # noqa: N805
        """Return the names of families, whose members are named "family/member":
        list_backbones("family/*") lists them.
        """
        return registry.names(BackboneFamilySpec)

    @_Listing
    def list_blocks(registry: Registry, category: str | None = None) -> list[str]:  # noqa: N805
        """Return the names of blocks, naturally sorted.

        Args:
            category: such as "attention".

        Raises:
            UnknownNameError: no installed block has this category.
        """
        offers = registry.all(BlockSpec)
        _check_known("category", category, {offer.spec.category for offer in offers})
        return [
            registry.label(offer)
            for offer in offers
            if category is None or offer.spec.category == category
        ]

    @_Listing
    def list_patch_ops(registry: Registry) -> list[str]:  # noqa: N805
        """Return the names of patch operations."""
        return registry.names(PatchOpSpec)

    @_Listing
    def list_initializers(registry: Registry) -> list[str]:  # noqa: N805
        """Return the names of weight initializers."""
        return registry.names(InitializerSpec)

    # -- building ----------------------------------------------------------------------------------

    def from_backbone(
        self,
        name: str,
        weights: Any = "DEFAULT",
        patches: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        dropout: float | None = None,
        freeze_backbone: bool | Mapping[str, Any] = False,
        unfreeze_stages: Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        in_channels: int | None = None,
        in_channels_policy: str | Sequence[str | int] | None = None,
        image_size: int | None = None,
    ) -> HybridModel:
        """Build a hybrid from any installed backbone.

        Args:
            name: short ("resnet50") or qualified ("tvc-resnet:resnet50") name.
            weights: what torchvision takes: a name, "DEFAULT", an enum member, or None for random
                weights.
            patches: what to change where, such as {"layer3": {"wrap": "se"}}; a target may be a
                pattern, such as "stage:*.-1".
            num_classes: outputs of the head. None, or the pretrained count, keeps the pretrained
                head; otherwise the last layer is new and the pretrained layers before it stay. 0:
                no last layer, the model returns what it got.
            dropout: probability of the head's dropout; a head without one gets it before its last
                layer.
            freeze_backbone: freeze stem and stages; the head and new blocks stay trainable. Or what
                else to freeze, as the model's `freeze_backbone` takes it, such as {"head": "last",
                "normalization": "eval"}.
            unfreeze_stages: stages that stay trainable all the same; negative numbers count from
                the end.
            options: keyword arguments of the backbone's own builder.
            class_names: one name for each output.
            in_channels: channels of the images; None keeps what the backbone takes [channels].
            in_channels_policy: how the first convolution's weights follow from the pretrained ones:
                "mean" (the default), "repeat", "zero", or one rule a channel, such as ["r", "g",
                "b", "mean"].
            image_size: side of the images [pixels], for ViT, whose position embeddings are then
                resampled. Other backbones say what they accept.

        Raises:
            UnknownNameError: a name that no installed plugin offers; the message says near names
                and what to install.
            RecipeError: an argument of the wrong kind or out of range.
            TargetError: a patch target that is not there, or where nothing can be inserted.
            PatchError: patches in conflict, or a shape that does not fit.
            ParameterError: a parameter or option that a block or the backbone does not take.
            WeightsError: the weights cannot be had, verified or fitted.
        """
        recipe = make_recipe(
            backbone=name,
            weights=weights,
            patches=patches,
            num_classes=num_classes,
            dropout=dropout,
            freeze_backbone=freeze_backbone,
            unfreeze_stages=unfreeze_stages,
            options=options,
            class_names=class_names,
            in_channels=in_channels,
            in_channels_policy=in_channels_policy,
            image_size=image_size,
        )
        return self.build(recipe)

    def from_torchvision(
        self,
        name: str,
        weights: Any = "DEFAULT",
        patches: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        dropout: float | None = None,
        freeze_backbone: bool | Mapping[str, Any] = False,
        unfreeze_stages: Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        in_channels: int | None = None,
        in_channels_policy: str | Sequence[str | int] | None = None,
        image_size: int | None = None,
    ) -> HybridModel:
        """Build a hybrid from one of torchvision's networks; as `from_backbone`, which takes all
        others, too.

        Raises:
            UnknownNameError: the backbone is not torchvision's, or is not installed.
            TvcError: as for `from_backbone`.
        """
        offer = self.registry.resolve(BackboneSpec, name)
        if offer.spec.origin != "torchvision":
            raise UnknownNameError(
                f"The backbone {offer.qualified!r} is not torchvision's (its origin is "
                f"{offer.spec.origin or 'not stated'!r}): "
                f"build it with from_backbone({name!r}, ...)."
            )
        return self.from_backbone(
            name,
            weights,
            patches,
            num_classes,
            dropout,
            freeze_backbone,
            unfreeze_stages,
            options,
            class_names=class_names,
            in_channels=in_channels,
            in_channels_policy=in_channels_policy,
            image_size=image_size,
        )

    def from_module(
        self,
        module: nn.Module,
        stem: str | Sequence[str],
        stages: Sequence[str | Sequence[str]],
        head: str,
        patches: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        dropout: float | None = None,
        freeze_backbone: bool | Mapping[str, Any] = False,
        unfreeze_stages: Sequence[int] | None = None,
        *,
        name: str | None = None,
        num_channels: int = 3,
        min_size: int = 32,
        fixed_size: bool = False,
        auxiliary: Mapping[str, int] | None = None,
        class_names: Sequence[str] | None = None,
        in_channels: int | None = None,
        in_channels_policy: str | Sequence[str | int] | None = None,
    ) -> HybridModel:
        """Build a hybrid from a network of your own.

        The network itself becomes the hybrid, so use only what is returned. Where an error is
        raised it is as it was.

        Args:
            module: the network, with the weights that it is to start from.
            stem: path or paths from the input to the first stage; direct parameters of the network,
                too.
            stages: for each stage its path, or its paths in order of execution; the last returns
                the stage's map.
            head: path of the whole classifier. Stem, stages and head together have all parameters.
            patches: as for `from_backbone`, as the arguments that follow.
            num_classes: outputs of the head.
            dropout: probability of the head's dropout.
            freeze_backbone: freeze stem and stages, as for `from_backbone`.
            unfreeze_stages: stages that stay trainable all the same.
            name: what errors and `explain` call it; by default its class's name.
            num_channels: channels of the images that it takes now [channels].
            min_size: smallest side of an image that it accepts [pixels].
            fixed_size: it accepts no other size than `min_size`.
            auxiliary: paths of auxiliary heads, each with the index of the stage that it branches
                from, such as {"aux": 2}.
            class_names: one name for each output.
            in_channels: channels of the images that it is to take [channels].
            in_channels_policy: as for `from_backbone`.

        Raises:
            BackboneError: stem, stages and head do not describe the network, or it is a hybrid
                already.
            TvcError: as for `from_backbone`.
        """
        from .assemble import assemble  # imports torch
        from .from_module import module_backbone

        backbone = module_backbone(
            module,
            name=name,
            stem=stem,
            stages=stages,
            head=head,
            num_channels=num_channels,
            min_size=min_size,
            fixed_size=fixed_size,
            auxiliary=auxiliary,
        )
        recipe = make_recipe(
            backbone=backbone.qualified,
            weights=None,
            patches=patches,
            num_classes=num_classes,
            dropout=dropout,
            freeze_backbone=freeze_backbone,
            unfreeze_stages=unfreeze_stages,
            class_names=class_names,
            in_channels=in_channels,
            in_channels_policy=in_channels_policy,
        )
        return assemble(make_plan(recipe, self.registry, backbone))

    def build(self, recipe: Recipe | Mapping[str, Any] | str | Path) -> HybridModel:
        """Build a hybrid from a recipe.

        Args:
            recipe: a Recipe, a mapping with the keys of the YAML form, or the path of a YAML file.

        Raises:
            RecipeError: the recipe has an unknown key or a value of the wrong kind.
            TvcError: as for `from_backbone`.
        """
        if isinstance(recipe, (str, Path)):
            recipe = load_recipe(recipe)
        elif not isinstance(recipe, Recipe):
            recipe = Recipe.from_mapping(recipe)
        plan = make_plan(recipe, self.registry)
        from .assemble import assemble  # imports torch

        return assemble(plan)

    def create_block(self, name: str, in_channels: int, **params: Any) -> nn.Module:
        """Make a block on its own, as its authors published it.

        Args:
            name: short or qualified name.
            in_channels: channels of the map that it will get [channels].
            **params: the block's own parameters.

        Raises:
            UnknownNameError: no such block is installed.
            ParameterError: a parameter that the block does not take or accept.
        """
        block = self.registry.resolve(BlockSpec, name)
        from .surgery.blocks import create_block  # imports torch

        return create_block(block, in_channels, params)


def load_yaml_recipe(path: str | Path, builder: HybridBuilder | None = None) -> HybridModel:
    """Build the model that a YAML file describes.

    Args:
        path: the file.
        builder: whose registry to use; by default what is installed.

    Raises:
        RecipeError: the file cannot be read or is not a recipe; the message names file and line.
        TvcError: as for `HybridBuilder.from_backbone`.
    """
    return (builder or HybridBuilder()).build(Path(path))


def _check_known(what: str, given: str | None, known: set[str]) -> None:
    if given is not None and given not in known:
        hint = did_you_mean(given, known)
        raise UnknownNameError(
            f"no installed plugin has the {what} {given!r}.{hint} There is "
            f"{join_names(sorted(known))}."
        )
