"""What is given in the place of something else gets one error of tvc's that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tvc_core
from tvc_core import HybridBuilder, HybridModel, TvcError


@pytest.fixture(scope="module")
def model() -> HybridModel:
    patches = {"features.3": {"wrap": "se"}}
    return HybridBuilder().from_torchvision("squeezenet1_1", None, patches=patches, num_classes=3)


Case = Callable[[Any], object]
CASES: list[tuple[Case, str]] = [
    (lambda m: m.save(3), "save takes the path of a file, not 3"),
    (lambda m: tvc_core.read_state_dict(None), "takes the path of a file, not None"),  # type: ignore[arg-type]
    (lambda m: tvc_core.describe_file(3), "describe_file takes the path of a file, not 3"),  # type: ignore[arg-type]
    (lambda m: tvc_core.check_header(3), "check_header takes the path of a file, not 3"),  # type: ignore[arg-type]
    (lambda m: tvc_core.load_recipe(3), "read from the path of a YAML file, not 3"),  # type: ignore[arg-type]
    (lambda m: tvc_core.describe_model(nn.Linear(2, 2)), "HybridBuilder made, not Linear"),  # type: ignore[arg-type]
    (lambda m: m.unpatch(3), "a target is the path of a module, or a pattern, not 3"),
    (lambda m: m.without(3).__enter__(), "a target is the path of a module, or a pattern, not 3"),
    (lambda m: m.set_grad_checkpointing("no"), "enable is True or False, not 'no'"),
    (lambda m: m.load_freeze_state({"head": "all"}), r"num_stages, not \{'head': 'all'\}"),
    (lambda m: tvc_core.partial_load(m.state_dict(), m), r"is a model, not .*partial_load\(model"),
    (lambda m: tvc_core.partial_load(None, m), "what partial_load fills is a model, not None"),  # type: ignore[arg-type]
    (lambda m: tvc_core.transfer_weights(m, None), "the target of .* is a model, not None"),  # type: ignore[arg-type]
    (lambda m: tvc_core.transfer_weights(m.state_dict(), m), "the source of .* is a model, not"),
]


@pytest.mark.parametrize(("call", "message"), CASES)
def test_what_is_no_such_thing_is_named(call: Case, message: str, model: HybridModel) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TvcError, match=message):
        call(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
