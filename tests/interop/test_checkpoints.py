"""Checkpoints that other tools write load whole, by their path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from case_tools import Tiny
from torch import Tensor, nn

from tvc_core import partial_load

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def check(given: Any, source: nn.Module, **wishes: Any) -> None:
    target = Tiny()
    report = partial_load(target, given, **wishes)
    assert report.load_ratio == 1.0, report.summary()
    pairs = zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_of_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network, self.loss = Tiny(), nn.CrossEntropyLoss(weight=torch.ones(4))

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return self.loss(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.network.parameters(), 0.1)

    module = Module()
    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 4)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    check(tmp_path / "last.ckpt", module.network, entry="state_dict")


def test_a_model_that_fabric_has_set_up() -> None:
    lightning = pytest.importorskip("lightning")
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    network = Tiny()
    wrapped = fabric.setup(network)
    check(dict(wrapped.state_dict()), network)
    check({f"_forward_module.{k}": v for k, v in network.state_dict().items()}, network)


def test_a_folder_that_accelerate_has_saved(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True)
    network = Tiny()
    accelerator.save_model(accelerator.prepare(network), tmp_path / "one")
    check(tmp_path / "one", network)
    accelerator.save_model(network, tmp_path / "sharded", max_shard_size="10KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    check(tmp_path / "sharded", network)
