"""Strides after patches that change them: what is stated is by how much real maps are smaller than
the image.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tvc_core import BackboneError
from tvc_core.model.strides import strides_of


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


def test_a_map_that_was_rounded_up_at_the_one_size_of_a_network_keeps_its_stride() -> None:
    def refuse(size: tuple[int, int]) -> Any:
        raise ValueError(size)

    # LeViT's, of which timm's feature_info says 16, 32 and 64
    shapes = [(1, 8, side, side) for side in (14, 7, 4)]
    assert strides_of(shapes, (224, 224), refuse) == [16, 32, 64]
    assert strides_of(shapes[::-1], (224, 224), refuse) == [56, 32, 16]
    assert strides_of([(1, 8, 500, 500), shapes[0]], (224, 224), refuse) == [0, 16]


class Patchify(nn.Module):
    """Convolutions whose stride is their kernel, so that borders that make no whole patch go."""

    def __init__(self, strides: list[int], channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels if not i else 4, 4, s, s) for i, s in enumerate(strides))
        )
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


@pytest.mark.parametrize(
    "strides", [[7, 2, 2], [3, 2, 2], [14, 2, 2], [14, 1], [28, 1], [5, 3], [4, 3, 2], [16, 1]]
)
def test_patches_of_any_size_are_measured(lab: Any, strides: list[int]) -> None:
    network, paths = Patchify(strides), [f"layers.{index}" for index in range(len(strides))]
    model = lab().from_module(network, paths[0], paths[1:], "head", num_classes=2)
    expected = torch.tensor(strides).cumprod(0).tolist()[1:]
    assert [stage.stride for stage in model.stage_info] == expected


class Tokens(nn.Module):
    """Patches as a list of tokens, some others first; what makes no whole patch goes, or is filled
    up.
    """

    def __init__(self, patch: int, prefix: int, pad: bool) -> None:
        super().__init__()
        self.patch, self.pad = patch, pad
        self.embed = nn.Conv2d(3, 4, patch, patch)
        self.prefix = nn.Embedding(prefix, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pad:
            x = nn.functional.pad(x, (0, -x.shape[3] % self.patch, 0, -x.shape[2] % self.patch))
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.prefix.weight.expand(len(x), -1, -1), tokens], 1)


class Transformer(nn.Module):
    def __init__(self, patch: int, prefix: int, pad: bool) -> None:
        super().__init__()
        self.stem, self.block = Tokens(patch, prefix, pad), nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.stem(x)).mean(1))


@pytest.mark.parametrize("patch", [14, 12, 10, 6, 20, 28, 15])
@pytest.mark.parametrize(("prefix", "pad"), [(0, False), (1, True), (5, False)])
def test_tokens_of_patches_of_any_size_are_laid_out_over_the_image(
    lab: Any, patch: int, prefix: int, pad: bool
) -> None:
    model = lab().from_module(Transformer(patch, prefix, pad), "stem", ["block"], "head")
    assert [stage.stride for stage in model.stage_info] == [patch]
    for height, width in [(7 * patch, 7 * patch), (3 * patch, 16 * patch), (5 * patch + 3, 80)]:
        rows, columns = (-(-side // patch) if pad else side // patch for side in (height, width))
        x = torch.randn(2, 3, height, width)
        tokens = model.block(model.stem(x))[:, prefix:]
        expected = tokens.transpose(1, 2).reshape(2, 4, rows, columns)
        assert torch.equal(model.get_stage_outputs(x, -1)[0], expected)


def test_a_hybrid_says_how_many_channels_its_images_have(lab: Any) -> None:
    native = lab().from_module(
        Patchify([4, 2], channels=1), "layers.0", ["layers.1"], "head", num_channels=1
    )
    changed = lab().from_module(Patchify([4, 2]), "layers.0", ["layers.1"], "head", in_channels=6)
    assert (native.num_channels, changed.num_channels) == (1, 6)
    native.layers[0] = nn.Conv2d(2, 4, 4, 4)
    native.remeasure()
    assert native.num_channels == 2


def test_a_network_of_other_channels_is_told_what_to_give(lab: Any) -> None:
    with pytest.raises(BackboneError) as caught:
        lab().from_module(Patchify([4, 2], channels=1), "layers.0", ["layers.1"], "head")
    assert "give num_channels=1" in str(caught.value)
    assert str(caught.value).count("RuntimeError") == 1  # not once for each size that was tried
