"""What features depend on, as a key: whatever changes them changes it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..data import Samples

__all__ = ["content_digest", "facts_of", "key_of", "weights_digest"]

_DISTRIBUTIONS = ("torch", "torchvision", "numpy", "pillow", "tvc-core", "tvc-train")
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.Size)


def key_of(facts: dict[str, Any]) -> str:
    """Return the key of facts: 32 hexadecimal digits."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def facts_of(
    below: fx.GraphModule, *, transforms: dict[str, Any], data: str, **others: Any
) -> dict[str, Any]:
    """Return what features depend on.

    Args:
        below: what computes them.
        transforms: of the images.
        data: a digest of them.
        others: such as the seed, the device, and the type of numbers.
    """
    return {
        "weights": weights_digest(below),
        "blocks": _digest(_described(below)),
        "transforms": transforms,
        "data": data,
        "versions": _versions(below),
        "processor": _processor(),
        **others,
    }


def weights_digest(module: nn.Module) -> str:
    """Return a hash of all parameters and buffers of a module."""
    whole = hashlib.sha256()
    for name, tensor in sorted(_tensors(module).items()):
        flat = tensor.detach().cpu().contiguous()
        whole.update(f"{name}:{flat.dtype}:{tuple(flat.shape)};".encode())
        whole.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def content_digest(samples: Samples) -> str:
    """Return a hash over the contents of images in their order; names and targets have no part."""
    whole = hashlib.sha256()
    for index in range(len(samples)):
        whole.update(samples.content(index))
    return whole.hexdigest()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in named.items() if tensor.numel()}


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _described(below: fx.GraphModule) -> Iterable[str]:
    """Yield a line for each step, and for each module in one: its class, settings and code."""
    numbers = {node: f"%{number}" for number, node in enumerate(below.graph.nodes)}
    for node in below.graph.nodes:
        target = node.target
        if not isinstance(target, str):
            target = (
                f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"
            )
        given = fx.node.map_arg((node.args, node.kwargs), lambda each: _Name(numbers[each]))
        yield f"{numbers[node]} = {node.op} {target} {given!r}"
        if node.op != "call_module":
            continue
        for path, module in below.get_submodule(str(node.target)).named_modules():
            plain = {k: v for k, v in vars(module).items() if _is_plain(v)}
            kind = type(module)
            hooks = [
                getattr(hook, "__qualname__", type(hook).__qualname__)
                for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            ]
            code = "" if kind.__module__.startswith("torch.") else _source_of(kind)
            name = f"{kind.__module__}.{kind.__qualname__}"
            yield f" {path}: {name} {sorted(plain.items())!r} {module.extra_repr()} {hooks} {code}"


class _Name(str):
    """Text that stands for itself in a line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _source_of(kind: type) -> str:
    """Return a hash of a class's code, which may be of a notebook; "" where there is none."""
    try:
        return _digest([inspect.getsource(kind)])
    except (OSError, TypeError):
        return ""


def _versions(below: fx.GraphModule) -> dict[str, str]:
    """Return the versions of what computes and decodes, and of where the modules come from."""
    from PIL import features

    tops = {type(module).__module__.partition(".")[0] for module in below.modules()}
    names = {*_DISTRIBUTIONS, *(name for top in tops for name in _distributions_of(top))}
    found = {}
    for name in sorted(names):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    codecs = ("jpg", "zlib", "libtiff", "webp")
    found |= {name: str(features.version(name)) for name in codecs}
    return {**found, "torch build": torch.__version__, "python": sys.version.split()[0]}


def _distributions_of(package: str) -> list[str]:
    """Return the distributions of a package, most of which have its name."""
    name = package.replace("_", "-")
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return _distributions().get(package, [])
    return [name]


@functools.cache
def _distributions() -> dict[str, list[str]]:
    """Return the distributions of each package, which takes a second where there are many."""
    return dict(metadata.packages_distributions())


def _processor() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
