"""Builds with weights neither initialize nor copy nor hash twice, and nothing else changes."""

from __future__ import annotations

import copy
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from tvc_core import (
    BackboneSpec,
    HybridBuilder,
    LocalPlugin,
    WeightsError,
    WeightsSpec,
    build_torchvision,
    remembered,
)
from tvc_core import read_state_dict as read
from tvc_core.testing import cached_weights, official_weights
from tvc_core.weights import verified
from tvc_core.weights.deferred import DeferredInit, lend


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "_HERE", {})


def built(make: Callable[[], nn.Module]) -> nn.Module:
    with DeferredInit() as mode:
        network = make()
    mode.finish()
    return network


# -- the same network as without -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["shufflenet_v2_x0_5", "googlenet", "mobilenet_v3_small", "swin_t", "densenet121"]
)
def test_a_build_equals_torchvisions(name: str, tmp_path: Path) -> None:
    """GoogLeNet draws truncated normals and drops heads, Swin has buffers of its own, DenseNet
    renames keys.
    """
    with official_weights(tmp_path, name, verify=True):
        theirs = torchvision.models.get_model(name, weights="DEFAULT")
        ours = HybridBuilder().from_torchvision(name)
        spec, random = ours._hybrid.plan.backbone.spec, torch.get_rng_state()
        built(lambda: build_torchvision(spec, weights=ours._hybrid.plan.weights))
        assert torch.equal(random, torch.get_rng_state()), "something was initialized"
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert all(parameter.requires_grad for parameter in ours.parameters())
    ours.eval()(torch.randn(1, 3, 64, 64)).sum().backward()


class Odd(nn.Module):
    """Initializes in ways that look at values, share memory or leave it."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(64, 256)
        self.orthogonal = nn.Linear(8, 8)
        nn.init.orthogonal_(self.orthogonal.weight)
        self.data = nn.Linear(64, 256)
        self.data.weight.data.normal_(3, 0.5)
        self.scaled = nn.Linear(64, 256)
        nn.init.trunc_normal_(self.scaled.weight, std=0.1)
        with torch.no_grad():
            self.scaled.weight.mul_(10)
            self.plain.bias.zero_().add_(2)
        self.copied = copy.deepcopy(self.plain)
        self.second = nn.Parameter(self.plain.weight)  # the same memory under another object
        self.register_buffer("norm", self.scaled.weight.norm(dim=1))
        dead = nn.Linear(4, 4)
        self.rows = nn.Parameter(torch.empty(4, 4))
        with torch.no_grad():
            nn.init.ones_(self.rows)
            self.rows[1] = dead.weight[0]
            self.rows[2:].fill_(7)


def test_what_no_file_fills_is_initialized_as_without() -> None:
    torch.manual_seed(0)
    odd = built(Odd)
    assert isinstance(odd, Odd)
    assert odd.plain.weight.abs().max() <= 1 / 8 and odd.plain.weight.std() > 0.05
    assert torch.equal(odd.plain.bias, torch.full((256,), 2.0))
    eye = odd.orthogonal.weight @ odd.orthogonal.weight.T
    assert torch.allclose(eye, torch.eye(8), atol=1e-5)
    assert abs(odd.data.weight.mean() - 3) < 0.05 and abs(odd.data.weight.std() - 0.5) < 0.05
    assert abs(odd.scaled.weight.std() - 1) < 0.05 and abs(odd.scaled.weight.mean()) < 0.05
    assert torch.equal(odd.copied.weight, odd.plain.weight)
    assert odd.second.data_ptr() == odd.plain.weight.data_ptr()
    assert torch.equal(odd.norm, odd.scaled.weight.norm(dim=1))
    assert odd.rows[0].eq(1).all() and odd.rows[2:].eq(7).all() and odd.rows[1].abs().max() <= 0.5


def test_what_is_filled_is_what_was_read() -> None:
    expected = Odd().state_dict()

    def make() -> nn.Module:
        network, state = Odd(), {key: value.clone() for key, value in expected.items()}
        lend(state.values())
        network.load_state_dict(state)
        return network

    odd = built(make)
    assert all(torch.equal(value, expected[key]) for key, value in odd.state_dict().items())


def test_arithmetic_after_filling_acts_on_what_was_filled() -> None:
    def make() -> nn.Module:
        layer = nn.Linear(3, 3)
        layer.load_state_dict({"weight": torch.full((3, 3), 2.0), "bias": torch.ones(3)})
        with torch.no_grad():
            layer.weight.mul_(3)
        return layer

    assert built(make).weight.eq(6).all()  # type: ignore[union-attr, operator]


def test_two_keys_with_one_tensor_get_memory_of_their_own() -> None:
    shared = torch.randn(4, 4)

    def make() -> nn.Module:
        pair = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        lend([shared])
        pair.load_state_dict({"0.weight": shared, "1.weight": shared})
        return pair

    a, b = built(make).parameters()
    assert torch.equal(a, b) and len({a.data_ptr(), b.data_ptr(), shared.data_ptr()}) == 3


def test_a_factory_that_keeps_its_state_dict_shares_nothing(tmp_path: Path) -> None:
    """The second model must not start with what the first has learned."""
    plugin, kept = LocalPlugin("acme"), {}
    torch.save(nn.Conv2d(3, 8, 3).state_dict(), tmp_path / "w.pth")
    weights = WeightsSpec(name="W", num_classes=5)

    @plugin.backbone(stem="conv", stages=["act"], head="fc", weights=(weights,))
    def keeping(spec: BackboneSpec, *, weights: WeightsSpec | None) -> nn.Module:
        network = Small()
        if weights is not None:
            kept["state"] = kept.get("state") or read(tmp_path / "w.pth")
            network.conv.load_state_dict(kept["state"])
        return network

    builder = HybridBuilder(plugins=[plugin])
    first, second = (builder.from_backbone("keeping", "W") for _ in range(2))
    with torch.no_grad():
        first.conv.weight.zero_()
    third = builder.from_backbone("keeping", "W")
    assert kept["state"]["weight"].any()
    assert torch.equal(second.conv.weight, kept["state"]["weight"])
    assert torch.equal(third.conv.weight, kept["state"]["weight"])
    assert first.fc.weight.std() > 0.1  # not in the file: initialized


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.fc(self.act(self.conv(x)).mean((2, 3)))


def test_other_threads_initialize_as_ever() -> None:
    entered, done = threading.Event(), threading.Event()
    found: list[nn.Linear] = []

    def other() -> None:
        entered.wait(30)
        with torch.no_grad():
            found.append(nn.Linear(64, 64))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with DeferredInit():
        entered.set()
        done.wait(30)
    thread.join()
    assert 0.05 < found[0].weight.std() < 0.1


def test_an_error_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), DeferredInit():
        raise ZeroDivisionError
    assert nn.Linear(64, 64).weight.std() > 0.05


# -- the hash is compared once ---------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of what was read to be hashed."""
    sizes: list[int] = []
    real = verified.hashlib.sha256

    class Counting:
        def __init__(self, data: bytes = b"") -> None:
            self.inner = real(data)

        def update(self, data: bytes) -> None:
            sizes.append(len(data))
            self.inner.update(data)

        def hexdigest(self) -> str:
            return str(self.inner.hexdigest())

    monkeypatch.setattr(verified, "hashlib", type("hashlib", (), {"sha256": Counting}))
    yield sizes


def test_a_file_is_hashed_once_also_by_the_next_process(tmp_path: Path, hashed: list[int]) -> None:
    with cached_weights(tmp_path, {"a": torch.ones(3)}) as file:
        time.sleep(2 * verified._STEADY)
        for _ in range(3):
            read(file.path, sha256=file.sha256)
        assert len(hashed) == 1
        remembered._HERE.clear()  # another process
        read(file.path, sha256=file.sha256)
        assert len(hashed) == 1


def test_a_changed_file_is_noticed_though_size_and_time_are_the_same(tmp_path: Path) -> None:
    with cached_weights(tmp_path, {"a": torch.ones(3)}) as file:
        time.sleep(2 * verified._STEADY)
        read(file.path, sha256=file.sha256)
        before, content = file.path.stat(), bytearray(file.path.read_bytes())
        content[len(content) // 2] ^= 1
        file.path.write_bytes(content)
        os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(WeightsError, match="SHA-256"):
            read(file.path, sha256=file.sha256)


def test_a_file_that_changed_a_moment_ago_is_not_remembered(
    tmp_path: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_STEADY", 3600)
    with cached_weights(tmp_path, {"a": torch.ones(3)}) as file:
        for _ in range(2):
            read(file.path, sha256=file.sha256)
    assert len(hashed) == 2 and not remembered._HERE


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_what_others_could_have_written_is_not_believed(tmp_path: Path, hashed: list[int]) -> None:
    with cached_weights(tmp_path, {"a": torch.ones(3)}) as file:
        time.sleep(2 * verified._STEADY)
        read(file.path, sha256=file.sha256)
        remembered._HERE.clear()
        (remembered.folder() / "hashes").chmod(0o777)
        read(file.path, sha256=file.sha256)
    assert len(hashed) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with cached_weights(tmp_path, {"a": torch.ones(3)}) as file:
        time.sleep(2 * verified._STEADY)
        assert read(file.path, sha256=file.sha256)["a"].eq(1).all()


def test_an_interrupt_after_an_entry_has_its_name_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        real(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remembered.remember("hashes", "a", 1)
    remembered._HERE.clear()
    assert remembered.recall("hashes", "a") == 1


# -- what is remembered ----------------------------------------------------------------------------


def test_the_table_of_a_file_is_not_what_a_load_writes_into(tmp_path: Path) -> None:
    """`load_state_dict(assign=True)` marks the metadata; the next load would assign as well."""
    layer = nn.BatchNorm2d(3)
    torch.save(layer.state_dict(), tmp_path / "norm.pth")
    time.sleep(2 * verified._STEADY)
    read(tmp_path / "norm.pth")  # makes the table
    nn.BatchNorm2d(3).load_state_dict(read(tmp_path / "norm.pth"), assign=True)
    states: tuple[Any, Any] = (read(tmp_path / "norm.pth"), layer.state_dict())
    assert states[0]._metadata == states[1]._metadata


def test_a_table_that_does_not_fit_falls_back_to_torchs_reader(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(100_000.0), "b": torch.ones(3)}, tmp_path / "two.pth")
    time.sleep(2 * verified._STEADY)
    read(tmp_path / "two.pth")
    ((kind, name),) = (key for key in remembered._HERE if key[0] == "tables")
    for offset in (-1, 10**9):
        remembered._HERE[kind, name]["tensors"][1][3] = offset
        found = read(tmp_path / "two.pth")
        assert found["a"].equal(torch.arange(100_000.0)) and found["b"].eq(1).all()


def test_times_in_whole_seconds_are_waited_for_longer() -> None:
    now = time.time_ns()
    half, whole = now - 500_000_000, now // 10**9 * 10**9 - 10**9
    assert verified.is_steady((1, 1, 1, 0, half | 1))
    assert not verified.is_steady((1, 1, 1, 0, whole))
    assert verified.is_steady((1, 1, 1, 0, whole - 4 * 10**9))


def test_the_folder_stays_small_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_MOST", 5)
    place = remembered.folder() / "things"
    for number in range(12):
        remembered.remember("things", number, ["x" * number])
        os.utime(place / remembered._name(number), (number, number))
    (place / "draft").touch()  # of a process that was killed
    os.utime(place / "draft", (0, 0))
    remembered.remember("things", 12, [])
    remembered._HERE.clear()
    kept = [number for number in range(13) if remembered.recall("things", number) is not None]
    assert kept == [8, 9, 10, 11, 12] and len(list(place.iterdir())) == 5
    monkeypatch.setattr(remembered, "_MOST_BYTES", 100)
    remembered.remember("things", 13, "x" * 90)
    assert len(list(place.iterdir())) < 5


def test_the_process_keeps_a_limited_number_of_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_MOST_HERE", 3)
    for number in range(10):
        remembered.remember("things", number, number)
    assert list(remembered._HERE.values()) == [7, 8, 9]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_entries_are_private_and_nothing_is_written_where_others_can() -> None:
    before = os.umask(0)
    try:
        remembered.remember("things", 1, "a")
    finally:
        os.umask(before)
    place = remembered.folder() / "things"
    (entry,) = place.iterdir()
    modes = [each.stat().st_mode & 0o777 for each in (remembered.folder(), place, entry)]
    assert modes == [0o700, 0o700, 0o600]
    for each in (remembered.folder(), place, entry):
        mode = each.stat().st_mode
        each.chmod(0o777)
        remembered._HERE.clear()
        assert remembered.recall("things", 1) is None
        if each != entry:
            remembered.remember("things", 2, "b")
            assert list(place.iterdir()) == [entry]
        each.chmod(mode)
    remembered._HERE.clear()
    assert remembered.recall("things", 1) == "a"


@pytest.mark.parametrize("given", ["", "relative"])
def test_a_user_without_a_home_builds_all_the_same(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    remembered.remember("things", 1, "a")
    remembered._HERE.clear()
    assert remembered.recall("things", 1) is None


def test_no_survey_is_kept_where_the_code_may_be_other_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def surveys_after_a_build() -> int:
        HybridBuilder().from_torchvision("squeezenet1_1", weights=None)
        return sum(kind == "surveys" for kind, _ in remembered._HERE)

    began = remembered._BEGAN
    monkeypatch.setattr(remembered, "_SEEN", {})
    monkeypatch.setattr(remembered, "_BEGAN", 0)  # as if every file had changed since
    assert surveys_after_a_build() == 0
    monkeypatch.setattr(remembered, "_BEGAN", began)
    assert surveys_after_a_build() == 1
    real = Path.stat

    def changed(path: Path, **more: Any) -> Any:
        stat = real(path, **more)
        if path.name != "squeezenet.py":
            return stat
        times = {"st_mtime_ns": stat.st_mtime_ns, "st_ctime_ns": stat.st_ctime_ns + 1}
        return SimpleNamespace(st_size=stat.st_size, **times)

    monkeypatch.setattr(Path, "stat", changed)
    assert surveys_after_a_build() == 1, "what runs in this process has not changed"
    monkeypatch.setattr(remembered, "_SEEN", {})  # as in the next process
    assert surveys_after_a_build() == 2, "the time of the change can be set back"


def test_code_that_is_loaded_again_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_in_a_notebook.py"
    file.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(file.stem)
    time.sleep(0.05)
    monkeypatch.setattr(remembered, "_BEGAN", time.time_ns())
    before = remembered.code_states([file.stem])
    assert before is not None
    time.sleep(0.05)
    file.write_text("a = 1")
    assert remembered.code_states([file.stem]) == before
    importlib.invalidate_caches()
    importlib.reload(module)
    assert remembered.code_states([file.stem]) is None
    time.sleep(0.05)
    monkeypatch.setattr(remembered, "_BEGAN", time.time_ns())
    assert remembered.code_states([file.stem]) not in (None, before)
    del sys.modules[file.stem]


# -- memory that other code holds ------------------------------------------------------------------


def lent_to(make: Callable[[dict[str, torch.Tensor]], nn.Module]) -> tuple[Any, Any]:
    """Return what a factory makes that keeps its state dict of ones, and the state dict."""
    state = {"weight": torch.ones(4, 4), "bias": torch.ones(4)}

    def factory() -> nn.Module:
        lend(state.values())
        return make(state)

    return built(factory), state


def linear(state: dict[str, torch.Tensor]) -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.load_state_dict(state)
    return layer


def test_a_layer_that_is_reset_or_scaled_leaves_the_state_dict_alone() -> None:
    def scaled(state: dict[str, torch.Tensor]) -> nn.Module:
        layer = linear(state)
        with torch.no_grad():
            layer.weight.mul_(3)
        nn.init.zeros_(layer.bias)
        return layer

    layer, state = lent_to(scaled)
    assert layer.weight.eq(3).all() and layer.bias.eq(0).all()
    assert state["weight"].eq(1).all() and state["bias"].eq(1).all()


def test_a_state_dict_that_is_changed_leaves_the_network_alone() -> None:
    def changing(state: dict[str, torch.Tensor]) -> nn.Module:
        first = linear(state)
        state["weight"].zero_()
        return nn.Sequential(first, linear(state))

    pair, _ = lent_to(changing)
    assert pair[0].weight.eq(1).all() and pair[1].weight.eq(0).all()


def test_a_parameter_that_is_no_childs_is_initialized() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = [nn.Linear(64, 64)]

    hidden: Any = built(Hidden)
    assert 0.05 < hidden.kept[0].weight.std() < 0.1
