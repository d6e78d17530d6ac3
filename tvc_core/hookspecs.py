"""The four hooks through which everything that the core uses by name reaches it. Plugins define
hooks for kinds of their own in the same way (`Kind`).

A plugin is a light module (no torch import) that a distribution announces in its `pyproject.toml`:

    [project.entry-points."tvc.plugins"]
    acme-blocks = "acme_blocks.plugin"

The module states the plugin API that it was written for and implements any of the hooks. Each hook
takes no arguments and returns a list of frozen specs. A spec's `factory` is a string
"package.module:attribute" that is imported when the name is first used, so listing names costs
nothing.
"""

from __future__ import annotations

import pluggy

from .specs import BackboneFamilySpec, BackboneSpec, BlockSpec, InitializerSpec, Kind, PatchOpSpec

API_VERSION = (1, 1)
"""The plugin API of this core: a plugin's major must be equal, its minor at most this one's."""

ENTRY_POINT_GROUP = "tvc.plugins"
PROJECT = "tvc"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def tvc_backbones() -> list[BackboneSpec | BackboneFamilySpec]:
    """Offer networks that recipes can name, or families of them. Must not import torch. Since
    plugin API 1.0.

    Example:

        from tvc_core import BackboneSpec, hookimpl

        TVC_API = (1, 0)

        @hookimpl
        def tvc_backbones():
            # build(spec, *, weights, **options) -> nn.Module
            net = {"name": "acme_net", "factory": "acme_blocks.net:build"}
            parts = {"stem": ("conv1", "bn1"), "stages": ("layer1", "layer2"), "head": "fc"}
            return [BackboneSpec(**net, **parts, summary="A small residual network.")]
    """
    raise NotImplementedError


@hookspec
def tvc_blocks() -> list[BlockSpec]:
    """Offer modules that patches can insert. Must not import torch. Since plugin API 1.0.

    Example:

        from tvc_core import BlockSpec, hookimpl

        TVC_API = (1, 0)

        @hookimpl
        def tvc_blocks():
            # Gate(in_channels, **params) -> nn.Module
            gate = {"name": "gate", "factory": "acme_blocks.gate:Gate", "category": "attention"}
            return [BlockSpec(**gate, summary="Scale each channel by a learned constant.")]
    """
    raise NotImplementedError


@hookspec
def tvc_patch_ops() -> list[PatchOpSpec]:
    """Offer ways to combine a target and a block. Must not import torch. Since plugin API 1.0.

    Example:

        from tvc_core import PatchOpSpec, hookimpl

        TVC_API = (1, 0)

        @hookimpl
        def tvc_patch_ops():
            # twice(target, block, **options) -> nn.Module
            twice = {"name": "twice", "factory": "acme_blocks.ops:twice"}
            return [PatchOpSpec(**twice, summary="Insert two blocks after the target.")]
    """
    raise NotImplementedError


@hookspec
def tvc_initializers() -> list[InitializerSpec]:
    """Offer ways to fill new parameters. Must not import torch. Since plugin API 1.0.

    Example:

        from tvc_core import InitializerSpec, hookimpl

        TVC_API = (1, 0)

        @hookimpl
        def tvc_initializers():
            # orthogonal(module) -> None
            orthogonal = {"name": "orthogonal", "factory": "acme_blocks.init:orthogonal"}
            return [InitializerSpec(**orthogonal, summary="Orthogonal weights, biases 0.")]
    """
    raise NotImplementedError


KINDS = (
    Kind(spec=BackboneSpec, hook=tvc_backbones),
    Kind(spec=BackboneFamilySpec, hook=tvc_backbones, plural="families"),
    Kind(spec=BlockSpec, hook=tvc_blocks),
    Kind(spec=PatchOpSpec, hook=tvc_patch_ops),
    Kind(spec=InitializerSpec, hook=tvc_initializers),
)
"""The core's own kinds; plugins define others in the same way."""
