"""The conformance kit: every seeded defect is caught by the right check alone, and its healthy twin
passes all.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any
from unittest import SkipTest

import pytest

from tvc_core.specs import Spec
from tvc_core.testing import ConformanceError, checks_of

from .conftest import plugin_of
from .defects import Defect, backbones, blocks, initializers, operations

DEFECTS = [*blocks.DEFECTS, *backbones.DEFECTS, *operations.DEFECTS, *initializers.DEFECTS]
HEALTHY = [*blocks.HEALTHY, *backbones.HEALTHY, *operations.HEALTHY, *initializers.HEALTHY]
SLOW = ("block_compiles", "block_exports", "backbone_exports")
"""They take most of the time, so where another defect is looked for they are left to the sweep."""


def run(plugin: Any, **arguments: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return the messages of the checks that fail, and the reasons of those that are skipped."""
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for check in checks_of(plugin, **arguments):
        try:
            check()
        except ConformanceError as error:
            failed[check.name] = str(error)
        except SkipTest as reason:
            skipped[check.name] = str(reason)
    return failed, skipped


@pytest.mark.parametrize(
    "defect", DEFECTS, ids=lambda defect: f"{defect.thing.kind}: {defect.what}"
)
def test_a_defect_is_caught_by_the_right_check_alone(defect: Defect) -> None:
    if defect.caught_by.endswith("_exports"):
        pytest.importorskip("onnxruntime", reason="only ONNX's runtime sees it")
    skip = {} if defect.caught_by in SLOW else dict.fromkeys(SLOW, "left to the sweep")
    failed, _ = run(
        plugin_of(defect.thing),
        params={"thing": defect.params} if defect.params else None,
        skip=skip,
    )
    assert list(failed) == [defect.caught_by], failed
    message = failed[defect.caught_by]
    assert defect.says in message
    assert re.match(
        rf"{defect.caught_by}: {defect.thing.kind} 'lab:thing': expected .*, saw .*; .*\.$",
        message,
        re.S,
    ), message


@pytest.mark.parametrize("spec", HEALTHY, ids=lambda spec: spec.kind)
def test_the_healthy_twins_pass(spec: Spec) -> None:
    failed, _ = run(plugin_of(spec))
    assert failed == {}


@pytest.mark.sweep
@pytest.mark.parametrize("defect", blocks.DEFECTS, ids=lambda defect: defect.what)
def test_other_defects_of_blocks_compile_and_export(defect: Defect) -> None:
    # Dynamo traces no torch.manual_seed, so this one cannot be compiled either
    caught = {defect.caught_by, *(["block_compiles"] if "sets the seed" in defect.what else [])}
    for check in checks_of(plugin_of(defect.thing)):
        if check.name in SLOW and check.name not in caught:
            with suppress(SkipTest):
                check()
