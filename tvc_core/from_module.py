"""A network that a user hands over, described as a backbone: from there on it is built as any
other.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .errors import BackboneError, join_names, short_repr
from .registry import Named
from .specs import FROM_MODULE, BackboneSpec, WeightsSpec
from .surgery.sites import has_module

__all__ = ["described", "module_backbone", "warn_of_hidden_names"]


class Handover:
    """A backbone's factory that gives a module away, once: a pickle or copy of the hybrid does not
    hold it twice.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module: nn.Module | None = module

    def __call__(self, spec: BackboneSpec, *, weights: WeightsSpec | None) -> nn.Module:
        # A factory that can be called once, since there is one network and the hybrid is made of it
        # in place. A second call would make two hybrids of the same tensors.
        if self.module is None:
            raise BackboneError(
                f"{FROM_MODULE}:{spec.name} is a network of a user's own: only the code that made "
                "it can make another"
            )
        module, self.module = self.module, None
        return module


def module_backbone(
    module: nn.Module,
    *,
    name: str | None,
    stem: str | Sequence[str],
    stages: Sequence[str | Sequence[str]],
    head: str,
    num_channels: int,
    min_size: int,
    fixed_size: bool,
    auxiliary: Mapping[str, int] | None = None,
    type: str = "",
) -> Named[BackboneSpec]:
    """Return the description of a module as a backbone that gives it away when it is built.

    Args:
        module: the network; it is not touched.
        name: short name; None makes one out of its class's.
        stem: as in a `BackboneSpec`, as the arguments that follow.
        stages: each a path or paths.
        head: path.
        num_channels: of the image [channels].
        min_size: smallest side of an image [pixels].
        fixed_size: whether that is the only one.
        auxiliary: paths of auxiliary heads, each with its stage.
        type: the class that the file of a saved model names; the module's must have that name.

    Raises:
        BackboneError: `module` is no module, or the description has values of the wrong kind.
    """
    if not isinstance(module, nn.Module):
        raise BackboneError(f"from_module takes a network, an nn.Module, not {short_repr(module)}")
    if hasattr(module, "_hybrid_base"):
        raise BackboneError(
            "from_module takes a plain network, and this one is a hybrid already: make a new "
            "network"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise BackboneError(
            "from_module takes a network that Python runs, and this one is scripted, which runs "
            "without its hooks: hand over the network that was scripted"
        )
    compiled = [path for path, each in module.named_modules() if "_orig_mod" in each._modules]
    if compiled:
        what = ".".join(["network", *filter(None, compiled[:1])])
        raise BackboneError(
            f"from_module takes a network as it is written, and {what} is compiled: hand it over "
            f"with {what}._orig_mod in its place, and compile the hybrid (torch.compile)"
        )
    if type and type.rpartition(".")[2] != module.__class__.__qualname__.rpartition(".")[2]:
        raise BackboneError(
            f"the saved model was made from {type}, not from {_type_name(module)}: pass a module "
            "of that class"
        )
    if isinstance(stages, str) or not isinstance(stages, Sequence) or not stages:
        raise BackboneError(
            "stages is a list with a path, or a list of paths, for each stage, not "
            f"{short_repr(stages)}"
        )
    short = (
        re.sub(r"[^a-z0-9_]", "_", module.__class__.__name__.lower()).lstrip("_0123456789")
        or "network"
    )
    try:
        spec = BackboneSpec(
            name=short if name is None else name,
            factory=Handover(module),
            stem=(stem,) if isinstance(stem, str) else stem,  # type: ignore[arg-type]
            stages=tuple(stages),  # type: ignore[arg-type]
            head=head,
            num_channels=num_channels,
            min_size=min_size,
            fixed_size=fixed_size,
            auxiliary=auxiliary or {},
        )
    except (TypeError, ValueError) as error:
        raise BackboneError(f"from_module: {error}") from error
    # which a plugin's spec may name although the network was built without it
    for path in spec.auxiliary:
        if not has_module(module, path):
            raise BackboneError(
                f"from_module: there is no auxiliary head {path!r}; its children are "
                f"{join_names(module._modules)}"
            )
    return Named(FROM_MODULE, spec)


def warn_of_hidden_names(module: nn.Module, hybrid: type[nn.Module]) -> None:
    """Warn where a name of the network's own means something else once it is a hybrid.

    The network's own forward is not concerned: it runs on a view that has the network's names.
    Methods that the network only inherits from nn.Module are not its own.

    Args:
        module: the network, not yet a hybrid.
        hybrid: the class whose public names the hybrid will have.
    """
    # Python looks a name up in this order: a property of the class, the object's own `__dict__`,
    # anything else of the class, and nn.Module's `__getattr__`, which finds children and tensors.
    # So the hybrid's names hide children and methods of the network, its properties hide attributes
    # as well, and an attribute of the network hides a method of the hybrid. Each of these is said.
    public = {name for name in vars(hybrid) if not name.startswith("_")} - set(dir(nn.Module))
    children = {*module._modules, *module._parameters, *module._buffers}
    methods = {name for name in dir(type(module)) if name not in dir(nn.Module)}
    # Python finds an instance's own attribute before a method, but after a property
    properties = {name for name in public if isinstance(vars(hybrid)[name], property)}
    hidden = sorted(public & (children | methods | (properties & module.__dict__.keys())))
    hiding = sorted(public & module.__dict__.keys() - properties)
    parts = []
    if hidden:
        parts.append(
            f"of its names {', '.join(hidden)} the hybrid's own meaning comes first (the "
            "network's forward still finds its own; you find a child by get_submodule, and a "
            f"method by {type(module).__name__}.METHOD(model, ...))"
        )
    if hiding:
        parts.append(f"its attributes {', '.join(hiding)} hide the hybrid's methods of that name")
    if parts:
        message = f"{type(module).__name__} becomes a hybrid: {'; '.join(parts)}"
        warnings.warn(message, UserWarning, stacklevel=3)


def described(spec: BackboneSpec, network: nn.Module) -> dict[str, Any]:
    """Return what `module_backbone` needs to describe another module of the same kind, as
    plain data.
    """
    return {
        "type": _type_name(network),
        "name": spec.name,
        "stem": list(spec.stem),
        "stages": [list(paths) for paths in spec.stage_paths],
        "head": spec.head,
        "num_channels": spec.num_channels,
        "min_size": spec.min_size,
        "fixed_size": spec.fixed_size,
        "auxiliary": dict(spec.auxiliary),
    }


def _type_name(network: nn.Module) -> str:
    cls = getattr(network, "_hybrid_base", network.__class__)
    return f"{cls.__module__}.{cls.__qualname__}"
