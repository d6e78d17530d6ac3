"""The schedule of phases in Lightning's Trainer: it steps as a plain loop does, and goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tvc_train import Phase, PhaseSchedule, TrainingError, phase_callback
from tvc_train.optimizers import OptimizerSettings

from tvc_core import HybridBuilder, HybridModel

pytestmark = pytest.mark.interop

STEPS = 2
PHASES = [
    Phase(epochs=1, rate=1e-2),
    Phase(epochs=2, thaw=(-1,), rate=1e-3, warmup=1),
    Phase(epochs=1, rate=1e-3),
    Phase(epochs=1, thaw=("all",), rate=1e-3, layer_decay=0.5),
]
EPOCHS = sum(phase.epochs for phase in PHASES)


@pytest.fixture(autouse=True)
def _needs_lightning() -> None:
    pytest.importorskip("lightning.pytorch")


def toy() -> HybridModel:
    return HybridBuilder().from_backbone("resnet18", weights=None, num_classes=3)


def batches() -> list[Any]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 3, 32, 32, generator=draw), torch.tensor([0, 1, 0, 1]))
        for _ in range(STEPS)
    ]


def schedule(phases: list[Phase] = PHASES, steps: int = STEPS) -> PhaseSchedule:
    return PhaseSchedule(phases, steps, optimizer=OptimizerSettings(name="adamw"))


def make_module(model: nn.Module, configured: Any = None) -> Any:
    import lightning.pytorch as lightning

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, number: int) -> Any:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return configured(optimizer) if configured else optimizer

    return Module()


def make_trainer(callback: Any, epochs: int = EPOCHS, **options: Any) -> Any:
    import lightning.pytorch as lightning

    fixed = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    options = {"enable_checkpointing": False, **fixed, **options}
    return lightning.Trainer(max_epochs=epochs, callbacks=[callback], **options)


def loader() -> Any:
    return torch.utils.data.DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]


def trained_by_hand(model: Any) -> Any:
    """Train a copy of a model in a plain loop."""
    model, plan, optimizer = copy.deepcopy(model).train(), schedule(), None
    for phase in plan.phases:
        optimizer = plan.begin(model, phase, optimizer)
        for step in range(phase.epochs * STEPS):
            images, targets = batches()[step % STEPS]
            plan.set_rates(optimizer, phase, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
    return model


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    pairs = zip(model.state_dict().items(), other.state_dict().values(), strict=True)
    assert not [name for (name, one), two in pairs if not torch.equal(one, two)]


def test_it_steps_as_a_plain_loop() -> None:
    module = make_module(toy())
    expected = trained_by_hand(module.model)
    make_trainer(phase_callback(schedule())).fit(module, loader())
    assert_equal(module.model, expected)


@pytest.mark.filterwarnings("ignore:the schedule of phases has")
@pytest.mark.parametrize("ended", range(1, EPOCHS))
def test_a_saved_run_goes_on(ended: int, tmp_path: Path) -> None:
    """At the ends of phases and within them, with momenta of what is frozen in between."""
    model = toy()
    expected = trained_by_hand(model)
    first = make_trainer(phase_callback(schedule()), ended)
    first.fit(make_module(copy.deepcopy(model)), loader())
    first.save_checkpoint(tmp_path / "run.ckpt")

    module = make_module(copy.deepcopy(model))
    second = make_trainer(phase_callback(schedule()))
    second.fit(module, loader(), ckpt_path=tmp_path / "run.ckpt")
    assert_equal(module.model, expected)


def test_a_callback_trains_another_model_as_the_first() -> None:
    model = toy()
    expected, callback = trained_by_hand(model), phase_callback(schedule())
    for _ in range(2):
        module = make_module(copy.deepcopy(model))
        make_trainer(callback).fit(module, loader())
        assert_equal(module.model, expected)


def test_a_compiled_hybrid_is_found() -> None:
    module = make_module(toy())
    expected = trained_by_hand(module.model)
    module.model = torch.compile(module.model, backend="eager")
    make_trainer(phase_callback(schedule())).fit(module, loader())
    assert_equal(module.model._orig_mod, expected)


def test_what_would_have_no_effect_is_refused() -> None:
    for wrong in ({"stop_early": 2}, {"normalization": "train"}, {"size": 64}, {"rate": "auto"}):
        plan = PhaseSchedule([Phase(epochs=1), Phase(epochs=1, **wrong)], STEPS)  # type: ignore[arg-type]
        with pytest.raises(TrainingError, match=f"phase 1 sets {next(iter(wrong))}"):
            phase_callback(plan)

    def with_rates(optimizer: Any) -> Any:
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    for configured, words in (
        (with_rates, "returns a schedule of rates"),
        (lambda optimizer: [optimizer, torch.optim.Adam(toy().parameters())], "several optimizers"),
    ):
        module = make_module(toy(), configured)
        module.automatic_optimization = False
        before = copy.deepcopy(module.model)
        with pytest.raises(TrainingError, match=words):
            make_trainer(phase_callback(schedule())).fit(module, loader())
        assert_equal(module.model, before)
        assert all(parameter.requires_grad for parameter in module.model.parameters())
    with pytest.raises(TrainingError, match="'network' of Module is of type NoneType"):
        callback = phase_callback(schedule(), model="network")
        make_trainer(callback).fit(make_module(toy()), loader())


def test_other_epochs_and_steps_than_the_schedules_are_said() -> None:
    with pytest.warns(UserWarning, match=f"has {EPOCHS} epochs, and the Trainer 1:"):
        make_trainer(phase_callback(schedule()), 1).fit(make_module(toy()), loader())
    plan = schedule([Phase(epochs=1)], steps=7)
    with pytest.warns(UserWarning, match=f"has 7 steps an epoch, and the Trainer {STEPS}:"):
        make_trainer(phase_callback(plan), 1).fit(make_module(toy()), loader())


def test_a_checkpoint_of_more_phases_is_refused(tmp_path: Path) -> None:
    first = make_trainer(phase_callback(schedule()))
    first.fit(make_module(toy()), loader())
    first.save_checkpoint(tmp_path / "run.ckpt")
    second = make_trainer(phase_callback(schedule(PHASES[:2])))
    with pytest.raises(TrainingError, match="of phase 3, and the schedule has 2"):
        second.fit(make_module(toy()), loader(), ckpt_path=tmp_path / "run.ckpt")
