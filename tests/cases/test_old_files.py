"""Files that f28d61c wrote still give the model that was saved."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from case_tools import Tiny, difference

import tvc_core
from tvc_core.weights.digest import digest_of

DATA = Path(__file__).parent / "data"


class Old(Tiny):
    """What the file was made from; it names the class."""


def test_a_file_of_before(tmp_path: Path) -> None:
    """Patches in three positions, a named one, a replaced layer, a gated drop_block, dropout."""
    expected = json.loads((DATA / "f28d61c.json").read_text())
    model = tvc_core.load(DATA / "f28d61c.safetensors", module=Old())
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
    again = tvc_core.load(tmp_path / "again.safetensors", module=Old())
    assert difference(again(x), model(x)) < 1e-6


def test_a_replacement_of_format_2_took_nothing_over(tmp_path: Path) -> None:
    """The eps of what was replaced, 1e-3 there, is in no tensor: it must not come along later."""
    patch = {"type": "frozen_batch_norm", "init": "paper"}
    model = tvc_core.HybridBuilder().from_backbone(
        "mobilenet_v3_small", None, patches={"features.0.1": {"replace": patch}}
    )
    model.save(tmp_path / "new.safetensors")
    data = (tmp_path / "new.safetensors").read_bytes()
    tensors = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header["__metadata__"]["tvc"])
    del content["recipe"]["backbone"]["patches"]["features.0.1"]["tvc-core:replace"]["init"]
    for key in ("sha256", "by_hand", "license"):
        del content[key]
    content |= {"format": 2, "saved": "2026-01-01T00:00:00+00:00"}
    content["sha256"] = digest_of(content, tensors)
    old = safetensors.torch.save(tensors, metadata={"tvc": json.dumps(content)})
    (tmp_path / "old.safetensors").write_bytes(old)
    again = tvc_core.load(tmp_path / "old.safetensors")
    assert again.features[0][1].eps == 1e-5
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model.eval()(x))
