"""Every classifier of torchvision gives torch's answers in `.pt2` and ONNX, with all sizes free
that may be. Small networks come first, so that a sweep that is stopped has shown most.
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_networks import lively, opened
from tvc_export import export_model, open_exported

from tvc_core import BackboneSpec, HybridBuilder, Registry

SUFFIXES = {"pt2": ".pt2", "onnx": ".onnx"}
LARGE = 300_000_000
"""Networks that run one after the other, since two at once need too much memory [parameters]."""

SPECS = {
    offer.spec.name: offer.spec
    for offer in Registry().all(BackboneSpec)
    if offer.spec.origin == "torchvision"
}


def size_of(spec: BackboneSpec) -> int:
    """Return how many parameters a backbone has."""
    return spec.weights[0].num_params or 0


def cases() -> list[object]:
    """Return name and format of each test, the smallest networks first."""
    return [
        pytest.param(
            spec.name,
            format,
            id=f"{spec.name}-{format}",
            marks=[
                pytest.mark.sweep,
                pytest.mark.timeout(3600),
                *([pytest.mark.xdist_group("large")] if size_of(spec) > LARGE else []),
            ],
        )
        for spec in sorted(SPECS.values(), key=size_of)
        for format in SUFFIXES
    ]


def test_they_are_all() -> None:
    assert len(SPECS) == 80


@pytest.mark.parametrize(("name", "format"), cases())
def test_answers_are_torchs_at_sizes_that_the_export_did_not_see(
    name: str, format: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    spec = SPECS[name]
    patches = {"stage:-1": {"wrap": "se"}}
    model = lively(opened(HybridBuilder().from_backbone(name, weights=None, patches=patches)))
    # torch.export computes with Swin's windows for hours where height and width are free
    free = not spec.fixed_size and spec.family != "swin"
    small = (max(96, 2 * spec.min_size), max(128, 2 * spec.min_size + 32))
    made = export_model(
        model,
        format,
        tmp_path / f"m{SUFFIXES[format]}",
        dynamic=("batch", "hw") if free else ("batch",),
        size=small if free else None,
    )
    assert made.claims.free == ((0, 2, 3) if free else (0,))
    exported = open_exported(tmp_path / f"m{SUFFIXES[format]}")
    side = made.claims.example[2:]
    for batch, *more in ((1, 0, 0), (3, 5, 33), (2, 64, 17)):
        shape = (batch, 3, *((side[0] + more[0], side[1] + more[1]) if free else side))
        images = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            expected = model(images).numpy()
        if batch > 1:  # else equal answers would show nothing
            assert np.ptp(expected, axis=0).max() >= 0.001 * np.abs(expected).max()
        (found,) = exported(images)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    del exported, model
    gc.collect()
    for each in tmp_path.iterdir():  # up to 2.6 GB
        each.unlink()
