"""Defective backbones: a healthy network with one thing wrong in it, in its factory or in
its spec.
"""

from __future__ import annotations

import functools
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvc_core import BackboneSpec, WeightsError, WeightsSpec

from . import Defect


class Healthy(nn.Module):
    """stem, two stages, pool, fc."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.layer1 = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


class Encoder(nn.Module):
    """Torch's encoder layers: with hooks they compute in another way than without, and round
    otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 16, 8))
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean(1))


def build(spec: BackboneSpec, *, weights: Any, width: int = 8) -> nn.Module:
    if weights is not None:
        raise WeightsError(f"{weights.name} cannot be downloaded")
    return Healthy(width)


def build_only_with_weights(spec: BackboneSpec, *, weights: Any) -> nn.Module:
    return Healthy(len(weights.mean))


class NoLogits(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Drops(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


class BatchMean(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class Listed(Healthy):
    """Its second stage is a list, which is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer2 = nn.ModuleList(self.layer2)  # type: ignore[assignment]

    def features(self, x: Tensor) -> Tensor:
        x = self.layer1(self.stem(x))
        for layer in self.layer2:
            x = layer(x)
        return x


class TwoMaps(nn.Module):
    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Any:
        return self.stage(x), x


class ReturnsTuple(Healthy):
    """Its second stage returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer2 = TwoMaps(self.layer2)  # type: ignore[assignment]

    def features(self, x: Tensor) -> Tensor:
        x, _ = self.layer2(self.layer1(self.stem(x)))
        return x


class Needs40(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        assert min(x.shape[2:]) >= 40, "too small"
        return super().forward(x)


class OddHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table


class OwnHead(Healthy):
    def __init__(self) -> None:
        super().__init__()
        self.fc = OddHead()  # type: ignore[assignment]


class Scaled(Healthy):
    def __init__(self) -> None:
        super().__init__()
        self.scale = float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale)


_POOL = nn.AdaptiveAvgPool2d(1)


class SharedPool(Healthy):
    def __init__(self) -> None:
        super().__init__()
        self.pool = _POOL


class Bypassed(Healthy):
    """Its second stage runs, and nothing reads it."""

    def features(self, x: Tensor) -> Tensor:
        x = self.layer1(self.stem(x))
        self.layer2(x)
        return torch.cat([x, x], 1)


class ActivatesLate(Healthy):
    """torch's function between the last stage and pooling, as in torchvision's DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.layer2 = self.layer2[:1]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        return self.fc(torch.flatten(self.pool(x), 1))


class ActivatesBeforeMoving(Healthy):
    """The map is first brought into another layout, then scaled, then pooled by a mean."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).permute(0, 2, 3, 1).flatten(1, 2)
        return self.fc(F.gelu(x).mean(1))


class RoundsUp(Healthy):
    """Pads by a quotient that ONNX rounds in another direction."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(F.pad(x, [0, -(-x.shape[3] // 16) * 16 - x.shape[3], 0, 0]))


class DecidesBySize(Healthy):
    """An exporter sees only what was decided for its example."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x if x.shape[3] > 100 else x.flip(3))


class Moves(Healthy):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return super().forward(x)


class Lambda(Healthy):
    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Make:
    """A factory of one class, which takes no options."""

    def __init__(self, cls: type[nn.Module]) -> None:
        self.cls = cls

    def __call__(self, spec: BackboneSpec, *, weights: Any) -> nn.Module:
        if weights is not None:
            raise WeightsError(f"{weights.name} cannot be downloaded")
        return self.cls()


def ignores_weights(spec: BackboneSpec, *, weights: Any) -> nn.Module:
    return Healthy()


def with_other_classes(spec: BackboneSpec, *, weights: Any) -> nn.Module:
    network = Healthy()
    if weights is not None:
        network.load_state_dict({name: tensor + 1 for name, tensor in network.state_dict().items()})
    return network


def with_another_default(spec: BackboneSpec, *, weights: Any, act: str = "silu") -> nn.Module:
    network = Healthy()
    network.layer1.append({"silu": nn.SiLU(), "gelu": nn.GELU()}[act])
    return network


def sets_seed(spec: BackboneSpec, *, weights: Any) -> nn.Module:
    torch.manual_seed(0)
    return Healthy()


class SetsSeedWhenRun(Healthy):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().forward(x)


def python_random(spec: BackboneSpec, *, weights: Any) -> nn.Module:
    network = Healthy()
    nn.init.constant_(network.fc.bias, random.random())
    return network


@functools.cache
def one_for_all() -> nn.Module:
    return Healthy()


def the_same_one(spec: BackboneSpec, *, weights: Any) -> nn.Module:
    return one_for_all()


def _spec(factory: Any, **fields: Any) -> BackboneSpec:
    parts: dict[str, Any] = {
        "stem": ("stem",),
        "stages": ("layer1", "layer2"),
        "head": "fc",
        "min_size": 8,
    }
    return BackboneSpec(name="thing", factory=factory, **{**parts, **fields})


def migrate(spec: BackboneSpec, network: nn.Module, tensors: dict[str, Any]) -> Any:
    """Read a layout in which `fc` is called `classifier`."""
    if "classifier.weight" not in tensors:
        return None
    return {name.replace("classifier", "fc"): tensor for name, tensor in tensors.items()}


def migrate_whatever_comes(spec: BackboneSpec, network: nn.Module, tensors: dict[str, Any]) -> Any:
    return {f"body.{name}": tensor for name, tensor in tensors.items()}


def migrate_transposed(spec: BackboneSpec, network: nn.Module, tensors: dict[str, Any]) -> Any:
    return {**tensors, "fc.weight": tensors["fc.weight"].flip(0)}


def migrate_in_place(spec: BackboneSpec, network: nn.Module, tensors: dict[str, Any]) -> Any:
    tensors["fc.weight"].mul_(2)


def migrate_into_the_network(
    spec: BackboneSpec, network: nn.Module, tensors: dict[str, Any]
) -> Any:
    network.load_state_dict({name: tensor + 1 for name, tensor in tensors.items()})


GOOD = WeightsSpec(name="PHOTOS_V1", crop_size=32, resize_size=36)
HEALTHY = (
    _spec(build, options={"width": 8}, weights=(GOOD,), default_weights="PHOTOS_V1"),
    _spec(Make(Healthy), migrate=migrate),
    _spec(
        Make(Encoder),
        stem=("positions", "embed"),
        stages=("layers.0", "layers.1"),
        fixed_size=True,
        min_size=32,
    ),
)


def _weights(**fields: Any) -> dict[str, Any]:
    wrong = WeightsSpec(**{"name": "PHOTOS_V1", "crop_size": 32, "resize_size": 36, **fields})
    return {"weights": (wrong,), "default_weights": "PHOTOS_V1"}


DEFECTS = (
    Defect(
        what="needs weights",
        thing=_spec(build_only_with_weights),
        caught_by="backbone_built",
        says="random weights",
    ),
    Defect(
        what="no logits",
        thing=_spec(Make(NoLogits)),
        caught_by="backbone_built",
        says="[N, classes]",
    ),
    Defect(
        what="dropout in eval mode",
        thing=_spec(Make(Drops)),
        caught_by="backbone_deterministic",
        says="twice",
    ),
    Defect(
        what="statistics of the batch",
        thing=_spec(Make(BatchMean)),
        caught_by="backbone_deterministic",
        says="alone",
    ),
    Defect(
        what="a path that is not there",
        thing=_spec(build, stages=("layer1", "layer3")),
        caught_by="backbone_partition",
        says="no 'layer3'",
    ),
    Defect(
        what="a stage left out",
        thing=_spec(build, stages=("layer1",)),
        caught_by="backbone_partition",
        says="layer2.0.weight",
    ),
    Defect(
        what="stages in the wrong order",
        thing=_spec(build, stages=("layer2", "layer1")),
        caught_by="backbone_order",
        says="'layer1' runs after 'layer2'",
    ),
    Defect(
        what="a stage that is a list",
        thing=_spec(Make(Listed)),
        caught_by="backbone_order",
        says="'layer2' is called",
    ),
    Defect(
        what="a stage that returns a tuple",
        thing=_spec(Make(ReturnsTuple)),
        caught_by="backbone_order",
        says="a tuple",
    ),
    Defect(
        what="migrates its own layout",
        thing=_spec(build, migrate=migrate_whatever_comes),
        caught_by="backbone_migrates",
        says="'body.",
    ),
    Defect(
        what="migrates to other values",
        thing=_spec(build, migrate=migrate_transposed),
        caught_by="backbone_migrates",
        says="another fc.weight",
    ),
    Defect(
        what="migrates in place",
        thing=_spec(build, migrate=migrate_in_place),
        caught_by="backbone_migrates",
        says="fc.weight changed",
    ),
    Defect(
        what="loads where it should migrate",
        thing=_spec(build, migrate=migrate_into_the_network),
        caught_by="backbone_migrates",
        says="leave the network alone",
    ),
    Defect(
        what="pooling in the last stage",
        thing=_spec(build, stages=("layer1", ("layer2", "pool"))),
        caught_by="backbone_last_stage",
        says="where pooling begins",
    ),
    Defect(
        what="an activation before pooling",
        thing=_spec(Make(ActivatesLate)),
        caught_by="backbone_pooling",
        says="relu",
    ),
    Defect(
        what="an activation before pooling, in another layout",
        thing=_spec(Make(ActivatesBeforeMoving)),
        caught_by="backbone_pooling",
        says="gelu",
    ),
    Defect(
        what="a quotient that is rounded up",
        thing=_spec(Make(RoundsUp)),
        caught_by="backbone_exports",
        says="ONNX Runtime",
    ),
    Defect(
        what="a decision by the size of the image",
        thing=_spec(Make(DecidesBySize)),
        caught_by="backbone_exports",
        says="ONNX Runtime",
    ),
    Defect(
        what="a min_size too small",
        thing=_spec(Make(Needs40)),
        caught_by="backbone_sizes",
        says="min_size=8",
    ),
    Defect(
        what="a fixed_size that is none",
        thing=_spec(build, fixed_size=True, min_size=32),
        caught_by="backbone_sizes",
        says="fixed_size=True",
    ),
    Defect(
        what="no default",
        thing=_spec(build, weights=(GOOD,)),
        caught_by="backbone_weights",
        says="default_weights",
    ),
    Defect(
        what="mean for 0 to 255",
        thing=_spec(build, **_weights(mean=(123.7, 116.3, 103.5))),
        caught_by="backbone_weights",
        says="255",
    ),
    Defect(
        what="a crop out of a smaller image",
        thing=_spec(build, **_weights(resize_size=30)),
        caught_by="backbone_weights",
        says="32 of 30",
    ),
    Defect(
        what="options of weights that are none",
        thing=_spec(build, **_weights(options={"depth": 3})),
        caught_by="backbone_weights",
        says="depth",
    ),
    Defect(
        what="ignores the weights",
        thing=_spec(ignores_weights, **_weights()),
        caught_by="backbone_loads_weights",
        says="the random start",
    ),
    Defect(
        what="weights with another number of classes",
        thing=_spec(with_other_classes, **_weights(num_classes=1000)),
        caught_by="backbone_loads_weights",
        says="num_classes=1000",
    ),
    Defect(
        what="another default, of the same shapes",
        thing=_spec(with_another_default, options={"act": "gelu"}),
        caught_by="backbone_options",
        says="other logits",
    ),
    Defect(
        what="sets the seed",
        thing=_spec(sets_seed),
        caught_by="backbone_seeded",
        says="the factory leaves",
    ),
    Defect(
        what="sets the seed when run",
        thing=_spec(Make(SetsSeedWhenRun)),
        caught_by="backbone_seeded",
        says="forward",
    ),
    Defect(
        what="Python's random numbers",
        thing=_spec(python_random),
        caught_by="backbone_seeded",
        says="fc.bias",
    ),
    Defect(
        what="one network for all",
        thing=_spec(the_same_one),
        caught_by="backbone_independent",
        says="caches",
    ),
    Defect(
        what="a head without a last layer",
        thing=_spec(Make(OwnHead)),
        caught_by="backbone_head",
        says="5 classes",
    ),
    Defect(
        what="an option it does not take",
        thing=_spec(build, options={"depth": 3}),
        caught_by="backbone_options",
        says="'depth'",
    ),
    Defect(
        what="another default",
        thing=_spec(build, options={"width": 16}),
        caught_by="backbone_options",
        says="fc.weight",
    ),
    Defect(
        what="an attribute decides",
        thing=_spec(Make(Scaled)),
        caught_by="backbone_state_dict",
        says="buffers",
    ),
    Defect(
        what="a shared module",
        thing=_spec(Make(SharedPool)),
        caught_by="backbone_independent",
        says="pool",
    ),
    Defect(
        what="a stage that nobody reads",
        thing=_spec(Make(Bypassed)),
        caught_by="backbone_patches",
        says="stage 1",
    ),
    Defect(
        what="a buffer that moves when frozen",
        thing=_spec(Make(Moves), stem=("seen", "stem")),
        caught_by="backbone_freeze",
        says="seen",
    ),
    Defect(what="a lambda", thing=_spec(Make(Lambda)), caught_by="backbone_pickle", says="lambdas"),
)
