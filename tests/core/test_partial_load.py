"""partial_load and transfer_weights account for every tensor on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tvc_core import HybridBuilder, UnknownNameError, WeightsError, partial_load, transfer_weights


def small(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, classes))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_bias_is_left_alone_with_its_weight() -> None:
    """Ten biases of a layer on 256 features say nothing about one on 512."""
    source, target = nn.Linear(3, 2), nn.Linear(4, 2)
    both = [nn.Sequential(nn.Linear(2, 2), each) for each in (source, target)]
    before = target.bias.clone()
    with pytest.raises(WeightsError, match=r"1\.bias.*goes with 1\.weight"):
        partial_load(both[1], both[0].state_dict(), min_loaded=0)
    report = partial_load(both[1], both[0].state_dict(), ignore_mismatch=True, min_loaded=0)
    assert torch.equal(target.bias, before)
    assert [each.key for each in report.mismatched] == ["1.weight", "1.bias"]
    attention = nn.MultiheadAttention(8, 2)
    given = {**attention.state_dict(), "in_proj_weight": torch.zeros(3, 8)}
    report = partial_load(nn.MultiheadAttention(8, 2), given, ignore_mismatch=True, min_loaded=0)
    assert [each.key for each in report.mismatched] == ["in_proj_weight", "in_proj_bias"]


def test_everything_that_fits_is_loaded() -> None:
    source, target = small(), small()
    report = partial_load(target, source.state_dict())
    assert set(report.loaded) == set(source.state_dict())
    assert report.load_ratio == 1.0
    assert unchanged(target, state(source))


def test_a_mismatch_raises_by_default_and_changes_nothing() -> None:
    target = small(3)
    before = state(target)
    with pytest.raises(
        WeightsError,
        match=r"Shape mismatch.*3.weight: checkpoint \[5, 8\], model \[3, 8\].*ignore_mismatch=",
    ):
        partial_load(target, small(5).state_dict())
    assert unchanged(target, before)


def test_a_tolerated_mismatch_is_reported_and_the_tensor_is_left_alone() -> None:
    target = small(3)
    before = state(target)
    report = partial_load(target, small(5).state_dict(), ignore_mismatch=True)
    assert [mismatch.key for mismatch in report.mismatched] == ["3.weight", "3.bias"]
    assert torch.equal(target[3].weight, before["3.weight"])
    assert "mismatched: 2" in report.summary()


def test_nothing_loaded_is_an_error_that_shows_both_sides() -> None:
    target = small()
    before = state(target)
    with pytest.raises(WeightsError, match=r"nothing would be loaded.*encoder.weight.*0.weight"):
        partial_load(target, {"encoder.weight": torch.ones(2)}, ignore_mismatch=True)
    assert unchanged(target, before)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_the_prefix_of_a_wrapper_is_taken_off_and_reported(prefix: str) -> None:
    source, target = small(), small()
    report = partial_load(
        target, {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    )
    assert report.prefix == prefix
    assert report.load_ratio == 1.0
    assert repr(prefix) in report.summary()


def test_a_prefix_that_is_the_models_own_stays() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small()

    report = partial_load(Wrapped(), Wrapped().state_dict())
    assert report.prefix == ""
    assert report.load_ratio == 1.0


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        ("fc", {"fc.weight", "fc.bias", "head.fc.weight"}),
        ("fc1", {"block.fc1.weight"}),
        ("head.fc", {"head.fc.weight"}),
        ("ad.fc", set()),
        ("block", {"block.fc1.weight", "block.fc2.weight"}),
        (r"re:fc\d", {"block.fc1.weight", "block.fc2.weight"}),
        (r"re:bias$", {"fc.bias"}),
    ],
)
def test_a_plain_pattern_matches_whole_segments_and_others_are_expressions(
    pattern: str, hits: set[str]
) -> None:
    keys = (
        "fc.weight",
        "fc.bias",
        "head.fc.weight",
        "block.fc1.weight",
        "block.fc2.weight",
        "conv.weight",
    )
    model = nn.Module()
    for key in keys:
        owner: nn.Module = model
        *path, name = key.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(name, nn.Parameter(torch.zeros(2)))
    given = {key: torch.ones(2) for key in keys}
    report = partial_load(model, given, exclude_patterns=[pattern])
    assert set(report.excluded) == hits
    assert {key for key, value in model.state_dict().items() if value.sum() == 0} == hits
    assert report.unmatched_patterns == (() if hits else (pattern,))


def test_excluding_fc_spares_the_squeeze_excite_layers_of_efficientnet() -> None:
    source = torchvision.models.efficientnet_b0(weights=None)
    target = torchvision.models.efficientnet_b0(weights=None)
    report = transfer_weights(source, target, exclude_patterns=["fc", "classifier"])
    assert set(report.excluded) == {"classifier.1.weight", "classifier.1.bias"}
    assert report.unmatched_patterns == ("fc",)
    assert "patterns that matched nothing: 1 (fc)" in report.summary()


def test_a_broken_expression_is_a_weights_error_and_changes_nothing() -> None:
    target = small()
    before = state(target)
    with pytest.raises(WeightsError, match=r"'re:\(' is no regular expression"):
        partial_load(target, small().state_dict(), exclude_patterns=["re:("])
    assert unchanged(target, before)


@pytest.mark.parametrize("initializer", ["kaiming", "xavier", "zero", "identity"])
def test_a_missing_normalization_starts_at_scale_1_whatever_the_initializer(
    initializer: str,
) -> None:
    target = small()
    nn.init.constant_(target[1].weight, 7)
    nn.init.constant_(target[1].bias, 7)
    target[1].running_mean.fill_(7)
    given = {key: value for key, value in small().state_dict().items() if not key.startswith("1.")}
    report = partial_load(target, given, init_new_layers=initializer)
    assert target[1].weight.tolist() == [1.0] * 8
    assert target[1].bias.tolist() == [0.0] * 8
    assert target[1].running_mean.tolist() == [0.0] * 8
    assert {"1.weight", "1.bias", "1.running_mean"} <= set(report.initialized)


def test_an_initializer_fills_only_what_was_not_loaded() -> None:
    source, target = small(), small()
    given = source.state_dict()
    del given["0.weight"], given["3.bias"]
    report = partial_load(target, given, init_new_layers="zero", min_loaded=0)
    assert set(report.initialized) == {"0.weight", "3.bias"}
    assert target[0].weight.abs().sum() == 0
    assert torch.equal(target[0].bias, source[0].bias)
    assert torch.equal(target[3].weight, source[3].weight)


def test_kaiming_gives_the_variance_of_the_paper() -> None:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Conv2d(64, 256, 3), nn.Linear(4, 4))
    given = {"1.weight": torch.ones(4, 4)}
    partial_load(target, given, init_new_layers="kaiming", min_loaded=0)
    assert target[0].weight.var().item() == pytest.approx(2 / (256 * 9), rel=0.02)
    assert target[0].bias is not None and target[0].bias.abs().sum() == 0


def test_without_an_initializer_missing_tensors_keep_their_values_and_the_report_says_so() -> None:
    target = small()
    before = state(target)
    given = {"0.weight": torch.ones(8, 3, 3, 3)}
    report = partial_load(target, given, min_loaded=0)
    assert set(report.uninitialized) == set(before) - {"0.weight"}
    assert torch.equal(target[3].weight, before["3.weight"])


def test_a_plain_checkpoint_fills_a_hybrid_and_no_gate_is_touched(builder: HybridBuilder) -> None:
    own = torchvision.models.resnet18(weights=None)
    model = builder.from_torchvision(
        "resnet18", None, patches={"layer3": {"wrap": "se"}}, num_classes=10
    )
    report = partial_load(model, own.state_dict(), ignore_mismatch=True, init_new_layers="kaiming")
    assert set(report.loaded) == set(own.state_dict()) - {"fc.weight", "fc.bias"}
    assert set(report.missing) == {key for key in model.state_dict() if key.startswith("patches.")}
    assert model.patches.layer3.se.alpha.item() == 0.0
    assert "patches.layer3.se.alpha" not in report.initialized
    assert "patches.layer3.se.block.fc1.weight" in report.initialized


def test_an_unknown_initializer_is_named_before_anything_changes() -> None:
    target = small()
    before = state(target)
    with pytest.raises(UnknownNameError, match="Did you mean 'kaiming'"):
        partial_load(target, small().state_dict(), init_new_layers="kaimng")
    assert unchanged(target, before)


def test_a_checkpoint_may_be_a_file(tmp_path: Path) -> None:
    source, target = small(), small()
    torch.save(source.state_dict(), tmp_path / "model.pt")
    assert partial_load(target, tmp_path / "model.pt").load_ratio == 1.0


def test_the_checkpoint_is_not_changed() -> None:
    given = {f"module.{key}": value for key, value in small().state_dict().items()}
    keys, values = list(given), [value.clone() for value in given.values()]
    partial_load(small(), given, init_new_layers="zero")
    assert list(given) == keys
    assert all(torch.equal(a, b) for a, b in zip(given.values(), values, strict=True))


def test_a_training_checkpoint_says_which_entry_to_pass() -> None:
    with pytest.raises(WeightsError, match=r"checkpoint\['state_dict'\]"):
        partial_load(small(), {"epoch": 3, "state_dict": small().state_dict()})  # type: ignore[dict-item]
