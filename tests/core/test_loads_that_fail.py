"""No damage of a model's file passes, and a load that fails changes nothing: no module that was
handed over, no setting or generator of the process, no file.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_files import FIGURE, forge, taken_apart
from process_settings import changed, process_settings
from torch import Tensor, nn

import tvc_core
from tvc_core import BlockSpec, HybridBuilder, TvcError, WeightsError, partial_load

Load = Callable[[], Any]


def bits(tensor: Tensor) -> tuple[Any, ...]:
    flat = tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8)
    return (tensor.dtype, tuple(tensor.shape), flat.numpy().tobytes())


def whole(module: nn.Module) -> list[Any]:
    """Return all that a load could change in a module that is handed over."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return [
        [(n, id(t), bits(t), t.requires_grad) for n, t in tensors],
        [(n, id(m), type(m), m.training, len(m._forward_hooks)) for n, m in module.named_modules()],
        sorted(module.__dict__),
    ]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


class Own(nn.Sequential):
    """A network of the user's own."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3),
            nn.BatchNorm2d(width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 2),
        )


class Clumsy(nn.Module):
    """A block of a plugin that is at fault: it seeds everything and then fails."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        if not Clumsy.works:
            torch.manual_seed(9)
            random.seed(9)
            np.random.seed(9)
            torch.set_default_dtype(torch.float64)
            raise ArithmeticError("no such channels")
        self.scale = nn.Parameter(torch.ones(in_channels, 1, 1))

    works = True

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


RECIPES: list[dict[str, Any]] = [
    {"name": "lab:absent"},
    {"name": "lab:tiny", "patches": {"nowhere": {"wrap": "gate"}}},
    {"name": "lab:tiny", "patches": {"layer2": {"wrap": "absent"}}},
    {"name": "lab:tiny", "patches": {"layer2": {"wrap": "clumsy"}}},
    {"name": "lab:tiny", "patches": {"layer3": {"wrap": "gate"}}},
    {"name": "lab:tiny", "patches": {"layer2": {"replace": "conv"}}},
    {"name": "lab:tiny", "options": {"num_classes": 10**9}},
    {"name": "lab:tiny", "options": {"odd": 1}},
]
FIELDS: list[dict[str, Any]] = [
    {"class_names": 3},
    {"class_names": ["a"]},
    {"freeze": {"stem": 1}},
    {"by_hand": {"frozen": ["no.such"]}},
    {"step0_difference": "x"},
    {"verified": "yes"},
    {"format": 99},
    {"odd": 1},
    {"module": {"type": "Other"}},
    {"base": {"name": "../other.safetensors", "sha256": "0" * 64}},
]


def failures(
    draw: random.Random, lab: Any, folder: Path
) -> Iterator[tuple[Load, nn.Module | None]]:
    """Yield loads that fail, and the modules that they get."""
    builder = lab(BlockSpec(name="clumsy", factory=Clumsy))
    Clumsy.works = True
    patches = draw.choice([{"layer2": {"wrap": "gate"}}, {"layer1": {"wrap": "clumsy"}}])
    model = builder.from_backbone("tiny", None, patches=patches, num_classes=3)
    whole_file, damaged = folder / "whole.safetensors", folder / "damaged.safetensors"
    base, delta = folder / "base.safetensors", folder / "delta.safetensors"
    own_file = folder / "own.safetensors"
    model.save(whole_file)
    plain = builder.from_backbone("tiny", None)
    plain.save(base)
    model.save(delta, base=base)
    parts: Any = {"stem": "0", "stages": ["1"], "head": "4"}
    HybridBuilder().from_module(Own(), **parts).save(own_file)
    Clumsy.works = patches.keys() != {"layer1"} or draw.random() < 0.5

    def load(path: Path, module: nn.Module | None = None, **more: Any) -> Any:
        return lambda: builder.load(path, module=module, **more), module

    for path in (whole_file, delta, own_file):
        data = path.read_bytes()
        module = Own().train(draw.random() < 0.5) if path is own_file else None
        if draw.random() < 0.3 and module is not None:
            module[0].weight.requires_grad_(False)
        damaged.write_bytes(data[: draw.randrange(len(data))])
        yield load(damaged, module)
        flipped = bytearray(data)
        begin = 8 + int.from_bytes(data[:8], "little")  # before it, "format" is for other readers
        flipped[draw.randrange(begin, len(data))] ^= 1 << draw.randrange(8)
        damaged.write_bytes(flipped)
        yield load(damaged, module)
        content, tensors = taken_apart(path)
        yield load(forge(damaged, {**content, **draw.choice(FIELDS)}, tensors), module)
        keys = sorted(tensors)
        key = draw.choice(keys)
        if path is not delta:  # a delta takes what it lacks from its base
            rest = {k: t for k, t in tensors.items() if k != key}
            yield load(forge(damaged, content, rest), module)
        wider = {**tensors, key: torch.zeros((*tensors[key].shape, 2))}
        yield load(forge(damaged, content, wider), module)
        yield load(forge(damaged, content, {**tensors, "more": torch.zeros(2)}), module)
        wrong = {**tensors, keys[0]: tensors[keys[0]].to(torch.bool)}
        yield load(forge(damaged, content, wrong), module)
    content, tensors = taken_apart(whole_file)
    recipe = {**content["recipe"], "backbone": draw.choice(RECIPES)}
    Clumsy.works = False
    yield load(forge(damaged, {**content, "recipe": recipe}, tensors))
    yield load(folder / "absent.safetensors")
    yield load(folder)
    yield load(whole_file, Own())
    yield load(whole_file, base=base)
    yield load(own_file)
    yield load(own_file, Own(5))
    yield load(own_file, nn.Sequential(nn.Linear(2, 2)))
    yield load(own_file, builder.from_backbone("tiny", None))
    other = builder.from_backbone("tiny", None)
    with torch.no_grad():
        other.fc.bias.add_(1)
    other.save(base)
    yield load(delta)
    base.unlink()
    yield load(delta)
    torch.save(model.state_dict(), damaged)
    yield load(damaged)


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=FIGURE)])
def test_a_failed_load_changes_nothing(lab: Any, tmp_path: Path, seed: int, count: int) -> None:
    draw, failed = random.Random(seed), 0
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    while failed < count:
        for load, module in failures(draw, lab, tmp_path):
            settings, generator = process_settings(), torch.get_rng_state()
            files, given = content_of(tmp_path), whole(module) if module is not None else None
            with pytest.raises(TvcError):
                load()
                raise AssertionError((seed, failed))
            assert changed(settings) == [], (seed, failed)
            assert torch.equal(torch.get_rng_state(), generator), (seed, failed)
            assert content_of(tmp_path) == files, (seed, failed)
            if module is not None:
                assert whole(module) == given, (seed, failed)
            failed += 1
    assert torch.get_default_dtype() == before


class Moody(Own):
    """Its own loading code fails when half of it is loaded."""

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.register_load_state_dict_post_hook(self._fail)

    def _fail(self, module: nn.Module, keys: object) -> None:
        raise MemoryError("no memory")


def test_loading_code_that_fails_leaves_the_values(tmp_path: Path) -> None:
    path, parts = tmp_path / "own.safetensors", {"stem": "0", "stages": ["1"], "head": "4"}
    HybridBuilder().from_module(Moody(), **parts).save(path)  # type: ignore[arg-type]
    module = Moody()
    before = whole(module)
    with pytest.raises(WeightsError, match="no memory"):
        tvc_core.load(path, module=module)
    assert whole(module)[:2] == before[:2] and type(module) is Moody


# -- damage ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(tiny: Any, tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    names = ["a", "b", "c"]
    tiny({"layer2": {"wrap": "gate"}}, num_classes=3, class_names=names).save(path)
    return path


@pytest.mark.parametrize(
    ("part", "count"), [(0, 100), *(pytest.param(n, 1000, marks=FIGURE) for n in range(10))]
)
def test_no_flipped_bit_is_silently_wrong(
    saved: Path, lab: Any, seed: int, part: int, count: int
) -> None:
    """Through both doors: what does not raise is what was written."""
    data, draw, builder = saved.read_bytes(), random.Random(10 * seed + part), lab()
    wanted, target = builder.load(saved), builder.load(saved)
    right = {key: bits(value) for key, value in wanted.state_dict().items()}
    header = 8 * (8 + int.from_bytes(data[:8], "little"))
    for number in range(count):
        place = draw.randrange(header if number % 4 == 0 else 8 * len(data))
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << (place % 8)
        saved.write_bytes(flipped)
        try:
            if number % 2:
                found = builder.load(saved)
                assert found.explain() == wanted.explain(), place
                assert found.class_names == wanted.class_names, place
            else:
                found, _ = target, partial_load(target, saved)
        except TvcError:
            found = target  # and that has not changed
        assert {key: bits(value) for key, value in found.state_dict().items()} == right, place


@pytest.mark.parametrize("step", [97, pytest.param(1, marks=FIGURE)])
def test_every_truncation_of_a_model_is_refused(
    saved: Path, lab: Any, seed: int, step: int
) -> None:
    data, builder = saved.read_bytes(), lab()
    target = builder.load(saved)
    before = whole(target)
    for length in range(seed % step, len(data), step):
        saved.write_bytes(data[:length])
        with pytest.raises(TvcError):
            builder.load(saved)
        with pytest.raises(TvcError):
            partial_load(target, saved)
    assert whole(target) == before


def test_every_door_refuses_a_damaged_file(saved: Path, lab: Any) -> None:
    data = bytearray(saved.read_bytes())
    data[-3] ^= 8
    saved.write_bytes(data)
    doors: list[Load] = [
        lambda: lab().load(saved),
        lambda: partial_load(lab().from_backbone("tiny", None, num_classes=3), saved),
        lambda: tvc_core.read_state_dict(saved),
        lambda: lab().from_backbone("tiny", saved),
        lambda: tvc_core.diff_weights(saved, saved),
        lambda: tvc_core.describe_file(saved),
    ]
    for door in doors:
        with pytest.raises(TvcError, match=r"m\.safetensors"):
            door()
