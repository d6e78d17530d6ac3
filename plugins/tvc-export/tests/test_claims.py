"""What torch.export found that a network asks of sizes is what a file is said to hold for."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from tvc_export import Claims
from tvc_export.claims import _evaluate
from tvc_export.program import make_program

from tvc_core import BackboneError, HybridBuilder, HybridModel, ParameterError


class Planted(nn.Module):
    """A network whose forward decides by the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.stage(self.stem(x))).mean((2, 3)))


class LargeDiffers(Planted):
    """Computes something else for high images."""

    def features(self, x: Tensor) -> Tensor:
        return x.relu() if x.shape[2] > 100 else x.sigmoid()


class EvenDiffers(Planted):
    """Computes something else for an odd width."""

    def features(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[3] % 2 == 0 else x.square()


class OneSize(Planted):
    """Takes one height only."""

    def features(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[2] == 64, "64 only")
        return x.relu()


def hybrid(kind: type[Planted]) -> HybridModel:
    torch.manual_seed(0)
    return HybridBuilder().from_module(kind(), stem="stem", stages=["stage"], head="head")


@pytest.mark.parametrize("kind", [LargeDiffers, EvenDiffers])
def test_a_program_equals_the_network_inside_its_claims_and_never_claims_another_branch(
    kind: type[Planted],
) -> None:
    model = hybrid(kind).eval()
    program = make_program(model, dynamic=("batch", "hw"), size=(64, 64))
    chance, inside, outside = random.Random(1), 0, 0
    run = program.exported.module(check_guards=False)
    while inside < 20 or outside < 5:
        shape = (chance.randint(1, 4), 3, chance.randint(8, 200), chance.randint(8, 200))
        right = shape[2] <= 100 if kind is LargeDiffers else shape[3] % 2 == 0
        assert (not program.claims.why_not(shape)) == right, shape
        inside, outside = inside + right, outside + (not right)
        if right:
            images = torch.randn(shape)
            assert torch.allclose(run(images), model(images), atol=1e-6)
    assert all(not program.claims.why_not(shape) for shape in program.claims.draw(6, seed=3))


def test_a_network_for_one_size_is_refused_with_free_sizes_and_taken_with_a_free_batch() -> None:
    with pytest.raises(BackboneError, match="leave out hw"):
        make_program(hybrid(OneSize), dynamic=("batch", "hw"), size=(64, 64))
    claims = make_program(hybrid(OneSize), dynamic=("batch",), size=(64, 64)).claims
    assert claims.sizes[1:] == ((3, 3), (64, 64), (64, 64))
    with pytest.raises(ParameterError, match=r"\[1, 3, 65, 64\].*h is 65.*\[n from 1, 3, 64, 64\]"):
        claims.check((1, 3, 65, 64), "the file")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "h.real",
        "h[0]",
        "'a' * h",
        "h ** 99",
        "lambda: 1",
        "z > 1",
        "h if w else n",
    ],
)
def test_a_condition_that_is_no_arithmetic_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError):
        _evaluate(text, {"n": 1, "h": 2, "w": 3})
    with pytest.raises(ValueError):
        Claims.from_mapping({"sizes": [[1, 1]] * 4, "conditions": [text], "example": [1, 1, 1, 1]})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1 + (((-1) + h) // 32)) != 1", False),
        ("h % 7 == 0 and not w > 9 or n == 2", False),
        ("torch.sym_max(1, h - 30) * Mod(w, 4) >= 2", True),
        ("2 < h <= 32", True),
    ],
)
def test_conditions_are_computed_as_python_does(text: str, value: bool) -> None:
    assert _evaluate(text, {"n": 1, "h": 32, "w": 11}) is value
