"""The second build from a file makes the network without its constructors, and it is the same one:
classes, settings, tensors and what they share.
"""

from __future__ import annotations

import contextlib
import gc
import json
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from tvc_attention.efficient_channel import EfficientChannelAttention

from tvc_core import (
    HybridBuilder,
    PatchError,
    RecipeError,
    WeightsError,
    read_state_dict,
    remembered,
)
from tvc_core.surgery.measured import keep_their_maps
from tvc_core.surgery.operations import Insertion
from tvc_core.surgery.patch import Patch
from tvc_core.surgery.positions import POSITIONS
from tvc_core.surgery.sites import Call, Probe, Site
from tvc_core.testing import official_weights
from tvc_core.weights import skeleton, verified
from tvc_core.weights.seeded import seeded
from tvc_core.weights.skeleton import build_again

_GATED = {"stage:-1": {"wrap": "eca"}, "stage:-2": {"wrap": "se"}}


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "_HERE", {})
    monkeypatch.setattr(skeleton, "_PREPARED", {})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the networks that were made without constructors."""
    keys: list[str] = []
    real = skeleton._make

    def noted(key: str, *more: Any) -> nn.Module:
        network = real(key, *more)
        keys.append(key)
        return network

    monkeypatch.setattr(skeleton, "_make", noted)
    return keys


def steady() -> None:
    time.sleep(2 * verified._STEADY)  # a file that was written a moment ago is not remembered


def assert_same(theirs: nn.Module, ours: nn.Module) -> None:
    """Compare all attributes of all modules; hooks and the hybrid's state stand on top."""
    ours_below = dict(ours.named_modules(remove_duplicate=False))
    theirs_below = dict(theirs.named_modules(remove_duplicate=False))
    assert list(theirs_below) == list(ours_below)
    for path, module in theirs_below.items():
        other = ours_below[path]
        assert isinstance(other, type(module)), path
        expected, found = vars(module), {k: v for k, v in vars(other).items() if k != "_hybrid"}
        assert expected.keys() == found.keys(), path
        for name, value in expected.items():
            if name in ("_parameters", "_buffers"):
                assert list(value) == list(found[name])
                for key, tensor in value.items():
                    assert type(tensor) is type(found[name][key])
                    if tensor is not None:
                        assert torch.equal(tensor, found[name][key]), f"{path}.{key}"
                        assert tensor.requires_grad == found[name][key].requires_grad
            elif name not in ("_modules", "_forward_hooks"):
                assert repr(value) == repr(found[name]), f"{path}.{name}"
                assert type(value) is type(found[name]), f"{path}.{name}"


# -- the same network ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnasnet0_5", "googlenet", "shufflenet_v2_x0_5"])
def test_the_second_build_is_torchvisions_network(
    name: str, tmp_path: Path, made: list[str]
) -> None:
    with official_weights(tmp_path, name, verify=True):
        steady()
        theirs = torchvision.models.get_model(name, weights="DEFAULT")
        for _ in range(3):
            random = torch.get_rng_state()
            ours = HybridBuilder.from_torchvision(name)
        assert torch.equal(random, torch.get_rng_state())
        remembered._HERE.clear()  # another process
        skeleton._PREPARED.clear()
        in_next = HybridBuilder.from_torchvision(name)
    assert len(made) == 3
    for network in (ours, in_next):
        assert_same(theirs, network)
    x = torch.randn(2, 3, 64, 64)
    theirs.eval()
    assert torch.equal(theirs(x), ours.eval()(x))
    ours.train()(torch.randn(2, 3, 64, 64))
    statistics = [b for name, b in ours.named_buffers() if name.endswith("running_mean")]
    before = [b for name, b in in_next.named_buffers() if name.endswith("running_mean")]
    assert not any(map(torch.equal, statistics, before)), "two builds share a tensor"


class Everything(nn.Module):
    """Has what makes networks unlike each other: a shared layer, a tied tensor, a child and a
    parameter that are none, a buffer that is not saved and one that is in no file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.pairs, self.none, self.number = [1, [2, 3]], ((1, 2), "x"), None, 0.1
        self.norm, self.made_of = nn.LayerNorm, [nn.Conv2d]
        self.one = nn.Linear(4, 4, bias=False)
        self.two = self.one
        self.three = nn.Linear(4, 4)
        self.three.bias = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.tied = self.three.weight
        self.gone = None
        self.register_module("child", None)
        self.register_parameter("weight", None)
        self.register_buffer("table", torch.arange(3).bool(), persistent=False)
        self.register_buffer("count", torch.tensor(7))
        self.eval()


def built(tmp_path: Path, make: Callable[[], nn.Module], **what: Any) -> nn.Module:
    """Build a network that loads a file of its own tensors."""
    path = tmp_path / "own.pth"
    if not path.exists():
        state = make().state_dict()
        torch.save({key: value for key, value in state.items() if key != "count"}, path)
        steady()

    def build() -> nn.Module:
        network = make()
        network.load_state_dict(read_state_dict(path), strict=False)
        return network

    return build_again(build, path, None, {"builder": "torch", **what})


@pytest.fixture(autouse=True)
def _not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file may have been edited a moment ago, and is still what runs."""
    monkeypatch.setattr(remembered, "_BEGAN", time.time_ns())


def without_draws() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Everything()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "squeezenet1_1"])
def test_a_seed_and_a_budget_change_nothing_of_it(
    name: str, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new layers of a seeded build are the same bits, whether constructors ran or not."""
    patches = {"stage:-1": {"wrap": "se"}}

    def build(seed: int = 5) -> dict[str, torch.Tensor]:
        recipe = {
            "seed": seed,
            "max_params": 20_000_000,
            "backbone": {"name": name, "patches": patches},
            "head": {"num_classes": 3},
        }
        return HybridBuilder().build(recipe).state_dict()

    with official_weights(tmp_path, name, verify=True):
        steady()
        with monkeypatch.context() as patched:
            patched.setattr(skeleton, "_is_ordinary", lambda: False)
            slow = build()
        first = build()
        assert made == []
        HybridBuilder().from_torchvision(name)
        fast, other = build(), build(6)
        assert len(made) == 3
        for state in (first, fast):
            assert list(state) == list(slow)
            assert all(torch.equal(state[key], slow[key]) for key in slow)
        assert any(not torch.equal(other[key], slow[key]) for key in slow)


def test_what_draws_while_it_is_constructed_is_constructed_for_a_seed(
    tmp_path: Path, made: list[str]
) -> None:
    torch.save(nn.Linear(4, 4).state_dict(), tmp_path / "w.pth")
    steady()

    def build() -> nn.Module:
        torch.rand(3)
        network = nn.Linear(4, 4)
        network.load_state_dict(read_state_dict(tmp_path / "w.pth"))
        return network

    what = {"builder": "torch.nn"}
    with seeded(3):
        build()
        right = torch.rand(2)
    for seed, kept in ((None, 0), (None, 1), (3, 1), (None, 2)):
        with seeded(3) if seed else contextlib.nullcontext():
            build_again(build, tmp_path / "w.pth", None, what)
            after = torch.rand(2)
        assert len(made) == kept and torch.equal(after, right) == bool(seed)


def test_a_budget_is_kept_before_a_file_is_read(tmp_path: Path, made: list[str]) -> None:
    def build(most: int) -> nn.Module:
        return HybridBuilder().build({"max_params": most, "backbone": {"name": "resnet18"}})

    with official_weights(tmp_path, "resnet18", verify=True):
        steady()
        for _ in range(2):  # constructors run the first time
            with pytest.raises(RecipeError, match=r"max_params=1,000, which makes a tensor"):
                build(1000)
            count = r"11,689,512 parameters, more than max_params=11,689,511"
            with pytest.raises(RecipeError, match=count):
                build(11_689_511)
            build(11_689_512)
        assert len(made) == 3


def test_whatever_a_network_is_made_of(tmp_path: Path, made: list[str]) -> None:
    theirs = built(tmp_path, without_draws)
    ours: Any = built(tmp_path, without_draws)
    assert len(made) == 1
    assert_same(theirs, ours)
    other: Any = built(tmp_path, without_draws)
    assert ours.sizes is not other.sizes and ours.sizes[1] is not other.sizes[1]
    assert ours.two is ours.one and ours.tied is ours.three.weight
    assert "table" not in ours.state_dict() and ours.count == 7 and not ours.training
    assert "child" in ours._modules and "weight" in ours._parameters


def changed_by(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network = without_draws()
        change(network)
        return network

    return make


@pytest.mark.parametrize(
    "change",
    [
        lambda n: setattr(n, "act", torch.relu),
        lambda n: setattr(n, "act", n.forward),
        lambda n: setattr(n, "other", [nn.Linear(1, 1)]),
        lambda n: setattr(n, "device", torch.device("cpu")),
        lambda n: n.one.register_forward_hook(print),
        lambda n: n.register_buffer("drawn", torch.randn(3), persistent=False),
        lambda n: n.register_buffer("large", torch.zeros(1 << 17), persistent=False),
        lambda n: n.register_buffer("part", n.one.weight.detach()[0], persistent=False),
        lambda n: setattr(n.one, "weight", nn.Parameter(n.one.weight.detach().t())),
        lambda n: setattr(n.one.weight, "mark", 1),
        lambda n: setattr(n, "forward", print),
        lambda n: nn.utils.parametrizations.weight_norm(n.one),
    ],
)
def test_what_is_no_plain_data_is_built_by_its_constructors(
    change: Callable[[Any], object], tmp_path: Path, made: list[str]
) -> None:
    for _ in range(2):
        built(tmp_path, changed_by(change))
    assert made == [] and not any(kind == "networks" for kind, _ in remembered._HERE)


def test_a_default_type_device_mode_or_hook_is_obeyed(tmp_path: Path, made: list[str]) -> None:
    for _ in range(2):
        built(tmp_path, without_draws)
    torch.set_default_dtype(torch.float64)
    try:
        double: Any = built(tmp_path, without_draws)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meta: Any = built(tmp_path, Everything)
    seen: list[str] = []
    hook = nn.modules.module.register_module_parameter_registration_hook(
        lambda _, name, __: seen.append(name)
    )
    try:
        built(tmp_path, without_draws)
    finally:
        hook.remove()
    assert double.one.weight.dtype == torch.float64 and meta.one.weight.is_meta and seen
    assert len(made) == 1
    built(tmp_path, without_draws, options={"other": 1})
    assert len(made) == 1, "another option is another network"


# -- the file --------------------------------------------------------------------------------------


def test_a_changed_file_is_noticed_and_a_model_stays_as_it_is(
    tmp_path: Path, made: list[str]
) -> None:
    with official_weights(tmp_path, "squeezenet1_1", verify=True) as files:
        steady()
        _, model = (HybridBuilder.from_torchvision("squeezenet1_1") for _ in range(2))
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        content = bytearray(files["squeezenet1_1"].read_bytes())
        content[len(content) // 2] ^= 1
        files["squeezenet1_1"].write_bytes(content)
        with pytest.raises(WeightsError, match="SHA-256"):
            HybridBuilder.from_torchvision("squeezenet1_1")
        files["squeezenet1_1"].write_bytes(content[:1000])
        with pytest.raises(WeightsError, match="SHA-256"):
            HybridBuilder.from_torchvision("squeezenet1_1")
        files["squeezenet1_1"].unlink()
    assert len(made) == 1
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_no_tensor_outlives_its_model(tmp_path: Path) -> None:
    with official_weights(tmp_path, "squeezenet1_1", verify=True):
        steady()
        models = [HybridBuilder.from_torchvision("squeezenet1_1") for _ in range(3)]
    tensors = [weakref.ref(p) for model in models for p in model.parameters()]
    del models
    gc.collect()
    assert not any(ref() is not None for ref in tensors)


def damaged(entry: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an entry as one who can write it, its digest included."""
    data = json.loads(entry.read_bytes().partition(b"\n")[2])
    change(data)
    text = json.dumps(data).encode()
    entry.write_bytes(remembered.hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["classes"].__setitem__(0, ["class", "os", "system"]),
        lambda d: d["classes"].__setitem__(0, ["class", "not.loaded", "Module"]),
        lambda d: d["settings"][0].__setitem__("f", ["partial", ["class", "os", "system"], {}]),
        lambda d: d["modules"].pop(),
        lambda d: d["tensors"].pop(),
        lambda d: d["tensors"][0].__setitem__(2, 10**12),
        lambda d: d["tensors"][0].__setitem__(2, -1),
        lambda d: d["tensors"][0].__setitem__(0, "Tensor"),
        lambda d: d.pop("tensors"),
        lambda d: d["states"][0].__setitem__(2, 0),
    ],
)
def test_an_entry_that_is_wrong_means_an_ordinary_build(
    change: Callable[[dict[str, Any]], object], tmp_path: Path, made: list[str]
) -> None:
    theirs = built(tmp_path, without_draws)
    (entry,) = (remembered.folder() / "networks").iterdir()
    damaged(entry, change)
    remembered._HERE.clear()
    assert_same(theirs, built(tmp_path, without_draws))
    assert made == []


def test_a_flipped_bit_of_an_entry_is_noticed() -> None:
    remembered.remember("things", 1, {"stride": 2})
    (entry,) = (remembered.folder() / "things").iterdir()
    content = entry.read_bytes()
    for at in range(len(content)):
        entry.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        remembered._HERE.clear()
        assert remembered.recall("things", 1) is None, at
    entry.write_bytes(content)
    assert remembered.recall("things", 1) == {"stride": 2}


def test_threads_build_at_once(tmp_path: Path) -> None:
    found: list[Any] = []
    with official_weights(tmp_path, "squeezenet1_1", verify=True):
        steady()
        theirs = torchvision.models.get_model("squeezenet1_1", weights="DEFAULT")

        def build() -> None:
            found.extend(HybridBuilder.from_torchvision("squeezenet1_1") for _ in range(3))

        threads = [threading.Thread(target=build) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 12
    for model in found:
        assert_same(theirs, model)


# -- patches are proved at their places ------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One entry for each pass of a whole network."""
    found: list[int] = []
    real = Probe.run

    def run(self: Probe, network: nn.Module, *more: Any) -> torch.Tensor:
        found.append(1)
        return real(self, network, *more)

    monkeypatch.setattr(Probe, "run", run)
    yield found


def test_patches_are_proved_without_a_pass(tmp_path: Path, passes: list[int]) -> None:
    with official_weights(tmp_path, "squeezenet1_1", verify=True):
        steady()
        first = HybridBuilder.from_torchvision("squeezenet1_1", patches=_GATED)
        assert passes
        HybridBuilder.from_torchvision("squeezenet1_1", patches=_GATED)
        passes.clear()
        again = HybridBuilder.from_torchvision("squeezenet1_1", patches=_GATED)
        plain = torchvision.models.get_model("squeezenet1_1", weights="DEFAULT").eval()
    assert passes == []
    assert again.stage_info == first.stage_info and again._hybrid.modules == first._hybrid.modules
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(again.eval()(x), plain(x))
    assert again._hybrid.step0_difference == 0.0
    again.save(tmp_path / "again.safetensors")


Gate = torch.Tensor | None


def _infinite(_: nn.Module, x: torch.Tensor, alpha: Gate) -> torch.Tensor:
    return x * 0.5 if alpha is None else x + alpha * float("inf")


def _in_place(_: nn.Module, x: torch.Tensor, alpha: Gate) -> torch.Tensor:
    return x * 0.5 if alpha is None else x.mul_(2)


def _raising(_: nn.Module, x: torch.Tensor, alpha: Gate) -> torch.Tensor:
    raise ValueError(f"no map {list(x.shape)} with {alpha}")


@pytest.mark.parametrize("mix", [_infinite, _in_place, _raising])
def test_a_bad_block_is_refused_though_its_like_was_seen_to_be_good(
    mix: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with official_weights(tmp_path, "squeezenet1_1", verify=True):
        steady()
        for _ in range(2):
            HybridBuilder.from_torchvision("squeezenet1_1", patches=_GATED)
        monkeypatch.setattr(EfficientChannelAttention, "mix", mix)
        with pytest.raises(PatchError):
            HybridBuilder.from_torchvision("squeezenet1_1", patches=_GATED)


class Exponential(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


class Marking(nn.Module):
    """Writes into the map that it adds to."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.zero_()


def insertion(block: nn.Module, position: str, *peaks: float) -> Insertion:
    calls = tuple(Call((1, 3, 4, 4), (1, 3, 4, 4), input_peak=p, output_peak=p) for p in peaks)
    site = Site(path="a", type_name="A", calls=calls, image=(64, 96))
    return Insertion(Patch(block, position=POSITIONS[position]), POSITIONS[position], site)


@pytest.mark.parametrize("position", ["after", "before", "parallel"])
def test_maps_are_as_large_as_those_that_were_measured(position: str) -> None:
    probe = Probe(torch.zeros(1, 3, 64, 96))

    def keeps(block: nn.Module, *peaks: float) -> bool:
        return keep_their_maps([insertion(block, position, *peaks)], probe)

    assert keeps(nn.Conv2d(3, 3, 1), 1.0, 1e6)
    assert keeps(Exponential(), 1.0, 10.0)
    assert not keeps(Exponential(), 1.0, 1000.0), "exp overflows beyond 88"
    assert not keeps(nn.Conv2d(3, 3, 1), 1.0, float("nan")), "nothing was measured"
    assert keeps(Marking(), 1.0) == (position == "parallel"), "there it gets a copy"
    assert not keeps(nn.Conv2d(4, 3, 1), 1.0)
