"""Files that f28d61c wrote still give the model that was saved."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from case_tools import difference
from torch import Tensor, nn

import tvc_core

DATA = Path(__file__).parent / "data"


class Network(nn.Module):
    """What the file was made from."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer2(self.layer1(self.stem(x)))).flatten(1))


Network.__qualname__ = "Old"  # the file names the class
Network.__name__ = "Old"


def test_a_file_of_before(tmp_path: Path) -> None:
    """Patches in three positions, a named one, a replaced layer, a gated drop_block, dropout."""
    expected = json.loads((DATA / "f28d61c.json").read_text())
    model = tvc_core.load(DATA / "f28d61c.safetensors", module=Network())
    x = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        assert difference(model(x), torch.tensor(expected["logits"])) < 1e-6
        sums = torch.tensor([float(each.sum()) for each in model.get_stage_outputs(x)])
    assert difference(sums, torch.tensor(expected["maps"])) < 1e-5
    assert [record.target for record in model.patch_records] == expected["targets"]
    assert model.class_names == tuple("abcde")
    assert not model.layer1[0].weight.requires_grad
    assert model.layer2[0].weight.requires_grad
    model.save(tmp_path / "again.safetensors")
    again = tvc_core.load(tmp_path / "again.safetensors", module=Network())
    assert difference(again(x), model(x)) < 1e-6
