"""Figures of predictions, against scikit-learn and by hand."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn
from tvc_train.scores import best_temperature, best_thresholds, probabilities, scores_of
from tvc_train.showing import Display, TensorBoard, display_for

NAMES = ["a", "b", "c", "never"]


def drawn(labels: str = "one") -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of 150 images; no image is of the last class."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(150, 4, generator=generator) * 2
    if labels == "many":
        targets = torch.randint(0, 2, (150, 4), generator=generator)
        targets[:, 3] = 0
        return logits + 2 * targets, targets
    targets = torch.randint(0, 3, (150,), generator=generator)
    logits[torch.arange(150), targets] += 1.5
    return logits, targets


def test_figures_of_one_label_are_scikit_learns() -> None:
    logits, targets = drawn()
    found = scores_of(logits, targets, classes=NAMES, temperature=1.7)
    said, true = logits.argmax(1).numpy(), targets.numpy()
    assert np.array_equal(found.confusion, metrics.confusion_matrix(true, said, labels=range(4)))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        true, said, labels=range(4), zero_division=0
    )
    for index, each in enumerate(found.classes):
        wanted = (precision[index], recall[index], f1[index], support[index])
        assert (each.precision, each.recall, each.f1, each.images) == pytest.approx(wanted)
    chances = torch.softmax(logits.double() / 1.7, 1).numpy()
    assert found.figures["loss"] == pytest.approx(
        metrics.log_loss(true, chances, labels=range(4)), rel=1e-6
    )
    assert found.figures["accuracy"] == pytest.approx(metrics.accuracy_score(true, said))
    assert sum(count for *_, count in found.confused(100)) == (said != true).sum()
    counts = [count for *_, count in found.confused(100)]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("labels", ["one", "many"])
def test_the_bins_add_up_to_the_calibration_error(labels: str) -> None:
    logits, targets = drawn(labels)
    found = scores_of(logits, targets, classes=NAMES, labels=labels)
    filled = [each for each in found.reliability if each.count]
    total = sum(each.count for each in filled)
    assert total == (150 if labels == "one" else 600)
    gap = sum(each.count * abs(each.confidence - each.accuracy) for each in filled) / total
    assert found.figures["calibration_error"] == pytest.approx(gap, abs=1e-6)
    assert all(each.low <= each.confidence <= each.high for each in filled)


@pytest.mark.filterwarnings("error")
def test_figures_of_many_labels_are_scikit_learns() -> None:
    logits, targets = drawn("many")
    limits = [0.3, 0.5, 0.8, 0.5]
    found = scores_of(logits, targets, classes=NAMES, labels="many", thresholds=limits)
    chances = torch.sigmoid(logits.double()).numpy()
    said = chances >= np.array(limits)
    precision, recall, _, _ = metrics.precision_recall_fscore_support(
        targets.numpy(), said, zero_division=0
    )
    assert [each.precision for each in found.classes] == pytest.approx(precision.tolist())
    assert [each.recall for each in found.classes] == pytest.approx(recall.tolist())
    for index in range(3):
        wanted = metrics.average_precision_score(targets[:, index], chances[:, index])
        assert found.classes[index].average_precision == pytest.approx(wanted, abs=1e-6)
    assert found.figures["exact_match"] == pytest.approx(
        metrics.accuracy_score(targets.numpy(), said)
    )
    # of a class without images there is none, and null is how JSON says so
    assert found.to_mapping()["classes"][3]["average_precision"] is None


def test_one_class_that_an_image_is_of_or_not_has_figures_as_well() -> None:
    logits, targets = (each[:, :1] for each in drawn("many"))
    found = scores_of(logits, targets, classes=NAMES[:1], labels="many")
    true, said = targets[:, 0].numpy(), (logits[:, 0] >= 0).numpy()
    wanted = {
        "accuracy": metrics.accuracy_score(true, said),
        "exact_match": metrics.accuracy_score(true, said),
        "f1": metrics.f1_score(true, said),
        "average_precision": metrics.average_precision_score(true, logits[:, 0]),
    }
    assert {name: found.figures[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    own, precision = found.classes[0], metrics.precision_score(true, said)
    assert (own.f1, own.precision) == pytest.approx((wanted["f1"], precision), abs=1e-6)
    assert found.confusion == (metrics.confusion_matrix(true, said).tolist(),)


def test_thresholds_are_the_best_of_all_that_there_are() -> None:
    logits, targets = drawn("many")
    found = best_thresholds(logits, targets, temperature=0.7)
    chances = probabilities(logits, labels="many", temperature=0.7)
    for index in range(3):
        true, values = targets[:, index].numpy(), chances[:, index].numpy()
        said = values[:, None] >= values[None]  # by each of the values as a threshold
        best = max(2 * (said.T & (true > 0)).sum(1) / (said.sum(0) + true.sum()))
        assert metrics.f1_score(true, values >= found[index]) == pytest.approx(best)
    assert found[3] == 0.5


def test_equal_probabilities_are_on_one_side_of_a_threshold() -> None:
    logits = torch.tensor([[2.0], [0.0], [0.0], [-3.0]])
    targets = torch.tensor([[1], [1], [0], [0]])
    (found,) = best_thresholds(logits, targets)
    assert 1 / (1 + np.exp(3)) < found <= 0.5


@pytest.mark.parametrize("labels", ["one", "many"])
def test_the_temperature_is_the_likeliest(labels: str) -> None:
    logits, targets = drawn(labels)
    found = best_temperature(logits, targets, labels=labels)

    def loss(temperature: float) -> float:
        return scores_of(
            logits, targets, classes=NAMES, labels=labels, temperature=temperature
        ).figures["loss"]

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))


@pytest.mark.parametrize("labels", ["one", "many"])
def test_images_that_are_all_right_leave_a_doubt(labels: str) -> None:
    targets = torch.tensor([0, 2, 1, 1])
    truth = nn.functional.one_hot(targets, 3)
    logits = 9.0 * truth - 4.0
    temperature = best_temperature(
        logits, targets if labels == "one" else truth, labels=labels
    )  # fmt: skip
    said = probabilities(logits, labels=labels, temperature=temperature)
    sure = said[truth.bool()] if labels == "one" else torch.where(truth.bool(), said, 1 - said)
    assert float(sure.mean()) == pytest.approx(5 / 6 if labels == "one" else 13 / 14)


# -- what is shown of a run ------------------------------------------------------------------------


def tell(display: Display, pause: float = 0.0) -> None:
    """A run of one phase of two epochs, whose name is markup for rich."""
    display.phase("[red]head[/red]", {"rate": 0.01, "thaw": None})
    for epoch in (1, 2):
        display.epoch(epoch, steps=3)
        for step in range(3):
            display.step(epoch * 3 + step, images=8, figures={"loss": 1 / epoch})
            time.sleep(pause)
        display.row(
            {"epoch": epoch, "loss": 0.5 / epoch, "gate/layer3": 0.1},
            {"epoch": epoch, "images_per_second": 100},
        )
    display.note("a checkpoint [bold]was damaged[/bold]")
    display.end_phase()
    display.close()


def test_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    tell(display_for(stream))
    said = stream.getvalue()
    assert "phase [red]head[/red]: rate 0.01, thaw -" in said
    assert "epoch 2, loss 0.25, images_per_second 100" in said
    assert "gate" not in said and "\x1b" not in said and "\r" not in said
    assert said.splitlines()[-2:] == ["      1   0.5", "      2  0.25"]


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Screen()
    tell(display_for(stream), pause=0.12)  # bars are drawn ten times a second
    said = stream.getvalue()
    assert "\x1b" in said and "images/s" in said
    assert "[red]head[/red]" in said and "[bold]was damaged[/bold]" in said


def test_curves_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(TensorBoard(tmp_path))
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in found.Scalars("epoch/loss")] == [0.5, 0.25]
    assert [event.step for event in found.Scalars("step/loss")] == [3, 4, 5, 6, 7, 8]
