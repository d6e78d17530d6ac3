"""What modules do to old files in torch's `load_state_dict`, partial_load does as well: for every
class of torch, torchvision and timm that has loading code of its own.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm.layers
import torch
import torch.ao.nn.intrinsic.qat as qat
import torch.ao.quantization as quantization
import torchvision
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations
from torchvision.models.detection import mask_rcnn, retinanet, rpn
from torchvision.models.mnasnet import MNASNet
from torchvision.models.quantization import mobilenetv3
from torchvision.models.vision_transformer import MLPBlock, VisionTransformer

from tvc_core import WeightsError, partial_load

State = dict[str, Tensor]


def plain(module: nn.Module) -> State:
    return dict(module.state_dict())


def renamed(module: nn.Module, pattern: str, new: Any) -> State:
    return {re.sub(pattern, new, key): value for key, value in module.state_dict().items()}


def without(state: State, ending: str) -> State:
    return {key: value for key, value in state.items() if not key.endswith(ending)}


def conv_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def vit() -> nn.Module:
    return VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16,
        num_classes=3,
    )  # fmt: skip


def old_vit() -> State:
    names = {"0": "linear_1", "3": "linear_2"}
    return renamed(vit(), r"mlp\.([03])\.", lambda found: f"mlp.{names[found[1]]}.")


def qat_conv() -> nn.Module:
    config = quantization.get_default_qat_qconfig("fbgemm")
    return qat.ConvBn2d(3, 4, 1, qconfig=config)


def old_qat_conv() -> State:
    words = {"bn.weight": "gamma", "bn.bias": "beta"}
    state = renamed(qat_conv(), r"^bn\.(weight|bias)$", lambda found: words[found[0]])
    return {key.removeprefix("bn."): value for key, value in state.items()}


def old_spectral() -> State:
    state = nn.utils.spectral_norm(nn.Linear(4, 3)).state_dict()
    return {key: value for key, value in state.items() if not key.endswith("weight_v")}


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], State]]] = {
    "_NormBase": (conv_norm, lambda: without(plain(conv_norm()), "num_batches_tracked")),
    "_InstanceNorm": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        lambda: without(
            plain(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
            "num_batches_tracked",
        ),
    ),
    "LazyModuleMixin": (lambda: nn.LazyConv2d(4, 3), lambda: plain(nn.Conv2d(3, 4, 3))),
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
        lambda: plain(nn.utils.weight_norm(nn.Linear(4, 3))),
    ),
    "spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), old_spectral),
    "ActivationWrapper": (
        lambda: checkpoint_wrapper(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))),
        lambda: plain(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))),
    ),
    "FrozenBatchNorm2d": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), torchvision.ops.FrozenBatchNorm2d(4)),
        lambda: plain(conv_norm()),
    ),
    "FrozenBatchNormAct2d": (
        lambda: timm.layers.FrozenBatchNormAct2d(4),
        lambda: plain(nn.BatchNorm2d(4)),
    ),
    "MLPBlock": (vit, old_vit),
    "MNASNet": (lambda: MNASNet(1.0, num_classes=3), lambda: MNASNet(1.0, 3).state_dict()),
    "FeaturePyramidNetwork": (
        lambda: torchvision.ops.FeaturePyramidNetwork([4, 8], 4),
        lambda: renamed(
            torchvision.ops.FeaturePyramidNetwork([4, 8], 4), r"_blocks\.(\d)\.0\.", r"_blocks.\1."
        ),
    ),
    "RPNHead": (
        lambda: rpn.RPNHead(4, 3),
        lambda: renamed(rpn.RPNHead(4, 3), r"conv\.0\.0\.", "conv."),
    ),
    "MaskRCNNHeads": (
        lambda: mask_rcnn.MaskRCNNHeads(4, (4, 4), 1),
        lambda: renamed(
            mask_rcnn.MaskRCNNHeads(4, (4, 4), 1),
            r"^(\d)\.0\.",
            lambda found: f"mask_fcn{int(found[1]) + 1}.",
        ),
    ),
    "RetinaNetClassificationHead": (
        lambda: retinanet.RetinaNetClassificationHead(4, 2, 3),
        lambda: renamed(
            retinanet.RetinaNetClassificationHead(4, 2, 3),
            r"conv\.(\d)\.0\.",
            lambda found: f"conv.{2 * int(found[1])}.",
        ),
    ),
    "RetinaNetRegressionHead": (
        lambda: retinanet.RetinaNetRegressionHead(4, 2),
        lambda: renamed(
            retinanet.RetinaNetRegressionHead(4, 2),
            r"conv\.(\d)\.0\.",
            lambda found: f"conv.{2 * int(found[1])}.",
        ),
    ),
    "QuantizableSqueezeExcitation": (
        lambda: mobilenetv3.QuantizableSqueezeExcitation(8, 4),
        lambda: plain(mobilenetv3.QuantizableSqueezeExcitation(8, 4)),
    ),
    "MinMaxObserver": (
        lambda: quantization.MinMaxObserver(),
        lambda: {"min_val": torch.tensor(1.0), "max_val": torch.tensor(2.0)},
    ),
    "PerChannelMinMaxObserver": (
        lambda: quantization.PerChannelMinMaxObserver(),
        lambda: {"min_val": torch.ones(3), "max_val": torch.ones(3)},
    ),
    "HistogramObserver": (
        lambda: quantization.HistogramObserver(),
        lambda: without(plain(quantization.HistogramObserver()), "eps"),
    ),
    "FakeQuantize": (
        lambda: quantization.FakeQuantize(),
        lambda: {"scale": torch.ones(3), "zero_point": torch.zeros(3, dtype=torch.int32)},
    ),
    "_ConvBnNd": (qat_conv, old_qat_conv),
}


@pytest.mark.parametrize("name", CASES)
def test_an_old_file_is_loaded_as_torch_loads_it(name: str) -> None:
    make, old = CASES[name]
    torch.manual_seed(0)
    theirs, ours = make(), make()
    if not any(nn.parameter.is_lazy(each) for each in ours.parameters()):
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    given = old()
    theirs.load_state_dict(copy.copy(given), strict=False)
    report = partial_load(ours, given, min_loaded=0)
    a, b = theirs.state_dict(), ours.state_dict()
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert report.unexpected == ()
    accounted = {*report.sources.values(), *report.migrated}
    assert accounted == set(given)


@pytest.mark.parametrize("prefix", ["module.", "net.module."])
@pytest.mark.parametrize(
    "name", ["MLPBlock", "FrozenBatchNorm2d", "RetinaNetRegressionHead", "FeaturePyramidNetwork"]
)
def test_a_wrapped_old_file_is_migrated_as_well(name: str, prefix: str) -> None:
    make, old = CASES[name]
    theirs, ours, given = make(), make(), old()
    theirs.load_state_dict(dict(given), strict=False)
    partial_load(ours, {f"{prefix}{key}": value for key, value in given.items()})
    a, b = theirs.state_dict(), ours.state_dict()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


KEPT_ELSEWHERE = {
    # quantized modules keep packed weights outside of their tensors; see the test below
    "LinearPackedParams", "Linear", "EmbeddingPackedParams", "_ConvNd", "QFunctional",
    "FloatFunctional", "PackedParameter", "ReferenceQuantizedModule", "PackedParameters",
    "RNNBase", "LSTM", "GRU", "RNNCellBase", "QuantizedGraphModule",
    # bases of classes that are among the cases
    "FakeQuantizeBase", "UniformQuantizationObserverBase",
}  # fmt: skip


def loading_classes(package: str) -> Iterator[type[nn.Module]]:
    """Yield the classes of a package whose own body has `_load_from_state_dict`."""
    root = importlib.import_module(package)
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        if "_internal" in found.name or "testing" in found.name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(found.name)
            except (Exception, SystemExit):  # optional parts
                continue
        for _, each in inspect.getmembers(module, inspect.isclass):
            if "_load_from_state_dict" in vars(each) and each.__module__ == found.name:
                yield each


@pytest.mark.parametrize(
    "package", ["torch.nn", "torch.ao", "torchvision.models", "torchvision.ops", "timm.layers"]
)
def test_no_class_with_loading_code_is_forgotten(package: str) -> None:
    found = {each.__name__ for each in loading_classes(package)} - {"Module"}
    assert found - {*CASES, *KEPT_ELSEWHERE} == set()


def test_a_model_that_keeps_packed_weights_is_refused_and_not_half_loaded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.nn.quantized.Linear(4, 3)
        with pytest.raises(WeightsError, match="its own load_state_dict"):
            partial_load(model, {"scale": torch.tensor(2.0)})


def test_mnasnet_of_the_first_version_gets_the_stem_of_the_first_version() -> None:
    torch.manual_seed(0)
    first = MNASNet(0.5, num_classes=3)
    state = first.state_dict()
    state._metadata[""]["version"] = 1
    with pytest.warns(UserWarning, match="previous version"), pytest.raises(RuntimeError):
        first.load_state_dict(state)  # which has exchanged the stem before it fails
    old = {
        key: torch.rand_like(value.float()).to(value.dtype)
        for key, value in first.state_dict().items()
    }
    given = first.state_dict()
    given.update(old)
    assert given._metadata[""]["version"] == 1
    theirs, ours = MNASNet(0.5, num_classes=3), MNASNet(0.5, num_classes=3)
    with pytest.warns(UserWarning, match="previous version"):
        theirs.load_state_dict(copy.copy(given))
        report = partial_load(ours, given)
    assert report.load_ratio == 1.0 and ours._version == 1
    a, b = theirs.state_dict(), ours.state_dict()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_a_failed_load_of_a_first_version_leaves_the_stem() -> None:
    model = MNASNet(0.5, num_classes=3)
    state = model.state_dict()
    state._metadata[""]["version"] = 1
    before = [(type(m), id(m)) for m in model.modules()]
    with pytest.warns(UserWarning), pytest.raises(WeightsError, match="Shape mismatch"):
        partial_load(model, state)
    assert [(type(m), id(m)) for m in model.modules()] == before and model._version == 2


def test_a_file_without_versions_is_tried_as_a_new_one() -> None:
    """safetensors keeps no versions, and MNASNet refuses what has none."""
    source, target = MNASNet(0.5, num_classes=3), MNASNet(0.5, num_classes=3)
    assert partial_load(target, dict(source.state_dict())).load_ratio == 1.0


def test_mlp_block_is_the_one_that_torchvision_migrates() -> None:
    """The names of the page's case are those that torchvision itself knows."""
    assert "linear_" in inspect.getsource(MLPBlock._load_from_state_dict)


class Doubling(nn.Module):
    """Loads by code of its own, past torch's count of changes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.w.data.copy_(2 * state_dict[f"{prefix}w"])


class Growing(nn.Module):
    """Takes the size of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(2))
        self.size = 2

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.size = len(state_dict[f"{prefix}n"])
        self.n = torch.zeros(self.size)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Joining(nn.Module):
    """Makes one tensor of two."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}a" in state_dict:
            parts = [state_dict.pop(f"{prefix}{name}") for name in "ab"]
            state_dict[f"{prefix}w"] = torch.cat(parts)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (Doubling, {"w": torch.ones(3)}),
        (Growing, {"n": torch.arange(5.0)}),
        (Joining, {"a": torch.ones(1), "b": torch.zeros(3)}),
    ],
)
@pytest.mark.parametrize("prefix", ["", "inner."])
def test_code_of_anybodys_own(make: type[nn.Module], given: State, prefix: str) -> None:
    theirs, ours = (
        nn.ModuleDict({"x": nn.ModuleDict({"y": make()}), "fc": nn.Linear(2, 2)}) for _ in range(2)
    )
    state = {f"x.y.{key}": value for key, value in given.items()}
    state |= {f"fc.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()}
    theirs.load_state_dict(dict(state))
    report = partial_load(ours, {f"{prefix}{key}": value for key, value in state.items()})
    a, b = theirs.state_dict(), ours.state_dict()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert getattr(ours["x"]["y"], "size", None) == getattr(theirs["x"]["y"], "size", None)
    assert sorted([*report.sources.values(), *report.migrated]) == sorted(
        f"{prefix}{key}" for key in state
    )
