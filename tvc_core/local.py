"""Plugins made in a notebook, a script or a test, by decorators. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, overload

from .advice.factories import no_block
from .errors import PluginError, short_repr
from .specs import (
    OWN,
    BackboneSpec,
    BlockSpec,
    InitializerSpec,
    PatchOpSpec,
    Spec,
    is_owner,
    normalize,
)

__all__ = ["LocalPlugin", "is_module", "own_block"]

F = TypeVar("F", bound=Callable[..., Any])


class Decorator(Protocol):
    """Offers what it stands above: without arguments, or with `replace` and fields of the spec."""

    @overload
    def __call__(self, factory: F, /) -> F: ...
    @overload
    def __call__(self, /, **fields: Any) -> Callable[[F], F]: ...


class LocalPlugin:
    """A plugin of this process, filled by decorators or by `add`: `HybridBuilder(plugins=[plugin])`
    knows what it offers.

    Each decorator returns the class or function unchanged. A builder and a registry are snapshots:
    they know what the plugin offered when they were made, so decorate first. Without `name`, the
    name is the function's, or the class's in snake case (`MyGate` becomes `my_gate`); without
    `summary`, it is the first line of the docstring. `replace=True` takes the place of what has the
    name, as when a notebook's cell is run again.

    A model that was built with it can be saved. To load it, use a builder that has such
    a plugin again: `HybridBuilder(plugins=[plugin]).load(path)`.

    Args:
        owner: first half of the qualified names, letters, digits and "-".

    Raises:
        PluginError: an owner of another form. By the decorators: the name is taken, or a value has
            the wrong form; then the plugin is unchanged.
    """

    def __init__(self, owner: str) -> None:
        if not is_owner(owner):
            given = short_repr(owner)
            raise PluginError(f"the owner of a LocalPlugin is letters, digits and '-', not {given}")
        self.TVC_OWNER = normalize(owner)
        self._specs: dict[tuple[type[Spec], str], Spec] = {}

    @property
    def block(self) -> Decorator:
        """Offer a class or function `(in_channels, **params) -> nn.Module` as a block, with any
        fields of `BlockSpec`, such as `category` or `gated`.
        """
        return partial(self._offer, BlockSpec)

    def backbone(
        self,
        *,
        stem: str | Sequence[str],
        stages: Sequence[str | Sequence[str]],
        head: str,
        **fields: Any,
    ) -> Callable[[F], F]:
        """Offer a function `(spec, *, weights, **options) -> nn.Module` as a backbone.

        Args:
            stem: path or paths from the input to the first stage.
            stages: for each stage its path or paths.
            head: path of the classifier.
            **fields: the other fields of `BackboneSpec`, such as `options`, and `replace`.
        """
        paths = (stem,) if isinstance(stem, str) else stem
        return self.offer(BackboneSpec, stem=paths, stages=stages, head=head, **fields)

    @property
    def patch_op(self) -> Decorator:
        """Offer a function `(target, block, **options) -> nn.Module` as a patch operation, with any
        fields of `PatchOpSpec`, such as `takes_block` or `options`.
        """
        return partial(self._offer, PatchOpSpec)

    @property
    def initializer(self) -> Decorator:
        """Offer a function `(module) -> None` as an initializer, with any fields of
        `InitializerSpec`.
        """
        return partial(self._offer, InitializerSpec)

    def offer(self, spec: type[Spec], /, **fields: Any) -> Callable[[F], F]:
        """Offer a class or function as something of any kind, another plugin's included.

        Args:
            spec: class of the kind's specs.
            **fields: its fields, and `replace`.
        """
        return partial(self._offer, spec, **fields)

    def add(self, *specs: Spec, replace: bool = False) -> None:
        """Offer what is described already.

        Args:
            specs: of any kind, families of backbones and kinds of other plugins included.
            replace: take the place of what has these names.

        Raises:
            PluginError: a name is taken, or something is no spec; the plugin is unchanged.
        """
        added = dict(self._specs)
        for spec in specs:
            if not isinstance(spec, Spec):
                given = short_repr(spec)
                raise PluginError(f"{self!r} offers specs, such as a BlockSpec, not {given}")
            if (type(spec), spec.name) in added and not replace:
                what = f"{self!r} offers the {spec.kind} {spec.name!r} already"
                raise PluginError(f"{what}: give another name=..., or replace=True to run it again")
            added[type(spec), spec.name] = spec
        self._specs = added

    def __repr__(self) -> str:
        return f"LocalPlugin({self.TVC_OWNER!r})"

    def _tvc_specs(self) -> list[Spec]:
        """Return what it offers; the registry asks for it, since the plugin knows no hooks."""
        return list(self._specs.values())

    def _offer(self, spec: type[Spec], /, *decorated: Any, **fields: Any) -> Any:
        if not decorated:
            return partial(self._offer, spec, **fields)
        factory = decorated[0]
        if len(decorated) > 1 or is_module(factory) or not callable(factory):
            what = f"{self!r}: a decorator goes above a class or function"
            named = f"; a name is given by name={factory!r}" if isinstance(factory, str) else ""
            raise PluginError(f"{what}, not above {short_repr(factory)}{named}")
        if spec is BlockSpec and (problem := no_block(factory)):
            raise PluginError(f"{self!r}: {problem}")
        replace = fields.pop("replace", False)
        try:
            offered = spec(**{**_described(factory), **fields, "factory": factory})
        except (TypeError, ValueError) as error:
            raise PluginError(f"{self!r}: {error}") from error
        self.add(offered, replace=replace)
        return factory


def is_module(made: Any) -> bool:
    """Return whether something is a module, already made."""
    return hasattr(made, "state_dict") and not isinstance(made, type)


def own_block(made: Any) -> BlockSpec:
    """Return the spec of a class, function or module that stands in `patches` for a block's name.

    Raises:
        PluginError: a class or function that LocalPlugin would not take, or one without a name.
    """
    if is_module(made):
        said = _described(type(made))
        return BlockSpec(name=said["name"], summary=said["summary"], factory=made)
    if getattr(made, "__name__", "") == "<lambda>":
        raise PluginError("a lambda has no name to record: write def my_block(in_channels): ...")
    if problem := no_block(made):
        module = f", or the module itself: {made.__name__}(...)" if isinstance(made, type) else ""
        raise PluginError(f"{problem}{module}")
    plugin = LocalPlugin(OWN)
    plugin.block(made)
    return next(spec for spec in plugin._specs.values() if isinstance(spec, BlockSpec))


def _described(factory: Any) -> dict[str, str]:
    """Return the name and summary that a class or function says of itself."""
    factory = factory.func if isinstance(factory, partial) else factory
    own = getattr(factory, "__name__", "")
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", own).lower()
    first = (getattr(factory, "__doc__", None) or "").strip().partition("\n")[0]
    return {"name": words, "summary": first}
