"""The loss dice: by the numbers, with the plugin that defines losses, and without it."""

from __future__ import annotations

import acme_dice.plugin
import pytest
import torch
from acme_dice.dice import Dice

from tvc_core import Registry

LOGITS = torch.tensor([[9.0, 9.0, -9.0, -9.0]])
MASKS = torch.tensor([[1.0, 0.0, 1.0, 0.0]])  # half of each is right


def test_half_of_the_overlap_is_half_of_the_loss() -> None:
    assert Dice()(LOGITS, MASKS).item() == pytest.approx(0.5, abs=1e-3)


def test_it_works_where_the_kind_is_absent() -> None:
    registry = Registry([acme_dice.plugin], installed=False)
    [info] = [info for info in registry.plugins if info.owner == "acme-dice"]
    assert (info.status, info.specs, info.unknown_hooks) == ("active", (), ("acme_losses",))


def test_it_offers_a_loss_where_the_kind_is_there() -> None:
    acme_losses = pytest.importorskip("acme_losses")
    plugin = pytest.importorskip("acme_losses.plugin")
    both = Registry([plugin, acme_dice.plugin], installed=False)
    assert both.names("loss") == ["dice", "focal", "smooth"]
    assert both.resolve(acme_losses.LossSpec, "acme-dice:dice").spec.targets == "masks"
    assert acme_losses.make_loss("dice", both)(LOGITS, MASKS).item() == pytest.approx(0.5, abs=1e-3)


def test_the_command_of_losses_lists_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = pytest.importorskip("acme_losses.plugin")
    commands = pytest.importorskip("acme_losses.commands")
    testing = pytest.importorskip("click.testing")
    both = Registry([plugin, acme_dice.plugin], installed=False)
    monkeypatch.setattr(commands, "Registry", lambda: both)
    result = testing.CliRunner().invoke(commands.losses, ["--targets", "masks"])
    assert result.output == "dice  acme-dice  One minus the overlap of two masks.\n"
