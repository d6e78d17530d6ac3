"""All first-party plugins pass the conformance kit. `make test` runs small backbones; the sweep
runs them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tvc_core.testing import Check, checks_of

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    f"{file.parent.name}.plugin" for file in (ROOT / "plugins").glob("*/tvc_*/plugin.py")
)
SMALL = ("squeezenet1_1", "mobilenet_v3_small")
EXPORTED = (*SMALL, "efficientnet_lite0")
COMPILED = (
    "conv_bn_act", "deform_conv", "mlp", "drop_block", "group_norm", "frozen_batch_norm",
    "tvc-attention:se", "cbam_block", "mlca", "tvc-adapters:lora",
)  # fmt: skip
LARGE = ("vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_128gf", "regnet_y_32gf")


def cases() -> list[Any]:
    """Return every check of every plugin; those of a backbone stay together, so that one worker has
    it in its memory.
    """
    found = []
    for module in ("tvc_core.builtin", "tvc_core.testing.toy_plugin", *MODULES):
        for check in checks_of(module):
            found.append(
                pytest.param(check, id=f"{module.partition('.')[0]}-{check.id}", marks=marks(check))
            )
    return found


def marks(check: Check) -> list[pytest.MarkDecorator]:
    if check.name in ("block_compiles", "block_exports") and "tvc-kit" not in check.thing:
        # seconds each, and the plugins' own tests compile and export all of theirs
        return [] if any(name in check.thing for name in COMPILED) else [pytest.mark.sweep]
    if not check.name.startswith("backbone_"):
        return []
    name = check.id.partition("-")[0]
    small = EXPORTED if check.name == "backbone_exports" else SMALL
    if name in small or "tvc-kit" in check.thing:
        return []
    return [
        pytest.mark.sweep,
        pytest.mark.timeout(3600),
        pytest.mark.xdist_group("large" if name in LARGE else name),
    ]


def test_there_is_a_plugin_to_check_in_every_distribution_that_offers_one() -> None:
    announced = [
        file
        for file in (ROOT / "plugins").glob("*/pyproject.toml")
        if '[project.entry-points."tvc.plugins"]' in file.read_text()
    ]
    assert len(MODULES) == len(announced) >= 8


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("check", cases())
def test_a_first_party_plugin_conforms(check: Check) -> None:
    check()
