"""A replacement gets the map as it is, so it must take the layout there: a shape may fit by chance
at one image size.
"""

from __future__ import annotations

import pytest

from tvc_core import HybridBuilder, Registry, TargetError
from tvc_core.testing import toy_plugin


@pytest.fixture
def builder() -> HybridBuilder:
    return HybridBuilder(registry=Registry([toy_plugin], installed=False))


def test_a_block_for_maps_is_refused_where_channels_are_last(builder: HybridBuilder) -> None:
    # the measuring image is 64x96, so the map of 16 channels there is [1, 16, 24, 16]: axis 1 has
    # the size of the channels
    with pytest.raises(
        TargetError,
        match=r"gate cannot take the place of 'stage1\.0\.act' .*\[1, 16, 24, 16\] \(NHWC\)",
    ):
        builder.from_backbone(
            "channels_last", weights=None, patches={"stage1.0.act": {"replace": "gate"}}
        )


def test_a_block_for_maps_is_refused_where_tokens_are(builder: HybridBuilder) -> None:
    with pytest.raises(TargetError, match=r"\(NLC\), and gate takes NCHW"):
        builder.from_backbone("tokens", weights=None, patches={"layers.0": {"replace": "gate"}})


def test_a_block_takes_a_place_of_its_layout(builder: HybridBuilder) -> None:
    model = builder.from_backbone("maps", weights=None, patches={"layer2.1": {"replace": "gate"}})
    assert type(model.get_submodule("layer2.1")).__name__ == "Gate"
