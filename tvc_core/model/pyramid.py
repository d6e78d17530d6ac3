"""The levels of a backbone's feature pyramid: of all its maps, the last one of each stride."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..surgery.anatomy import STEM, StageInfo, stage_name

__all__ = ["LevelInfo", "levels_of"]

MAPS = ("NCHW", "NHWC", "NLC")


@dataclass(frozen=True, kw_only=True)
class LevelInfo:
    """One level of `HybridModel.pyramid`.

    Args:
        name: its key: "0" is the finest, as in torchvision's detectors.
        part: whose map it is: "stem", "stage 0", ...
        feature: the map is `get_stage_outputs(x)[feature]`.
        channels: of the map [channels].
        stride: side of the image divided by the side of the map [pixels].
    """

    name: str
    part: str
    feature: int
    channels: int
    stride: int


def levels_of(features: Iterable[StageInfo]) -> tuple[LevelInfo, ...]:
    """Return the levels of a pyramid, finest first; a feature that is not a map (a vector, say)
    has no level.

    Args:
        features: what was measured of the stem (its stage is -1) and the stages.
    """
    last = {feature.stride: feature for feature in features if feature.layout in MAPS}
    return tuple(
        LevelInfo(
            name=str(number),
            part=STEM if feature.stage < 0 else stage_name(feature.stage),
            feature=feature.stage + 1,
            channels=feature.channels,
            stride=feature.stride,
        )
        for number, feature in enumerate(last[stride] for stride in sorted(last))
    )
