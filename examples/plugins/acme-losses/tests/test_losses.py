"""The kind loss: by the conformance kit, by the numbers, and with a plugin that offers one more."""

from __future__ import annotations

import math
from collections.abc import Callable

import acme_dice.plugin
import acme_losses.plugin
import pytest
import torch
from acme_losses import LossSpec, make_loss

from tvc_core import Registry
from tvc_core.testing import parametrize_with_checks


@parametrize_with_checks("acme_losses.plugin")
def test_conformance(check: Callable[[], None]) -> None:
    check()


@pytest.fixture
def both() -> Registry:
    return Registry([acme_losses.plugin, acme_dice.plugin], installed=False)


def test_focal_counts_a_sample_by_how_hard_it_is(both: Registry) -> None:
    logits, targets = torch.zeros(3, 4), torch.tensor([0, 1, 2])  # p = 1/4 for each
    assert make_loss("focal", both)(logits, targets).item() == pytest.approx(
        (3 / 4) ** 2 * math.log(4)
    )
    assert make_loss("focal", both, gamma=0.0)(logits, targets).item() == pytest.approx(math.log(4))


def test_another_plugin_offers_a_loss_where_the_kind_is_there(both: Registry) -> None:
    assert both.names("loss") == ["dice", "focal", "smooth"]
    assert both.resolve(LossSpec, "acme-dice:dice").spec.targets == "masks"
    logits = torch.tensor([[9.0, 9.0, -9.0, -9.0]])
    masks = torch.tensor([[1.0, 0.0, 1.0, 0.0]])  # half of each is right
    assert make_loss("dice", both)(logits, masks).item() == pytest.approx(0.5, abs=1e-3)


def test_that_plugin_works_where_the_kind_is_absent() -> None:
    registry = Registry([acme_dice.plugin], installed=False)
    [info] = [info for info in registry.plugins if info.owner == "acme-dice"]
    assert (info.status, info.specs, info.unknown_hooks) == ("active", (), ("acme_losses",))


def test_the_command_lists_the_losses_of_all_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = pytest.importorskip("acme_losses.commands")
    testing = pytest.importorskip("click.testing")
    both = Registry([acme_losses.plugin, acme_dice.plugin], installed=False)
    monkeypatch.setattr(commands, "Registry", lambda: both)
    result = testing.CliRunner().invoke(commands.losses, ["--targets", "masks"])
    assert result.output == "dice  acme-dice  One minus the overlap of two masks.\n"
