"""The kind loss: by the conformance kit, by the numbers, and as a command."""

from __future__ import annotations

import math
from collections.abc import Callable

import acme_losses.plugin
import pytest
import torch
from acme_losses import make_loss

from tvc_core import Registry
from tvc_core.testing import parametrize_with_checks


@parametrize_with_checks("acme_losses.plugin")
def test_conformance(check: Callable[[], None]) -> None:
    check()


@pytest.fixture
def alone() -> Registry:
    return Registry([acme_losses.plugin], installed=False)


def test_focal_counts_a_sample_by_how_hard_it_is(alone: Registry) -> None:
    logits, targets = torch.zeros(3, 4), torch.tensor([0, 1, 2])  # p = 1/4 for each
    assert make_loss("focal", alone)(logits, targets).item() == pytest.approx(
        (3 / 4) ** 2 * math.log(4)
    )
    plain = make_loss("focal", alone, gamma=0.0)
    assert plain(logits, targets).item() == pytest.approx(math.log(4))


def test_the_command_lists_the_losses(monkeypatch: pytest.MonkeyPatch, alone: Registry) -> None:
    commands = pytest.importorskip("acme_losses.commands")
    testing = pytest.importorskip("click.testing")
    monkeypatch.setattr(commands, "Registry", lambda: alone)
    result = testing.CliRunner().invoke(commands.losses)
    assert [line.split()[:2] for line in result.output.splitlines()] == [
        ["focal", "acme-losses"],
        ["smooth", "acme-losses"],
    ]
