"""tvc writes only what it holds: what users, networks and tools set survives its own calls."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from case_tools import EVERY_POSITION, difference, ready, steps
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import tvc_core
from tvc_core import HybridBuilder, HybridModel

X = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(5))


def flags(model: nn.Module, but: tuple[str, ...] = ()) -> dict[str, bool]:
    return {n: p.requires_grad for n, p in model.named_parameters() if not n.startswith(but)}


def modes(model: nn.Module, but: tuple[str, ...] = ()) -> dict[str, bool]:
    return {n: m.training for n, m in model.named_modules() if not n.startswith(but)}


# -- one's own flags and modes ---------------------------------------------------------------------


def reset(model: HybridModel) -> None:
    model.reset_classifier(7)


def reset_with_dropout(model: HybridModel) -> None:
    model.reset_classifier(7, dropout=0.3)


def unpatch_all(model: HybridModel) -> None:
    model.unpatch()


def checkpoint(model: HybridModel) -> None:
    model.set_grad_checkpointing()
    model.set_grad_checkpointing(False)


def detection(model: HybridModel) -> None:
    from tvc_dense import as_detection_backbone

    as_detection_backbone(model, 16)


def segmentation(model: HybridModel) -> None:
    from tvc_dense import as_segmentation_backbone

    as_segmentation_backbone(model)


def extract(model: HybridModel) -> None:
    model.feature_extractor([-1])


def look(model: HybridModel) -> None:
    model.patch_report((X, torch.tensor([0, 1])))
    model.explain()
    model.freeze_report()
    with model.without():
        model(X)


STEPS = [reset, reset_with_dropout, unpatch_all, checkpoint, detection, segmentation, extract, look]
HEADS = ("fc", "classifier", "head", "global_pool", "patches")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm/test_resnet"])
@pytest.mark.parametrize("frozen", [False, True], ids=["thawed", "frozen"])
def test_a_side_step_leaves_what_was_set_by_hand(
    step: Callable[[HybridModel], None], name: str, frozen: bool
) -> None:
    model = ready(name, {"stage:1": {"wrap": "se"}, "stage:-1": {"wrap": "eca"}})
    if frozen:
        model.freeze_backbone(unfreeze_stages=[-1])
    model.train()
    chosen = [p for n, p in model.named_parameters() if not n.startswith(HEADS)]
    for number, parameter in enumerate(chosen):
        if number % 3 == 0:
            parameter.requires_grad_(not parameter.requires_grad)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for number, norm in enumerate(norms):
        norm.training = number % 2 == 0
    before = flags(model, HEADS), modes(model, HEADS)
    step(model)
    assert (flags(model, HEADS), modes(model, HEADS)) == before


def test_train_writes_what_tvc_holds_and_nothing_else() -> None:
    """A user freezes a stage by hand, and says so again after each `train()`, as usual."""

    class Held(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> Held:
            return super().train(False)

    model = ready("resnet18", {"layer4": {"wrap": "se"}})
    held = Held(64)
    held.load_state_dict(model.layer1[0].bn1.state_dict())
    model.layer1[0].bn1 = held
    model.freeze_backbone(unfreeze_stages=[0, -1])
    model.train()
    assert not model.layer1[0].bn1.training
    assert model.layer1[0].bn2.training
    assert not model.layer2[0].bn1.training
    assert model.layer4[0].bn1.training
    model.unfreeze_all()
    model.train()
    assert not model.layer1[0].bn1.training
    assert model.layer2[0].bn1.training


def test_a_networks_own_train_below_the_root() -> None:
    """As mmdetection's frozen stages."""

    class Stage(nn.Sequential):
        def train(self, mode: bool = True) -> Stage:
            super().train(mode)
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.training = False
            return self

    network = nn.Module()
    network.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
    network.stage = Stage(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Dropout(0.5))
    network.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    whole = nn.Sequential(network.stem, network.stage, network.fc)
    model = HybridBuilder().from_module(
        whole, stem="0", stages=["1"], head="2", patches={"1": {"wrap": "se"}}
    )
    model.train()
    found = {n: m.training for n, m in model.named_modules() if not n.startswith("patches")}
    assert found == {n: n != "1.1" for n in found}


def test_freezing_all_means_all_and_says_what_was_set_by_hand() -> None:
    model = ready("resnet18", {"layer4": {"wrap": "se"}})
    model.layer1.requires_grad_(False)
    with pytest.warns(Warning, match=r"layer1"):
        model.unfreeze_all()
    assert all(flags(model).values())
    model.layer2[0].bn1.eval()
    model.freeze_backbone()
    trainable = {name for name, flag in flags(model).items() if flag}
    assert all(name.startswith(("fc", "patches")) for name in trainable)
    with warnings.catch_warnings():  # tvc's own freezing needs no word
        warnings.simplefilter("error")
        model.unfreeze_all()
        model.freeze_backbone(unfreeze_stages=[-1])
        model.freeze_backbone()
        model.unfreeze_all()
    assert all(flags(model).values())


# -- statistics ------------------------------------------------------------------------------------


def reset_by_method(net: nn.Module) -> None:
    update_bn([X, X.flip(0)], net)


def reset_by_hand(net: nn.Module) -> None:
    """As Lightning does: other tensors, and no momentum."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.running_mean = torch.zeros_like(norm.running_mean)
        norm.running_var = torch.ones_like(norm.running_var)
        norm.momentum = None
        norm.num_batches_tracked *= 0
    net.train()
    net(X)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def reset_in_place(net: nn.Module) -> None:
    """As precise_bn and many scripts do."""
    for norm in net.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.zero_()
            norm.running_var.fill_(1)
            norm.num_batches_tracked.zero_()
    net.train()
    net(X)


def mean_of_batches(net: nn.Module) -> None:
    """fvcore's precise BatchNorm: momentum 1, statistics of each batch averaged by hand."""
    norms = [
        m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
    ]
    for norm in norms:
        norm.momentum = 1.0
    net(X)


def exponential(net: nn.Module) -> None:
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(3):
        average.update_parameters(net)
    net.load_state_dict(average.module.state_dict())


@pytest.mark.parametrize(
    "estimate",
    [reset_by_method, reset_by_hand, reset_in_place, mean_of_batches, exponential],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("normalization", ["frozen", "eval"])
@pytest.mark.parametrize("name", ["resnet18", "timm/test_efficientnet"])
def test_frozen_statistics_survive(
    estimate: Callable[[nn.Module], None], normalization: str, name: str
) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    model = ready(name, {"stage:-1": {"wrap": "se"}})
    model.freeze_backbone(unfreeze_stages=[-1], normalization=normalization)
    model.train()
    frozen = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training
    ]
    before = {p: model.get_submodule(p).running_var.clone() for p in frozen}
    thawed = next(
        p
        for p, m in reversed(list(model.named_modules()))
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
    )
    old = model.get_submodule(thawed).running_var.clone()
    assert len(frozen) >= 3
    estimate(model)
    model.eval()
    model(X)
    moved = [p for p in frozen if not torch.equal(model.get_submodule(p).running_var, before[p])]
    assert moved == []
    if estimate is not exponential:
        assert not torch.equal(model.get_submodule(thawed).running_var, old)


def test_an_average_of_a_frozen_model_is_one_of_a_frozen_model() -> None:
    """Copies hold what the original holds, on their own."""
    model = ready("resnet18", EVERY_POSITION)
    model.freeze_backbone(unfreeze_stages=[-1])
    average = AveragedModel(model)
    before = {n: b.clone() for n, b in model.named_buffers()}
    for _ in range(2):
        steps(model, 1)
        average.update_parameters(model)
    update_bn([X, X.flip(0)], average)
    inner = average.module
    assert not inner.layer1[0].bn1.training
    held = [n for n in before if n.startswith(("bn1", "layer1", "layer2")) and "running" in n]
    after = dict(inner.named_buffers())
    assert [n for n in held if not torch.equal(after[n], before[n])] == []
    average.eval()
    assert average(X).isfinite().all()
    assert not torch.equal(inner.layer4[1].bn2.running_var, before["layer4.1.bn2.running_var"])


def test_timms_average(tmp_path: Path) -> None:
    utils = pytest.importorskip("timm.utils")
    model = ready("resnet18", EVERY_POSITION)
    model.freeze_backbone(unfreeze_stages=[-1])
    average = utils.ModelEmaV3(model, decay=0.5)
    for _ in range(2):
        steps(model, 1)
        average.update(model)
    module = average.module
    assert isinstance(module, HybridModel)
    module.eval().save(tmp_path / "ema.safetensors")
    assert difference(tvc_core.load(tmp_path / "ema.safetensors")(X), module(X)) < 1e-6
    assert torch.equal(module.layer1[0].bn1.running_var, model.layer1[0].bn1.running_var)


def test_statistics_that_the_user_loads_are_the_new_ones() -> None:
    """Held means held against estimating anew, not against loading."""
    model = ready("resnet18", {"layer4": {"wrap": "se"}})
    other = ready("resnet18", {"layer4": {"wrap": "se"}})
    with torch.no_grad():
        other.layer1[0].bn1.running_mean += 1.0
    model.freeze_backbone()
    model.train()
    model.load_state_dict(other.state_dict())
    model.train()
    model.eval()
    assert torch.equal(model.layer1[0].bn1.running_mean, other.layer1[0].bn1.running_mean)
    assert difference(model(X), other(X)) < 1e-6
    tvc_core.partial_load(model, ready("resnet18").state_dict())
    model.train().eval()
    assert difference(model.layer1[0].bn1.running_mean, other.layer1[0].bn1.running_mean) > 0.1


def test_what_a_frozen_layer_computes_stays_under_a_parametrization() -> None:
    """Spectral normalization estimates the norm of a weight anew in each pass in training mode."""
    from torch.nn.utils.parametrizations import spectral_norm

    model = ready("resnet18", {"layer1.0.conv1": {"wrap": "se"}})
    for path in ("conv1", "layer1.0.conv1", "layer4.1.conv2"):
        spectral_norm(model.get_submodule(path))
    model.freeze_backbone(unfreeze_stages=[-1])
    held, learns = model.layer1[0].conv1, model.layer4[1].conv2
    with torch.no_grad():
        before = held.eval().weight.clone(), learns.eval().weight.clone()
        model.train()(torch.randn(2, 3, 40, 40))
        assert torch.equal(held.weight, before[0])
        assert not torch.equal(learns.weight, before[1])


def test_thawed_statistics_move_again() -> None:
    model = ready("resnet18", {"layer4": {"wrap": "se"}})
    model.freeze_backbone()
    model.train()
    model.unfreeze_all()
    model.train()
    before = model.layer1[0].bn1.running_mean.clone()
    model(X)
    assert not torch.equal(model.layer1[0].bn1.running_mean, before)


# -- a loaded model, states, names -----------------------------------------------------------------


def test_every_door_gives_eval_mode(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = ready("mobilenet_v3_small", {"features.3": {"wrap": "se"}})
    model.freeze_backbone(unfreeze_stages=[-1])
    model.train().save(path)
    for loaded in (tvc_core.load(path), HybridBuilder().load(path), tvc_core.load(str(path))):
        assert not any(module.training for module in loaded.modules())
        assert loaded.freeze_state() == model.freeze_state()
        loaded.train()
        assert modes(loaded) == modes(model)


def test_half_thawed_models_are_named_once() -> None:
    for thaw in ("layer2.0.conv1.weight", "conv1.weight"):
        model = ready("resnet18", {"layer4": {"wrap": "se"}})
        model.freeze_backbone()
        model.get_parameter(thaw).requires_grad_(True)
        with pytest.warns(Warning, match=r"unfreeze_all|freeze_backbone") as caught:
            model.train()
            model.train()
        ours = [w for w in caught if "freeze" in str(w.message)]
        assert len(ours) == 1
        assert any(word in str(ours[0].message) for word in (thaw.split(".")[0], "stem", "stage 1"))
    model = ready("resnet18", {"layer4": {"wrap": "se"}})
    model.freeze_backbone()
    with warnings.catch_warnings():  # patches and head learn: nobody thawed anything
        warnings.simplefilter("error")
        model.train()
        model.eval()
        model.train()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("resnet18", "mobilenet_v3_small"),
        ("mobilenet_v3_small", "resnet18"),
        ("timm/test_resnet", "timm/test_efficientnet"),
    ],
)
def test_a_freeze_state_of_another_network(one: str, other: str) -> None:
    build = HybridBuilder().from_backbone
    state = build(one, None, freeze_backbone=True, num_classes=3).freeze_state()
    model = build(other, None, num_classes=3)
    before = flags(model)
    with pytest.raises(tvc_core.FreezeError):
        model.load_freeze_state(state)
    assert flags(model) == before


def test_a_freeze_state_of_before_is_taken() -> None:
    """As checkpoints of f28d61c have it: without the number of stages."""
    old = {"stem": True, "stages": [0, 1], "head": "all", "patches": False}
    model = HybridBuilder().from_torchvision("resnet18", None, num_classes=3)
    model.load_freeze_state({**old, "normalization": "frozen"})
    assert not model.layer2[0].conv1.weight.requires_grad
    assert model.layer3[0].conv1.weight.requires_grad


@pytest.mark.parametrize("name", ["m.PT", "m.ckpt", "safetensors", ".safetensors.tmp", "m.yaml"])
def test_other_suffixes(name: str, tmp_path: Path) -> None:
    model = HybridBuilder().from_torchvision("mobilenet_v3_small", None, num_classes=3)
    with pytest.raises(tvc_core.WeightsError, match="safetensors"):
        model.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_dropout_that_was_added_is_one_that_people_find() -> None:
    """Monte Carlo dropout: switched on by class, with `fc.weight` under its name."""
    model = HybridBuilder().from_torchvision("resnet18", None, num_classes=3, dropout=0.5).eval()
    found = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in found] == [0.5]
    assert "Dropout(p=0.5" in repr(model)
    assert "fc.weight" in model.state_dict()
    assert torch.equal(model(X), model(X))
    for module in found:
        module.train()
    assert not torch.equal(model(X), model(X))
    features: list[Tensor] = []
    model.fc.register_forward_pre_hook(lambda m, args: features.append(args[0]))
    model(X)
    assert torch.equal(features[0] == 0, features[0] == 0) and bool((features[0] == 0).any())
    copied: Any = copy.deepcopy(model)
    assert [m.p for m in copied.modules() if isinstance(m, nn.Dropout)] == [0.5]
