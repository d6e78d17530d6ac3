"""The report says what is in the model, not what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import BackboneError, HybridBuilder


def line_of(report: str, start: str) -> str:
    found = [line for line in report.splitlines() if line.strip().startswith(start)]
    assert len(found) == 1, report
    return found[0]


def test_patches_are_told_with_block_parameters_place_and_start(tiny: Any) -> None:
    patches = {
        "layer2": {"inject": {"type": "conv", "params": {"kernel_size": 5}, "position": "before"}},
        "layer3": {"wrap": {"type": "gate", "init": "paper"}},
    }
    report = tiny(patches).explain()
    first = line_of(report, "layer2: inject")
    assert "lab:conv(kernel_size=5) -> layer2" in first and "identity start, gate now 0" in first
    second = line_of(report, "layer3: wrap")
    assert (
        "layer3 -> lab:gate" in second
        and "patches.layer3.gate" in second
        and "published start" in second
    )
    assert "patches: 2" in report


def test_a_gate_that_has_learned_is_read_from_the_model(tiny: Any) -> None:
    model = tiny({"layer3": {"wrap": "gate"}})
    with torch.no_grad():
        model.patches.layer3.gate.alpha.fill_(0.25)
    assert "gate now 0.25" in model.explain()


def test_the_step_0_difference_is_the_one_that_a_user_would_measure(tiny: Any, plain: Any) -> None:
    exact = tiny({"layer3": {"wrap": "gate"}})
    assert (
        "largest logit difference from the unpatched backbone 0 (image 1x3x64x96)"
        in exact.explain()
    )
    torch.manual_seed(0)
    model = tiny({"layer3": {"wrap": {"type": "gate", "init": "paper"}}}).eval()
    x = torch.randn((1, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (model(x) - plain().eval()(x)).abs().max().item()
    assert expected > 0 and model.step0_difference == pytest.approx(expected, rel=1e-6)
    assert f"{expected:g}" in model.explain()


def test_a_replacement_names_both_classes(tiny: Any) -> None:
    assert (
        "replace Conv2d by lab:conv, now ConvNorm"
        in tiny({"layer3.0.conv": {"replace": "conv"}}).explain()
    )


def test_a_second_build_without_patches_reports_none(tiny: Any) -> None:
    tiny({"layer3": {"wrap": "gate"}})
    model = tiny()
    assert (
        "patches: none" in model.explain()
        and "gate" not in model.explain()
        and model.patch_records == ()
    )


def test_a_patch_that_was_taken_out_of_the_tree_is_told_as_running_unsaved(
    tiny: Any, images: Tensor
) -> None:
    model = tiny({"layer3": {"wrap": "gate"}})
    del model.patches.layer3
    report = model.explain()
    assert "no longer in the model (was patches.layer3.gate)" in report
    assert (
        "layer3: runs a block after it that is not in the model's tree, so it is not saved"
        in report
    )


def test_a_patch_whose_hook_is_gone_hangs_again(tiny: Any, images: Tensor) -> None:
    model = tiny({"layer3": {"wrap": "gate"}}).eval()
    with torch.no_grad():
        model.patches.layer3.gate.alpha.fill_(1.0)
        expected = model(images)
        model.layer3._forward_hooks.clear()
        assert torch.equal(model(images), expected)
    assert "at patches.layer3.gate, identity start" in model.explain()


def test_a_patch_that_was_removed_altogether_is_told_as_gone(tiny: Any) -> None:
    model = tiny({"layer3": {"wrap": "gate"}})
    model.layer3._forward_hooks.clear()
    del model.patches
    report = model.explain()
    assert (
        "no longer in the model (was patches.layer3.gate)" in report
        and "runs a block" not in report
    )


def test_head_and_table_are_read_from_the_model(tiny: Any) -> None:
    model = tiny({"layer2": {"wrap": "gate"}}, num_classes=5, dropout=0.3, freeze_backbone=True)
    assert "head: fc (Linear), 5 classes, dropout 0.3" in model.explain()
    model.reset_classifier(3, dropout=0.1)
    report = model.explain()
    assert "head: fc (Linear), 3 classes, dropout 0.1" in report
    gate = 16 * 16 + 16 + 1  # layer, bias, alpha
    stage = sum(p.numel() for p in model.layer2.parameters())
    assert line_of(report, "stage 1").split()[2:] == [f"{stage + gate:,}", f"{gate:,}", "layer2"]
    assert line_of(report, "head  ").split()[1:] == ["99", "99", "fc"]


def test_options_and_missing_weights_are_told(tiny: Any) -> None:
    report = tiny(options={"num_classes": 9}).explain()
    assert "weights: none (random)" in report and "options: num_classes=9" in report


def test_a_skipped_hash_comparison_is_told(builder: HybridBuilder, made_up: Any) -> None:
    made_up("mobilenet_v3_small")
    report = builder.from_backbone("mobilenet_v3_small").explain()
    assert "weights: IMAGENET1K_V1, file hash not compared (TVC_VERIFY_WEIGHTS=0)" in report


# -- preprocessing ---------------------------------------------------------------------------------


def test_a_model_without_weights_gives_the_default_preprocessing_and_says_so(
    builder: HybridBuilder,
) -> None:
    import torchvision

    model = builder.from_backbone("resnet18", None)
    with pytest.warns(UserWarning, match="no pretrained weights.*IMAGENET1K_V1"):
        found = model.transforms()
    image = torch.randint(0, 255, (3, 300, 400), dtype=torch.uint8)
    expected = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert torch.equal(found(image), expected(image))


def test_a_backbone_without_any_weights_has_no_preprocessing(tiny: Any) -> None:
    with pytest.raises(BackboneError, match="lab:tiny has no pretrained weights"):
        tiny().transforms()


def test_the_report_of_a_hybrid_with_an_in_place_edit_of_the_head_is_current(tiny: Any) -> None:
    model = tiny()
    model.fc = nn.Linear(32, 2)
    assert "head: fc (Linear), 2 classes" in model.explain()
