"""accelerate, Lightning and fastai train hybrids; weight averaging keeps what is frozen."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from case_tools import EVERY_POSITION, calibrate, difference, gates, ready
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tvc_core
from tvc_core import HybridModel

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def images(number: int = 16) -> TensorDataset:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(number, 3, 48, 48, generator=generator)
    return TensorDataset(x, torch.arange(number) % 4)


def frozen_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the statistics of what cannot learn."""
    return {
        f"{path}.{name}": getattr(module, name).clone()
        for path, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad
        for name in ("running_mean", "running_var")
    }


def half_frozen(patches: Any = None) -> HybridModel:
    model = ready("resnet18", patches or {"layer4": {"wrap": "se"}}, num_classes=4)
    model.freeze_backbone(unfreeze_stages=[-1])
    return model


# -- accelerate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", ["resnet18", "timm/test_resnet"])
def test_accelerate(precision: str, name: str, tmp_path: Path) -> None:
    """It assigns `forward` for mixed precision, and gives the model back whole."""
    accelerate = pytest.importorskip("accelerate")
    patches = EVERY_POSITION if name == "resnet18" else {"stage:-1": {"wrap": "se"}}
    model = ready(name, patches, num_classes=4)
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loader = DataLoader(images(), batch_size=8)
    before = {n: p.detach().clone() for n, p in gates(model).items()}
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    prepared.train()
    for x, y in loader:
        loss = nn.functional.cross_entropy(prepared(x), y)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert all(not torch.equal(p, before[n]) for n, p in gates(plain).items())
    plain.eval().save(tmp_path / "m.safetensors")
    loaded = tvc_core.load(tmp_path / "m.safetensors")
    assert difference(loaded(X), plain(X)) < 1e-6
    assert difference(plain.get_stage_outputs(X), loaded.get_stage_outputs(X)) < 1e-6


@pytest.mark.parametrize(
    ("name", "patches"),
    [
        ("resnet18", EVERY_POSITION),
        ("timm/test_resnet", {"stage:-1": {"wrap": "se"}}),
        ("mobilenet_v3_small", {"features.4": {"wrap": "srm"}, "features.5": {"wrap": "ela"}}),
        ("mobilenet_v3_small", {"features.4.block.1.0": {"inject": "lora"}}),
        ("mobilenet_v3_small", {"features.4": {"inject": "deform_conv"}}),
    ],
)
def test_accelerate_offloads(name: str, patches: Any) -> None:
    """Offloading hooks put weights in before each module's forward, and take them out after it."""
    accelerate = pytest.importorskip("accelerate")
    model = ready(name, patches, num_classes=4)
    with torch.no_grad():
        right = model(X)
    copied = copy.deepcopy(model)
    offloaded = accelerate.cpu_offload(copied, execution_device="cpu")
    with torch.no_grad():
        assert difference(offloaded(X), right) < 1e-6
        assert difference(offloaded(X), right) < 1e-6


# -- Lightning -------------------------------------------------------------------------------------


def lightning_module(model: HybridModel) -> Any:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.01)

    return Module()


def fit(module: Any, tmp_path: Path, callbacks: list[Any], epochs: int = 3, **more: Any) -> Any:
    lightning = pytest.importorskip("lightning")
    loader = DataLoader(images(), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=callbacks,
        **more,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader, loader)
    return trainer


def test_lightning_trains_and_keeps_what_is_frozen(tmp_path: Path) -> None:
    """It calls `train()` after each validation."""
    model = half_frozen(EVERY_POSITION)
    held = frozen_statistics(model)
    before = {n: p.detach().clone() for n, p in gates(model).items()}
    trainer = fit(lightning_module(model), tmp_path, [], enable_checkpointing=True)
    assert len(held) > 20
    assert [n for n, b in frozen_statistics(model).items() if not torch.equal(b, held[n])] == []
    assert all(not torch.equal(p, before[n]) for n, p in gates(model).items())
    path = trainer.checkpoint_callback.best_model_path
    state = torch.load(path, weights_only=False)["state_dict"]
    fresh = ready("resnet18", EVERY_POSITION, num_classes=4)
    fresh.load_state_dict({k.removeprefix("net."): v for k, v in state.items()})
    assert difference(fresh.eval()(X), model.eval()(X)) < 1e-6


def test_lightnings_weight_averaging(tmp_path: Path) -> None:
    """It resets running statistics by hand (`zeros_like`), and estimates them in an epoch more."""
    lightning = pytest.importorskip("lightning")
    model = half_frozen()
    held = frozen_statistics(model)
    swa = lightning.pytorch.callbacks.StochasticWeightAveraging(
        swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1
    )
    fit(lightning_module(model), tmp_path, [swa], epochs=3)
    after = frozen_statistics(model)
    assert held.keys() == after.keys()
    assert [n for n in held if not torch.equal(after[n], held[n])] == []
    assert model.eval()(X).isfinite().all()


@pytest.mark.parametrize("name", ["WeightAveraging", "EMAWeightAveraging"])
def test_lightnings_other_averages(name: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    callback = getattr(lightning.pytorch.callbacks, name, None)
    if callback is None:
        pytest.skip(f"this lightning has no {name}")
    model = half_frozen()
    held = frozen_statistics(model)
    fit(lightning_module(model), tmp_path, [callback()], epochs=2)
    after = frozen_statistics(model)
    assert [n for n in held if not torch.allclose(after[n], held[n], rtol=1e-5)] == []


def test_lightnings_finetuning_callback_is_not_undone(tmp_path: Path) -> None:
    """It freezes by hand, normalizations in eval mode included."""
    lightning = pytest.importorskip("lightning")
    finetuning = lightning.pytorch.callbacks.BaseFinetuning
    model = calibrate(ready("resnet18", {"layer4": {"wrap": "se"}}, num_classes=4))
    finetuning.freeze([model.conv1, model.bn1, model.layer1], train_bn=False)
    model.train()
    assert not model.layer1[0].conv1.weight.requires_grad
    model.reset_classifier(4)
    assert not model.layer1[0].conv1.weight.requires_grad


# -- fastai ----------------------------------------------------------------------------------------


def test_fastai_fine_tunes(tmp_path: Path) -> None:
    """It freezes by groups, and keeps normalizations trainable."""
    fastai = pytest.importorskip("fastai.vision.all")
    model = ready("resnet18", {"layer4": {"wrap": "se"}}, num_classes=4)
    loader = DataLoader(images(), batch_size=8)

    def groups(net: Any) -> list[Any]:
        named = dict(net.named_parameters())
        head = [p for n, p in named.items() if n.startswith(("fc", "patches"))]
        return [[p for n, p in named.items() if not n.startswith(("fc", "patches"))], head]

    learner = fastai.Learner(
        fastai.DataLoaders(loader, loader),
        model,
        loss_func=nn.CrossEntropyLoss(),
        splitter=groups,
        opt_func=fastai.SGD,
        path=tmp_path,
    )
    learner.freeze()
    assert not model.layer1[0].conv1.weight.requires_grad
    before = {n: p.detach().clone() for n, p in gates(model).items()}
    kept = model.layer1[0].conv1.weight.detach().clone()
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 0.05)
    assert torch.equal(model.layer1[0].conv1.weight, kept)
    assert not model.layer1[0].conv1.weight.requires_grad
    assert all(not torch.equal(p, before[n]) for n, p in gates(model).items())
    learner.unfreeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 0.05)
    assert not torch.equal(model.layer1[0].conv1.weight, kept)
    model.eval().save(tmp_path / "m.safetensors")
    assert difference(tvc_core.load(tmp_path / "m.safetensors")(X), model(X)) < 1e-6


def test_fastai_body_cut_is_seen() -> None:
    """`create_body` takes children out of the model."""
    fastai = pytest.importorskip("fastai.vision.all")
    model = ready("resnet18", {"layer3": {"wrap": "se"}}, num_classes=4)
    with torch.no_grad():
        right = model.forward_features(X)
        body = fastai.cut_model(model, -2)
        with pytest.warns(Warning, match=r"layer3.*(get_stage_outputs|feature_extractor)"):
            found = body(X)
    assert difference(found, right) < 1e-6
    assert fastai.num_features_model(body) == 512
