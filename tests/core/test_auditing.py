"""freeze_report and audit tell what is, not what was asked for."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import FreezeError, ParameterError, audit, param_groups

PATCHES = {"layer1": {"wrap": "gate"}, "layer3.0": {"wrap": "conv"}}
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def step(model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    nn.functional.cross_entropy(model(images), torch.arange(len(images)) % 7).backward()
    if optimizer is not None:
        optimizer.step()


def statistics(*norms: str) -> set[str]:
    return {f"{norm}.{name}" for norm in norms for name in STATISTICS}


# -- freeze_report ---------------------------------------------------------------------------------


def test_the_report_counts_every_parameter_once_and_says_what_train_does(tiny: Any) -> None:
    model = tiny(PATCHES, freeze_backbone=True, unfreeze_stages=[1]).train()
    report = model.freeze_report()
    assert sum(part.num_parameters for part in report.parts) == model.count_parameters()
    by_part = {part.name: part.num_trainable for part in report.parts}
    assert sum(by_part.values()) == model.count_parameters(trainable_only=True)
    assert by_part["stem"] == 0 and by_part["head"] == sum(p.numel() for p in model.fc.parameters())
    training = {
        part.name: (part.num_training, part.num_training_after_train) for part in report.parts
    }
    assert (
        training["stem"] == (0, 0) and training["stage 1"] == (5, 5) and training["head"] == (1, 1)
    )
    assert training["stage 0"] == (3, 3)  # the frozen stage's patch: Patch, block, layer
    assert [part.unexpected for part in report.parts] == [()] * 5
    frozen = {norm.path for part in report.parts for norm in part.frozen_normalizations}
    assert frozen == {"stem.norm", "layer1.norm", "layer3.0.norm", "layer3.1.norm"}


def test_in_eval_mode_the_report_still_says_what_train_will_do(tiny: Any) -> None:
    model = tiny(PATCHES, freeze_backbone=True, unfreeze_stages=[1]).train()
    expected = [part.num_training for part in model.freeze_report().parts]
    report = model.eval().freeze_report()
    assert [part.num_training for part in report.parts] == [0] * 5 and not report.training
    assert [part.num_training_after_train for part in report.parts] == expected


def test_what_was_changed_by_hand_shows(tiny: Any) -> None:
    model = tiny(freeze_backbone=True).train()
    model.layer1.conv.weight.requires_grad_(True)
    model.fc.bias.requires_grad_(False)
    model.layer2.train()
    stem, first, second, _, head = model.freeze_report().parts
    assert (
        first.unexpected == ("layer1.conv.weight",)
        and first.num_trainable == model.layer1.conv.weight.numel()
    )
    assert head.unexpected == ("fc.bias",) and head.num_trainable == model.fc.weight.numel()
    (norm,) = second.normalizations
    assert (norm.path, norm.training, norm.training_after_train, norm.trainable) == (
        "layer2.norm",
        True,
        False,
        False,
    )
    assert not stem.unexpected and not stem.normalizations[0].training
    text = str(model.freeze_report())
    assert "stage 0: changed by hand, not as the freeze state says: layer1.conv.weight" in text
    assert (
        "stage 1: in training mode now, set by hand; model.train() puts it back: layer2.norm"
        in text
    )
    model.train().load_freeze_state(model.freeze_state())
    assert "by hand" not in str(model.freeze_report())


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("frozen", (False, False)), ("eval", (True, False)), ("train", (True, True))],
)
def test_the_choice_for_norms_shows(
    tiny: Any, normalization: str, expected: tuple[bool, bool]
) -> None:
    model = tiny()
    model.freeze_backbone(normalization=normalization)
    (norm,) = model.freeze_report().parts[1].normalizations
    assert (norm.trainable, norm.training_after_train) == expected and norm.has_statistics


def test_the_report_is_a_table_and_cannot_be_changed(tiny: Any) -> None:
    report = tiny(PATCHES, freeze_backbone=True).freeze_report()
    lines = str(report).splitlines()
    assert [line.split("  ")[0].strip() for line in lines[1:]] == [
        "stem",
        "stage 0",
        "stage 1",
        "stage 2",
        "head",
    ]
    assert lines[1].endswith("1, 1 frozen, 1 in eval mode / stay in eval mode") and lines[
        -1
    ].endswith("none / train")
    with pytest.raises(FrozenInstanceError):
        report.parts[0].num_trainable = 5


# -- audit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["frozen", "eval", "train"])
def test_sound_training_is_found_sound(tiny: Any, images: Tensor, normalization: str) -> None:
    model = tiny(PATCHES)
    model.freeze_backbone(unfreeze_stages=[1], normalization=normalization)
    optimizer = sgd(model)
    with audit(model.train(), optimizer, strict=True) as report:
        for _ in range(3):
            optimizer.zero_grad()
            step(model, images, optimizer)
    assert report.ok and report.num_trainable == sum(p.requires_grad for p in model.parameters())
    assert str(report).count("none") == 4


def test_statistics_that_move_in_a_frozen_part_are_named(tiny: Any, images: Tensor) -> None:
    """Someone calls train() on a part: gradients stay off, and the statistics move."""
    model = tiny(freeze_backbone=True).train()
    model.layer1.train()
    with audit(model, sgd(model)) as report:
        step(model, images)
    assert set(report.moved) == statistics("layer1.norm") and not report.ok
    assert "frozen and moved: 3 (layer1.norm.running_mean" in str(report)


def test_statistics_of_a_part_frozen_by_hand_are_named(tiny: Any, images: Tensor) -> None:
    """The classic: requires_grad=False, and eval() forgotten."""
    model = tiny().train()
    model.layer1.requires_grad_(False)
    with audit(model, sgd(model)) as report:
        step(model, images)
    assert set(report.moved) == statistics("layer1.norm")
    model.layer1.eval()
    with audit(model, sgd(model)) as report:
        step(model, images)
    assert report.ok


def test_weight_decay_moves_a_frozen_parameter_that_has_a_gradient(
    tiny: Any, images: Tensor
) -> None:
    model = tiny().train()
    optimizer = sgd(model)
    step(model, images, optimizer)
    model.freeze_backbone(unfreeze_stages=[0, 1])
    optimizer.zero_grad(set_to_none=False)  # gradients of 0, and momentum from before
    with audit(model, optimizer) as report:
        step(model, images, optimizer)
    assert {name.partition(".")[0] for name in report.moved} == {"stem", "layer3"}
    assert set(report.moved) == {
        n for n, p in model.named_parameters() if n.startswith(("stem", "layer3"))
    }
    optimizer.zero_grad()  # without gradients the optimizer passes them over
    with audit(model, optimizer) as report:
        step(model, images, optimizer)
    assert report.ok


def test_one_bit_is_enough_and_not_a_number_is_no_difference(tiny: Any) -> None:
    model = tiny(freeze_backbone=True)
    with torch.no_grad():
        model.layer1.norm.bias.fill_(float("nan"))
        model.layer2.norm.bias.zero_()
    with audit(model, sgd(model)) as report:
        model.layer2.norm.bias.data.neg_()  # -0.0 equals 0.0, and has another bit
    assert report.moved == ("layer2.norm.bias",)


def test_trainable_parameters_without_gradient_are_named(tiny: Any, images: Tensor) -> None:
    model = tiny(freeze_backbone=True, unfreeze_stages=[1, 2]).train()
    optimizer = sgd(model)
    step(model, images)  # gradients from before do not count
    with audit(model, optimizer) as report:
        features = model.layer2(model.layer1(model.stem(images)))
        features.sum().backward()
        optimizer.zero_grad()  # those of the context do, even when they are gone at its end
    expected = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith("layer2.")
    }
    assert set(report.without_gradient) == expected and len(expected) > 4
    assert not report.moved and not report.not_in_optimizer


def test_what_the_optimizer_lacks_is_named(tiny: Any, images: Tensor) -> None:
    model = tiny(PATCHES, freeze_backbone=True).train()
    optimizer = torch.optim.AdamW(param_groups(model, 0.1))
    model.freeze_backbone(unfreeze_stages=[1])
    with audit(model, optimizer) as report:
        step(model, images, optimizer)
    assert set(report.not_in_optimizer) == {
        n for n, _ in model.named_parameters() if n.startswith("layer2.")
    }
    assert not report.moved and not report.without_gradient
    model.reset_classifier(7)
    with audit(model, torch.optim.AdamW(param_groups(model, 0.1))) as report:
        model.reset_classifier(7)
        step(model, images)
    assert set(report.not_in_optimizer) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("checkpointed", [False, True])
def test_an_audit_changes_nothing(tiny: Any, images: Tensor, checkpointed: bool) -> None:
    built = tiny(PATCHES, freeze_backbone=True, unfreeze_stages=[1]).train()

    def trained(watched: bool) -> dict[str, Tensor]:
        model = copy.deepcopy(built)
        model.set_grad_checkpointing(checkpointed)
        optimizer = sgd(model)
        torch.manual_seed(3)
        if watched:
            with audit(model, optimizer, strict=True):
                step(model, images, optimizer)
        else:
            step(model, images, optimizer)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    plain = trained(False)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in trained(True).items())


def test_strict_raises_at_the_end_and_hides_no_other_error(tiny: Any, images: Tensor) -> None:
    model = tiny(freeze_backbone=True).train()
    found = r"the audit found what should not be:\nfrozen and moved: 1 \(layer1\.conv\.weight\)"
    with pytest.raises(FreezeError, match=found), audit(model, sgd(model), strict=True):
        step(model, images)
        model.layer1.conv.weight.data.add_(1)
    with pytest.raises(ZeroDivisionError), audit(model, sgd(model), strict=True) as report:
        model.layer1.conv.weight.data.add_(1)
        _ = 1 / 0
    assert not report.finished and not report.ok and "not finished" in str(report)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_a_compiled_model_can_be_audited_without_compiling_again(tiny: Any, images: Tensor) -> None:
    model = tiny(PATCHES, freeze_backbone=True, unfreeze_stages=[1]).train()
    compiled: Any = torch.compile(model, backend="aot_eager")
    optimizer = sgd(model)
    step(compiled, images, optimizer)
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        audit(model, optimizer, strict=True) as report,
    ):
        step(compiled, images, optimizer)
    assert report.ok
    with pytest.raises(ParameterError, match=r"compiled\._orig_mod"), audit(compiled, optimizer):
        pass


def test_what_is_no_hybrid_or_no_optimizer_is_refused(tiny: Any, plain: Any) -> None:
    with pytest.raises(ParameterError, match="made, not Tiny"), audit(plain(), sgd(plain())):
        pass
    with (
        pytest.raises(ParameterError, match="torch optimizer, which has param_groups, not dict"),
        audit(tiny(), {}),
    ):
        pass
