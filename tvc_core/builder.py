"""The front door: list what is installed, and build hybrids. torch is imported when the first thing
is built.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from types import MethodType
from typing import IO, TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from .errors import UnknownNameError
from .recipe import REACHING, Recipe, RecipeDocument, Weights, load_recipe, make_plan
from .recipe.arguments import BuildArguments, ModuleArguments, changed, recipe_of, takes
from .registry import Named, Registry
from .specs import BackboneSpec, BlockSpec

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Unpack  # in typing from Python 3.11 on

    from .model.hybrid import HybridModel

__all__ = ["HybridBuilder", "load_yaml_recipe"]

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


class _OnClassToo(Generic[S, P, R]):
    """A method that works on the class as well, with a builder of what is installed when it is
    called: HybridBuilder.from_torchvision("resnet18").

    Args:
        method: the function.
        of: what of the builder it is a method of, such as its registry.
    """

    def __init__(
        self, method: Callable[Concatenate[S, P], R], of: Callable[[Any], Any] = lambda b: b
    ) -> None:
        self.method, self.of, self.__doc__ = method, of, method.__doc__

    def __get__(self, builder: HybridBuilder | None, owner: type) -> Callable[P, R]:
        if builder is not None:
            return MethodType(self.method, self.of(builder))

        @functools.wraps(MethodType(self.method, self))  # whose signature has no `self`
        def of_installed(*args: P.args, **kwargs: P.kwargs) -> R:
            if args and isinstance(args[0], owner):  # as a function, with its builder first
                return self.method(self.of(args[0]), *args[1:], **kwargs)  # type: ignore[arg-type]
            return self.method(self.of(owner()), *args, **kwargs)

        return of_installed


_REGISTRY = attrgetter("registry")


class HybridBuilder:
    """Builds hybrid models out of what plugins offer.

    Its methods work on the class (with what is installed) and on an instance (with its own
    registry).

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

    list_backbones = _OnClassToo(Registry.list_backbones, _REGISTRY)
    list_families = _OnClassToo(Registry.list_families, _REGISTRY)
    list_blocks = _OnClassToo(Registry.list_blocks, _REGISTRY)
    list_patch_ops = _OnClassToo(Registry.list_patch_ops, _REGISTRY)
    list_initializers = _OnClassToo(Registry.list_initializers, _REGISTRY)

    @_OnClassToo
    @takes(BuildArguments)
    def from_backbone(
        self, name: str, weights: Weights = "DEFAULT", **arguments: Unpack[BuildArguments]
    ) -> HybridModel:
        """Build a hybrid from any installed backbone.

        Args:
            name: short ("resnet50") or qualified ("tvc-resnet:resnet50") name.
            weights: what torchvision takes: a name, "DEFAULT", an enum member, or None for random
                weights; or the path of a file of your own, whose tensors have to fit, and whose
                head says the number of classes.
            {arguments}

        Raises:
            UnknownNameError: a name that no installed plugin offers; the message says near names
                and what to install.
            RecipeError: an unknown argument, or one of the wrong kind or out of range.
            TargetError: a patch target that is not there, or where nothing can be inserted.
            PatchError: patches in conflict, or a shape that does not fit.
            ParameterError: a parameter or option that a block or the backbone does not take.
            WeightsError: the weights cannot be downloaded or read, verified or fitted.
        """
        return self._assemble(recipe_of("from_backbone", name, weights, arguments))

    @_OnClassToo
    @takes(BuildArguments)
    def from_torchvision(
        self, name: str, weights: Weights = "DEFAULT", **arguments: Unpack[BuildArguments]
    ) -> HybridModel:
        """Build a hybrid from one of torchvision's networks, as `from_backbone`, which takes all
        others also, does.

        Args:
            name: short ("resnet50") or qualified ("tvc-resnet:resnet50") name.
            weights: what torchvision takes: a name, "DEFAULT", an enum member, or None for random
                weights.
            {arguments}

        Raises:
            UnknownNameError: the backbone is not torchvision's, or is not installed.
            TvcError: as for `from_backbone`.
        """
        recipe = recipe_of("from_torchvision", name, weights, arguments)
        offer = self.registry.resolve(BackboneSpec, name)
        if offer.spec.origin != "torchvision":
            origin = f"its origin is {offer.spec.origin or 'not stated'!r}"
            raise UnknownNameError(
                f"The backbone {offer.qualified!r} is not torchvision's ({origin}): build it with "
                f"from_backbone({name!r}, ...)."
            )
        return self._assemble(recipe)

    @_OnClassToo
    @takes(ModuleArguments)
    def from_module(
        self,
        module: nn.Module,
        stem: str | Sequence[str],
        stages: Sequence[str | Sequence[str]],
        head: str,
        *,
        name: str | None = None,
        num_channels: int = 3,
        min_size: int = 32,
        fixed_size: bool = False,
        auxiliary: Mapping[str, int] | None = None,
        **arguments: Unpack[ModuleArguments],
    ) -> HybridModel:
        """Build a hybrid from a network of your own.

        The network itself becomes the hybrid, so use only what is returned. Where an error is
        raised, the network is unchanged. Names of the network that mean something else on a hybrid
        are said in a warning.

        Args:
            module: the network, with the weights that it is to start from.
            stem: path or paths from the input to the first stage, also direct parameters of the
                network.
            stages: for each stage its path, or its paths in order of execution; the last returns
                the stage's map.
            head: path of the whole classifier. Stem, stages and head together have all parameters.
            name: what errors and `explain` call it; by default its class's name.
            num_channels: channels of the images that it takes now [channels].
            min_size: smallest side of an image that it accepts [pixels].
            fixed_size: it accepts no other size than `min_size`.
            auxiliary: paths of auxiliary heads, each with the index of the stage that it branches
                from, such as {"aux": 2}.
            {arguments}

        Raises:
            BackboneError: stem, stages and head do not describe the network, or it is a hybrid
                already.
            TvcError: as for `from_backbone`.
        """
        from .from_module import module_backbone, warn_of_hidden_names  # imports torch
        from .model.hybrid import HybridModel

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
        recipe = recipe_of("from_module", backbone.qualified, None, arguments)
        warn_of_hidden_names(module, HybridModel)
        return self._assemble(recipe, backbone)

    @_OnClassToo
    def build(
        self, /, recipe: Recipe | Mapping[str, Any] | str | Path | IO[bytes], **changes: Any
    ) -> HybridModel:
        """Build a hybrid from a recipe, which reaches nothing but what is installed and files of
        weights in its own folder: options that open an address or another path are for arguments in
        a program only.

        Args:
            recipe: a Recipe, a mapping with the keys of the YAML form, the path of a YAML file, or
                the file, open for reading bytes.
            **changes: arguments of `from_backbone` in the place of the recipe's, such as
                weights="own.pth" or num_classes=5.

        Raises:
            RecipeError: the recipe has an unknown key, a value of the wrong kind, or an option that
                only code may set; or there is no such argument.
            TvcError: as for `from_backbone`.
        """
        if isinstance(recipe, (str, Path)) or hasattr(recipe, "read"):
            recipe = load_recipe(recipe, registry=self.registry)  # type: ignore[arg-type]
        elif not isinstance(recipe, Recipe):
            recipe = Recipe.from_document(RecipeDocument(data=recipe), registry=self.registry)
        return self._assemble(changed(recipe, changes), by_code=())

    @_OnClassToo
    def resolve(self, /, recipe: Recipe) -> Recipe:
        """Return a recipe with every name qualified and "DEFAULT" replaced by the weights that it
        stands for, as a model keeps it. Nothing is built, and torch is not imported.

        Args:
            recipe: what `load_recipe` returns, say.

        Raises:
            TvcError: as for `build`, of what is found without building.
        """
        return make_plan(recipe, self.registry).recipe

    def _assemble(
        self,
        recipe: Recipe,
        backbone: Named[BackboneSpec] | None = None,
        *,
        by_code: Collection[str] = REACHING,
    ) -> HybridModel:
        plan = make_plan(recipe, self.registry, backbone, by_code=by_code)
        from .assemble import assemble  # imports torch
        from .surgery.home import at_home

        with recipe.where.before_errors(in_files_only=True):
            # a user's own network stays where it is
            return at_home(assemble(plan)) if backbone is None else assemble(plan)

    @_OnClassToo
    def load(
        self, path: str | Path, *, module: nn.Module | None = None, base: str | Path | None = None
    ) -> HybridModel:
        """Read a model that `HybridModel.save` wrote. Nothing in the file is run; its names are
        looked up in this builder's registry.

        Args:
            path: the file.
            module: for a model that `from_module` made: a new network of the same kind, which
                becomes the model.
            base: for a file that was saved with a `base`: where that is; by default it is looked
                for by its name in the file's folder.

        Raises:
            WeightsError: the file is damaged, was not written by `save`, needs a module (or does
                not, and one was given), or its base is not there or is another one.
            UnknownNameError: it needs a plugin that is not installed.
        """
        from .opening import open_model  # imports torch

        return open_model(path, self.registry, module, base)

    @_OnClassToo
    def create_block(self, /, name: str, in_channels: int, **params: Any) -> nn.Module:
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
