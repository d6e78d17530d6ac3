"""What torch.export found that a network asks of sizes is what a file is said to hold for."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

import pytest
import sympy
import torch
from exported_networks import EvenDiffers, LargeDiffers, OneSize, Planted, SquareDiffers, planted
from sympy.core.cache import clear_cache
from tvc_export import Claims
from tvc_export.claims import _evaluate
from tvc_export.program import image_size, make_program

from tvc_core import BackboneError, HybridBuilder, ParameterError

RIGHT: dict[type[Planted], Callable[[int, int], bool]] = {
    LargeDiffers: lambda height, _: height <= 100,
    EvenDiffers: lambda _, width: width % 2 == 0,
    SquareDiffers: lambda height, width: height != width,
}
"""For which sizes a program from 64 x 80 computes the right thing."""


@pytest.mark.parametrize("kind", [LargeDiffers, EvenDiffers, SquareDiffers])
def test_a_program_equals_the_network_inside_its_claims_and_never_claims_another_branch(
    kind: type[Planted],
) -> None:
    model = planted(kind).eval()
    exported, facts = make_program(model, dynamic=("batch", "hw"), size=(64, 80))
    chance, inside, outside = random.Random(1), 0, 0
    run = exported.module(check_guards=False)
    while inside < 20 or outside < 5:
        height, width = chance.randint(8, 200), chance.randint(8, 200)
        shape = (chance.randint(1, 4), 3, height, height if outside == inside else width)
        right = RIGHT[kind](*shape[2:])
        assert (not facts.claims.why_not(shape)) == right, shape
        inside, outside = inside + right, outside + (not right)
        if right:
            images = torch.randn(shape)
            assert torch.allclose(run(images), model(images), atol=1e-6)
    assert all(not facts.claims.why_not(shape) for shape in facts.claims.draw(6, seed=3))


def test_a_network_for_one_size_is_refused_with_free_sizes_and_taken_with_a_free_batch() -> None:
    with pytest.raises(BackboneError, match="leave out hw"):
        make_program(planted(OneSize), dynamic=("batch", "hw"), size=(64, 64))
    claims = make_program(planted(OneSize), dynamic=("batch",), size=(64, 64))[1].claims
    assert claims.sizes[1:] == ((3, 3), (64, 64), (64, 64))
    with pytest.raises(ParameterError, match=r"\[1, 3, 65, 64\].*h is 65.*\[n from 1, 3, 64, 64\]"):
        claims.check((1, 3, 65, 64), "the file")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no such signals")
def test_the_limit_ends_a_search_that_swallows_errors_and_leaves_other_timers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised = 0

    def search(*_: object, **__: object) -> None:
        nonlocal raised
        slept, end = time.monotonic() + 1, time.monotonic() + 60
        while time.monotonic() < slept:  # as on a machine that has else to do
            time.sleep(0.01)
        a, b = sympy.symbols("a b")
        start = time.process_time()
        while time.monotonic() < end:
            if time.process_time() - start < 1.2:  # torch's own code is not left in the middle
                try:
                    sum(range(1000))
                except BaseException as error:
                    raise AssertionError from error
                continue
            try:
                sympy.expand((a + b) ** 30)
                clear_cache()
            except Exception:  # as torch has it in many places
                pass
            except BaseException:  # as in a destructor, whose errors are lost
                raised += 1
                if raised == 2:
                    raise

    monkeypatch.setattr("torch.export.export", search)
    signal.setitimer(signal.ITIMER_PROF, 1000)  # as a profiler
    handler = signal.getsignal(signal.SIGPROF)
    with pytest.raises(
        BackboneError, match=r"within 0\.6 s of computing.* Leave out hw, or give more time"
    ):
        make_program(planted(OneSize), dynamic=("batch", "hw"), size=(64, 64), limit=0.6)
    assert raised == 2
    assert signal.getsignal(signal.SIGPROF) is handler
    left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
    assert 900 < left < 1000


def test_sizes_are_found_where_few_are_right() -> None:
    free = (2, None)
    conditions = ("h % 32 == 0", "w % 32 == 0", "h - w == 64", "n <= 3")
    claims = Claims(
        sizes=((1, None), (3, 3), free, free), conditions=conditions, example=(2, 3, 256, 192)
    )
    shapes = claims.draw(3, seed=0)
    assert len({shape[2:] for shape in shapes}) >= 2 and len(shapes) == 3
    assert all(h % 32 == w % 32 == 0 and h - w == 64 and n <= 3 for n, _, h, w in shapes)


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


@pytest.mark.parametrize(("given", "side"), [({"image_size": 96}, 96), ({}, 160)])
def test_a_network_of_other_channels_is_exported_at_the_size_that_it_was_built_for(
    given: dict[str, int], side: int
) -> None:
    pytest.importorskip("timm")
    builder = HybridBuilder()
    model = builder.from_backbone("timm/test_vit", weights=None, in_channels=1, **given)
    assert image_size(model) == (side, side)
