"""The figures in the plugins' specs: torchvision's own, and what networks really have."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tvc_core import BackboneSpec, Registry

ROOT = Path(__file__).resolve().parents[2]
SPECS = {
    offer.spec.name: offer.spec
    for offer in Registry().all(BackboneSpec)
    if offer.spec.origin in ("torchvision", "tensorflow")
}
SMALL = (
    "resnet18",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_5",
    "regnet_y_400mf",
    "efficientnet_lite0",
)
SETS = [(spec.name, weights.name) for spec in SPECS.values() for weights in spec.weights]


def plain(spec: BackboneSpec, **options: Any) -> nn.Module:
    """Return a network without memory for its weights; RegNet computes its widths with tensors."""
    module, _, name = str(spec.factory).partition(":")
    factory = getattr(importlib.import_module(module), name)
    if spec.family == "regnet":
        return factory(spec, weights=None, **options)
    with torch.device("meta"):
        return factory(spec, weights=None, **options)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        pytest.param(*each, marks=() if each[0] in SMALL else pytest.mark.sweep, id="-".join(each))
        for each in SETS
        if each[0] != "regnet_y_128gf"  # 645 million numbers are drawn in a minute
    ],
)
def test_a_network_has_the_parameters_and_operations_that_its_weights_state(
    name: str, chosen: str
) -> None:
    weights = SPECS[name].find_weights(chosen)
    assert weights is not None and weights.num_params is not None and weights.gflops is not None
    network = plain(SPECS[name], **weights.options).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == weights.num_params
    if name in SMALL:
        device = next(network.parameters()).device
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 3, weights.crop_size, weights.crop_size, device=device))
        # a multiply-add is two operations to torch
        assert counter.get_total_flops() / 2e9 == pytest.approx(weights.gflops, abs=1e-3)


@pytest.mark.sweep
def test_figures_and_licenses_are_those_of_the_installed_torchvision() -> None:
    swag = 0
    for spec in SPECS.values():
        if spec.origin != "torchvision":
            continue
        for member in torchvision.models.get_model_weights(spec.name):
            weights, meta = spec.find_weights(member.name), member.meta
            assert weights is not None
            accuracy = meta["_metrics"]["ImageNet-1K"]["acc@1"]
            assert weights.acc1 == (None if math.isnan(accuracy) else accuracy), member
            assert (weights.num_params, weights.gflops) == (meta["num_params"], meta["_ops"]), (
                member
            )
            # the text at the address that torchvision gives is CC BY-NC 4.0
            assert weights.license == ("CC-BY-NC-4.0" if "SWAG" in meta.get("license", "") else "")
            swag += "SWAG" in member.name and bool(weights.license)
    assert swag == 12


@pytest.mark.sweep
def test_the_script_would_write_what_is_there() -> None:
    place = importlib.util.spec_from_file_location("figures", ROOT / "plugins/write_figures.py")
    assert place is not None and place.loader is not None
    script = importlib.util.module_from_spec(place)
    place.loader.exec_module(script)
    written = {path: path.read_text() for path in ROOT.glob("plugins/*/tvc_*/figures.py")}
    assert len(written) == 6 and script.texts() == written
