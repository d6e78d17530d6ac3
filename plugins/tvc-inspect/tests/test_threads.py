"""Looks in threads leave the process as it was, and see the same as a look alone."""

from __future__ import annotations

import random
import threading
from typing import Any

import torch
from process_settings import changed, process_settings
from torch import Tensor, nn
from tvc_inspect import class_map
from tvc_inspect.costs import measure_costs
from tvc_inspect.facts import probe_image

from tvc_core import HybridBuilder, HybridModel


class Meeting:
    """Lets the first passes of two threads overlap, so that the one that began first ends first."""

    def __init__(self) -> None:
        self.inside = {"first": threading.Event(), "second": threading.Event()}
        self.first_left = threading.Event()

    def wait(self) -> None:
        me = threading.current_thread().name
        if me not in self.inside or self.inside[me].is_set():
            return
        if me == "second":
            self.inside["first"].wait(60)
        self.inside[me].set()
        (self.inside["second"] if me == "first" else self.first_left).wait(60)


class Network(nn.Module):
    """Draws random numbers in its passes, in training also Python's."""

    meeting: Meeting

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Dropout(0.5))
        self.stage = nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        Network.meeting.wait()
        x = self.stage(self.stem(x)) * (0.5 if self.training and random.random() < 0.5 else 1)
        return self.head(x.mean((2, 3)) + 0 * torch.rand(1))


def network() -> HybridModel:
    torch.manual_seed(0)
    Network.meeting = Meeting()
    patches = {"stage": {"wrap": "se"}}
    parts: dict[str, Any] = {"stem": "stem", "stages": ["stage"], "head": "head"}
    return HybridBuilder().from_module(Network(), **parts, patches=patches)


def flops_of(costs: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {path: (cost.flops, cost.calls) for path, cost in costs.items()}


def test_two_looks_at_once() -> None:
    model = network()
    image = probe_image(model, (32, 48))
    alone, unknown, _ = measure_costs(model, image, repeats=1)
    Network.meeting = Meeting()
    before = process_settings()
    found: dict[str, Any] = {}

    def look() -> None:
        name = threading.current_thread().name
        found[name] = measure_costs(model, image, repeats=1)
        Network.meeting.first_left.set()

    threads = [threading.Thread(target=look, name=name) for name in ("first", "second")]
    for each in threads:
        each.start()
    for each in threads:
        each.join(100)
    assert not changed(before, but=("random numbers of Python",))
    assert all(event.is_set() for event in Network.meeting.inside.values())
    for costs, ops, batch in found.values():
        assert flops_of(costs) == flops_of(alone)
        assert ops == unknown
        assert batch == 1
    assert len(found) == 2


def test_a_look_alone_gives_random_numbers_back() -> None:
    model = network()
    image = probe_image(model, (32, 48))
    before, drawn = process_settings(), torch.get_rng_state()
    measure_costs(model, image, repeats=1)
    class_map(model, image)
    others = threading.active_count() > 1  # which other tests have started
    assert not changed(before, but=("random numbers of Python",) if others else ())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_look_beside_a_thread_leaves_that_ones_random_numbers_alone() -> None:
    model = network()
    image = probe_image(model, (32, 48))
    ended = threading.Event()
    other = threading.Thread(target=ended.wait, args=(60,))
    other.start()
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    measure_costs(model, image, repeats=1)
    class_map(model, image)
    found = torch.rand(4)
    ended.set()
    other.join()
    assert torch.equal(found, wanted)
