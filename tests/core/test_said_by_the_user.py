"""What a user says of names decides where a tensor goes, whatever order and shapes say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvc_core import HybridBuilder, HybridModel, WeightsError, partial_load, transfer_weights
from tvc_core.weights.prefixes import solve


def layers(names: str, **options: Any) -> nn.Module:
    """Return a network of equal layers, one for each letter, and another one `h`."""
    network = nn.Module()
    for name in names:
        network.add_module(name, nn.Linear(4, 2 if name == "h" else 4, **options))
    return network


def sources(source: nn.Module, target: nn.Module, **options: Any) -> dict[str, str]:
    """Return from which layer each of the target's came, after the bits were compared."""
    report = transfer_weights(source, target, min_loaded=0, **options)
    given, filled = source.state_dict(), target.state_dict()
    for key in report.loaded:
        assert torch.equal(filled[key], given[report.sources[key]])
    return {key[0]: report.sources[key][0] for key in report.loaded if key.endswith("weight")}


def test_a_layer_comes_from_one_layer_whole() -> None:
    """`b` has a bias and `a` none: half of the new `b` would be another layer's."""
    source, target = layers("a", bias=False), layers("a", bias=False)
    for each in (source, target):
        each.add_module("b", nn.Linear(4, 4))
    before = target.b.bias.clone()  # type: ignore[union-attr, operator]
    report = transfer_weights(source, target, layer_mapping={"a": "b"}, min_loaded=0)
    assert torch.equal(target.b.bias, before)  # type: ignore[union-attr, arg-type]
    assert report.missing == ("a.weight", "b.bias") and report.unexpected == ("b.bias", "b.weight")


def test_a_mapping_counts_where_order_and_shape_are_matched() -> None:
    found = sources(layers("abch"), layers("pqrh"), match="order", layer_mapping={"a": "r"})
    assert found == {"p": "b", "q": "c", "r": "a", "h": "h"}
    target = layers("pqrh")
    rename = {"b": "p", re.compile("^c"): "q"}
    report = partial_load(target, layers("abch").state_dict(), match="order", rename=rename)
    by_key = {key[0]: source[0] for key, source in report.sources.items()}
    assert by_key == {"p": "b", "q": "c", "r": "a", "h": "h"}


def test_what_is_excluded_or_not_included_shifts_no_order() -> None:
    """Two of the target's layers are left out; the others come from where they would without."""
    assert sources(layers("abch"), layers("pqrh"), match="order", exclude_patterns="q") == {
        "p": "a", "r": "c", "h": "h",
    }  # fmt: skip
    found = sources(layers("abch"), layers("pqrh"), match="order", include_patterns=["r"])
    assert found == {"r": "c"}
    # the source has nothing for `q`
    found = sources(layers("abh"), layers("pqrh"), match="order", exclude_patterns="q")
    assert found == {"p": "a", "r": "b", "h": "h"}


def test_an_order_that_ends_on_one_side_is_said_by_its_side() -> None:
    with pytest.raises(WeightsError, match=r"the checkpoint goes on with 'c.weight' and the model"):
        sources(layers("abch"), layers("pqh"), match="order")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"a": "b.weight"}, r"'a' cannot go to 'b.weight', since 'b.weight' is a tensor"),
        ({"a.weight": "b"}, r"'a.weight' cannot go to 'b', since 'a.weight' is a tensor"),
        ({"a": "c", "b": "c"}, r"puts two tensors, 'a.weight' and 'b.weight', to 'c.weight'"),
        ({"a": ["b"]}, r"\['b'\] is no layer with tensors of the target"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(mapping: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=f"layer_mapping.*{message}"):
        transfer_weights(layers("abc"), layers("abc"), layer_mapping=mapping)


def test_a_layer_stays_where_it_was_sent_though_it_does_not_fit_there() -> None:
    """It would fit again where it came from, by leaving out `inner`."""
    source, target = nn.Module(), nn.Module()
    for each in (source, target):
        each.add_module("a", nn.Linear(4, 3))
        each.add_module("rest", nn.Linear(5, 5))
    target.a.add_module("inner", nn.Linear(7, 7))  # type: ignore[union-attr, operator]
    report = transfer_weights(source, target, layer_mapping={"a": "a.inner"}, min_loaded=0)
    assert report.missing == ("a.weight", "a.bias") and not report.rules
    assert [each.key for each in report.mismatched] == ["a.inner.weight", "a.inner.bias"]


def test_names_that_stand_in_each_others_way_end_the_search() -> None:
    """Two layers have changed their places, of which one is inside a third one's name."""
    given = {"0.a": (1,), "0.b": (2,), "0.fc.b": (3,), "fc.x.0.b": (4,), "fc.x.0.c": (5,)}
    own = {"0.a": (1,), "fc.x.0.b": (3,), "0.fc.b": (4,), "0.fc.c": (5,), "0.b": (6,), "fc.b": (7,)}
    assert len(list(solve(given, own, lambda a, b: False))) < 10


def test_a_star_stands_for_a_segment_that_is_there() -> None:
    target = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    report = partial_load(target, target.state_dict(), exclude_patterns="*.*.*", min_loaded=0)
    assert report.excluded == ("1.0.weight", "1.0.bias")


class Counting(nn.Module):
    """It keeps a number beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.count = nn.Parameter(torch.zeros(3)), 0

    def get_extra_state(self) -> int:
        return self.count

    def set_extra_state(self, state: int) -> None:
        self.count = state


def counting(**counts: int) -> Any:
    network = nn.Module()
    for name, count in counts.items():
        network.add_module(name, layer := Counting())
        layer.count = count
        nn.init.constant_(layer.weight, count)
    return network


def test_what_modules_keep_beside_their_tensors_goes_with_them() -> None:
    source = counting(a=1, b=2)
    target = counting(a=0, b=0)
    transfer_weights(source, target, layer_mapping={"a": "b", "b": "a"})
    assert (target.a.count, target.b.count) == (2, 1) and target.b.weight[0] == 1
    target = counting(a=0, c=0)
    report = partial_load(target, source.state_dict(), rename={"b": "c"})
    assert (target.a.count, target.c.count) == (1, 2) and not report.unexpected
    wrapped = {f"net.{key}": value for key, value in source.state_dict().items()}
    target = counting(a=0, b=0)
    partial_load(target, wrapped, prefix="net.", exclude_patterns=["a"])
    assert (target.a.count, target.b.count) == (0, 2) and target.a.weight[0] == 0
    partial_load(target, wrapped, include_patterns=["a"], rename={"net.b": None})
    assert (target.a.count, target.b.count) == (1, 2)


def tiny(**options: Any) -> HybridModel:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.stage = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
            self.fc = nn.Linear(8, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.stage(self.stem(images)).mean((2, 3)))

    return HybridBuilder().from_module(Tiny(), stem="stem", stages=["stage"], head="fc", **options)


def test_class_names_are_those_of_the_head_that_a_tensor_comes_from(tmp_path: Path) -> None:
    one = tiny(class_names=["cat", "dog", "fox"])
    two = tiny(heads={"a": ["dog", "cat", "fox"], "b": ["x", "y"]})
    one.save(tmp_path / "one.safetensors")
    partial_load(two, tmp_path / "one.safetensors", rename={"fc": "fc.a"})
    assert torch.equal(two.fc.a.weight, one.fc.weight[[1, 0, 2]])
    other = tiny(heads={"a": ["y", "x"], "b": ["fox", "cow", "dog"]})
    transfer_weights(two, other, layer_mapping={"fc.a": "fc.b", "fc.b": "fc.a"})
    assert torch.equal(other.fc.a.weight, two.fc.b.weight[[1, 0]])
    assert torch.equal(other.fc.b.weight[[0, 2]], two.fc.a.weight[[2, 0]])
    single = tiny(class_names=["fox", "dog"])
    transfer_weights(two, single, layer_mapping={"fc.a": "fc"})
    assert torch.equal(single.fc.bias, two.fc.a.bias[[2, 0]])


def test_class_names_of_several_heads_are_given_by_head() -> None:
    source = tiny(heads={"a": 3, "b": 2})
    target = tiny(heads={"a": ["dog", "cat", "fox"], "b": ["x", "y"]})
    names = {"a": ["fox", "cat", "dog"], "b": ["y", "x"]}
    partial_load(target, source.state_dict(), class_names=names)
    assert torch.equal(target.fc.a.weight, source.fc.a.weight.flip(0))
    assert torch.equal(target.fc.b.bias, source.fc.b.bias.flip(0))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog", "cat", "fox"], "one list, and the checkpoint fills the heads a, b"),
        ({"a": ["dog", "cat"]}, "2 entries, and 'fc.a.weight' of the checkpoint has 3 outputs"),
        ({"c": ["dog", "cat", "fox"]}, "no tensor of the checkpoint has 'c' in its name"),
        ({"dog": 0, "cat": 1}, "class_names is a list of different names"),
    ],
)
def test_class_names_that_cannot_be_the_checkpoints_are_refused(names: Any, message: str) -> None:
    model = tiny(heads={"a": ["dog", "cat", "fox"], "b": ["x", "y"]})
    with pytest.raises(WeightsError, match=message):
        partial_load(model, model.state_dict(), class_names=names)
    with pytest.raises(WeightsError, match="no effect, since the model has none to match"):
        partial_load(tiny(num_classes=2), tiny(num_classes=2).state_dict(), class_names=["a", "b"])
