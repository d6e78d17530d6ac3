"""Made-up weights where torch.hub looks for published files, for tests without a network."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CachedFile", "cached_weights", "official_weights"]

_DIGITS = 8
"""Of the SHA-256 in a file's name, as torch.hub has it."""


@dataclass(frozen=True, kw_only=True)
class CachedFile:
    """A file of weights in the cache of torch.hub.

    Args:
        path: of the file.
        url: from which it would have been downloaded; its last part is the file's name.
        sha256: of the file; its name has the first digits.
    """

    path: Path
    url: str
    sha256: str


@contextmanager
def cached_weights(
    home: Path, tensors: Mapping[str, Tensor], name: str = "weights"
) -> Iterator[CachedFile]:
    """Put a state dict where torch.hub looks for downloads, under a name with the right hash:
    nothing is switched off.

    Args:
        home: folder that stands for TORCH_HOME inside the `with`.
        tensors: the state dict.
        name: first part of the file's name.
    """
    import torch

    draft = _folder(home) / f"{name}.pth"
    torch.save(dict(tensors), draft)
    file = _named_by_hash(draft, name)
    draft.unlink()
    with _environment(TORCH_HOME=str(home), TVC_VERIFY_WEIGHTS=None):
        yield file


def _named_by_hash(path: Path, name: str) -> CachedFile:
    """Copy a file to the name that has its hash, beside it."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    copy = path.with_name(f"{name}-{digest[:_DIGITS]}.pth")
    if not (copy.exists() and filecmp.cmp(path, copy, shallow=False)):
        shutil.copyfile(path, copy)
    return CachedFile(path=copy, url=f"https://weights.invalid/{copy.name}", sha256=digest)


def _folder(home: Path) -> Path:
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Set environment variables, None unsets one; restored afterwards."""
    kept = {key: os.environ.get(key) for key in values}

    def write(wanted: Mapping[str, str | None]) -> None:
        for key, value in wanted.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)

    write(values)
    try:
        yield
    finally:
        write(kept)


@contextmanager
def official_weights(
    home: Path, *names: str, seed: int = 0, verify: bool = False
) -> Iterator[dict[str, Path]]:
    """Put made-up checkpoints where torch.hub looks for torchvision's official files.

    The tensors are random, under the names that the published files have, which for some networks
    are not those of the installed torchvision; running statistics are those of random images, so
    that activations keep a sane size, and a wrong mode or a lost buffer changes the output. Files
    are made once a folder and kept.

    Args:
        home: folder that stands for TORCH_HOME inside the `with`.
        names: "resnet50" (default weights) or "resnet50:IMAGENET1K_V1".
        seed: of the random tensors.
        verify: give the files names with their own hashes, and let torchvision's weights point to
            them inside the `with`. Otherwise they have the official names, and the comparison of
            hashes is switched off.

    Yields:
        The file of each name.
    """
    import torch
    import torchvision

    from .seeding import torch_seed

    folder = _folder(home)
    files: dict[str, Path] = {}
    members: dict[str, Any] = {}
    for name in names:
        network, _, weights = name.partition(":")
        member = torchvision.models.get_model_weights(network)[weights or "DEFAULT"]
        members[name] = member
        files[name] = folder / member.url.rpartition("/")[2]
        if files[name].exists():
            continue
        with torch_seed(seed):
            smallest = member.meta["min_size"][0]
            # the only one with tensors of that size
            options = {"image_size": smallest} if network.startswith("vit_") else {}
            model = torchvision.models.get_model(network, weights=None, **options)
            # Inception's auxiliary head needs the full size
            _settle(model, side=299 if network == "inception_v3" else max(64, smallest))
        torch.save(_as_published(network, member.name, model.state_dict()), files[name])
    with (
        _environment(TORCH_HOME=str(home), TVC_VERIFY_WEIGHTS=None if verify else "0"),
        ExitStack() as stack,
    ):
        for name, path in list(files.items()) if verify else []:
            file = _named_by_hash(path, path.stem.rpartition("-")[0])
            files[name] = file.path
            stack.enter_context(mock.patch.object(members[name].value, "url", file.url))
        yield files


_BEFORE_COUNTS = re.compile(r"resnet\d+:IMAGENET1K_V1|densenet|vgg\d+_bn|inception_v3|googlenet")
"""Files from before normalizations counted batches."""


def _as_published(network: str, weights: str, state: Any) -> dict[str, Tensor]:
    """Return a state dict in the layout of the published file: names from before layers were
    renamed, and what those files lack. A file in an old layout has no versions of modules, by which
    migrations know it.
    """
    import torch

    if network == "vgg16" and weights == "IMAGENET1K_FEATURES":
        for name, tensor in state.items():
            if name.startswith("classifier."):
                state[name] = torch.full_like(tensor, float("nan"))
        return state
    new = dict(state)
    if _BEFORE_COUNTS.match(f"{network}:{weights}"):
        new = {name: t for name, t in new.items() if not name.endswith("num_batches_tracked")}
    if network.startswith("densenet"):
        layers = re.compile(r"(denselayer\d+\.(?:norm|conv))(\d)")
        new = {layers.sub(r"\1.\2", name): t for name, t in new.items()}
    if network.startswith("vit_"):
        old = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
        pattern = re.compile(r"\.mlp\.[03]\.")
        new = {pattern.sub(lambda found: old[found[0]], name): t for name, t in new.items()}
    return state if new.keys() == state.keys() else new


def _settle(model: nn.Module, side: int) -> None:
    """Fill layers that start at zero (ViT's head), and take running statistics from random images
    [8, 3, side, side].
    """
    import torch

    norms = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and not module.weight.any():
                module.weight.normal_(0, 0.02)
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, side, side))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
