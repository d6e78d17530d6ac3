"""Squeeze-excite at every module path of a backbone: it works, or the build refuses and names the
path and what it saw.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from sweep_page import REASONS, as_row
from torch import Tensor, nn

from tvc_core import (
    BackboneSpec,
    HybridBuilder,
    HybridModel,
    PatchError,
    Registry,
    TargetError,
    hookimpl,
)

QUICK = ("squeezenet1_1",)
SWEPT = (
    *(
        "alexnet",
        "vgg11",
        "vgg11_bn",
        "squeezenet1_1",
        "shufflenet_v2_x0_5",
        "mnasnet0_5",
        "regnet_x_400mf",
        "regnet_y_400mf",
    ),
    *(
        "resnet18",
        "resnet50",
        "resnext50_32x4d",
        "wide_resnet50_2",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "efficientnet_b0",
    ),
    *(
        "convnext_tiny",
        "vit_b_32",
        "swin_t",
        "swin_v2_t",
        "googlenet",
        "densenet121",
        "inception_v3",
        "maxvit_t",
    ),
)
OPTIONS = {"vit_b_32": {"image_size": 96}}
"""Where a smaller network of the same modules can be had."""


def narrow_maxvit() -> nn.Module:
    """Return what `maxvit_t` is made of, with fewer blocks and channels, for 64 pixels: its own 224
    take an hour.
    """
    widths, blocks = [24, 48, 96, 192], [1, 1, 2, 1]  # no map is as wide as it has channels
    return torchvision.models.MaxVit(
        (64, 64), 24, 2, widths, blocks, head_dim=24, stochastic_depth_prob=0.2
    )


NARROW = {"maxvit_t": (narrow_maxvit, 64)}
"""What stands for a backbone whose own network takes too long, and the side of its image
[pixels].
"""


class Ready:
    """A backbone built once, and a builder that hands out copies of it, since drawing random
    weights takes long.
    """

    def __init__(self, name: str) -> None:
        offer = Registry().resolve(BackboneSpec, name)
        options = {"init_weights": False} if "init_weights" in offer.spec.options else {}
        options |= OPTIONS.get(name, {})
        spec = offer.spec
        torch.manual_seed(0)
        if name in NARROW:
            make, side = NARROW[name]
            self.network = make()
            spec = replace(spec, weights=(), default_weights=None, min_size=side)
        else:
            self.network = offer.load()(spec, weights=None, **options)
        # for its auxiliary head, which runs in training
        self.training_side = 299 if name == "inception_v3" else 0
        self._settle(max(64, options.get("image_size", spec.min_size), self.training_side))

        def handed_out(spec: BackboneSpec, *, weights: Any, **options: Any) -> nn.Module:
            return copy.deepcopy(self.network)

        class Plugin:
            TVC_API = (1, 0)

            @staticmethod
            @hookimpl
            def tvc_backbones() -> list[BackboneSpec]:
                return [replace(spec, name="ready", factory=handed_out)]

        self.builder = HybridBuilder(plugins=[Plugin])
        self.options = OPTIONS.get(name)
        plain = self.build()
        height, width = plain._hybrid.probe_shape[2:]
        self.x = images(1, height, width)
        # another width, of whose maps none is as wide as they have channels: `half_open` finds the
        # channels by their number
        self.other = (
            images(2, height, width) if offer.spec.fixed_size else images(2, height + 32, width + 8)
        )
        self.batch = (
            images(2, self.training_side, self.training_side) if self.training_side else self.other
        )
        self.network.eval()
        with torch.no_grad():
            self.expected, self.expected_other = self.network(self.x), self.network(self.other)

    def _settle(self, side: int) -> None:
        """Leave nothing at zero or at 1e-6 (ViT's head, ConvNeXt's layer scale), and take running
        statistics from an image.
        """
        norms = [
            module
            for module in self.network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        momenta = [module.momentum for module in norms]
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
            for module in norms:
                module.momentum = 1.0
            if norms:
                self.network.train()(images(4, side, side))
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum

    def build(self, path: str | None = None) -> HybridModel:
        """Build a hybrid with `se` at a path."""
        patches = {path: {"wrap": "se"}} if path else None
        return self.builder.from_backbone(
            "ready", None, patches=patches, options=self.options
        ).eval()


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def half_open(se: nn.Module, path: str, ready: Ready) -> Tensor:
    """Return the logits with the block's gate at 0.5, by torchvision's network and squeeze-excite
    written out again.
    """

    def scaled(x: Tensor, spatial: tuple[int, ...]) -> Tensor:
        mean = x.mean(spatial) if spatial else x
        hidden = torch.relu(mean @ se.fc1.weight[:, :, 0, 0].T + se.fc1.bias)
        gate = torch.sigmoid(hidden @ se.fc2.weight[:, :, 0, 0].T + se.fc2.bias)
        for axis in spatial:
            gate = gate.unsqueeze(axis)
        return x * (0.5 + 0.5 * gate)

    def hook(module: nn.Module, args: Any, x: Tensor) -> Tensor:
        channels = se.fc1.weight.shape[1]
        if x.ndim == 3:  # the class token is a map of its own
            return torch.cat([scaled(x[:, 0], ()).unsqueeze(1), scaled(x[:, 1:], (1,))], dim=1)
        assert x.ndim == 4 and [x.shape[1], x.shape[3]].count(channels) == 1, list(x.shape)
        return scaled(x, (2, 3) if x.shape[1] == channels else (1, 2))

    handle = ready.network.get_submodule(path).register_forward_hook(hook)
    try:
        return ready.network(ready.other)
    finally:
        handle.remove()


def check(model: HybridModel, path: str, ready: Ready) -> None:
    """Check that a hybrid with `se` at a path computes what it should, and can be trained."""
    (home,) = model.patch_records[0].paths
    patch = model.get_submodule(home)
    with torch.no_grad():
        assert torch.equal(model(ready.x), ready.expected), "does not start as the backbone"
        patch.alpha.fill_(0.5)
        opened, wanted = model(ready.other), half_open(patch.block, path, ready)
        assert not torch.equal(opened, ready.expected_other), "opening the gate changes nothing"
        # 1e-3 of it: the rounding of float32 grows on its way through a random network
        scale = float(wanted.abs().max())
        assert float((opened - wanted).abs().max()) <= 1e-3 * scale, (
            "computes something else than squeeze-excite there"
        )
    output = model.train()(ready.batch)
    outputs = [output] if isinstance(output, Tensor) else list(output)
    sum(found.square().mean() for found in outputs).backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in patch.parameters()
    )


def try_paths(name: str, step: int = 1) -> dict[str, Any]:
    """Return what became of `se` at each path of a backbone, or at one of `step`."""
    ready = Ready(name)
    paths = [path for path, _ in ready.network.named_modules() if path][::step]
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, path=path: calls.update([path]))
        for path, module in ready.network.named_modules()
    ]
    with torch.no_grad():
        ready.network(ready.x)
    for handle in handles:
        handle.remove()
    worked: list[str] = []
    refused: Counter[str] = Counter()
    wrong: list[str] = []
    for path in paths:
        try:
            check(ready.build(path), path, ready)
            worked.append(path)
        except (TargetError, PatchError) as error:
            reason = next(
                (reason for reason, said in REASONS.items() if re.search(said, str(error))), None
            )
            shape_said = reason in ("never called", "no single tensor") or re.search(
                r"\[\d+(, \d+)*\]", str(error)
            )
            if reason and shape_said and repr(path) in str(error):
                refused[reason] += 1
            else:
                wrong.append(
                    f"{path}: the build refuses and does not say path, reason and shape: {error}"
                )
        except Exception as error:  # whatever a built model raises is what must not be
            wrong.append(f"{path}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return {
        "image": "x".join(map(str, ready.x.shape[2:])),
        "paths": len(paths),
        "worked": len(worked),
        "shared": sum(calls[path] > 1 for path in worked),
        "refused": dict(refused),
        "wrong": wrong,
        "note": "a network of its class and its kinds of blocks, with fewer blocks and channels"
        if name in NARROW
        else "",
    }


@pytest.mark.parametrize("name", QUICK)
def test_se_works_at_a_path_or_the_build_says_why_not(name: str) -> None:
    found = try_paths(name, step=3)  # a Fire module has 7 paths: each of its layers is met
    assert found["wrong"] == []
    assert found["worked"] > found["paths"] / 3, (
        "a backbone where most paths are refused is not supported"
    )


@pytest.mark.sweep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SWEPT)
def test_se_at_every_path_of_a_backbone(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    found = try_paths(name)
    record_property(*as_row("paths", name, SWEPT, **found))
    assert found["wrong"] == []
    assert found["worked"] > found["paths"] / 3, (
        "a backbone where most paths are refused is not supported"
    )


def test_the_swept_backbones_are_out_of_every_family() -> None:
    families = {
        offer.spec.name: offer.spec.family
        for offer in Registry().all(BackboneSpec)
        if offer.spec.origin == "torchvision"
    }
    assert {families[name] for name in SWEPT} == set(families.values()) and len(SWEPT) >= 20


def test_a_module_that_runs_twice_with_one_width_works_and_with_two_is_refused_with_the_list() -> (
    None
):
    ready = Ready("resnet18")
    check(ready.build("layer2.0.relu"), "layer2.0.relu", ready)
    with pytest.raises(
        TargetError,
        match=r"'layer2\.0\.relu' .*runs 3 times .*\[1, 128, .*\], \[1, 128, .*\], \[1, 512, .*\]",
    ):
        HybridBuilder().from_backbone("resnet50", None, patches={"layer2.0.relu": {"wrap": "se"}})
