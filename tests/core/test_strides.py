"""Strides after patches that change them: what is stated is by how much real maps are smaller than
the image.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn


@pytest.mark.parametrize(
    ("target", "channels", "stride", "expected"),
    [
        ("layer3", 32, 16, [2, 4, 64]),
        ("layer3", 32, 32, [2, 4, 128]),
        ("layer2", 16, 16, [2, 32, 64]),
        ("layer1", 8, 3, [6, 12, 24]),
        ("layer1", 8, 1, [2, 4, 8]),
    ],
)
def test_strides_are_measured_again_whatever_they_become(
    tiny: Any, target: str, channels: int, stride: int, expected: list[int]
) -> None:
    block = {"type": "conv", "params": {"channels": channels, "stride": stride}}
    model = tiny({target: {"replace": block}}).eval()
    with torch.no_grad():
        maps = model.get_stage_outputs(torch.zeros(1, 3, 384, 768))[1:]
    assert [(384 // each.shape[2], 768 // each.shape[3]) for each in maps] == [
        (each, each) for each in expected
    ]
    assert [stage.stride for stage in model.stage_info] == expected
    assert [level.stride for level in model.pyramid_info] == sorted({2, *expected})


def test_a_network_of_one_size_keeps_the_best_guess(lab: Any) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.stage, self.head = (
                nn.Conv2d(3, 4, 3, 2, 1),
                nn.Conv2d(4, 4, 3, 3),
                nn.Linear(4 * 20 * 20, 5),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.stage(self.stem(x)).flatten(1))

    model = lab().from_module(Fixed(), "stem", ["stage"], "head", min_size=122, fixed_size=True)
    assert [stage.stride for stage in model.stage_info] == [6]
