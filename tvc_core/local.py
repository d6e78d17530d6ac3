"""Plugins made in a notebook, a script or a test, by decorators. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

from .errors import PluginError, short_repr
from .hookspecs import hookimpl
from .specs import (
    BackboneFamilySpec,
    BackboneSpec,
    BlockSpec,
    Factory,
    InitializerSpec,
    PatchOpSpec,
    Spec,
    normalize,
)

__all__ = ["LocalPlugin"]

F = TypeVar("F", bound=Callable[..., Any])


class LocalPlugin:
    """A plugin of this process, filled by decorators or by `add`: `HybridBuilder(plugins=[plugin])`
    knows what it offers.

    Each decorator returns the class or function as it was. A builder and a registry are snapshots:
    they know what the plugin offered when they were made, so decorate first. Where nothing else is
    said, the name is the function's, or the class's in snake case (`MyGate` becomes `my_gate`), and
    the summary the first line of its docstring.

    A model that was built with it can be saved. To load it, use a builder that has such
    a plugin again: `HybridBuilder(plugins=[plugin]).load(path)`.

    Args:
        owner: first half of the qualified names, letters, digits and "-".

    Raises:
        PluginError: an owner of another form.
    """

    def __init__(self, owner: str) -> None:
        if not isinstance(owner, str) or not re.fullmatch(
            r"[a-z0-9]+(-[a-z0-9]+)*", normalize(owner)
        ):
            raise PluginError(
                f"the owner of a LocalPlugin is letters, digits and '-', not {short_repr(owner)}"
            )
        self.TVC_OWNER = normalize(owner)
        self._specs: dict[tuple[str, str], Spec] = {}

    @overload
    def block(self, factory: F, /) -> F: ...

    @overload
    def block(
        self,
        /,
        *,
        name: str | None = ...,
        category: str = ...,
        summary: str | None = ...,
        source: str = ...,
        preserves_shape: bool = ...,
        layouts: Sequence[str] = ...,
        gated: bool = ...,
        replace: bool = ...,
    ) -> Callable[[F], F]: ...

    def block(
        self,
        factory: F | None = None,
        /,
        *,
        name: str | None = None,
        category: str = "",
        summary: str | None = None,
        source: str = "",
        preserves_shape: bool = True,
        layouts: Sequence[str] = ("NCHW",),
        gated: bool = False,
        replace: bool = False,
    ) -> Any:
        """Offer a class or function `(in_channels, **params) -> nn.Module` as a block.

        Args:
            factory: what is decorated, where the decorator has no arguments.
            name: as in `BlockSpec`, as are those that follow.
            category: for listings.
            summary: for listings.
            source: where it was published.
            preserves_shape: the output has the shape of the input.
            layouts: the layouts that it takes.
            gated: it has a method `gate`.
            replace: take the place of what has this name, as when a notebook's cell is run again.

        Raises:
            PluginError: the name is taken, or a value has the wrong form; the plugin is as it was.
        """

        def make(factory: F) -> BlockSpec:
            return BlockSpec(
                **_about(factory, name, summary, source),
                category=category,
                preserves_shape=preserves_shape,
                layouts=tuple(layouts),
                gated=gated,
            )

        return self._decorator(factory, make, replace)

    def backbone(
        self,
        *,
        stem: str | Sequence[str],
        stages: Sequence[str | Sequence[str]],
        head: str,
        name: str | None = None,
        summary: str | None = None,
        source: str = "",
        replace: bool = False,
        **fields: Any,
    ) -> Callable[[F], F]:
        """Offer a function `(spec, *, weights, **options) -> nn.Module` as a backbone.

        Args:
            stem: path or paths from the input to the first stage.
            stages: for each stage its path or paths.
            head: path of the classifier.
            name: as in `BackboneSpec`.
            summary: for listings.
            source: where it was published.
            replace: take the place of what has this name.
            **fields: the other fields of `BackboneSpec`, such as `options` or `min_size`.

        Raises:
            PluginError: the name is taken, or a value has the wrong form; the plugin is as it was.
        """

        def make(factory: F) -> BackboneSpec:
            parts: dict[str, Any] = {
                "stem": (stem,) if isinstance(stem, str) else stem,
                "stages": stages,
                "head": head,
            }
            return BackboneSpec(**_about(factory, name, summary, source), **parts, **fields)

        return self._decorator(None, make, replace)

    @overload
    def patch_op(self, factory: F, /) -> F: ...

    @overload
    def patch_op(
        self,
        /,
        *,
        name: str | None = ...,
        summary: str | None = ...,
        source: str = ...,
        takes_block: bool = ...,
        options: Mapping[str, Any] | None = ...,
        replace: bool = ...,
    ) -> Callable[[F], F]: ...

    def patch_op(
        self,
        factory: F | None = None,
        /,
        *,
        name: str | None = None,
        summary: str | None = None,
        source: str = "",
        takes_block: bool = True,
        options: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> Any:
        """Offer a function `(target, block, **options) -> nn.Module` as a patch operation.

        Args:
            factory: what is decorated, where the decorator has no arguments.
            name: as in `PatchOpSpec`, as are those that follow.
            summary: for listings.
            source: where it was published.
            takes_block: the operation inserts a block.
            options: names and defaults of its keyword arguments.
            replace: take the place of what has this name.

        Raises:
            PluginError: the name is taken, or a value has the wrong form; the plugin is as it was.
        """

        def make(factory: F) -> PatchOpSpec:
            return PatchOpSpec(
                **_about(factory, name, summary, source),
                takes_block=takes_block,
                options=options or {},
            )

        return self._decorator(factory, make, replace)

    @overload
    def initializer(self, factory: F, /) -> F: ...

    @overload
    def initializer(
        self,
        /,
        *,
        name: str | None = ...,
        summary: str | None = ...,
        source: str = ...,
        replace: bool = ...,
    ) -> Callable[[F], F]: ...

    def initializer(
        self,
        factory: F | None = None,
        /,
        *,
        name: str | None = None,
        summary: str | None = None,
        source: str = "",
        replace: bool = False,
    ) -> Any:
        """Offer a function `(module) -> None` as an initializer.

        Args:
            factory: what is decorated, where the decorator has no arguments.
            name: as in `InitializerSpec`, as are those that follow.
            summary: for listings.
            source: where it was published.
            replace: take the place of what has this name.

        Raises:
            PluginError: the name is taken, or a value has the wrong form; the plugin is as it was.
        """
        return self._decorator(
            factory, lambda given: InitializerSpec(**_about(given, name, summary, source)), replace
        )

    def add(self, *specs: Spec, replace: bool = False) -> None:
        """Offer what is described already.

        Args:
            specs: of any kind, families of backbones included.
            replace: take the place of what has these names.

        Raises:
            PluginError: a name is taken, or something is no spec; the plugin is as it was.
        """
        before = dict(self._specs)
        try:
            for spec in specs:
                self._put(spec, replace)
        except PluginError:
            self._specs = before
            raise

    @hookimpl
    def tvc_blocks(self) -> list[BlockSpec]:
        """Offer the decorated blocks."""
        return self._of(BlockSpec)

    @hookimpl
    def tvc_backbones(self) -> list[BackboneSpec | BackboneFamilySpec]:
        """Offer the decorated backbones."""
        return [*self._of(BackboneSpec), *self._of(BackboneFamilySpec)]

    @hookimpl
    def tvc_patch_ops(self) -> list[PatchOpSpec]:
        """Offer the decorated patch operations."""
        return self._of(PatchOpSpec)

    @hookimpl
    def tvc_initializers(self) -> list[InitializerSpec]:
        """Offer the decorated initializers."""
        return self._of(InitializerSpec)

    def __repr__(self) -> str:
        return f"LocalPlugin({self.TVC_OWNER!r})"

    def _of(self, kind: type[Any]) -> list[Any]:
        return [spec for spec in self._specs.values() if isinstance(spec, kind)]

    def _decorator(self, factory: F | None, make: Callable[[F], Spec], replace: bool) -> Any:
        def decorate(factory: F) -> F:
            if not callable(factory):
                raise PluginError(
                    f"{self!r}: a decorator goes above a class or function, not above "
                    f"{short_repr(factory)}"
                )
            try:
                spec = make(factory)
            except (TypeError, ValueError) as error:
                raise PluginError(f"{self!r}: {error}") from error
            self._put(spec, replace)
            return factory

        return decorate if factory is None else decorate(factory)

    def _put(self, spec: Spec, replace: bool) -> None:
        if not isinstance(spec, Spec):
            raise PluginError(f"{self!r} offers specs, such as a BlockSpec, not {short_repr(spec)}")
        if (spec.kind, spec.name) in self._specs and not replace:
            raise PluginError(
                f"{self!r} offers the {spec.kind} {spec.name!r} already: give another name=..., or "
                "replace=True, as for a "
                "notebook's cell that is run again"
            )
        self._specs[spec.kind, spec.name] = spec


def _about(factory: Factory, name: str | None, summary: str | None, source: str) -> dict[str, Any]:
    """Return the fields that every spec has, by default taken from a class or function."""
    own = getattr(factory, "__name__", "")
    first = (getattr(factory, "__doc__", None) or "").strip().partition("\n")[0]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", own).lower()
    return {
        "name": words if name is None else name,
        "factory": factory,
        "summary": first if summary is None else summary,
        "source": source,
    }
