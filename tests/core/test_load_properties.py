"""What holds for every checkpoint: buckets partition both sides, "loaded" means equal bits, order
does not matter, twice is once, and a failed load changes nothing.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from own_files import FIGURE
from torch import Tensor, nn

from tvc_core import HybridBuilder, LoadReport, TvcError, partial_load

State = dict[str, Tensor]

COUNTS = [pytest.param(100, id="100"), pytest.param(1000, marks=FIGURE, id="1000")]


class Block(nn.Module):
    def __init__(self, width: int, tied: nn.Parameter | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        if tied is not None:
            self.conv.weight = tied


def network(draw: random.Random) -> nn.Module:
    """Make a network: blocks, of which some share a weight, and a head."""
    width = draw.choice([2, 3])
    net = nn.Module()
    net.stem = nn.Conv2d(3, width, 3)
    net.blocks = nn.Sequential(*(Block(width) for _ in range(draw.randint(1, 3))))
    if draw.random() < 0.2:
        net.blocks.append(Block(width, net.blocks[0].conv.weight))
    if draw.random() < 0.2:
        net.frozen = nn.utils.parametrizations.weight_norm(nn.Linear(width, 2))
    net.fc = nn.Linear(width, 4)
    return net.to(draw.choice([torch.float32] * 4 + [torch.float16, torch.float64]))


def random_state(net: nn.Module) -> State:
    return {
        key: torch.rand(value.shape).to(value.dtype) if value.is_floating_point() else value + 3
        for key, value in net.state_dict().items()
    }


FATES: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda t: torch.zeros((*t.shape, 2)),
    "flatten": lambda t: t.reshape(-1),
    "half": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "double": lambda t: t.double() / 3,
    "integer": lambda t: (t * 9).to(torch.int32),
    "boolean": lambda t: t > 0.5,
    "complex": lambda t: torch.complex(t.float(), torch.ones(t.shape)),
    "nan": lambda t: t.float().fill_(float("nan")),
    "huge": lambda t: t.double() * 1e200,
    "negative": lambda t: -t - 1,
    "transposed": lambda t: t.T.contiguous().T if t.ndim == 2 else t.clone(),
}


def checkpoint(draw: random.Random, net: nn.Module) -> State:
    """Make a checkpoint for a network: some tensors changed, lost, added, renamed, all wrapped."""
    given = random_state(net)
    trouble = draw.choice([0.0, 0.1, 0.5])
    for key in list(given):
        if draw.random() >= trouble:
            continue
        fate = draw.choice(["drop", "rename", "double it", *FATES])
        if fate == "drop":
            del given[key]
        elif fate == "rename":
            given[f"{key}.old"] = given.pop(key)
        elif fate == "double it":
            given[f"copy.{key}"] = given[key]
        else:
            given[key] = FATES[fate](given[key])
    for wrapper in draw.choices(
        ["", "", "module.", "a.b.", "blocks.", "fc."], k=draw.randint(0, 2)
    ):
        given = {f"{wrapper}{key}": value for key, value in given.items()}
    if draw.random() < 0.3:
        given = {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in given.items()}
    if draw.random() < 0.3:
        given["loss.weight"] = torch.rand(4)
    items = list(given.items())
    draw.shuffle(items)
    return dict(items)


def bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def check_report(report: LoadReport, model: nn.Module, given: State, before: State) -> None:
    after = model.state_dict()
    rest = [
        *(each.key for each in report.mismatched),
        *(each.key for each in report.refused),
        *report.missing,
        *report.excluded,
    ]
    converted = [each.key for each in report.converted]
    assert sorted([*report.loaded, *converted, *rest]) == sorted(before), "no partition"
    assert len(set(report.sources.values())) == len(report.sources)
    theirs = [*report.sources.values(), *report.unexpected, *report.migrated]
    assert sorted(theirs) == sorted(given), "no partition of the checkpoint"
    for key in report.loaded:
        source = report.sources.get(key)
        if source is None:  # under its other name
            assert any(k != key and after[k].data_ptr() == after[key].data_ptr() for k in after)
            continue
        value = given[source]
        assert value.shape == after[key].shape or (value.shape, after[key].ndim) == ((1,), 0)
        if value.dtype == after[key].dtype:
            assert bits(value) == bits(after[key]), f"{key} is called loaded and is not"
        else:
            assert torch.equal(value.double(), after[key].double()), key
    for key in converted:
        assert torch.isfinite(after[key].double()).all()
    filled = {after[key].data_ptr() for key in (*report.loaded, *converted)}
    for key in set(rest) - set(report.initialized):
        if after[key].data_ptr() in filled:  # by its other name
            continue
        assert bits(after[key]) == bits(before[key]), f"{key} is not called loaded and has changed"
    assert set(report.initialized) <= set(rest)


@pytest.mark.parametrize("count", COUNTS)
def test_buckets_partition_and_loaded_means_equal_bits(seed: int, count: int) -> None:
    loads = 0
    for number in range(1000 * seed, 1000 * seed + count):
        draw = random.Random(number)
        torch.manual_seed(number)
        model = network(draw)
        given = checkpoint(draw, model)
        kept = {key: value.clone() for key, value in given.items()}
        parts = ["stem", "fc", "norm", "blocks.0", "running_mean"]
        wishes: dict[str, Any] = {
            "ignore_mismatch": True,
            "exclude_patterns": draw.sample(parts, k=draw.choice([0, 0, 1])),
            "min_loaded": 0,
        }
        if draw.random() < 0.3:
            wishes["init_new_layers"] = draw.choice(["kaiming", "xavier", "zero", "identity"])
        before = {key: value.clone() for key, value in model.state_dict().items()}
        again, other = copy.deepcopy(model), copy.deepcopy(model)
        try:
            report = partial_load(model, given, **wishes)
        except TvcError as error:
            assert "nothing would be loaded" in str(error) or "fit in two ways" in str(error), error
            assert all(bits(v) == bits(before[k]) for k, v in model.state_dict().items())
            with pytest.raises(type(error)):
                partial_load(other, dict(sorted(given.items())), **wishes)
            continue
        loads += 1
        check_report(report, model, given, before)
        # order does not matter
        assert partial_load(other, dict(sorted(given.items())), **wishes) == report
        # the checkpoint is as it was
        assert list(given) == list(kept)
        assert all(bits(given[key]) == bits(kept[key]) for key in kept)
        # twice is once
        if "init_new_layers" not in wishes:
            partial_load(again, given, **wishes)
            assert partial_load(again, given, **wishes) == report
            pairs = zip(again.state_dict().values(), model.state_dict().values(), strict=True)
            assert all(bits(a) == bits(b) for a, b in pairs)
    assert loads > 0.6 * count


@pytest.mark.parametrize("count", COUNTS)
def test_no_less_is_loaded_than_by_torch(seed: int, count: int) -> None:
    """What torch's own load_state_dict takes by name and shape, partial_load takes as well."""
    for number in range(1000 * seed, 1000 * seed + count):
        draw = random.Random(number)
        torch.manual_seed(number)
        model = network(draw)
        given = {k: v for k, v in random_state(model).items() if draw.random() < 0.8}
        if not given:
            continue
        theirs = copy.deepcopy(model)
        keys = theirs.load_state_dict(given, strict=False)
        report = partial_load(model, given, min_loaded=0, ignore_mismatch=True)
        tied = [each.key for each in report.refused]
        # a count that an old file lacks is torch's own; without the layer, it is missing
        missing = {key for key in report.missing if not key.endswith("num_batches_tracked")}
        assert missing <= set(keys.missing_keys)
        if not tied:
            pairs = zip(theirs.state_dict().values(), model.state_dict().values(), strict=True)
            assert all(bits(a) == bits(b) for a, b in pairs)


# -- failed loads ----------------------------------------------------------------------------------


class Refusing(nn.Module):
    """Fails in the middle of writing, as a full GPU would."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_load_state_dict_post_hook(self._fail)

    def _fail(self, module: nn.Module, keys: object) -> None:
        raise MemoryError("no memory")


def whole_state(model: nn.Module) -> list[Any]:
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    return [
        [(n, id(t), bits(t), t.requires_grad, t.grad is None) for n, t in tensors],
        [(n, id(m), type(m), m.training) for n, m in model.named_modules()],
        torch.get_rng_state().tolist(),
        sorted(model.__dict__),
    ]


def failures(
    draw: random.Random, model: nn.Module, folder: Path
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield arguments with which a load fails."""
    good = random_state(model)
    keys = list(good)
    key = draw.choice([key for key in keys if good[key].ndim])
    yield {**good, key: torch.zeros((*good[key].shape, 2))}, {}
    yield {**good, key: good[key].to(torch.complex64)}, {}
    yield {**good, key: torch.full(good[key].shape, float("nan"))}, {}
    yield {**good, key: good[key].float().to_sparse()}, {}
    yield {**good, key: "text"}, {}
    yield {keys[-1]: good[keys[-1]]}, {}
    yield {f"q.{k}": v for k, v in good.items()} | {f"k.{k}": v + 1 for k, v in good.items()}, {}
    yield good, {"init_new_layers": "kaimng"}
    yield good, {"exclude_patterns": ["("]}
    yield good, {} if hasattr(model, "refusing") else {"prefix": "no."}
    yield {**good, key: good[key].float()[..., None]}, {"init_new_layers": "kaiming"}
    yield {}, {}
    draft = folder / "file"
    torch.save(good, draft)
    data = draft.read_bytes()
    cut = folder / "cut.pth"
    cut.write_bytes(data[: draw.randrange(len(data))])
    yield cut, {}
    yield folder / "absent.pth", {}
    safe = safetensors.torch.save({k: v.contiguous().clone() for k, v in good.items()})
    part = folder / "cut.safetensors"
    part.write_bytes(safe[: draw.randrange(len(safe))])
    yield part, {}


@pytest.mark.parametrize("count", [100, pytest.param(300, marks=FIGURE)])
def test_a_failed_load_changes_nothing(tmp_path: Path, seed: int, count: int) -> None:
    failed = 0
    for number in range(1000 * seed, 1000 * seed + count // 15):
        draw = random.Random(number)
        torch.manual_seed(number)
        model = network(draw)
        if number % 4 == 0:
            model.refusing = Refusing()
        if number % 5 == 1:
            plain = nn.Sequential(
                nn.Conv2d(3, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(4, 3),
            )
            model = HybridBuilder().from_module(
                plain, stem="0", stages=["1"], head="5", patches={"1": {"wrap": "se"}}
            )
        model.train(draw.random() < 0.5)
        for parameter in model.parameters():
            parameter.requires_grad_(draw.random() < 0.5)
        for given, wishes in failures(draw, model, tmp_path):
            before = whole_state(model)
            with pytest.raises(TvcError):
                partial_load(model, given, **wishes)
                raise AssertionError((number, failed % 15))
            assert whole_state(model) == before, (number, wishes)
            failed += 1
    assert failed == count // 15 * 15


@pytest.mark.parametrize("step", [0, pytest.param(1, marks=FIGURE)])
@pytest.mark.parametrize("kind", ["pth", "legacy.pth", "safetensors"])
def test_every_truncation_is_refused(kind: str, tmp_path: Path, step: int) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    path = tmp_path / f"net.{kind}"
    if kind == "safetensors":
        safetensors.torch.save_file(net.state_dict(), path)
    else:
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=kind == "pth")
    data = path.read_bytes()
    target = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = whole_state(target)
    for length in range(0, len(data), step or max(1, len(data) // 100)):
        path.write_bytes(data[:length])
        with pytest.raises(TvcError):
            partial_load(target, path)
    assert whole_state(target) == before
